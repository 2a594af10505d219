//! Refusals: RFC 9457 problem documents with a closed list of codes. `docs/errors.md` has a line per code; tidy checks.

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:literal, $exit:literal;)+) => {
        /// Every way a request to Sidereal can be refused. The text is stable; the sentence beside it is not.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum Code {$(
            $(#[$doc])*
            #[serde(rename = $text)]
            $variant,
        )+}

        impl Code {
            /// Every code.
            pub const ALL: &'static [Code] = &[$(Code::$variant),+];

            /// The stable text.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text),+ }
            }

            /// The HTTP status it travels with.
            pub fn status(self) -> u16 {
                match self { $(Code::$variant => $status),+ }
            }

            /// The exit code of the command line: 1 failed, 2 usage, 3 not found, 4 conflict, 5 denied,
            /// 6 remote unreachable, 7 timed out, 130 interrupted.
            pub fn exit(self) -> u8 {
                match self { $(Code::$variant => $exit),+ }
            }
        }
    };
}

codes! {
    /// The manifest has problems; they are listed. Or a setting of a provider that only its start finds out about is wrong.
    ManifestInvalid = "manifest-invalid", 422, 1;
    /// The request itself cannot be read.
    RequestInvalid = "request-invalid", 400, 2;
    /// The artifact is not a WebAssembly component.
    ArtifactInvalid = "artifact-invalid", 422, 1;
    /// The artifact's bytes are not those of its digest, or it was not uploaded.
    ArtifactMissing = "artifact-missing", 422, 1;
    /// No claims in the artifact and the tenant runs no unsigned code.
    ArtifactUnsigned = "artifact-unsigned", 403, 5;
    /// The claims do not belong to these bytes.
    ArtifactTampered = "artifact-tampered", 403, 5;
    /// The claims are no longer valid.
    ArtifactExpired = "artifact-expired", 403, 5;
    /// The claims are not valid yet.
    ArtifactNotYetValid = "artifact-not-yet-valid", 403, 5;
    /// The issuer is none of the tenant's trust anchors.
    IssuerUntrusted = "issuer-untrusted", 403, 5;
    /// Key, token or artifact is on the revocation list.
    ArtifactRevoked = "artifact-revoked", 403, 5;
    /// The token is malformed, too large, or names another algorithm.
    TokenInvalid = "token-invalid", 403, 5;
    /// The component imports an interface its claims do not grant.
    InterfaceNotGranted = "interface-not-granted", 403, 5;
    /// An import has no link and nothing built in answers it.
    LinkMissing = "link-missing", 422, 1;
    /// A route of another app has the same host, path and method, or the host is another tenant's or was until a short time ago.
    RouteTaken = "route-taken", 409, 4;
    /// The operator did not give the host of a route to the tenant.
    HostNotGiven = "host-not-given", 403, 5;
    /// A limit is above the tenant's ceiling.
    LimitAboveCeiling = "limit-above-ceiling", 422, 1;
    /// Compilation failed, crashed or ran into its own limits.
    CompileFailed = "compile-failed", 422, 1;
    /// The host could not link or start the component.
    StartFailed = "start-failed", 422, 1;
    /// No instance of the component can be made, or what it answers to its `health` path is an error.
    ProbeFailed = "probe-failed", 422, 1;
    /// A provider cannot be reached, or refused what it was asked.
    ProviderUnavailable = "provider-unavailable", 422, 1;
    /// The data behind this link cannot be copied: another contract, or a component as a provider.
    CopyUnsupported = "copy-unsupported", 422, 1;
    /// The app names a secret that its tenant does not have: `sidereal secret set`, then deploy again.
    SecretMissing = "secret-missing", 422, 1;
    /// The app names a shared config that its tenant does not have: `sidereal config set`, then deploy again.
    ConfigMissing = "config-missing", 422, 1;
    /// The config is named by apps, which are listed: deploy them without it first.
    ConfigInUse = "config-in-use", 409, 4;
    /// Tenant, app, revision, component, link, provider, secret or config does not exist.
    NotFound = "not-found", 404, 3;
    /// This machine does not let tenants be isolated as they should be, and nobody waived what is missing.
    IsolationRefused = "isolation-refused", 500, 1;
    /// Somebody else changed it first.
    Conflict = "conflict", 409, 4;
    /// The token is missing, wrong, revoked or has expired.
    Unauthorized = "unauthorized", 401, 5;
    /// Host or Origin is not one of ours, policy denies, or the token's role does not suffice.
    Forbidden = "forbidden", 403, 5;
    /// The body is larger than allowed.
    TooLarge = "too-large", 413, 1;
    /// It did not finish in time.
    TimedOut = "timed-out", 504, 7;
    /// At its concurrency limit; try again after Retry-After.
    Busy = "busy", 503, 7;
    /// More requests a second than the tenant's quota; try again after Retry-After.
    RateLimited = "rate-limited", 429, 7;
    /// The tenant's quota of apps, components or stored bytes does not allow it.
    QuotaExceeded = "quota-exceeded", 403, 5;
    /// The app is suspended: its claims expired or were revoked, or its tenant is suspended.
    Suspended = "suspended", 503, 5;
    /// The store cannot write: disk full, read-only or damaged.
    StoreUnavailable = "store-unavailable", 503, 1;
    /// The other side cannot be reached.
    Unreachable = "unreachable", 502, 6;
    /// The connection is not granted by policy.
    EgressDenied = "egress-denied", 403, 5;
    /// A limit of the component was reached: CPU, wall time, memory, handles, …
    LimitReached = "limit-reached", 500, 1;
    /// The component trapped.
    ComponentTrapped = "component-trapped", 500, 1;
    /// Ctrl-C ended the command; what the platform had begun goes on.
    Interrupted = "interrupted", 499, 130;
    /// A defect of ours.
    Internal = "internal", 500, 1;
}

impl Code {
    /// It is about something beside what was asked for, and that may come back: the node tries such a start again by itself.
    pub fn may_pass(self) -> bool {
        matches!(
            self,
            Self::Unreachable | Self::TimedOut | Self::StoreUnavailable | Self::Busy | Self::ProviderUnavailable
        )
    }
}

/// RFC 9457: the body of every refusal (`application/problem+json`), and the `error` of the cli's envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// Stable code.
    pub code: Code,
    /// What, where and why, in one sentence.
    pub detail: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Every single finding, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
}

/// Findings of a problem that are passed on.
const MAX_FINDINGS: usize = 1000;

impl Problem {
    /// A problem with a sentence.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), help: None, findings: Vec::new() }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// As text that people may be shown, each part of at most so many bytes: for what was said by somebody who may not be one of
    /// ours any more.
    #[must_use]
    pub fn shown(self, most: usize) -> Self {
        let text = |text: &String| model::escape::text(text, most);
        Self {
            code: self.code,
            detail: text(&self.detail),
            help: self.help.as_ref().map(text),
            findings: self.findings.iter().take(MAX_FINDINGS).map(text).collect(),
        }
    }

    /// As the reason of an observed state.
    pub fn reason(&self) -> model::observed::Reason {
        model::observed::Reason {
            code: self.code.as_str().to_owned(),
            message: self.detail.clone(),
            help: self.help.clone(),
        }
    }
}
