//! The format as data: every table with its keys. The shape check, the JSON Schema and the nearest-match hints all read
//! these tables, so they cannot disagree.

use crate::rules::{LIMIT_FIELDS, LimitUnit};

/// A key of a table.
#[derive(Debug, Clone)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) ty: Ty,
    pub(super) required: bool,
    pub(super) doc: &'static str,
    /// For a key that must be there, a line that would do.
    pub(super) example: &'static str,
}

/// What a value may be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ty {
    /// Any text.
    Text(Text),
    /// A whole number from `.0` to `.1`.
    Integer(i64, i64),
    /// A table with these keys.
    Table(&'static Table),
    /// A table with keys of the user's choice.
    Map(Text, &'static Ty),
    /// A list.
    List(&'static Ty),
    /// One of several, told apart by their TOML type.
    OneOf(&'static [Ty]),
}

/// Kinds of text: for the schema's pattern and for the words in findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Text {
    Any,
    Name,
    Contract,
    Duration,
    Size,
    Path,
    Oci,
    Host,
    RoutePath,
    Method,
    AllowHost,
    ProviderKind,
    Setting,
    Cron,
    Zone,
    Missed,
}

/// A table's keys.
#[derive(Debug)]
pub(super) struct Table {
    /// What it is, in findings: `the manifest`, `a route`.
    pub(super) what: &'static str,
    /// Keys that are always known.
    pub(super) fields: fn() -> Vec<Field>,
    /// Whether other keys may follow: settings, whose names depend on the provider type or contract and which the rules
    /// check.
    pub(super) settings: Settings,
}

/// Whether a table has keys beyond its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settings {
    None,
    OfProvider,
    OfLink,
}

impl Text {
    /// What is expected, for findings.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Self::Any | Self::Setting => "a text in quotes",
            Self::Name => "a name in quotes, for example \"counter\"",
            Self::Contract => "a contract in quotes, for example \"wasi:keyvalue\"",
            Self::Duration => "a duration in quotes, for example \"200ms\"",
            Self::Size => "a size in quotes, for example \"64MiB\"",
            Self::Path => "a path in quotes, for example \"counter.wasm\"",
            Self::Oci => "an OCI reference in quotes, for example \"registry.example/counter@sha256:…\"",
            Self::Host => "a host name in quotes, for example \"shop.example.com\"",
            Self::RoutePath => "a path in quotes, for example \"/\"",
            Self::Method => "a method in quotes, for example \"GET\"",
            Self::AllowHost => "a host in quotes, for example \"https://api.example.com\"",
            Self::Cron => "a cron expression in quotes, for example \"0 3 * * *\"",
            Self::Zone => "a time zone in quotes, for example \"Europe/Berlin\"",
            Self::Missed => "\"skip\", \"once\" or \"all\"",
            Self::ProviderKind => "a provider type in quotes, for example \"keyvalue-redis\"",
        }
    }
}

impl Ty {
    /// What is expected, for findings.
    pub(super) fn expected(self) -> String {
        match self {
            Self::Text(text) => text.expected().to_owned(),
            Self::Integer(min, max) if min == max => format!("the number {min}, without quotes"),
            Self::Integer(min, max) => format!("a whole number from {min} to {max}, without quotes"),
            Self::Table(table) => {
                let keys: Vec<&str> = (table.fields)().iter().map(|f| f.name).take(4).collect();
                format!("a table with {}", crate::rules::list(&keys))
            }
            Self::Map(..) => "a table".to_owned(),
            Self::List(item) => format!("a list in square brackets, each {}", item.expected()),
            Self::OneOf(types) => types.iter().map(|ty| ty.expected()).collect::<Vec<_>>().join(", or "),
        }
    }
}

const fn required(name: &'static str, ty: Ty, example: &'static str, doc: &'static str) -> Field {
    Field { name, ty, required: true, doc, example }
}

const fn optional(name: &'static str, ty: Ty, doc: &'static str) -> Field {
    Field { name, ty, required: false, doc, example: "" }
}

