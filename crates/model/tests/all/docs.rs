//! The documents say what the code does: their examples are read, their tables compared with the data behind them.

use std::fs;
use std::path::Path;

use model::ProviderKind;
use model::limits::Limits;
use model::manifest::parse;
use model::offers::OFFERS;
use model::rules::{self, Code, LIMIT_FIELDS};
use model::unit::ByteSize;

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// Every row is in the page, and the page has no other row that starts like these.
fn rows(name: &str, rows: &[String]) {
    let page = page(name);
    let missing: Vec<&String> = rows.iter().filter(|row| !page.lines().any(|line| line == row.as_str())).collect();
    assert!(
        missing.is_empty(),
        "docs/{name} lacks\n{}",
        missing.iter().map(|r| r.as_str()).collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn every_code_is_documented() {
    let codes: Vec<String> = Code::ALL
        .iter()
        .map(|code| format!("| `{code}` | {} | {} |", code.meaning(), format!("{:?}", code.severity()).to_lowercase()))
        .collect();
    rows("manifest.md", &codes);
}

#[test]
fn every_offer_is_documented() {
    let offers: Vec<String> = OFFERS
        .iter()
        .map(|offer| {
            let interfaces: Vec<String> = offer.interfaces.iter().map(|i| format!("`{i}`")).collect();
            let link = if offer.by_link { "yes" } else { "" };
            format!("| `{}` | {} | {} | {link} |", offer.contract, offer.version, interfaces.join(", "))
        })
        .collect();
    rows("manifest.md", &offers);
}

#[test]
fn every_limit_is_documented() {
    let (default, ceiling) = (Limits::default(), Limits::ceiling());
    let limits: Vec<String> = LIMIT_FIELDS
        .iter()
        .map(|limit| {
            let show = |limits: &Limits| limit.show((limit.get)(limits));
            let floor = limit.show(limit.floor);
            format!("| `{}` | {} | {} | {floor} | {} |", limit.name, show(&default), show(&ceiling), limit.doc)
        })
        .collect();
    rows("limits.md", &limits);
    assert!(page("limits.md").contains(&format!("is {} for every component", default.stack)));
}

#[test]
fn every_bound_is_documented() {
    let bounds = [
        ("Manifest", ByteSize(rules::MAX_MANIFEST as u64).to_string()),
        ("A revision, as it is stored", ByteSize(rules::MAX_REVISION as u64).to_string()),
        ("Artifact", ByteSize(rules::MAX_ARTIFACT).to_string()),
        ("Components", rules::MAX_COMPONENTS.to_string()),
        ("Providers", rules::MAX_PROVIDERS.to_string()),
        ("Links", rules::MAX_LINKS.to_string()),
        ("Routes", rules::MAX_ROUTES.to_string()),
        ("Methods of a route", rules::MAX_METHODS.to_string()),
        ("Settings of a provider, or of a link", rules::MAX_SETTINGS.to_string()),
        ("Schedules", model::schedule::MAX_SCHEDULES.to_string()),
        ("Allowed hosts of a component", rules::MAX_ALLOW_HOSTS.to_string()),
        ("Config entries of a component", rules::MAX_CONFIG_ENTRIES.to_string()),
        ("A config entry, key and value together", ByteSize(rules::MAX_CONFIG_ENTRY as u64).to_string()),
        ("Calls of one reused instance", rules::MAX_REUSE_REQUESTS.to_string()),
    ];
    rows("limits.md", &bounds.map(|(what, max)| format!("| {what} | {max} |")));
}

#[test]
fn every_example_is_a_manifest() {
    let page = page("manifest.md");
    let examples: Vec<&str> = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(examples.len() >= 2);
    for example in examples {
        parse(example, "docs/manifest.md").unwrap_or_else(|report| panic!("{}", report.render()));
    }
}

/// The settings of a provider type as `docs/providers.md` has them.
fn settings_table(kind: ProviderKind) -> String {
    let (texts, secrets) = (rules::provider::settings(kind), rules::provider::secret_settings(kind));
    let is_text = |name: &str| texts.iter().any(|setting| setting.name == name);
    let is_secret = |name: &str| secrets.iter().any(|setting| setting.name == name);
    let all = texts.iter().chain(secrets.iter().filter(|setting| !is_text(setting.name)));
    let row = |setting: &rules::provider::Setting| {
        let takes = match (is_text(setting.name), is_secret(setting.name)) {
            (true, true) => "text or secret",
            (false, true) => "secret",
            _ => "text",
        };
        let needed = if setting.required { "yes" } else { "" };
        // A row is one line.
        let example = setting.example.replace('\n', "");
        format!("| `{}` | {needed} | {takes} | {} | `{example}` |\n", setting.name, setting.doc)
    };
    let mut rows: String = all.map(row).collect();
    if kind == ProviderKind::External {
        let (doc, example) = rules::external::CONFIG_DOC;
        rows += &format!("| `{}` |  | texts and secrets | {doc} | `{example}` |\n", rules::external::CONFIG);
    }
    match rows.as_str() {
        "" => "No settings.\n".to_owned(),
        rows => format!("| Setting | Needed | Takes | Meaning | Example |\n|---|---|---|---|---|\n{rows}"),
    }
}

/// `UPDATE=1` writes the tables.
#[test]
fn every_provider_has_its_line_its_section_and_its_settings() {
    let mut page = page("providers.md");
    for kind in ProviderKind::ALL {
        let name = kind.as_str();
        let built_in = ProviderKind::BUILT_IN.iter().find(|(_, built_in)| *built_in == kind);
        let built_in = built_in.map_or(String::new(), |(name, _)| format!("`{name}`"));
        assert!(page.contains(&format!("| [`{name}`](#{name}) | {built_in} | ")), "no line for {name}");
        let (begin, end) = (format!("<!-- settings of {name} -->\n"), "<!-- end -->");
        let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no section for {name}"));
        let (found, after) = rest.split_once(end).unwrap();
        let promises = after.split("\n## ").next().unwrap();
        assert!(promises.contains("- **Guarantees:** ") && promises.contains("- **Does not:** "), "{name}");
        let wanted = settings_table(kind);
        if std::env::var_os("UPDATE").is_some() {
            page = format!("{before}{begin}{wanted}{end}{after}");
        } else {
            assert_eq!(found, wanted, "docs/providers.md is behind for {name}: UPDATE=1 writes it");
        }
    }
    if std::env::var_os("UPDATE").is_some() {
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/providers.md"), page).unwrap();
    }
}

/// The page shows the example as it is built, and it is as short as the page says.
#[test]
fn the_ten_lines_of_a_provider_are_those_of_the_example() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/prefix-keyvalue/src/lib.rs");
    let example = fs::read_to_string(example).unwrap();
    let (_, code) = example.split_once("\n\n").unwrap();
    let shown = format!("```rust\n{code}```\n");
    assert!(page("providers.md").contains(&shown), "docs/providers.md is to show\n{shown}");
    let lines = code.lines().filter(|line| line.contains(char::is_alphanumeric));
    assert_eq!(lines.count(), 10);
}
