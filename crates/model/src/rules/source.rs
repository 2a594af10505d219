//! Where the secrets of a provider come from: the tenant's own store, or a provider that keeps secrets. What such a provider
//! logs in with is in the own store, so that no chain of sources ends in itself.

use std::collections::BTreeMap;

use crate::app::{LockedApp, ProviderKind, ProviderSpec};
use crate::name::ProviderName;
use crate::rules::provider::built_in;
use crate::rules::{Code, Found, Subject, Unknown, Violation, list};
use crate::secret::{CONTRACT, SecretRef};

/// Whether a setting of some provider of the app names this one as the source of its secret.
pub(crate) fn is_named(app: &LockedApp, name: &ProviderName) -> bool {
    app.providers.values().flat_map(|spec| spec.secrets.values()).any(|secret| secret.from.as_ref() == Some(name))
}

/// Checks the references of one provider of an app.
pub(crate) fn check(
    app: &LockedApp,
    name: &ProviderName,
    spec: &ProviderSpec,
    unknown: &Unknown,
    out: &mut Vec<Found>,
) {
    for (key, reference) in &spec.secrets {
        // The source could not be read; it has a finding of its own.
        if reference.from.as_ref().is_some_and(|from| unknown.providers.contains(from.as_str())) {
            continue;
        }
        if let Some(violation) = problem(&app.providers, name, spec, key, reference) {
            out.push(Found::at(Subject::ProviderValue(name.clone(), key.clone()), violation));
        }
    }
}

/// What is wrong with the sources of the operator's providers of a tenant.
pub fn problems(providers: &BTreeMap<ProviderName, ProviderSpec>) -> Vec<Violation> {
    let references = providers.iter().flat_map(|(name, spec)| {
        // Settings as they arrive do not say so of themselves.
        let spec = ProviderSpec { operator: true, ..spec.clone() };
        let found = spec.secrets.iter().map(|(key, reference)| {
            let source = reference.from.as_ref().and_then(|from| providers.get(from));
            let source = source.map(|source| ProviderSpec { operator: true, ..source.clone() });
            let known = reference.from.clone().zip(source).into_iter().collect();
            problem(&known, name, &spec, key, reference)
        });
        found.collect::<Vec<_>>()
    });
    references.flatten().collect()
}

