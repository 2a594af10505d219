//! Which addresses a tenant's connections may reach: pure, decided on the address that is dialled.
