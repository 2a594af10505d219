//! Whom a registry is asked as: what the docker configuration of this user holds for it, or names a helper for. What it holds and
//! cannot be used is said: to ask as nobody instead ends in a refusal that nobody understands.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use api::{Code, Problem};
use data_encoding::BASE64;
use oci_client::secrets::RegistryAuth;
use serde::{Deserialize, Deserializer};
use tokio::io::AsyncWriteExt as _;

/// How long a helper may take: some ask a server of their own.
const PATIENCE: Duration = Duration::from_secs(30);
/// One registry, by all its names.
const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// What helpers know it as.
const HUB_SERVER: &str = "https://index.docker.io/v1/";
/// In the place of a user's name: the secret is no password, but an identity token.
const TOKEN: &str = "<token>";
/// What a helper says that has nothing.
const NOT_FOUND: &str = "credentials not found";
/// No more of what a helper says is passed on, characters.
const SAID: usize = 300;

/// `config.json`, as far as it says whom to ask as.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    #[serde(deserialize_with = "or_nothing")]
    auths: BTreeMap<String, Entry>,
    #[serde(deserialize_with = "or_nothing")]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    #[serde(deserialize_with = "or_nothing")]
    auth: String,
    #[serde(deserialize_with = "or_nothing")]
    username: String,
    #[serde(deserialize_with = "or_nothing")]
    password: String,
    #[serde(deserialize_with = "or_nothing")]
    identitytoken: String,
}

/// Some programs write `null` where there is nothing.
fn or_nothing<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entry")
    }
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Whom this registry is asked as by this user.
///
/// # Errors
/// Where the configuration means somebody, and it cannot be found out who.
pub async fn of(registry: &str) -> Result<RegistryAuth, Problem> {
    let Some(path) = folder().map(|dir| dir.join("config.json")) else { return Ok(RegistryAuth::Anonymous) };
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(cause) if matches!(cause.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(RegistryAuth::Anonymous);
        }
        Err(cause) => {
            let code = if cause.kind() == ErrorKind::PermissionDenied { Code::Forbidden } else { Code::Busy };
            return Err(Problem::new(code, format!("{} cannot be read: {cause}", path.display()))
                .help("an empty folder named by DOCKER_CONFIG stands for no credentials"));
        }
    };
    let config: Config = serde_json::from_slice(&text).map_err(|cause| {
        // Nothing of it is repeated.
        let place = format!("line {}, column {}", cause.line(), cause.column());
        Problem::new(Code::Forbidden, format!("{} cannot be understood: {place}", path.display()))
            .help("repair it, or have `docker login` write another one")
    })?;
    if let Some(helper) = config.helper(registry) {
        let server = if HUB.contains(&registry) { HUB_SERVER } else { registry };
        if let Some(Answer { username, secret }) = asked(&format!("docker-credential-{helper}"), server).await? {
            return usable(registry, username, secret);
        }
    }
    match config.entry(registry) {
        Some(entry) => entry.usable(registry),
        None => Ok(RegistryAuth::Anonymous),
    }
}

fn folder() -> Option<PathBuf> {
    let named = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    named.or_else(|| Some(etcetera::home_dir().ok()?.join(".docker")))
}

impl Config {
    /// The helper that is asked about a registry: its own, or that of all.
    fn helper(&self, registry: &str) -> Option<&str> {
        let own = self.cred_helpers.iter().find(|(name, _)| is_of(name, registry)).map(|(_, helper)| helper);
        own.or(self.creds_store.as_ref()).map(String::as_str).filter(|helper| !helper.is_empty())
    }

    fn entry(&self, registry: &str) -> Option<&Entry> {
        let named = self.auths.get(registry);
        named.or_else(|| self.auths.iter().find(|(name, _)| is_of(name, registry)).map(|(_, entry)| entry))
    }
}

/// Whether the configuration means this registry by that name: also with a scheme before it, and a path after it.
fn is_of(name: &str, registry: &str) -> bool {
    let name = name.trim_start_matches("https://").trim_start_matches("http://");
    let host = name.split('/').next().unwrap_or_default();
    host == registry || HUB.contains(&host) && HUB.contains(&registry)
}

impl Entry {
    fn usable(&self, registry: &str) -> Result<RegistryAuth, Problem> {
        if !self.identitytoken.is_empty() {
            return usable(registry, TOKEN.to_owned(), String::new());
        }
        let decoded = BASE64.decode(self.auth.as_bytes()).ok().and_then(|plain| String::from_utf8(plain).ok());
        let (user, password) = match decoded.as_deref().and_then(|plain| plain.split_once(':')) {
            Some((user, password)) => (user, password.trim_end_matches('\0')),
            None => (self.username.as_str(), self.password.as_str()),
        };
        match user.is_empty() {
            // As where its helper has it.
            true => Ok(RegistryAuth::Anonymous),
            false => usable(registry, user.to_owned(), password.to_owned()),
        }
    }
}