/// The whole file.
pub(super) static APP: Table = Table {
    what: "the manifest",
    fields: || {
        vec![
            required("schema", Ty::Integer(1, 1), "schema = 1", "Version of this format."),
            required(
                "name",
                Ty::Text(Text::Name),
                "name = \"counter\"",
                "The app's name: `a-z`, `0-9` and inner hyphens, at most 40 characters.",
            ),
            optional("version", Ty::Text(Text::Any), "Your own version text; shown, not interpreted."),
            required(
                "components",
                Ty::Map(Text::Name, &COMPONENT_TY),
                "[components.<name>]` with `source = \"<file>.wasm\"",
                "The app's components by name.",
            ),
            optional(
                "providers",
                Ty::Map(Text::Name, &PROVIDER_TY),
                "Providers the app declares, by name. `memory`, `embedded`, `local` and `durable` are there without.",
            ),
            optional("routes", Ty::List(&ROUTE_TY), "What the ingress sends to which component."),
            optional("schedules", Ty::Map(Text::Name, &SCHEDULE_TY), "What the clock calls, by name."),
        ]
    },
    settings: Settings::None,
};

static COMPONENT: Table = Table {
    what: "a component",
    fields: || {
        vec![
            required(
                "source",
                SOURCE_TY,
                "source = \"counter.wasm\"",
                "A file inside the app's folder, or `{ oci = … }`.",
            ),
            optional("links", Ty::Map(Text::Contract, &LINK_VALUE), "Which provider answers which contract."),
            optional(
                "config",
                Ty::Map(Text::Any, &Ty::Text(Text::Any)),
                "Answers of `wasi:config`; never secrets. At most 128 entries of 8 KiB.",
            ),
            optional(
                "config-from",
                Ty::List(&Ty::Text(Text::Name)),
                "Shared configs that answer too, a later one before an earlier one and `config` before all: `sidereal config list`; `env` is the operator's. At most 8.",
            ),
            optional(
                "limits",
                Ty::Table(&LIMITS),
                "What one call and the component may use; defaults for what is left out.",
            ),
            optional(
                "reuse",
                Ty::Table(&REUSE),
                "Serve several calls from one instance; a fresh instance per call where absent.",
            ),
            optional(
                "allow-hosts",
                Ty::List(&Ty::Text(Text::AllowHost)),
                "Where outgoing HTTP may go: `https://api.example.com`, `http://*.internal.example:8080`. Nowhere where absent.",
            ),
            optional(
                "health",
                Ty::Text(Text::RoutePath),
                "Asked with `GET` before a revision serves; an answer below 400 is needed. Where absent, that an instance can be made is enough.",
            ),
        ]
    },
    settings: Settings::None,
};

static OCI: Table = Table {
    what: "a component's source",
    fields: || {
        vec![required(
            "oci",
            Ty::Text(Text::Oci),
            "oci = \"registry.example/counter@sha256:…\"",
            "`registry/repository[:tag]@sha256:<digest>`.",
        )]
    },
    settings: Settings::None,
};

static COMPONENT_TY: Ty = Ty::Table(&COMPONENT);
static PROVIDER_TY: Ty = Ty::Table(&PROVIDER);
static ROUTE_TY: Ty = Ty::Table(&ROUTE);
static SCHEDULE_TY: Ty = Ty::Table(&SCHEDULE);
static SOURCE_TY: Ty = Ty::OneOf(&[Ty::Text(Text::Path), Ty::Table(&OCI)]);
static LINK_VALUE: Ty = Ty::OneOf(&[Ty::Text(Text::Name), Ty::Table(&LINK), Ty::List(&Ty::Table(&LINK))]);

/// A setting that may be one text or a list of texts.
pub(super) static TEXTS: Ty = Ty::OneOf(&[Ty::Text(Text::Setting), Ty::List(&Ty::Text(Text::Setting))]);

static LINK: Table = Table {
    what: "a link",
    fields: || {
        vec![
            optional("provider", Ty::Text(Text::Name), "The provider that answers."),
            optional(
                "component",
                Ty::Text(Text::Name),
                "In place of `provider`: the component of the app that answers, with what it exports of the contract.",
            ),
            optional(
                "label",
                Ty::Text(Text::Name),
                "Which of several links of the contract; the name of the bucket or container the component opens; messages are sent by `default`. `default` where absent.",
            ),
        ]
    },
    settings: Settings::OfLink,
};

