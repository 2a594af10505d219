//! The closed set of things that can be wrong with an app. The texts are stable: scripts and documents refer to them.

use std::fmt;

use crate::manifest::Severity;

macro_rules! codes {
    ($($variant:ident = $text:literal, $severity:ident, $doc:literal;)+) => {
        /// Which rule an app breaks.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $doc] $variant,)+
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable text.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// Whether it stops a deploy.
            pub fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity),+ }
            }

            /// What it means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $doc),+ }
            }
        }
    };
}

codes! {
    TomlSyntax = "toml-syntax", Error, "The file is not TOML.";
    DuplicateKey = "duplicate-key", Error, "A key or table is written twice.";
    ManifestTooLarge = "manifest-too-large", Error, "The file is larger than 1 MiB.";
    SchemaVersion = "schema-version", Error, "`schema` names a version of the format that this program does not read.";
    UnknownField = "unknown-field", Error, "A key that the format does not have.";
    MissingField = "missing-field", Error, "A key that must be there is not.";
    WrongType = "wrong-type", Error, "A value of another type than the key takes.";
    BadName = "bad-name", Error, "A name outside `a-z`, `0-9` and inner hyphens, or longer than 40 characters.";
    BadValue = "bad-value", Error, "A value outside what the key takes.";
    BadSize = "bad-size", Error, "A size that is not a whole number and `B`, `KiB`, `MiB` or `GiB`.";
    BadDuration = "bad-duration", Error, "A duration that is not a whole number and `ms`, `s`, `m` or `h`.";
    NoComponents = "no-components", Error, "An app without components.";
    TooMany = "too-many", Error, "More entries than an app may have.";
    AppTooLarge = "app-too-large", Error, "An app that is larger than 1 MiB as a revision.";
    SourcePath = "source-path", Error, "A component's path that is not a plain relative path inside the app's folder.";
    OciReference = "oci-reference", Error, "An OCI reference that cannot be read.";
    OciDigest = "oci-digest", Error, "An OCI reference that is not pinned by a digest.";
    ArtifactMissing = "artifact-missing", Error, "The component's file is not there.";
    ArtifactUnreadable = "artifact-unreadable", Error, "The component's file is there and cannot be read.";
    ArtifactTooLarge = "artifact-too-large", Error, "The component's file is larger than 50 MiB.";
    ArtifactNotWasm = "artifact-not-wasm", Error, "The component's file is not WebAssembly.";
    ArtifactCoreModule = "artifact-core-module", Error, "The file is a core module; a component is needed.";
    ArtifactInvalid = "artifact-invalid", Error, "The file is WebAssembly that cannot be read as a component.";
    ArtifactUnknown = "artifact-unknown", Error, "The app names an artifact that has not been uploaded.";
    ArtifactMismatch = "artifact-mismatch", Error, "The app says something else of an artifact than the artifact itself.";
    ConfigTooLarge = "config-too-large", Error, "More than 128 config entries, or one larger than 8 KiB, or shared ones of more than 1 MiB.";
    ConfigFrom = "config-from", Error, "More than 8 shared configs of one component, or one named twice.";
    LimitAboveCeiling = "limit-above-ceiling", Error, "A limit above what the tenant may ask for.";
    LimitBelowFloor = "limit-below-floor", Error, "A limit so small that no call could succeed.";
    LimitFixed = "limit-fixed", Error, "A limit that cannot be set per component in this version.";
    LimitIdle = "limit-without-effect", Warning, "A limit that another limit makes unreachable.";
    Reuse = "reuse-range", Error, "A reuse setting outside its range.";
    Health = "health", Error, "A `health` that is no path, or of a component that does not export an HTTP handler.";
    AllowHost = "allow-host", Error, "An entry of `allow-hosts` that is not `scheme://host[:port]`.";
    LinkContract = "link-contract", Error, "A link's key that is not a contract, `namespace:package`.";
    LinkNotOffered = "link-not-offered", Error, "A link for a contract that the platform does not carry by link.";
    LinkDuplicate = "link-duplicate", Error, "Two links of one contract with the same label.";
    LinkSetting = "link-setting", Error, "A setting that links of this contract do not have.";
    LinkSubscription = "link-subscription", Error, "A messaging link whose subscriptions, group or numbers cannot be used, or a component that takes no messages.";
    LinkWatch = "link-watch", Error, "A key-value link that watches, of a component that cannot be told or to a provider whose changes are not followed.";
    LinkUnused = "link-unused", Warning, "A link for a contract that the component does not import.";
    LinkComponent = "link-component", Error, "A link of a component that the app does not have.";
    UnknownProvider = "unknown-provider", Error, "A link to a provider that nobody declares.";
    ProviderContract = "provider-contract", Error, "A link to a provider of another contract.";
    ProviderType = "provider-type", Error, "A provider type that does not exist.";
    ProviderName = "provider-name", Error, "A provider that takes the name of a built-in one or of the operator's.";
    ProviderSetting = "provider-setting", Error, "A setting that providers of this type do not have, or that is missing.";
    ProviderUrl = "provider-url", Error, "A provider's `url` that its type cannot use.";
    ProviderSecret = "provider-secret", Error, "A secret written out in a setting, where only its name may stand.";
    SecretSource = "secret-source", Error, "A reference to a secret whose source does not fit: it has no such thing, or needs itself to be asked.";
    ProviderUnused = "provider-unused", Warning, "A provider that no link names.";
    ProviderForged = "provider-forged", Error, "A provider that claims to be the operator's or built in, and is not.";
    CalleeUnknown = "callee-unknown", Error, "A link or provider to a component that the app does not have.";
    CalleeExport = "callee-export", Error, "An import linked to a component that does not export it in a version that agrees.";
    CalleeCycle = "callee-cycle", Error, "Components that call one another in a circle, or too many in a row.";
    ImportNotLinked = "import-not-linked", Error, "An import whose contract has no link.";
    ImportVersion = "import-version", Error, "An import of another version than the platform offers.";
    ImportNotOffered = "import-not-offered", Error, "An import of an interface that the platform does not offer.";
    RouteHost = "route-host", Error, "A route's host that is not a lower-case host name or `*.suffix`.";
    RoutePath = "route-path", Error, "A route's path that is not a plain absolute path.";
    RouteMethod = "route-method", Error, "A method that is not one the ingress routes, or is written twice.";
    RouteComponent = "route-component", Error, "A route to a component that the app does not have.";
    RouteNoHttp = "route-no-http", Error, "A route to a component that does not export an HTTP handler.";
    RouteCollision = "route-collision", Error, "Two routes that answer the same requests.";
    ScheduleCron = "schedule-cron", Error, "A schedule whose cron expression cannot be read, or is never due.";
    ScheduleZone = "schedule-zone", Error, "A schedule whose time zone does not exist.";
    ScheduleMissed = "schedule-missed", Error, "A schedule whose answer to missed due times is none that exists.";
    ScheduleComponent = "schedule-component", Error, "A schedule of a component that the app does not have, or that exports nothing a schedule can call.";
    RouteHostTaken = "route-host-taken", Error, "A route on a host that belongs to another tenant.";
    RouteHostLeft = "route-host-left", Error, "A route on a host that another tenant gave up less than 24 hours ago.";
    RouteHostNotGiven = "route-host-not-given", Error, "A route on a host that the operator did not give to the tenant.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
