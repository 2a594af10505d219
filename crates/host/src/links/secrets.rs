//! Opens the providers of `wasmcloud:secrets` and gives components the secrets that their links name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use model::unit::Millis;
use model::{AppName, Link, LockedApp, ProviderKind, ProviderName};
use providers::meter::LinkMeter;
use providers::secrets::external::External;
use providers::secrets::vault::{Engine, Scope, Settings, VaultSecrets};
use providers::secrets::{LinkedSecret, Resolver, SecretLinks};
use providers::vault::FromSecrets;

use super::{Backing, Means, Opened, Wanted};
use crate::error::StartError;

/// How often Vault is asked again where the settings do not say it.
const REFRESH: Duration = Duration::from_secs(10);
/// How long a value is used while Vault cannot be asked, where the settings do not say it.
const LEASE: Duration = Duration::from_secs(3600);

/// One provider of secrets of an app.
pub(crate) struct Source {
    app: AppName,
    resolver: Arc<dyn Resolver>,
    server: Server,
}

/// What can be asked whether it is there.
enum Server {
    /// The node, which is.
    None,
    Vault(Arc<VaultSecrets>),
    External(Arc<External>),
}

impl Source {
    pub(super) async fn check(&self) -> Result<(), String> {
        match &self.server {
            Server::None => Ok(()),
            Server::Vault(vault) => vault.check().await.map_err(|cause| cause.to_string()),
            Server::External(external) => external.check().await.map_err(|cause| cause.to_string()),
        }
    }

    pub(super) fn resolver(&self) -> Arc<dyn Resolver> {
        self.resolver.clone()
    }

    /// Adds what `link` gives: one secret under the key that the component asks for.
    pub(super) fn link(&self, links: SecretLinks, link: &Link, meter: Arc<LinkMeter>) -> SecretLinks {
        // The control plane has checked the name; a link that names none gives none.
        let Some((key, secret)) = model::secret::of_link(link) else { return links };
        if let Server::Vault(vault) = &self.server {
            vault.tell(&meter);
        }
        let linked = LinkedSecret::new(self.app.clone(), secret, self.resolver.clone(), meter);
        links.with(key, linked)
    }
}

/// Fails where a secret that a link names cannot be had. Those of the tenant's own store the control plane looks for;
/// what is in Vault, or in a process, nobody else knows.
pub(crate) async fn are_there(app: &LockedApp, opened: &BTreeMap<ProviderName, Arc<Opened>>) -> Result<(), StartError> {
    for link in &app.links {
        let Some(Backing::Secrets(source)) = opened.get(&link.provider).map(|open| &open.backing) else { continue };
        let Some((_, secret)) = model::secret::of_link(link) else { continue };
        if matches!(source.server, Server::None) {
            continue;
        }
        let revealed = source.resolver.reveal(&app.name, &secret).await;
        let missing = |cause: providers::secrets::SecretError| StartError::Provider {
            provider: link.provider.clone(),
            cause: cause.to_string(),
        };
        revealed.map_err(missing)?;
    }
    Ok(())
}

/// The tenant's own secret store by way of the node, Vault, or an external process.
pub(super) fn open(means: &Means, wanted: &Wanted<'_>) -> Result<Source, StartError> {
    let app = wanted.app.clone();
    match wanted.spec.kind {
        ProviderKind::SecretsVault => {}
        ProviderKind::External => {
            let external = External::new(wanted.name.clone(), means.connect(wanted));
            return Ok(Source { app, resolver: external.clone(), server: Server::External(external) });
        }
        ProviderKind::SecretsEmbedded => {
            return Ok(Source { app, resolver: means.secrets.clone(), server: Server::None });
        }
        other => return Err(super::another_contract(wanted.name, other)),
    }
    let text = |setting: &str| wanted.spec.config.get(setting).map(String::as_str);
    let bad = |cause: String| StartError::Settings { provider: wanted.name.clone(), cause };
    let time = |setting: &str, usual: Duration| match text(setting) {
        Some(text) => text.parse::<Millis>().map(Millis::duration).map_err(|cause| bad(cause.to_string())),
        None => Ok(usual),
    };
    let login = FromSecrets::new(means.credentials(wanted), text("role").map(str::to_owned));
    let settings = Settings {
        vault: providers::vault::Settings {
            url: text("url").unwrap_or_default(),
            ca: text("ca"),
            namespace: text("namespace"),
            auth_mount: text("auth_mount"),
            login: Arc::new(login),
        },
        mount: text("mount"),
        prefix: text("prefix"),
        engine: match text("engine") {
            None | Some("kv-2") => Engine::Kv2,
            Some("kv-1") => Engine::Kv1,
            Some("dynamic") => Engine::Dynamic,
            Some(_) => return Err(bad("`engine` is none of `kv-2`, `kv-1` and `dynamic`".to_owned())),
        },
        scope: match text("scope") {
            None | Some("app") => Scope::App,
            Some("tenant") => Scope::Tenant,
            Some(_) => return Err(bad("`scope` is neither `app` nor `tenant`".to_owned())),
        },
        refresh: time("refresh", REFRESH)?,
        lease: time("lease", LEASE)?,
    };
    let vault = VaultSecrets::new(&means.tenant, &app, wanted.name, &settings, means.dialer.clone());
    let vault = vault.map_err(|cause| bad(cause.to_string()))?;
    Ok(Source { app, resolver: vault.clone(), server: Server::Vault(vault) })
}
