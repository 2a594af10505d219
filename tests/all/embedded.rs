//! The embedded key-value provider against the suite that every key-value backend passes, over a real node socket.
