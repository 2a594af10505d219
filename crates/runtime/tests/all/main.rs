//! The runtime seen from outside.