/// A setting of a provider: a text, or which secret is meant.
pub(super) static SETTING: Ty = Ty::OneOf(&[Ty::Text(Text::Setting), Ty::Table(&REFERENCE)]);

/// What is handed to the program of an external provider.
pub(super) static HANDED: Ty = Ty::Map(Text::Any, &SETTING);

/// Which secret is meant.
pub(super) static SECRET: Ty = Ty::Table(&REFERENCE);

static REFERENCE: Table = Table {
    what: "a reference to a secret",
    fields: || {
        vec![
            required(
                "secret",
                Ty::Text(Text::Name),
                "secret = \"cache-password\"",
                "The name of a secret: of the tenant (`sidereal secret list`), or of the source in `from`.",
            ),
            optional(
                "from",
                Ty::Text(Text::Name),
                "The provider that keeps it, for example one of type `secrets-vault`; the tenant's own store where absent.",
            ),
            optional(
                "field",
                Ty::Text(Text::Any),
                "Which field of a secret that has several; `value`, or the only one, where absent.",
            ),
        ]
    },
    settings: Settings::None,
};

static LIMITS: Table = Table {
    what: "a component's limits",
    fields: || {
        LIMIT_FIELDS
            .iter()
            .map(|limit| {
                let ty = match limit.unit {
                    LimitUnit::Duration => Ty::Text(Text::Duration),
                    LimitUnit::Size => Ty::Text(Text::Size),
                    LimitUnit::Count => Ty::Integer(0, u32::MAX as i64),
                };
                optional(limit.name, ty, limit.doc)
            })
            .collect()
    },
    settings: Settings::None,
};

static REUSE: Table = Table {
    what: "a reuse setting",
    fields: || {
        vec![
            required(
                "requests",
                Ty::Integer(1, crate::rules::MAX_REUSE_REQUESTS as i64),
                "requests = 1000",
                "Calls after which the instance is replaced.",
            ),
            optional(
                "idle",
                Ty::Text(Text::Duration),
                "Idle time after which the instance is dropped; `10s` where absent.",
            ),
        ]
    },
    settings: Settings::None,
};

static PROVIDER: Table = Table {
    what: "a provider",
    fields: || {
        vec![required("type", Ty::Text(Text::ProviderKind), "type = \"keyvalue-redis\"", "Which implementation.")]
    },
    settings: Settings::OfProvider,
};

static ROUTE: Table = Table {
    what: "a route",
    fields: || {
        vec![
            required(
                "host",
                Ty::Text(Text::Host),
                "host = \"shop.example.com\"",
                "Lower-case host name without port, or `*.suffix`.",
            ),
            optional("path", Ty::Text(Text::RoutePath), "Path prefix on segment borders; `/` where absent."),
            optional("methods", Ty::List(&Ty::Text(Text::Method)), "Methods; all where absent."),
            required("component", Ty::Text(Text::Name), "component = \"counter\"", "The component that answers."),
        ]
    },
    settings: Settings::None,
};

static SCHEDULE: Table = Table {
    what: "a schedule",
    fields: || {
        vec![
            required("component", Ty::Text(Text::Name), "component = \"report\"", "The component that is called."),
            required(
                "cron",
                Ty::Text(Text::Cron),
                "cron = \"0 3 * * *\"",
                "Minute, hour, day of month, month, day of week; with six fields the second comes first. Or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`.",
            ),
            optional(
                "timezone",
                Ty::Text(Text::Zone),
                "An IANA time zone, for example `Europe/Berlin`; `UTC` where absent.",
            ),
            optional(
                "missed",
                Ty::Text(Text::Missed),
                "Due times at which nothing could run: `skip` passes them over, `once` runs the latest, `all` runs each. `skip` where absent.",
            ),
            optional(
                "missed-max",
                Ty::Integer(1, crate::schedule::MAX_MISSED_MAX as i64),
                "With `missed = \"all\"`: at most this many are run, the latest; 10 where absent.",
            ),
        ]
    },
    settings: Settings::None,
};
