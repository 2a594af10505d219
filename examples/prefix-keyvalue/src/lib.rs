//! A provider of `wasi:keyvalue` that is a component: it puts a prefix before every key and passes the call on to its own
//! link.

use keyvalue_provider::{Provider, Result, config, export};

struct Prefix(String);

impl Provider for Prefix {
    fn open(_: &str) -> Result<Self> {
        config("prefix").map(Self)
    }

    fn key(&self, key: &str) -> Result<String> {
        Ok(format!("{}{key}", self.0))
    }

    fn own(&self, key: String) -> Option<String> {
        key.strip_prefix(&self.0).map(str::to_owned)
    }
}

export!(Prefix);
