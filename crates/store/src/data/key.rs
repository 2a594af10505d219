//! Where a tenant's key lies in the one table: `tenant/app/provider/` then the bucket with its length before it, then
//! the key. Names have no `/` and a length has two bytes, so no bucket or key can be taken for part of another scope,
//! and all keys of a bucket lie together in their own order.

use std::ops::Bound;

use model::{AppName, ProviderName, TenantName};

use super::op::{Fault, MAX_BUCKET, MAX_KEY};

/// Stored keys from one to another.
pub(super) type Range = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// The common beginning of all keys of one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scope(Vec<u8>);

impl Scope {
    /// Refuses a bucket name that is too long.
    pub(super) fn new(
        tenant: &TenantName,
        app: &AppName,
        provider: &ProviderName,
        bucket: &str,
    ) -> Result<Self, Fault> {
        let length = u16::try_from(bucket.len()).ok().filter(|length| usize::from(*length) <= MAX_BUCKET);
        let Some(length) = length else {
            return Err(Fault::TooLarge(format!(
                "the bucket name has {} bytes; at most {MAX_BUCKET} are allowed",
                bucket.len()
            )));
        };
        let mut bytes = format!("{tenant}/{app}/{provider}/").into_bytes();
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(bucket.as_bytes());
        Ok(Self(bytes))
    }

    /// Where `key` lies. Refuses a key that is too long.
    pub(super) fn key(&self, key: &str) -> Result<Vec<u8>, Fault> {
        if key.len() > MAX_KEY {
            return Err(Fault::TooLarge(format!("the key has {} bytes; at most {MAX_KEY} are allowed", key.len())));
        }
        Ok(self.join(key))
    }

    /// The keys of this bucket after `cursor`.
    pub(super) fn after(&self, cursor: Option<&str>) -> Range {
        let start = match cursor {
            Some(cursor) => Bound::Excluded(self.join(cursor)),
            None => Bound::Included(self.0.clone()),
        };
        (start, end_of(&self.0))
    }

    /// All keys of this bucket.
    pub(super) fn all(&self) -> Range {
        self.after(None)
    }

    /// The caller's key in a stored one of this bucket.
    pub(super) fn strip<'a>(&self, stored: &'a [u8]) -> Option<&'a str> {
        stored.strip_prefix(self.0.as_slice()).and_then(|key| std::str::from_utf8(key).ok())
    }

    fn join(&self, key: &str) -> Vec<u8> {
        [self.0.as_slice(), key.as_bytes()].concat()
    }
}

/// All keys of an app, or of one of its providers.
pub(super) fn of_app(tenant: &TenantName, app: &AppName, provider: Option<&ProviderName>) -> Range {
    let provider = provider.map_or_else(String::new, |provider| format!("{provider}/"));
    let prefix = format!("{tenant}/{app}/{provider}").into_bytes();
    let end = end_of(&prefix);
    (Bound::Included(prefix), end)
}

/// The bucket that a stored key of this provider is in, and the keys of the provider behind that bucket.
pub(super) fn bucket(of_provider: &Range, stored: &[u8]) -> Option<(String, Range)> {
    let (Bound::Included(prefix), end) = of_provider else { return None };
    let (length, rest) = stored.strip_prefix(prefix.as_slice())?.split_first_chunk::<2>()?;
    let bucket = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
    let behind = match end_of(&[prefix.as_slice(), length, bucket].concat()) {
        Bound::Excluded(first) => Bound::Included(first),
        other => other,
    };
    Some((std::str::from_utf8(bucket).ok()?.to_owned(), (behind, end.clone())))
}

/// All keys of a tenant.
pub(super) fn of_tenant(tenant: &TenantName) -> Range {
    let prefix = format!("{tenant}/").into_bytes();
    let end = end_of(&prefix);
    (Bound::Included(prefix), end)
}