fn usable(registry: &str, user: String, secret: String) -> Result<RegistryAuth, Problem> {
    if user.is_empty() && secret.is_empty() {
        return Ok(RegistryAuth::Anonymous);
    }
    if user != TOKEN {
        return Ok(RegistryAuth::Basic(user, secret));
    }
    let what = format!("the docker configuration has an identity token for {registry}, which cannot be used here");
    Err(Problem::new(Code::Forbidden, what)
        .help("log in with a name and a password, or an access token as the password"))
}

/// Asks a helper; nothing where it has nothing.
async fn asked(program: &str, server: &str) -> Result<Option<Answer>, Problem> {
    let failed = |code, why: &dyn std::fmt::Display| {
        Problem::new(code, format!("{program}, which the docker configuration names for {server}, has failed: {why}"))
            .help(format!("as the user who asks, try: echo {server} | {program} get"))
    };
    let mut command = tokio::process::Command::new(program);
    if let Ok(home) = etcetera::home_dir() {
        command.env("HOME", home);
    }
    let mut child =
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().map_err(
            |cause| match cause.kind() {
                ErrorKind::NotFound => failed(Code::Forbidden, &"it is not on the PATH"),
                _ => failed(Code::Unreachable, &cause),
            },
        )?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not read it may know all the same.
        drop(input.write_all(server.as_bytes()).await);
    }
    let ended = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let ended = ended.map_err(|_| failed(Code::TimedOut, &format!("it did not answer within {PATIENCE:?}")))?;
    let ended = ended.map_err(|cause| failed(Code::Unreachable, &cause))?;
    if ended.status.success() {
        // What it says then is secret.
        let answer = serde_json::from_slice(&ended.stdout);
        return answer.map(Some).map_err(|_| failed(Code::Unreachable, &"what it answered cannot be understood"));
    }
    let said: String = String::from_utf8_lossy(&ended.stdout).trim().chars().take(SAID).collect();
    match said.contains(NOT_FOUND) {
        true => Ok(None),
        false => Err(failed(Code::Unreachable, &format!("{}: {said}", ended.status))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &serde_json::Value) -> Config {
        serde_json::from_value(text.clone()).unwrap()
    }

    #[test]
    fn a_registry_is_found_by_whatever_name_the_configuration_has() {
        let auth = serde_json::json!({"auth": BASE64.encode(b"me:secret")});
        let config = config(&serde_json::json!({"auths": {
            "registry.example:5000": auth, "https://old.example/v1/": auth, HUB_SERVER: auth, "empty.example": {},
            "plain.example": {"username": "me", "password": "secret"}}}));
        let found = |registry: &str| config.entry(registry).map(|entry| entry.usable(registry).unwrap());
        let me = RegistryAuth::Basic("me".to_owned(), "secret".to_owned());
        for registry in ["registry.example:5000", "old.example", "docker.io", "index.docker.io", "plain.example"] {
            assert_eq!(found(registry), Some(me.clone()), "{registry}");
        }
        assert_eq!(found("empty.example"), Some(RegistryAuth::Anonymous));
        for registry in ["registry.example", "example", "other.example"] {
            assert_eq!(found(registry), None, "{registry}");
        }
    }

    #[test]
    fn a_helper_of_a_registry_goes_before_that_of_all() {
        let some = config(&serde_json::json!({"credHelpers": {"ecr.example": "ecr-login"}, "credsStore": "pass"}));
        assert_eq!((some.helper("ecr.example"), some.helper("other.example")), (Some("ecr-login"), Some("pass")));
        let none =
            config(&serde_json::json!({"credsStore": "", "credHelpers": null, "auths": {"a.example": {"auth": null}}}));
        assert_eq!((none.helper("ecr.example"), Config::default().helper("ecr.example")), (None, None));
    }

    /// To ask as nobody in their place would be refused without a word of why.
    #[test]
    fn tokens_that_cannot_be_used_are_said() {
        let entry = Entry { auth: BASE64.encode(b"id:"), identitytoken: "eyJ".to_owned(), ..Entry::default() };
        for refused in [entry.usable("acr.example"), usable("acr.example", TOKEN.to_owned(), "eyJ".to_owned())] {
            let refused = refused.unwrap_err();
            assert!(refused.code == Code::Forbidden && refused.detail.contains("identity token for acr.example"));
            assert!(!refused.detail.contains("eyJ"), "{refused}");
        }
    }
}
