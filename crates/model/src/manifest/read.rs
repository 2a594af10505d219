//! The second pass: typed values from a document whose shape has been checked. What does not have its shape is skipped
//! here without a word, since the first pass has spoken; what is skipped is remembered, so that nothing else complains
//! that it is not there.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use toml::Spanned as TomlSpanned;
use toml::de::{DeTable, DeValue};

use super::hints::{duration_help, size_help, suggested_name};
use super::report::{Finding, Report, Severity, Source};
use super::types::{
    Component, LinkEntry, Manifest, Provider, RouteEntry, ScheduleEntry, SecretEntry, SettingEntry, Spanned,
};
use super::{Findings, SCHEMA, fields, shape, source, syntax};
use crate::app::{ProviderKind, Reuse};
use crate::interface::ContractId;
use crate::limits::Limits;
use crate::name::{AppName, ComponentName, ConfigName, Label, NameError, ProviderName, ScheduleName, SecretName};
use crate::rules::route::{check_host, check_method, check_path};
use crate::rules::{
    Code, LIMIT_FIELDS, LimitField, LimitUnit, MAX_MANIFEST, MAX_REUSE_IDLE, MAX_REUSE_REQUESTS, Unknown, Violation,
    allow_host, provider, shown,
};
use crate::rules::{callee, external};
use crate::schedule::{DEFAULT_MISSED_MAX, Missed, Schedule};
use crate::secret::{SecretField, SecretFieldError, SecretRef};
use crate::unit::{ByteSize, Millis};

/// As much of a manifest as could be read, with what is wrong with the rest.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The text.
    pub source: Arc<Source>,
    /// What could be read; absent where not even a name could.
    pub manifest: Option<Manifest>,
    /// What is wrong so far.
    pub findings: Vec<Finding>,
    /// Components, providers and links that are written and could not be read.
    pub(crate) unknown: Unknown,
}

impl Draft {
    /// The manifest, where nothing is wrong with it.
    ///
    /// # Errors
    /// Every finding.
    pub fn finish(self) -> Result<Manifest, Report> {
        let errors = self.findings.iter().any(|f| f.severity == Severity::Error);
        match self.manifest {
            Some(manifest) if !errors => Ok(manifest),
            _ => Err(Report::new(self.source, self.findings)),
        }
    }
}

pub(super) fn draft(source: Arc<Source>) -> Draft {
    let mut findings = Findings { source: &source, list: Vec::new() };
    let mut unknown = Unknown::default();
    let manifest = read(&source, &mut findings, &mut unknown);
    let findings = findings.list;
    Draft { source, manifest, findings, unknown }
}

fn read(source: &Arc<Source>, out: &mut Findings<'_>, unknown: &mut Unknown) -> Option<Manifest> {
    if source.text.len() > MAX_MANIFEST {
        let message = format!("the file has {} bytes; a manifest has at most {MAX_MANIFEST}", source.text.len());
        out.add(0..0, Violation::new(Code::ManifestTooLarge, message).help("is this the right file?"));
        return None;
    }
    let (doc, errors) = DeTable::parse_recoverable(&source.text);
    if !syntax::report(&source.text, &errors, out) {
        return None;
    }
    let doc = doc.get_ref();
    if !schema_version(doc, out) {
        return None;
    }
    shape::table(doc, &fields::APP, "", &(0..0), out);
    unknown.all_components = doc.get("components").is_none_or(|c| !c.get_ref().is_table());
    let mut reader = Reader { out, unknown };
    let name = reader.name::<AppName>(doc.get("name"));
    let version = text(doc.get("version")).map(|v| Spanned { value: v.value.to_owned(), span: v.span });
    let components = reader.components(table(doc.get("components")));
    let providers = reader.providers(table(doc.get("providers")));
    let routes = reader.routes(doc.get("routes"));
    let schedules = reader.schedules(table(doc.get("schedules")));
    // Without a name the rest can still be checked; `finish` refuses it for the finding.
    let name = name.or_else(|| Some(Spanned { value: "unnamed".parse().ok()?, span: 0..0 }))?;
    Some(Manifest { name, version, components, providers, routes, schedules, source: Arc::clone(source) })
}

