//! Which addresses a tenant's connections may reach: pure, decided on the address that is dialled.
//!
//! A dial goes through three steps that cannot be taken out of order: [`Destination::parse`] (an address or a name,
//! never something a resolver might read as an address), resolution by the node, and [`Policy::decide`] over *all*
//! addresses the name has. Public addresses are open, everything else is closed unless the operator granted it.

mod address;
mod allowed;
mod destination;
mod policy;
mod range;

pub use address::{Class, classify};
pub use allowed::{AllowedHost, Transport};
pub use destination::{Destination, DestinationError};
pub use policy::{Cidr, CidrError, Denied, Grant, Policy, endpoint_of};
pub use range::{Range, RangeError};

#[cfg(test)]
mod tests;
