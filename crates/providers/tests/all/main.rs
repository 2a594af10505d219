//! Providers against real servers and real components.

mod components;
mod http_out;
mod keyvalue;
mod support;
