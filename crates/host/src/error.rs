//! Why a host does not start or cannot go on.

use std::time::Duration;

use api::{Code, Problem};
use model::{ComponentName, ContractId, Label, ProviderName};

/// The host ended, and not because it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A variable that makes every dropped instance slow.
    #[error("{0} is set in the host's environment; start the host without it, it costs milliseconds per call")]
    Environment(&'static str),
    /// A variable with a setting.
    #[error("{0} is not a whole number above 0")]
    Setting(&'static str),
    /// The folders it is to grant.
    #[error("{name} is no list of the folders that this host was handed", name = api::run::FOLDERS_ENV)]
    Folders,
    /// The variables it is to grant.
    #[error("{name} is no list of variables", name = api::run::VARIABLES_ENV)]
    Variables,
    /// It is not confined as it should be, so it runs nothing.
    #[error("{0}")]
    Confinement(String),
    /// The node is not there.
    #[error("the node does not answer: {0}")]
    Node(api::services::WireError),
    /// The node ended; a host without a node can load nothing and save nothing.
    #[error("the node that started this host has ended")]
    NodeGone,
    /// The process cannot be set up.
    #[error("the host cannot start: {0}")]
    Setup(#[from] std::io::Error),
    /// The engine cannot start.
    #[error(transparent)]
    Runtime(#[from] runtime::RuntimeError),
    /// Outgoing HTTP cannot be set up.
    #[error(transparent)]
    Http(#[from] providers::http_out::SetupError),
}

/// Why a component of a revision cannot be made ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The node has no compiled code for it, or could not hand it over.
    #[error("component `{component}`: its compiled code is not available: {cause}")]
    Code { component: ComponentName, cause: String },
    /// The node still has it made.
    #[error("component `{component}`: its code is still being compiled after {waited:?}")]
    Late { component: ComponentName, waited: Duration },
    /// Its revision ended while its code was waited for.
    #[error("component `{component}`: its revision ended before its code was there")]
    Ended { component: ComponentName },
    /// The code is for another engine.
    #[error("component `{component}`: {cause}")]
    Load { component: ComponentName, cause: runtime::LoadError },
    /// An import has no answer.
    #[error("component `{component}` cannot be linked: {cause}")]
    Link { component: ComponentName, cause: runtime::LinkError },
    /// No instance could be made of it.
    #[error("component `{component}` did not start: {fault}")]
    Probe { component: ComponentName, fault: runtime::Fault },
    /// A link names a provider that is not there, or a contract it does not answer.
    #[error("component `{component}`: its link `{label}` of {contract} names provider `{provider}`, {why}")]
    BadLink { component: ComponentName, contract: ContractId, label: Label, provider: ProviderName, why: &'static str },
    /// A provider's settings.
    #[error("provider `{provider}`: {cause}")]
    Settings { provider: ProviderName, cause: String },
    /// A provider does not answer.
    #[error("provider `{provider}`: {cause}")]
    Provider { provider: ProviderName, cause: String },
    /// `allow_hosts` or TLS.
    #[error("component `{component}`: {cause}")]
    Http { component: ComponentName, cause: providers::http_out::SetupError },
}

impl StartError {
    /// The stable code it travels with.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Code { .. } | Self::Load { .. } | Self::Http { .. } => Code::StartFailed,
            Self::Late { .. } => Code::Busy,
            Self::Ended { .. } => Code::NotFound,
            Self::Link { .. } | Self::BadLink { .. } => Code::LinkMissing,
            Self::Probe { .. } => Code::ProbeFailed,
            // What is written there stays wrong, however often it is read.
            Self::Settings { .. } => Code::ManifestInvalid,
            Self::Provider { .. } => Code::ProviderUnavailable,
        }
    }
}

impl From<StartError> for Problem {
    fn from(error: StartError) -> Self {
        let help = match &error {
            StartError::Provider { .. } => "start the provider's server, or link to another provider",
            StartError::Settings { .. } => "correct the settings of the provider, or of the link to it",
            StartError::Link { .. } => "link the interface in app.toml, or build the component without it",
            _ => return Problem::new(error.code(), error.to_string()),
        };
        Problem::new(error.code(), error.to_string()).help(help)
    }
}
