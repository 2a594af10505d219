//! External providers: processes beside the platform. Which programs there are is the operator's to say, by name; an app
//! says which of them it wants, for which contract, and what is handed to it.

use crate::app::{ProviderKind, ProviderSpec};
use crate::name::ProviderName;
use crate::rules::provider::Setting;
use crate::rules::{Code, Violation, list, nearest, shown};

/// The setting that names the operator's program.
pub const PROGRAM: &str = "program";
/// The setting that names the contract.
pub const CONTRACT: &str = "contract";
/// The table of the manifest whose entries are handed to the program.
pub const CONFIG: &str = "config";
/// What such a table is, and an entry of it.
pub const CONFIG_DOC: (&str, &str) = ("what is handed to the program; texts, or secrets", "{ database = \"counter\" }");
/// What keys of such entries begin with where settings are one flat table.
pub const PREFIX: &str = "config.";
/// The contracts external providers answer in this version, each provider one of them.
pub const CONTRACTS: &[&str] =
    &["wasi:keyvalue", "wasi:blobstore", crate::messaging::CONTRACT, crate::sql::CONTRACT, crate::secret::CONTRACT];
/// The most entries handed to a program.
pub const MAX_ENTRIES: usize = 64;
/// The largest entry, key and value together, bytes.
pub const MAX_ENTRY: usize = 8 * 1024;

/// The settings of an external provider that the platform itself reads.
pub(crate) const SETTINGS: &[Setting] = &[
    Setting {
        name: PROGRAM,
        required: true,
        doc: "the program, by the name the operator gave it: `sidereal up --external NAME=/path`",
        example: "sqlite",
    },
    Setting {
        name: CONTRACT,
        required: true,
        doc: "the contract the program answers: `wasi:keyvalue`, `wasi:blobstore`, `wasmcloud:messaging`, `sidereal:sql` or `wasmcloud:secrets`",
        example: "wasi:keyvalue",
    },
];

/// Whether a setting is one of the program's own.
pub fn is_own(key: &str) -> bool {
    key.starts_with(PREFIX)
}

/// The name of the program, where the provider is external.
pub fn program(spec: &ProviderSpec) -> Option<&str> {
    (spec.kind == ProviderKind::External).then(|| spec.config.get(PROGRAM).map(String::as_str))?
}

/// The contract that an external provider says it answers; none where it says one that none does.
pub fn contracts(spec: &ProviderSpec) -> &'static [&'static str] {
    let said = spec.config.get(CONTRACT).map_or("", String::as_str);
    let at = CONTRACTS.iter().position(|known| *known == said);
    at.and_then(|at| CONTRACTS.get(at..=at)).unwrap_or_default()
}

/// What is wrong with the settings, by setting.
pub(crate) fn check(spec: &ProviderSpec) -> Vec<(String, Violation)> {
    let mut found = Vec::new();
    let mut bad = |key: &str, message: String, help: String| {
        found.push((key.to_owned(), Violation::new(Code::ProviderSetting, message).help(help)));
    };
    if let Some(program) = spec.config.get(PROGRAM).filter(|program| program.parse::<ProviderName>().is_err()) {
        bad(
            PROGRAM,
            format!(
                "`{}` is not the name of a program: 1 to 40 characters of a-z, 0-9 and inner hyphens",
                shown(program)
            ),
            "write the NAME of the operator's `sidereal up --external NAME=/path`; an app does not say paths"
                .to_owned(),
        );
    }
    if let Some(contract) = spec.config.get(CONTRACT).filter(|contract| !CONTRACTS.contains(&contract.as_str())) {
        bad(
            CONTRACT,
            format!("external providers do not answer `{}` in this version", shown(contract)),
            format!("the contracts they answer: {}", list(CONTRACTS)),
        );
    }
    let own = spec.config.iter().map(|(key, value)| (key, value.len()));
    let own = own.chain(spec.secrets.keys().map(|key| (key, 0))).filter(|(key, _)| is_own(key));
    let mut count = 0_usize;
    for (key, length) in own {
        count += 1;
        let name = key.strip_prefix(PREFIX).unwrap_or_default();
        if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            bad(
                key,
                format!("`{}` cannot be handed to a program", shown(key)),
                "name it with 1 to 64 characters of a-z, A-Z, 0-9, `-`, `_` and `.`".to_owned(),
            );
        } else if name.len() + length > MAX_ENTRY {
            let message = format!("the `{}` of an external provider has more than {MAX_ENTRY} bytes", shown(key));
            bad(key, message, "shorten it".to_owned());
        } else if count == MAX_ENTRIES + 1 {
            let message = format!("an external provider is handed at most {MAX_ENTRIES} entries");
            bad(key, message, "remove some".to_owned());
        }
    }
    found
}

/// Says that the operator has no such program, and which there are.
pub fn unknown_program(provider: &ProviderName, program: &str, known: &[&str]) -> Violation {
    let message =
        format!("provider `{provider}` runs the program `{}`, which the operator does not name", shown(program));
    let help = match (nearest(program, known.iter().copied()), known) {
        (Some(near), _) => format!("did you mean `{near}`? There are: {}", list(known)),
        (None, []) => format!(
            "there are none: the operator names one with `sidereal up --external {}=/path/to/program`",
            shown(program)
        ),
        (None, _) => format!("there are: {}", list(known)),
    };
    Violation::new(Code::ProviderSetting, message).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(settings: &[(&str, &str)]) -> ProviderSpec {
        let config = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        ProviderSpec { config, ..ProviderSpec::new(ProviderKind::External) }
    }

    #[test]
    fn what_an_app_may_say_of_a_program() {
        let good = spec(&[("program", "sqlite"), ("contract", "wasi:keyvalue"), ("config.file", "a.db")]);
        assert_eq!(check(&good), []);
        assert_eq!(program(&good), Some("sqlite"));
        for contract in CONTRACTS {
            let spec = spec(&[("program", "p"), ("contract", contract)]);
            assert_eq!((check(&spec), spec.contracts()), (Vec::new(), &[*contract][..]));
        }
        assert!(spec(&[("contract", "wasmcloud:postgres")]).contracts().is_empty());
        let bad = [
            ("program", "/bin/sh"),
            ("program", ""),
            ("contract", "wasmcloud:postgres"),
            ("contract", "wasi:keyvalues"),
            ("config.", "x"),
            ("config.a b", "x"),
            ("config.long", &"x".repeat(MAX_ENTRY)),
        ];
        for (key, value) in bad {
            let found = check(&spec(&[(key, value)]));
            assert_eq!(found.len(), 1, "{key} = {value:.20}: {found:?}");
            assert_eq!(found[0].0, key);
        }
        let many: Vec<(String, &str)> = (0..=MAX_ENTRIES).map(|n| (format!("config.k{n:03}"), "v")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(key, value)| (key.as_str(), *value)).collect();
        assert_eq!(check(&spec(&many)).len(), 1);
        assert_eq!(check(&spec(many.get(1..).unwrap())), []);
    }

    #[test]
    fn a_program_nobody_names_is_refused_with_those_there_are() {
        let refusal = |program, known: &[&str]| unknown_program(&"kv".parse().unwrap(), program, known).help.unwrap();
        assert!(refusal("sqlit", &["sqlite"]).starts_with("did you mean `sqlite`?"));
        assert_eq!(refusal("other", &["one-long-name", "two"]), "there are: `one-long-name`, `two`");
        assert!(refusal("sqlite", &[]).contains("--external sqlite=/path"));
    }
}
