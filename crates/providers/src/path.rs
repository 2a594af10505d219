//! The part of a path that a platform engineer writes in a setting: a mount, a prefix, a namespace. Names between `/`,
//! and nothing that a server could read as something else.

use std::fmt;

use crate::http_json::SettingsError;

/// The most bytes.
const MAX: usize = 256;

/// One or more names with `/` between them and none at the ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segments(String);

impl Segments {
    /// The path in the setting `name`.
    ///
    /// # Errors
    /// [`SettingsError::Value`].
    pub(crate) fn setting(name: &'static str, text: &str) -> Result<Self, SettingsError> {
        let path = text.trim_matches('/');
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && !part.contains("..")
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if path.len() <= MAX && path.split('/').all(plain) {
            return Ok(Self(path.to_owned()));
        }
        let why = "is a path of letters, digits, `-`, `_` and `.`, for example `apps/kv`".to_owned();
        Err(SettingsError::Value { name, why })
    }
}

impl fmt::Display for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_a_path() {
        for (text, path) in [("secret", "secret"), ("/apps/kv-2/", "apps/kv-2"), ("a.b/c_d", "a.b/c_d")] {
            assert_eq!(Segments::setting("mount", text).unwrap().to_string(), path);
        }
        for bad in
            ["", "/", "a//b", "..", "a/../b", "a/.b", "a..b", "a b", "a?b", "a%2fb", "a#b", "ä", &"a".repeat(257)]
        {
            assert!(Segments::setting("mount", bad).is_err(), "{bad}");
        }
    }
}
