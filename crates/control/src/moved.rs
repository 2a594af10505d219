//! What nobody changes while data are moved: the link that is moved, and the provider it comes from. A revision that sends
//! the app elsewhere meanwhile would take writes that the copy then replaces by older ones.

use api::problem::Code;
use model::app::{LockedApp, ProviderSpec};
use model::rules::provider::built_in;
use model::{Link, ProviderName};

use crate::http::Refusal;
use crate::writer::Planned;

/// A link whose data are being moved.
#[derive(Debug, Clone)]
pub(crate) struct Moved {
    link: Link,
    from: ProviderSpec,
    to: ProviderName,
}

impl Moved {
    pub(crate) fn of(planned: &Planned) -> Self {
        Self { link: planned.link.clone(), from: planned.from.1.clone(), to: planned.to.0.clone() }
    }

    /// Why `next` cannot become what the app is now.
    ///
    /// # Errors
    /// [`Code::Conflict`], where it has another link, or another provider behind it.
    pub(crate) fn check(&self, next: &LockedApp) -> Result<(), Refusal> {
        let link = &self.link;
        let provider = next.providers.get(&link.provider).cloned().or_else(|| built_in(link.provider.as_str()));
        if next.links.contains(link) && provider.as_ref() == Some(&self.from) {
            return Ok(());
        }
        let what = format!(
            "data of `{}` are being moved from `{}` to `{}`, and this would change the link of `{}` to `{}`",
            next.name, link.provider, self.to, link.component, link.contract
        );
        Err(Refusal::new(Code::Conflict, what).help("wait for the end of the move, or cancel it (`DELETE …/copy`)"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_link_and_the_provider_behind_it_stay_and_nothing_else() {
        let app = |provider: &str, bucket: &str, port: u16| -> LockedApp {
            let spec = json!({ "type": "keyvalue-redis", "config": { "url": format!("redis://127.0.0.1:{port}") } });
            let link = json!({ "component": "main", "contract": "wasi:keyvalue", "label": "default",
                "provider": provider, "config": { "bucket": bucket } });
            let app = json!({ "name": "a", "components": {}, "links": [link], "providers": { "redis": spec } });
            serde_json::from_value(app).unwrap()
        };
        let now = app("redis", "b", 1);
        let from = now.providers.values().next().unwrap().clone();
        let moved = Moved { link: now.links[0].clone(), from, to: "embedded".parse().unwrap() };
        let mut other = now.clone();
        other.version = Some("2".to_owned());
        assert!(moved.check(&other).is_ok());
        for elsewhere in
            [app("memory", "b", 1), app("redis", "c", 1), app("redis", "b", 2), LockedApp { links: vec![], ..now }]
        {
            assert_eq!(moved.check(&elsewhere).unwrap_err().problem.code, Code::Conflict);
        }
    }
}
