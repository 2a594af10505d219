//! A whole host on its own thread, against a node made by the test: real sockets, real compiled code, real components.

mod calls;
mod lifecycle;
mod links;
mod logs;
mod node;
mod rig;
