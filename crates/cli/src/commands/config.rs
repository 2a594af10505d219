//! `config`: values that several apps answer `wasi:config` with. Setting one waits until the apps that name it serve it.

use std::collections::BTreeMap;
use std::time::Duration;

use api::client::{ControlClient, Require};
use api::control::{ConfigRequest, ConfigSet, ConfigUse, ConfigView};
use api::{Code, Problem};
use model::config::Values;
use model::{AppName, ConfigName};

use crate::args::ConfigCommand;
use crate::context::{Context, refused};
use crate::follow::Follow;
use crate::output::table;

/// `sidereal config`
///
/// # Errors
/// When the platform refuses, or an app does not serve the new values.
pub async fn config(context: &Context, command: ConfigCommand) -> anyhow::Result<()> {
    let client = context.client()?;
    match command {
        ConfigCommand::Set { name, values, unset, replace, expect, timeout } => {
            let edit = Edit { values: given(values)?, unset, replace };
            if edit.values.is_empty() && edit.unset.is_empty() && !edit.replace {
                let problem = Problem::new(Code::RequestInvalid, "nothing to set: no `key=value` was given")
                    .help(format!("for example `sidereal config set {name} greeting=hello`"));
                return Err(problem.into());
            }
            set(context, &client, &name, &edit, expect, Duration::from_secs(timeout)).await
        }
        ConfigCommand::Get { name } => {
            let view = client.config(&context.tenant, &name).await.map_err(refused)?;
            context.out.result(&view, || shown(&view));
            Ok(())
        }
        ConfigCommand::List => {
            let configs = client.configs(&context.tenant).await.map_err(refused)?;
            let rows: Vec<_> = configs
                .iter()
                .map(|config| {
                    let (keys, version) = (config.values.len().to_string(), config.version.to_string());
                    vec![config.name.to_string(), version, keys, used_by(&config.used_by)]
                })
                .collect();
            context.out.result(&configs, || match rows.is_empty() {
                true => "no configs; `sidereal config set NAME key=value` makes one".to_owned(),
                false => table(&["CONFIG", "VERSION", "KEYS", "USED BY"], rows),
            });
            Ok(())
        }
        ConfigCommand::Delete { name } => {
            client.delete_config(&context.tenant, &name, Require::Any).await.map_err(refused)?;
            let data = serde_json::json!({ "config": name, "deleted": true });
            context.out.result(&data, || format!("config {name} is deleted"));
            Ok(())
        }
    }
}

/// What `set` asks for.
struct Edit {
    values: Values,
    unset: Vec<String>,
    replace: bool,
}

