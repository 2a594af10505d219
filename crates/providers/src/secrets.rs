//! Secrets for providers: which ones a provider has is in its settings, what they hold is asked for when it connects. So
//! a secret that was set anew reaches a provider with its next connection, and [`Credentials::changes`] says when there is
//! a reason to make one.

mod adapter;
mod component;
pub mod conformance;
pub mod external;
mod made;
mod sources;
pub mod vault;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use model::{AppName, SecretRef, SecretValue};
use tokio::sync::watch;

pub use adapter::{LinkedSecret, SecretLinks, Secrets};
pub use component::ComponentSecrets;
pub(crate) use made::Made;
pub use sources::Sources;

use crate::meter::{ErrorKind, Kind};
use crate::vault::VaultError;

/// A secret as it is now.
#[derive(Debug, Clone)]
pub struct Revealed {
    /// What it holds.
    pub value: SecretValue,
    /// Another number for every value this secret ever had; grows.
    pub version: u64,
}

/// Why a secret is not revealed. Never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// There is none of this name.
    #[error("the secret `{0}` does not exist: set it with `sidereal secret set {0}`")]
    Missing(String),
    /// There is none at its place in Vault.
    #[error(
        "the secret `{secret}` is not in Vault: nothing is at `{place}`; write it there, and mind `engine`, `scope` and `prefix` of the provider"
    )]
    Absent {
        /// Which.
        secret: String,
        /// The path of the API, without `/v1/`.
        place: String,
    },
    /// There is none at an external provider.
    #[error("the secret `{secret}` is not kept by the external provider `{by}`")]
    NotKept {
        /// Which.
        secret: String,
        /// Who was asked.
        by: String,
    },
    /// A component that stands behind the link has none.
    #[error("the secret `{secret}` is not given by the component `{by}` behind the link")]
    NotGiven {
        /// Which.
        secret: String,
        /// Who was asked.
        by: String,
    },
    /// Vault does not give it.
    #[error("the secret `{secret}` cannot be had: {cause}")]
    Vault {
        /// Which.
        secret: String,
        /// Why: each reason in its own words.
        cause: Box<VaultError>,
    },
    /// This app may not see it, or those who keep it do not trust us.
    #[error("the secret `{secret}` is not revealed: {cause}")]
    Denied {
        /// Which.
        secret: String,
        /// Why.
        cause: String,
    },
    /// It cannot be used for this: no text where one is needed, too large.
    #[error("the secret `{secret}` cannot be used: {cause}")]
    Unusable {
        /// Which.
        secret: String,
        /// Why.
        cause: String,
    },
    /// Those who keep it cannot be asked now.
    #[error("the secret `{secret}` cannot be had now: {cause}")]
    Unavailable {
        /// Which.
        secret: String,
        /// Why.
        cause: String,
    },
    /// No answer in time.
    #[error("the secret `{secret}` was not revealed within {ms} ms")]
    TimedOut {
        /// Which.
        secret: String,
        /// The limit, milliseconds.
        ms: u64,
    },
}

impl Kind for SecretError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing(_)
            | Self::Absent { .. }
            | Self::NotKept { .. }
            | Self::NotGiven { .. }
            | Self::Unusable { .. } => ErrorKind::Refused,
            Self::Vault { cause, .. } => cause.kind(),
            Self::Denied { .. } => ErrorKind::Denied,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
            Self::TimedOut { .. } => ErrorKind::TimedOut,
        }
    }
}

impl SecretError {
    /// Whether those who keep it cannot be asked now, and may say something else later.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Vault { cause, .. } => cause.is_away(),
            other => matches!(other.kind(), ErrorKind::Unavailable | ErrorKind::TimedOut),
        }
    }
}

/// See [`Resolver::hold`]; `None` of one that keeps nothing.
pub type Hold = Option<Arc<dyn Send + Sync>>;

/// Reveals secrets. The host's asks its node; a test's may hold them itself.
pub trait Resolver: Send + Sync + 'static {
    /// What a secret that the app names holds now.
    fn reveal<'a>(&'a self, app: &'a AppName, secret: &'a SecretRef) -> BoxFuture<'a, Result<Revealed, SecretError>>;

    /// What whoever names a secret holds for as long as it may ask for it. Who keeps values that were read keeps those that
    /// somebody holds, and no others.
    fn hold(&self, _secret: &SecretRef) -> Hold {
        None
    }

    /// A number that grows when some secret may have been set anew or deleted. Whose and which is not said: reveal it
    /// and compare [`Revealed::version`].
    fn changes(&self) -> watch::Receiver<u64>;
}

/// The secrets of one provider of one app, by setting.
#[derive(Clone)]
pub struct Credentials {
    app: AppName,
    secrets: BTreeMap<String, SecretRef>,
    resolver: Arc<dyn Resolver>,
    _held: Vec<Hold>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("app", &self.app).field("secrets", &self.secrets).finish_non_exhaustive()
    }
}

impl Credentials {
    /// The secrets that the provider's settings name.
    pub fn new(app: AppName, secrets: BTreeMap<String, SecretRef>, resolver: Arc<dyn Resolver>) -> Self {
        let held = secrets.values().map(|secret| resolver.hold(secret)).collect();
        Self { app, secrets, resolver, _held: held }
    }

    /// Whether there are none, so that nothing can change.
    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty()
    }

    /// The secret of a setting; `None` where the setting names none.
    ///
    /// # Errors
    /// Any [`SecretError`].
    pub async fn get(&self, setting: &str) -> Result<Option<Revealed>, SecretError> {
        match self.secrets.get(setting) {
            Some(secret) => self.resolver.reveal(&self.app, secret).await.map(Some),
            None => Ok(None),
        }
    }

    /// All of them at once, by setting: what one connection is made with.
    ///
    /// # Errors
    /// Any [`SecretError`].
    pub async fn all(&self) -> Result<Unlocked, SecretError> {
        let mut unlocked = Unlocked::default();
        for (setting, secret) in &self.secrets {
            let revealed = self.resolver.reveal(&self.app, secret).await?;
            unlocked.0.insert(setting.clone(), (secret.clone(), revealed));
        }
        Ok(unlocked)
    }

    /// As [`Resolver::changes`].
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.resolver.changes()
    }
}

/// The secrets of a provider as they were at one moment. Wiped when dropped.
#[derive(Debug, Default)]
pub struct Unlocked(BTreeMap<String, (SecretRef, Revealed)>);

impl Unlocked {
    /// What the secret of a setting holds.
    pub fn bytes(&self, setting: &str) -> Option<&[u8]> {
        self.0.get(setting).map(|(_, revealed)| revealed.value.expose())
    }

    /// The same as text.
    ///
    /// # Errors
    /// [`SecretError::Unusable`] where it is none.
    pub fn text(&self, setting: &str) -> Result<Option<&str>, SecretError> {
        let Some((secret, revealed)) = self.0.get(setting) else { return Ok(None) };
        let unusable =
            || SecretError::Unusable { secret: secret.secret.to_string(), cause: "it is not UTF-8 text".to_owned() };
        revealed.value.expose_text().ok_or_else(unusable).map(Some)
    }

    /// Which versions these are: another list once one was set anew.
    pub fn versions(&self) -> Vec<u64> {
        self.0.values().map(|(_, revealed)| revealed.version).collect()
    }
}
