//! Names in NATS for containers and objects of ours. A container is the bucket `<tenant>_<app>_<provider>_<container>`, of
//! which the first three are typed names that hold no `_`; a name of an object is base64 in a subject, as every client writes it.

use data_encoding::BASE64URL;
use model::{AppName, ProviderName, TenantName};

use crate::keyvalue::nats::names::spelled;

/// The longest name of a bucket: a server takes names of streams of up to 255 bytes.
const MAX_BUCKET: usize = 240;

/// The bucket of a container; `None` for one whose name would be too long.
pub(super) fn bucket(tenant: &TenantName, app: &AppName, provider: &ProviderName, container: &str) -> Option<String> {
    let mut name = format!("{tenant}_{app}_{provider}_");
    spelled(&mut name, container);
    (name.len() <= MAX_BUCKET).then_some(name)
}

/// The last part of the subject of an object's description.
pub(super) fn object(name: &str) -> String {
    BASE64URL.encode(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_of_two_providers_never_meet() {
        let name = |tenant: &str, app: &str, provider: &str, container: &str| {
            bucket(&tenant.parse().unwrap(), &app.parse().unwrap(), &provider.parse().unwrap(), container)
        };
        assert_eq!(name("acme", "shop", "objects", "photos-1").as_deref(), Some("acme_shop_objects_photos-1"));
        assert_eq!(name("acme", "shop", "objects", "a_b/.c").as_deref(), Some("acme_shop_objects_a_5Fb_2F_2Ec"));
        assert_ne!(name("a", "b", "c-d", "e"), name("a", "b-c", "d", "e"));
        assert_ne!(name("a", "b", "c", "d_e"), name("a", "b", "c", "d_5Fe"));
        assert_eq!(name("a", "b", "c", &"x".repeat(250)), None);
    }

    #[test]
    fn names_of_objects_are_as_the_official_clients_write_them() {
        assert_eq!(object("a/b c"), "YS9iIGM=");
        assert_eq!(object("???>>>"), "Pz8_Pj4-");
    }
}