/// The first bytes after all that begin with `prefix`.
fn end_of(prefix: &[u8]) -> Bound<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Bound::Excluded(end);
        }
    }
    Bound::Unbounded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Place = (String, String, String, String, String);

    /// Names that try to be each other and buckets that try to be anything.
    fn place() -> impl Strategy<Value = Place> {
        let name = || prop_oneof!["[ab]{1,3}", "[a-z0-9]([a-z0-9-]{0,6}[a-z0-9])?"];
        let text = || {
            prop_oneof![
                "[ab/\0\u{1}]{0,4}",
                Just("a/b/c/\0\u{1}x".to_owned()),
                "\\PC{0,20}",
                any::<String>().prop_filter("limit", |text| text.len() <= MAX_BUCKET),
            ]
        };
        (name(), name(), name(), text(), text())
    }

    fn stored((tenant, app, provider, bucket, key): &Place) -> (Scope, Vec<u8>) {
        let scope =
            Scope::new(&tenant.parse().unwrap(), &app.parse().unwrap(), &provider.parse().unwrap(), bucket).unwrap();
        let key = scope.key(key).unwrap();
        (scope, key)
    }

    fn within(range: &(Bound<Vec<u8>>, Bound<Vec<u8>>), key: &Vec<u8>) -> bool {
        std::ops::RangeBounds::<Vec<u8>>::contains(range, key)
    }

    proptest! {
        #[test]
        fn two_places_share_a_key_only_if_they_are_one(a in place(), b in place()) {
            prop_assert_eq!(stored(&a).1 == stored(&b).1, a == b);
        }

        #[test]
        fn a_listing_and_a_purge_see_their_own_keys_and_no_others(a in place(), b in place()) {
            let (scope, own) = stored(&a);
            let (_, other) = stored(&b);
            prop_assert!(within(&scope.after(None), &own));
            prop_assert_eq!(scope.strip(&own), Some(a.4.as_str()));
            let same_bucket = (&a.0, &a.1, &a.2, &a.3) == (&b.0, &b.1, &b.2, &b.3);
            prop_assert_eq!(within(&scope.after(None), &other), same_bucket);
            let (tenant, app, provider) = (a.0.parse().unwrap(), a.1.parse().unwrap(), a.2.parse().unwrap());
            let whole = of_app(&tenant, &app, None);
            prop_assert_eq!(within(&whole, &other), (&a.0, &a.1) == (&b.0, &b.1));
            let part = of_app(&tenant, &app, Some(&provider));
            prop_assert_eq!(within(&part, &other), (&a.0, &a.1, &a.2) == (&b.0, &b.1, &b.2));
        }

        #[test]
        fn a_stored_key_tells_its_bucket(a in place(), b in place()) {
            let (scope, own) = stored(&a);
            let (_, other) = stored(&b);
            let (tenant, app, provider) = (a.0.parse().unwrap(), a.1.parse().unwrap(), a.2.parse().unwrap());
            let part = of_app(&tenant, &app, Some(&provider));
            let (found, behind) = bucket(&part, &own).unwrap();
            prop_assert_eq!(found, a.3.as_str());
            prop_assert!(!within(&behind, &own));
            let is_behind = within(&part, &other) && !within(&scope.all(), &other) && other > own;
            prop_assert_eq!(within(&behind, &other), is_behind);
        }

        #[test]
        fn a_cursor_goes_on_after_its_key(a in place(), next in any::<String>()) {
            let (scope, _) = stored(&a);
            let next_key = scope.join(&next);
            prop_assert_eq!(within(&scope.after(Some(&a.4)), &next_key), next > a.4);
        }
    }

    #[test]
    fn limits_are_exact() {
        let scope =
            |bucket: String| Scope::new(&"t".parse().unwrap(), &"a".parse().unwrap(), &"p".parse().unwrap(), &bucket);
        assert!(scope("b".repeat(MAX_BUCKET)).is_ok());
        assert!(matches!(scope("b".repeat(MAX_BUCKET + 1)), Err(Fault::TooLarge(_))));
        assert!(matches!(scope("b".repeat(70_000)), Err(Fault::TooLarge(_))));
        let scope = scope(String::new()).unwrap();
        assert!(scope.key(&"k".repeat(MAX_KEY)).is_ok());
        assert!(matches!(scope.key(&"k".repeat(MAX_KEY + 1)), Err(Fault::TooLarge(_))));
    }
}