fn problem(
    providers: &BTreeMap<ProviderName, ProviderSpec>,
    name: &ProviderName,
    spec: &ProviderSpec,
    key: &str,
    reference: &SecretRef,
) -> Option<Violation> {
    let what = format!("the `{key}` of provider `{name}`");
    let bad = |message: String, help: &str| Some(Violation::new(Code::SecretSource, message).help(help));
    let Some(from) = &reference.from else {
        return match &reference.field {
            Some(_) => bad(
                format!("{what} names a field, and secrets of the tenant's own store have one value and no fields"),
                "remove `field`, or name the provider that keeps the secret with `from`",
            ),
            None => None,
        };
    };
    if from == name {
        return bad(
            format!("{what} is to come from `{from}` itself, which needs it before it can be asked for anything"),
            "keep it in the tenant's own store with `sidereal secret set`, and remove `from`",
        );
    }
    let Some(source) = providers.get(from).cloned().or_else(|| built_in(from.as_str())) else {
        let sources: Vec<&str> = providers
            .iter()
            .filter(|(_, spec)| spec.contracts().contains(&CONTRACT))
            .map(|(name, _)| name.as_str())
            .collect();
        let message = format!("{what} is to come from `{from}`, and there is no such provider");
        return match &sources[..] {
            [] => bad(
                message,
                &format!("declare it: `[providers.{from}]` with `type = \"secrets-vault\"`, or remove `from`"),
            ),
            sources => bad(message, &format!("`from` may be {}, or absent", list(sources))),
        };
    };
    if source.kind == ProviderKind::Component {
        return bad(
            format!(
                "{what} is to come from `{from}`, which is a component, and settings of providers are read where no call of a component is under way"
            ),
            "name a provider of type `secrets-vault`, or remove `from` and keep it with `sidereal secret set`",
        );
    }
    if !source.contracts().contains(&CONTRACT) {
        let message =
            format!("{what} is to come from `{from}`, which is a `{}` and keeps no secrets", source.kind.as_str());
        return bad(message, "name a provider of type `secrets-vault`, or remove `from`");
    }
    if spec.kind == ProviderKind::External && !reference.is_own() {
        return bad(
            format!(
                "{what} is to come from `{from}`; the program of an external provider is handed secrets of the tenant's own store"
            ),
            "keep it there with `sidereal secret set`, and remove `from`",
        );
    }
    if spec.contracts().contains(&CONTRACT) && source.kind != ProviderKind::SecretsEmbedded {
        return bad(
            format!(
                "{what} is to come from `{from}`; what a provider of secrets logs in with is in the tenant's own store"
            ),
            "keep it there with `sidereal secret set`, and remove `from`",
        );
    }
    if spec.operator && !source.operator && built_in(from.as_str()).is_none() {
        return bad(
            format!(
                "{what}, which the operator declares, is to come from `{from}`, which the operator does not declare"
            ),
            "have the operator declare the source too",
        );
    }
    if source.kind == ProviderKind::SecretsEmbedded && reference.field.is_some() {
        return bad(
            format!("{what} names a field, and secrets of `{from}` have one value and no fields"),
            "remove `field`",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: ProviderKind, from: Option<&str>, field: Option<&str>) -> ProviderSpec {
        let from = from.map(|from| from.parse().unwrap());
        let field = field.map(|field| field.parse().unwrap());
        let reference = SecretRef { from, field, ..SecretRef::new("x".parse().unwrap()) };
        ProviderSpec { secrets: [("token".to_owned(), reference)].into(), ..ProviderSpec::new(kind) }
    }

    fn said(providers: &[(&str, ProviderSpec)]) -> Vec<String> {
        let providers = providers.iter().map(|(name, spec)| (name.parse().unwrap(), spec.clone())).collect();
        problems(&providers).into_iter().map(|violation| violation.message).collect()
    }

    #[test]
    fn a_source_is_there_keeps_secrets_and_needs_no_source_itself() {
        use ProviderKind::{Component, KeyvalueRedis as Redis, SecretsVault as Vault};
        let vault = ("vault", spec(Vault, None, None));
        assert_eq!(said(&[vault.clone(), ("cache", spec(Redis, Some("vault"), Some("password")))]), [""; 0]);
        assert_eq!(said(&[("cache", spec(Redis, Some("secrets"), None))]), [""; 0]);
        for (providers, words) in [
            (vec![("vault", spec(Vault, Some("vault"), None))], "from `vault` itself"),
            (vec![vault.clone(), ("other", spec(Vault, Some("vault"), None))], "in the tenant's own store"),
            (vec![("cache", spec(Redis, Some("vault"), None))], "no such provider"),
            (vec![("a", spec(Redis, None, None)), ("b", spec(Redis, Some("a"), None))], "keeps no secrets"),
            (vec![("a", spec(Component, None, None)), ("b", spec(Redis, Some("a"), None))], "which is a component"),
            (vec![("cache", spec(Redis, None, Some("password")))], "no fields"),
            (vec![("cache", spec(Redis, Some("secrets"), Some("password")))], "no fields"),
        ] {
            let said = said(&providers);
            assert!(said.len() == 1 && said[0].contains(words), "{words}: {said:?}");
        }
    }

    #[test]
    fn what_the_operator_declares_does_not_ask_an_app() {
        let providers = [("vault".parse().unwrap(), spec(ProviderKind::SecretsVault, None, None))].into();
        let mut cache = spec(ProviderKind::KeyvalueRedis, Some("vault"), None);
        let asked = |cache: &ProviderSpec| {
            problem(&providers, &"cache".parse().unwrap(), cache, "token", &cache.secrets["token"])
        };
        assert_eq!(asked(&cache), None);
        cache.operator = true;
        assert!(asked(&cache).unwrap().message.contains("the operator does not declare"));
    }
}