impl Edit {
    fn apply(&self, before: &Values) -> Result<Values, Problem> {
        if let Some(key) = self.unset.iter().find(|key| !before.contains_key(*key)) {
            return Err(Problem::new(Code::NotFound, format!("the config has no key `{key}`; nothing was changed"))
                .help("`sidereal config get NAME` shows its keys"));
        }
        let kept = before.iter().filter(|(key, _)| !self.replace && !self.unset.contains(key));
        Ok(kept.chain(&self.values).map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

/// Each key once.
fn given(pairs: Vec<(String, String)>) -> Result<Values, Problem> {
    let mut values = Values::new();
    for (key, value) in pairs {
        if values.contains_key(&key) {
            return Err(Problem::new(Code::RequestInvalid, format!("the key `{key}` is given twice")));
        }
        values.insert(key, value);
    }
    Ok(values)
}

/// Reads, changes and writes the config, again where somebody else was faster; then waits for the apps.
async fn set(
    context: &Context,
    client: &ControlClient,
    name: &ConfigName,
    edit: &Edit,
    expect: Option<u64>,
    within: Duration,
) -> anyhow::Result<()> {
    let (set, mut follows) = loop {
        let before = match client.config(&context.tenant, name).await {
            Ok(view) => Some(view),
            Err(error) => match error.problem() {
                problem if problem.code == Code::NotFound => None,
                problem => return Err(problem.into()),
            },
        };
        let require = match (expect, &before) {
            (Some(etag), _) => Require::At(etag),
            (None, Some(view)) => Require::At(view.etag),
            (None, None) => Require::Absent,
        };
        let none = Values::new();
        let values = edit.apply(before.as_ref().map_or(&none, |view| &view.values))?;
        let mut follows = BTreeMap::new();
        for user in before.iter().flat_map(|view| &view.used_by) {
            follows.insert(user.app.clone(), Follow::open(client, &context.tenant, &user.app).await?);
        }
        match client.put_config(&context.tenant, name, &ConfigRequest { values }, require).await {
            Ok(set) => break (set, follows),
            Err(error) => match error.problem() {
                problem if problem.code == Code::Conflict && expect.is_none() => {}
                problem => return Err(problem.into()),
            },
        }
    };
    let mut failed = Vec::new();
    for app in &set.apps {
        match (&app.revision, &app.problem) {
            (_, Some(problem)) => failed.push(goes_on(&app.app, problem)),
            // An app that was deployed in between is followed from now on: it cannot serve before it is asked.
            (Some(revision), None) if !within.is_zero() => {
                let follow = match follows.remove(&app.app) {
                    Some(follow) => follow,
                    None => Follow::open(client, &context.tenant, &app.app).await?,
                };
                match follow.serving(&context.out, *revision, within).await {
                    Ok(_) => context.out.step(&format!("{} serves it as revision {revision}", app.app)),
                    Err(error) => failed.push(goes_on(&app.app, &crate::output::problem_of(&error))),
                }
            }
            _ => {}
        }
    }
    if failed.is_empty() {
        context.out.result(&set, || said(&set));
        return Ok(());
    }
    let text = format!("config `{name}` is set, version {}, and not every app has it", set.config.version);
    let mut problem = Problem::new(Code::StartFailed, text)
        .help("these apps go on with the values they had; deploy them again, or set the config once more");
    problem.findings = failed;
    Err(problem.into())
}

fn goes_on(app: &AppName, problem: &Problem) -> String {
    format!("app `{app}`: {}", problem.detail)
}

fn said(set: &ConfigSet) -> String {
    let what = if set.unchanged { "held that already" } else { "is set" };
    let mut text = format!("config {} {what}, version {}", set.config.name, set.config.version);
    for app in &set.apps {
        if let Some(revision) = app.revision {
            text.push_str(&format!("\n  {} revision {revision}", app.app));
        }
    }
    text
}

fn shown(view: &ConfigView) -> String {
    let mut lines: Vec<String> = view.values.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if !view.used_by.is_empty() {
        lines.push(format!("# version {}, used by {}", view.version, used_by(&view.used_by)));
    }
    lines.join("\n")
}

fn used_by(uses: &[ConfigUse]) -> String {
    let one = |used: &ConfigUse| match used.differs {
        true => format!("{} (revision {} holds other values)", used.app, used.revision),
        false => used.app.to_string(),
    };
    uses.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// What the operator offers of the environment: the variables that were named, and no other. `None`: nothing was named.
///
/// # Errors
/// When a variable that was named is not there, is not text, or could not be a config.
pub fn environment(
    names: &[String],
    prefixes: &[String],
    all: impl Iterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> Result<Option<Values>, Problem> {
    if names.is_empty() && prefixes.is_empty() {
        return Ok(None);
    }
    if prefixes.iter().any(String::is_empty) {
        return Err(Problem::new(Code::RequestInvalid, "an empty prefix would offer the whole environment")
            .help("name the beginning of the variables that apps may see, for example `--config-env-prefix APP_`"));
    }
    let mut values = Values::new();
    for (name, value) in all {
        let Some(name) = name.to_str() else { continue };
        if !names.iter().any(|wanted| wanted == name) && !prefixes.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let value = value.into_string().map_err(|_| {
            Problem::new(Code::RequestInvalid, format!("the variable `{name}` is not text and cannot be offered"))
        })?;
        values.insert(name.to_owned(), value);
    }
    if let Some(missing) = names.iter().find(|name| !values.contains_key(*name)) {
        return Err(Problem::new(Code::RequestInvalid, format!("there is no variable `{missing}` to offer"))
            .help("set it where the platform is started, or leave out `--config-env`"));
    }
    match model::config::problems(&values) {
        problems if problems.is_empty() => Ok(Some(values)),
        problems => {
            let text = format!("the environment cannot be offered: {}", problems.join("; "));
            Err(Problem::new(Code::RequestInvalid, text).help("name fewer variables"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, &str)]) -> Values {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn keys_are_added_taken_out_and_replaced() {
        let before = values(&[("a", "1"), ("b", "2")]);
        let edit = |set: &[(&str, &str)], unset: &[&str], replace| {
            let unset = unset.iter().map(|key| (*key).to_owned()).collect();
            Edit { values: values(set), unset, replace }.apply(&before)
        };
        assert_eq!(edit(&[("a", "3"), ("c", "4")], &[], false), Ok(values(&[("a", "3"), ("b", "2"), ("c", "4")])));
        assert_eq!(edit(&[], &["a"], false), Ok(values(&[("b", "2")])));
        assert_eq!(edit(&[("c", "4")], &[], true), Ok(values(&[("c", "4")])));
        assert_eq!(edit(&[], &["x"], false).unwrap_err().code, Code::NotFound);
        assert!(given(vec![("a".into(), "1".into()), ("a".into(), "2".into())]).is_err());
    }

    #[test]
    fn only_variables_that_were_named_are_offered() {
        let environment = |names: &[&str], prefixes: &[&str]| {
            let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            let all = [("APP_A", "1"), ("APP_B", "2"), ("HOME", "/root"), ("PASSWORD", "no")];
            super::environment(&own(names), &own(prefixes), all.iter().map(|(k, v)| (k.into(), v.into())))
        };
        assert_eq!(environment(&[], &[]), Ok(None));
        assert_eq!(environment(&["HOME"], &[]), Ok(Some(values(&[("HOME", "/root")]))));
        assert_eq!(environment(&[], &["APP_"]), Ok(Some(values(&[("APP_A", "1"), ("APP_B", "2")]))));
        assert_eq!(environment(&[], &["NONE_"]), Ok(Some(values(&[]))));
        for (names, prefixes) in [(&["MISSING"][..], &[][..]), (&[], &[""])] {
            assert_eq!(environment(names, prefixes).unwrap_err().code, Code::RequestInvalid);
        }
    }
}
