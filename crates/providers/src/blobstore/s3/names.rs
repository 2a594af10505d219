//! What an object is called in the bucket: `<tenant>/<app>/<provider>/<container>/objects/<name>`. Tenant, app and provider
//! are typed names, which cannot hold a `/`, and a container's name has none left, so no two of anything meet. A name
//! stays readable: only what would be another path, and the sign that says so, is escaped.

use model::{AppName, ProviderName, TenantName};
use object_store::path::Path;

use crate::blobstore::BackendError;

/// The longest key of S3, bytes.
const MAX_KEY: usize = 1024;

/// Where one app's containers are.
#[derive(Debug, Clone)]
pub(super) struct Prefix(String);

impl Prefix {
    pub(super) fn new(tenant: &TenantName, app: &AppName, provider: &ProviderName) -> Self {
        Self(format!("{tenant}/{app}/{provider}"))
    }

    /// All of them.
    pub(super) fn all(&self) -> Result<Path, BackendError> {
        path(self.0.clone())
    }

    /// What says that a container is there.
    pub(super) fn marker(&self, container: &str) -> Result<Path, BackendError> {
        path(format!("{}/{}/container", self.0, escape(container, true)))
    }

    /// Where a container's objects are.
    pub(super) fn objects(&self, container: &str) -> Result<Path, BackendError> {
        path(format!("{}/{}/objects", self.0, escape(container, true)))
    }

    /// One object.
    pub(super) fn object(&self, container: &str, object: &str) -> Result<Path, BackendError> {
        path(format!("{}/{}/objects/{}", self.0, escape(container, true), escape(object, false)))
    }

    /// The name of the container at `place`; `None` where nobody here made one.
    pub(super) fn container(&self, place: &Path) -> Option<String> {
        let escaped = place.as_ref().strip_prefix(&format!("{}/", self.0))?;
        unescape(escaped).filter(|name| escape(name, true) == escaped)
    }

    /// What lists a container from behind `key` on; it need not be the key of an object that anybody here wrote.
    pub(super) fn cursor<'k>(&self, container: &str, key: &'k Path) -> Option<&'k str> {
        key.as_ref().strip_prefix(&format!("{}/{}/objects/", self.0, escape(container, true)))
    }

    /// The key that a cursor stands for.
    pub(super) fn key(&self, container: &str, cursor: &str) -> Result<Path, BackendError> {
        path(format!("{}/{}/objects/{cursor}", self.0, escape(container, true)))
    }

    /// The name of the object at `key`; `None` for one that is not in the container, or that nobody here wrote.
    pub(super) fn name(&self, container: &str, key: &Path) -> Option<String> {
        let escaped = self.cursor(container, key)?;
        unescape(escaped).filter(|name| escape(name, false) == escaped)
    }
}

fn path(key: String) -> Result<Path, BackendError> {
    if key.len() > MAX_KEY {
        let why =
            format!("S3 keys have at most {MAX_KEY} bytes, this object's would have {}: shorten its name", key.len());
        return Err(BackendError::TooLarge(why));
    }
    Path::parse(key).map_err(|cause| BackendError::Misuse(format!("S3 cannot have this name: {cause}")))
}

/// Escapes `%`, every `/` of `one_part` names, and else each `/` that has nothing before or after it, and parts that are
/// only dots.
fn escape(name: &str, one_part: bool) -> String {
    let mut out = String::with_capacity(name.len() + 8);
    for (n, part) in name.split('/').enumerate() {
        if n > 0 {
            // An empty part is no part: its slashes are letters of its neighbours.
            let real = !one_part && !part.is_empty() && !out.is_empty() && !out.ends_with("%2F");
            out.push_str(if real { "/" } else { "%2F" });
        }
        let dots = part == "." || part == "..";
        for c in part.chars() {
            match c {
                '%' => out.push_str("%25"),
                '.' if dots => out.push_str("%2E"),
                c => out.push(c),
            }
        }
    }
    out
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let hex = [bytes.next()?, bytes.next()?];
        out.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn prefix() -> Prefix {
        Prefix::new(&"acme".parse().unwrap(), &"shop".parse().unwrap(), &"store".parse().unwrap())
    }

    #[test]
    fn every_name_is_a_key_of_its_own_and_comes_back() {
        let mut seen = BTreeMap::new();
        let pieces = ["", "a", "/", "//", ".", "..", "%", "%2F", "%2f", "ü", "b/", "/b", " "];
        for first in pieces {
            for second in pieces {
                for third in pieces {
                    let name = [first, second, third].concat();
                    if name.is_empty() {
                        continue;
                    }
                    let key = prefix().object("c", &name).unwrap();
                    assert_eq!(prefix().name("c", &key).as_deref(), Some(name.as_str()), "{key}");
                    let other = seen.insert(key.to_string(), name.clone());
                    let place =
                        Path::parse(prefix().marker(&name).unwrap().as_ref().strip_suffix("/container").unwrap());
                    assert_eq!(prefix().container(&place.unwrap()).as_deref(), Some(name.as_str()));
                    assert!(other.as_ref().is_none_or(|other| *other == name), "{key}: {other:?} and {name:?}");
                }
            }
        }
    }

    #[test]
    fn names_stay_readable_and_containers_are_one_part() {
        let key = |container: &str, object: &str| prefix().object(container, object).unwrap().to_string();
        assert_eq!(key("c", "photos/2026/a b.jpg"), "acme/shop/store/c/objects/photos/2026/a b.jpg");
        assert_eq!(key("a/b", "../x"), "acme/shop/store/a%2Fb/objects/%2E%2E/x");
        assert_eq!(key("..", "a//b/"), "acme/shop/store/%2E%2E/objects/a%2F%2Fb%2F");
        assert!(prefix().object("c", &"%".repeat(400)).is_err(), "above what S3 can name");
    }
}
