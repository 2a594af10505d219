//! What nobody changes while data are moved: the link that is moved, the provider it comes from, and who has the bucket they
//! go to. A revision that sends the app elsewhere meanwhile, or another link there, would take writes that the copy then
//! replaces by older ones.

use api::problem::Code;
use model::app::{LockedApp, ProviderSpec};
use model::{Link, ProviderName};

use crate::http::Refusal;
use crate::place::{Place, goes_to, spec};
use crate::writer::Planned;

/// Links whose data are being moved.
#[derive(Debug, Clone)]
pub(crate) struct Moved {
    link: Link,
    with: Vec<Link>,
    place: Option<Place>,
    from: ProviderSpec,
    to: (ProviderName, ProviderSpec),
}

impl Moved {
    pub(crate) fn of(planned: &Planned) -> Self {
        Self {
            link: planned.link.clone(),
            with: planned.with.clone(),
            place: planned.place.clone(),
            from: planned.from.1.clone(),
            to: planned.to.clone(),
        }
    }

    /// Why `next` cannot become what the app is now.
    ///
    /// # Errors
    /// [`Code::Conflict`], where it has another link, or another provider behind it, or one more link where the data go.
    pub(crate) fn check(&self, next: &LockedApp) -> Result<(), Refusal> {
        let link = &self.link;
        let provider = spec(next, &link.provider);
        let stay = self.with.iter().chain([link]).all(|link| next.links.contains(link));
        let why = if !stay || provider.as_ref() != Some(&self.from) {
            format!("change the link of `{}` to `{}`", link.component, link.contract)
        } else if let Some(other) = self.comes(next) {
            format!("let the link `{}` of `{}` write where they go", other.label, other.component)
        } else {
            return Ok(());
        };
        let what = format!(
            "data of `{}` are being moved from `{}` to `{}`, and this would {why}",
            next.name, link.provider, self.to.0
        );
        Err(Refusal::new(Code::Conflict, what).help(format!(
            "wait for the end of the move, or cancel it: `DELETE /v1/tenants/TENANT/apps/{}/copy`",
            next.name
        )))
    }

    /// A link of `next` that reaches what is being filled. One at the source may come: it is taken along, or refused, before
    /// the calls wait.
    fn comes<'a>(&self, next: &'a LockedApp) -> Option<&'a Link> {
        let place = self.place.as_ref()?;
        next.links.iter().find(|other| {
            let moves = **other == self.link || self.with.contains(other);
            let there = other.contract == self.link.contract && goes_to(next, other, (&self.to.0, &self.to.1));
            !moves && there && Place::of(next, other).is_some_and(|reached| place.meets(&reached))
        })
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
        let link = now.links[0].clone();
        let place = Place::of(&now, &link);
        let to: ProviderName = "embedded".parse().unwrap();
        let to = (to.clone(), spec(&now, &to).unwrap());
        let moved = Moved { link, with: vec![], place, from, to };
        let mut other = now.clone();
        other.version = Some("2".to_owned());
        assert!(moved.check(&other).is_ok());
        for elsewhere in [
            app("memory", "b", 1),
            app("redis", "c", 1),
            app("redis", "b", 2),
            LockedApp { links: vec![], ..now.clone() },
        ] {
            assert_eq!(moved.check(&elsewhere).unwrap_err().problem.code, Code::Conflict);
        }
        let second = |provider: &str, bucket: &str| {
            let mut next = now.clone();
            let mut link = next.links[0].clone();
            (link.component, link.provider) = ("index".parse().unwrap(), provider.parse().unwrap());
            link.config.insert("bucket".to_owned(), bucket.to_owned());
            next.links.push(link);
            next
        };
        let problem = moved.check(&second("embedded", "b")).unwrap_err().problem;
        assert!(problem.code == Code::Conflict && problem.detail.contains("`index`"), "{problem}");
        for beside in [second("embedded", "c"), second("memory", "b"), second("redis", "b")] {
            assert!(moved.check(&beside).is_ok(), "{:?}", beside.links);
        }
    }
}