/// Whether the rest of the document is in a version that can be read.
fn schema_version(doc: &DeTable<'_>, out: &mut Findings<'_>) -> bool {
    let Some(value) = doc.get("schema") else { return true };
    let Some(number) = integer(value) else { return true };
    if number == SCHEMA {
        return true;
    }
    let message = format!("`schema` is {number}, and this program reads version {SCHEMA} of the format");
    let help = if number > SCHEMA {
        "use a newer sidereal, or write the manifest for version 1"
    } else {
        "write `schema = 1`"
    };
    out.add(value.span(), Violation::new(Code::SchemaVersion, message).help(help));
    false
}

type Value<'a, 'i> = Option<&'a TomlSpanned<DeValue<'i>>>;

fn table<'a, 'i>(value: Value<'a, 'i>) -> Option<&'a DeTable<'i>> {
    value?.get_ref().as_table()
}

fn text<'a>(value: Value<'a, '_>) -> Option<Spanned<&'a str>> {
    let value = value?;
    Some(Spanned { value: value.get_ref().as_str()?, span: value.span() })
}

fn integer(value: &TomlSpanned<DeValue<'_>>) -> Option<i64> {
    let number = value.get_ref().as_integer()?;
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

struct Reader<'a, 'b> {
    out: &'a mut Findings<'b>,
    unknown: &'a mut Unknown,
}

impl Reader<'_, '_> {
    fn name<T: std::str::FromStr<Err = NameError>>(&mut self, value: Value<'_, '_>) -> Option<Spanned<T>> {
        let Spanned { value, span } = text(value)?;
        self.parse_name(value, span)
    }

    fn parse_name<T: std::str::FromStr<Err = NameError>>(
        &mut self,
        value: &str,
        span: Range<usize>,
    ) -> Option<Spanned<T>> {
        match value.parse() {
            Ok(name) => Some(Spanned { value: name, span }),
            Err(err) => {
                let help = match suggested_name(value) {
                    Some(name) => format!("write `{name}`"),
                    None => "use 1 to 40 characters of a-z, 0-9 and inner hyphens".to_owned(),
                };
                self.out.add(span, Violation::new(Code::BadName, err.to_string()).help(help));
                None
            }
        }
    }

    fn checked(
        &mut self,
        value: Option<Spanned<&str>>,
        check: fn(&str) -> Result<(), Violation>,
    ) -> Option<Spanned<String>> {
        let Spanned { value, span } = value?;
        match check(value) {
            Ok(()) => Some(Spanned { value: value.to_owned(), span }),
            Err(violation) => {
                self.out.add(span, violation);
                None
            }
        }
    }

    fn components(&mut self, doc: Option<&DeTable<'_>>) -> BTreeMap<ComponentName, Component> {
        let mut components = BTreeMap::new();
        for (key, value) in doc.into_iter().flatten() {
            let name = self.parse_name::<ComponentName>(key.get_ref(), key.span());
            let component = value.get_ref().as_table().zip(name.as_ref()).and_then(|(t, name)| self.component(t, name));
            match (name, component) {
                (Some(name), Some(component)) => {
                    components.insert(name.value, component);
                }
                _ => {
                    self.unknown.components.insert(key.get_ref().to_string());
                }
            }
        }
        components
    }

    fn component(&mut self, doc: &DeTable<'_>, name: &Spanned<ComponentName>) -> Option<Component> {
        let (limits, limit_spans) = self.limits(table(doc.get("limits")));
        let reuse = self.reuse(doc.get("reuse"));
        let links = self.links(table(doc.get("links")), &name.value);
        let allow_hosts =
            list(doc.get("allow-hosts")).filter_map(|item| self.checked(text(Some(item)), allow_host::check)).collect();
        let config_from = list(doc.get("config-from")).filter_map(|item| self.name::<ConfigName>(Some(item))).collect();
        let source = source::read(doc.get("source")?, self.out)?;
        let config = settings(table(doc.get("config")), &[]);
        let health = text(doc.get("health")).map(|path| Spanned { value: path.value.to_owned(), span: path.span });
        let span = name.span.clone();
        Some(Component { span, source, config, config_from, limits, limit_spans, reuse, allow_hosts, health, links })
    }

    fn limits(&mut self, doc: Option<&DeTable<'_>>) -> (Limits, BTreeMap<&'static str, Range<usize>>) {
        let (mut limits, mut spans) = (Limits::default(), BTreeMap::new());
        for (field, value) in LIMIT_FIELDS.iter().filter_map(|f| Some((f, doc?.get(f.name)?))) {
            if let Some(number) = self.quantity(field, value) {
                (field.set)(&mut limits, number);
                spans.insert(field.name, value.span());
            }
        }
        (limits, spans)
    }

    fn quantity(&mut self, field: &LimitField, value: &TomlSpanned<DeValue<'_>>) -> Option<u64> {
        let written = value.get_ref().as_str();
        match field.unit {
            LimitUnit::Duration => {
                let ceiling = Millis((field.get)(&Limits::ceiling()));
                self.duration(written?, value.span(), ceiling).map(|v| v.0)
            }
            LimitUnit::Size => match written?.parse::<ByteSize>() {
                Ok(size) => Some(size.0),
                Err(err) => {
                    let help = size_help(written?, ByteSize((field.get)(&Limits::ceiling())));
                    self.out.add(value.span(), Violation::new(Code::BadSize, err.to_string()).help(help));
                    None
                }
            },
            LimitUnit::Count => u32::try_from(integer(value)?).ok().map(u64::from),
        }
    }

    fn duration(&mut self, written: &str, span: Range<usize>, ceiling: Millis) -> Option<Millis> {
        match written.parse::<Millis>() {
            Ok(duration) => Some(duration),
            Err(err) => {
                let help = duration_help(written, ceiling);
                self.out.add(span, Violation::new(Code::BadDuration, err.to_string()).help(help));
                None
            }
        }
    }

    fn reuse(&mut self, value: Value<'_, '_>) -> Option<Spanned<Reuse>> {
        let (doc, span) = (table(value)?, value?.span());
        let idle = match text(doc.get("idle")) {
            Some(idle) => self.duration(idle.value, idle.span, MAX_REUSE_IDLE),
            None => Some(DEFAULT_IDLE),
        };
        let requests = u32::try_from(integer(doc.get("requests")?)?).ok()?;
        // Outside this range the first pass has spoken.
        let requests = (1..=MAX_REUSE_REQUESTS).contains(&requests).then_some(requests)?;
        Some(Spanned { value: Reuse { requests, idle: idle? }, span })
    }

    fn links(&mut self, doc: Option<&DeTable<'_>>, component: &ComponentName) -> Vec<LinkEntry> {
        let mut links = Vec::new();
        for (key, value) in doc.into_iter().flatten() {
            let contract = self.contract(key.get_ref(), key.span());
            let entries: Vec<_> = match value.get_ref() {
                DeValue::Array(items) => items.iter().collect(),
                _ => vec![value],
            };
            for entry in entries {
                match contract.as_ref().and_then(|contract| self.link(contract, entry)) {
                    Some(link) => links.push(link),
                    None => {
                        self.unknown.links.insert(component.clone());
                    }
                }
            }
        }
        links
    }

    fn contract(&mut self, written: &str, span: Range<usize>) -> Option<Spanned<ContractId>> {
        if let Ok(value) = written.parse::<ContractId>() {
            return Some(Spanned { value, span });
        }
        let whole = written.split(['/', '@']).next().unwrap_or_default();
        let message = format!("`{}` is not a contract", shown(written));
        let help = match whole.parse::<ContractId>() {
            Ok(contract) => format!(
                "write \"{contract}\": a link carries all interfaces of the contract, in the version the component imports"
            ),
            Err(_) => "write namespace and package in quotes, for example \"wasi:keyvalue\"".to_owned(),
        };
        self.out.add(span, Violation::new(Code::LinkContract, message).help(help));
        None
    }

    fn link(&mut self, contract: &Spanned<ContractId>, value: &TomlSpanned<DeValue<'_>>) -> Option<LinkEntry> {
        let contract = contract.clone();
        let Some(doc) = value.get_ref().as_table() else {
            let provider = self.name::<ProviderName>(Some(value))?;
            let label = Spanned { value: Label::default_label(), span: contract.span.clone() };
            let (span, config) = (contract.span.clone(), BTreeMap::new());
            return Some(LinkEntry { span, contract, label, provider, to_component: false, config });
        };
        let to_component = doc.contains_key("component");
        if to_component == doc.contains_key("provider") {
            let message = format!("a link of `{}` names a provider or a component, one of the two", contract.value);
            let help = "write `provider = \"embedded\"`, or `component = \"<name>\"` for another component of the app";
            self.out.add(value.span(), Violation::new(Code::MissingField, message).help(help));
            return None;
        }
        let provider = self.name::<ProviderName>(doc.get(if to_component { callee::COMPONENT } else { "provider" }));
        let label = match doc.get("label") {
            Some(label) => self.name::<Label>(Some(label)),
            None => Some(Spanned { value: Label::default_label(), span: contract.span.clone() }),
        };
        let config = settings(Some(doc), &["provider", "component", "label"]);
        Some(LinkEntry { span: value.span(), contract, label: label?, provider: provider?, to_component, config })
    }

    fn providers(&mut self, doc: Option<&DeTable<'_>>) -> BTreeMap<ProviderName, Provider> {
        let mut providers = BTreeMap::new();
        for (key, value) in doc.into_iter().flatten() {
            let name = self.parse_name::<ProviderName>(key.get_ref(), key.span());
            let kind = table(Some(value)).and_then(|doc| self.kind(text(doc.get("type"))?));
            match (name, kind) {
                (Some(name), Some(kind)) => {
                    let doc = table(Some(value));
                    let mut config = settings(doc, &["type"]);
                    let (mut secrets, mut readable) = self.secrets(doc);
                    if kind.value == ProviderKind::External {
                        let handed = table(doc.and_then(|doc| doc.get(external::CONFIG)));
                        let (named, all) = self.secrets(handed);
                        let flat = |key: String| format!("{}{key}", external::PREFIX);
                        config.extend(settings(handed, &[]).into_iter().map(|(key, entry)| (flat(key), entry)));
                        secrets.extend(named.into_iter().map(|(key, entry)| (flat(key), entry)));
                        readable &= all;
                    }
                    if !readable {
                        self.unknown.providers.insert(name.value.to_string());
                        continue;
                    }
                    providers.insert(name.value, Provider { span: name.span, kind, config, secrets });
                }
                _ => {
                    self.unknown.providers.insert(key.get_ref().to_string());
                }
            }
        }
        providers
    }

    /// The settings that name a secret, and whether all of them can be read.
    fn secrets(&mut self, doc: Option<&DeTable<'_>>) -> (BTreeMap<String, SecretEntry>, bool) {
        let (mut secrets, mut readable) = (BTreeMap::new(), true);
        for (key, value) in doc.into_iter().flatten() {
            let Some(reference) = value.get_ref().as_table() else { continue };
            if key.get_ref() == external::CONFIG && doc.is_some_and(shape::is_external) {
                continue;
            }
            match text(reference.get("secret")).map(|name| (name.value.parse::<SecretName>(), name.span)) {
                Some((Ok(secret), _)) => {
                    let (Ok(from), Ok(field)) = (self.source(reference), self.field(reference)) else {
                        readable = false;
                        continue;
                    };
                    let reference = SecretRef { secret, from, field };
                    let entry = SecretEntry { key: key.span(), span: value.span(), reference };
                    secrets.insert(key.get_ref().to_string(), entry);
                }
                Some((Err(_), span)) => {
                    // It may be the secret itself: not repeated.
                    let message = "this is not the name of a secret: 1 to 40 characters of a-z, 0-9 and inner hyphens";
                    let help = "write the name under which it was kept with `sidereal secret set NAME`";
                    self.out.add(span, Violation::new(Code::BadName, message).help(help));
                    readable = false;
                }
                None => readable = false,
            }
        }
        (secrets, readable)
    }

    /// Which provider keeps a secret. `Err` for one that was reported already.
    fn source(&mut self, reference: &DeTable<'_>) -> Result<Option<ProviderName>, ()> {
        match reference.get("from") {
            Some(from) => self.name::<ProviderName>(Some(from)).map(|from| Some(from.value)).ok_or(()),
            None => Ok(None),
        }
    }

    /// Which field of a secret is meant. `Err` for one that was reported already.
    fn field(&mut self, reference: &DeTable<'_>) -> Result<Option<SecretField>, ()> {
        let Some(written) = reference.get("field") else { return Ok(None) };
        let field = text(Some(written)).ok_or(())?;
        field.value.parse().map(Some).map_err(|cause: SecretFieldError| {
            let help = "write the field's name as the secret has it, for example `field = \"password\"`";
            self.out.add(field.span, Violation::new(Code::BadValue, cause.to_string()).help(help));
        })
    }

    fn kind(&mut self, written: Spanned<&str>) -> Option<Spanned<ProviderKind>> {
        let kind = ProviderKind::ALL.into_iter().find(|kind| kind.as_str() == written.value);
        if kind.is_none() {
            self.out.add(written.span.clone(), provider::unknown_kind(written.value));
        }
        Some(Spanned { value: kind?, span: written.span })
    }

    fn routes(&mut self, value: Value<'_, '_>) -> Vec<RouteEntry> {
        list(value).filter_map(|item| self.route(item.get_ref().as_table()?, item.span())).collect()
    }

    fn route(&mut self, doc: &DeTable<'_>, span: Range<usize>) -> Option<RouteEntry> {
        let host = self.checked(text(doc.get("host")), check_host);
        let path = match doc.get("path") {
            Some(path) => self.checked(text(Some(path)), check_path),
            None => Some(Spanned { value: "/".to_owned(), span: span.clone() }),
        };
        let (mut methods, mut readable) = (Vec::new(), true);
        for item in list(doc.get("methods")) {
            match self.checked(text(Some(item)), check_method) {
                Some(method) => methods.push(method),
                None => readable = false,
            }
        }
        if let Some(value) = doc.get("methods").filter(|v| v.get_ref().as_array().is_some_and(|a| a.is_empty())) {
            let message = "`methods` is empty, so the route would answer nothing";
            let help = "name methods, for example [\"GET\"], or leave `methods` out to answer all";
            self.out.add(value.span(), Violation::new(Code::RouteMethod, message).help(help));
            readable = false;
        }
        let component = self.name::<ComponentName>(doc.get("component"));
        // A route that lost methods would seem to answer more than it says, and collide with others.
        readable.then_some(RouteEntry { span, host: host?, path: path?, methods, component: component? })
    }
}

impl Reader<'_, '_> {
    fn schedules(&mut self, doc: Option<&DeTable<'_>>) -> BTreeMap<ScheduleName, ScheduleEntry> {
        let mut schedules = BTreeMap::new();
        for (key, value) in doc.into_iter().flatten() {
            let name = self.parse_name::<ScheduleName>(key.get_ref(), key.span());
            let entry = value.get_ref().as_table().and_then(|doc| self.schedule(doc, key.span()));
            if let Some((name, entry)) = name.zip(entry) {
                schedules.insert(name.value, entry);
            }
        }
        schedules
    }

    fn schedule(&mut self, doc: &DeTable<'_>, span: Range<usize>) -> Option<ScheduleEntry> {
        let component = self.name::<ComponentName>(doc.get("component"));
        let missed = match text(doc.get("missed")) {
            None => Some(Missed::default()),
            Some(written) => written.value.parse().ok().or_else(|| {
                let message = format!("`missed` is `{}`, which is no answer to missed due times", shown(written.value));
                let help = "write `skip` to pass them over, `once` to run the latest, `all` to run each";
                self.out.add(written.span, Violation::new(Code::ScheduleMissed, message).help(help));
                None
            }),
        };
        // Outside its range the first pass has spoken.
        let missed_max = doc.get("missed-max").and_then(integer).and_then(|number| u32::try_from(number).ok());
        let timezone = text(doc.get("timezone")).map_or("UTC", |zone| zone.value).to_owned();
        let cron = text(doc.get("cron"))?.value.to_owned();
        let keys = ["component", "cron", "timezone", "missed", "missed-max"];
        let keys = keys.into_iter().filter_map(|key| Some((key, doc.get(key)?.span()))).collect();
        let missed_max = missed_max.unwrap_or(DEFAULT_MISSED_MAX);
        let schedule = Schedule { component: component?.value, cron, timezone, missed: missed?, missed_max };
        Some(ScheduleEntry { span, keys, schedule })
    }
}

/// How long an idle instance is kept where `idle` is not written.
const DEFAULT_IDLE: Millis = Millis::secs(10);

fn list<'a, 'i>(value: Value<'a, 'i>) -> impl Iterator<Item = &'a TomlSpanned<DeValue<'i>>> {
    value.and_then(|v| v.get_ref().as_array()).into_iter().flat_map(|items| items.iter())
}

/// The texts of a table, but for the keys in `not`.
fn settings(doc: Option<&DeTable<'_>>, not: &[&str]) -> BTreeMap<String, SettingEntry> {
    doc.into_iter()
        .flatten()
        .filter(|(key, _)| !not.contains(&key.get_ref().as_ref()))
        .filter_map(|(key, value)| {
            let written = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                // The first pass lets a list pass only where it is one of texts that may be joined.
                DeValue::Array(items) => {
                    items.iter().filter_map(|item| item.get_ref().as_str()).collect::<Vec<_>>().join(",")
                }
                _ => return None,
            };
            let value = Spanned { value: written, span: value.span() };
            Some((key.get_ref().to_string(), SettingEntry { key: key.span(), value }))
        })
        .collect()
}
