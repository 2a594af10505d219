//! The ways to log in, and what a login gives: a token and how long it lives.

use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use http::HeaderValue;
use serde::{Deserialize, Serialize};

use super::hidden::Hidden;
use super::{Vault, VaultError, error};
use crate::http_json::{json_body, secret_header};
use crate::path::Segments;

/// What logs in, as it is at this moment.
#[derive(Debug, Clone)]
pub enum Login {
    /// A token that somebody made.
    Token(Hidden),
    /// AppRole.
    AppRole {
        /// Which role.
        role_id: Hidden,
        /// The proof.
        secret_id: Hidden,
    },
    /// A signed statement of who we are, as Nomad gives to its workloads.
    Jwt {
        /// The role in Vault; `None` is the mount's default.
        role: Option<String>,
        /// The statement.
        jwt: Hidden,
    },
}

/// Where what logs in comes from. It is asked at every login, so that what was set anew is used from then on.
pub trait LoginSource: Send + Sync + 'static {
    /// What logs in now.
    fn login(&self) -> BoxFuture<'_, Result<Login, VaultError>>;
}

impl LoginSource for Login {
    fn login(&self) -> BoxFuture<'_, Result<Login, VaultError>> {
        Box::pin(std::future::ready(Ok(self.clone())))
    }
}

/// A token at work.
#[derive(Debug, Clone)]
pub(super) struct Token {
    /// Marked as sensitive: no log shows it.
    pub(super) header: HeaderValue,
    /// `None` for one that does not end.
    pub(super) life: Option<Life>,
    /// Its life when it was logged in: a renewal that gives much less says that its end is near.
    pub(super) full: Duration,
    pub(super) renewable: bool,
    /// Tells a token from those before and after it.
    pub(super) generation: u64,
    /// Vault refused it before its end, has not taken it since, and there is no other yet.
    pub(super) doubted: bool,
}

/// From when and how long a token lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) began: Instant,
    pub(super) length: Duration,
}

/// What comes at two thirds of a token's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Renew,
    LogIn,
}

/// Vault tells lives in whole seconds: by so much a token may end sooner than told.
const ROUNDED: Duration = Duration::from_secs(1);

impl Life {
    pub(super) fn end(self) -> Instant {
        self.began + self.length
    }

    /// What is left of one that was told to be 0, as of a token that never ends: its last second.
    pub(super) fn last(now: Instant) -> Self {
        Self { began: now, length: ROUNDED }
    }

    /// Two thirds of it, or up to a tenth earlier, so that not all who began together come back together.
    pub(super) fn renew_at(self, random: u64) -> Instant {
        let two_thirds = self.length * 2 / 3;
        let tenth = two_thirds / 10;
        self.began + two_thirds - Duration::from_nanos(random % (tenth.as_nanos() as u64 + 1))
    }
}

impl Token {
    /// Whether it ended in its own time, so that it is no wonder when Vault does not take it.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        !self.doubted && self.life.is_some_and(|life| now + ROUNDED >= life.end())
    }

    pub(super) fn next(&self) -> Next {
        match self.life {
            Some(life) if self.renewable && life.length * 2 >= self.full => Next::Renew,
            _ => Next::LogIn,
        }
    }
}

#[derive(Serialize)]
struct AppRole<'a> {
    role_id: &'a Hidden,
    secret_id: &'a Hidden,
}

#[derive(Serialize)]
struct Jwt<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    jwt: &'a Hidden,
}

#[derive(Deserialize)]
struct Answer {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    client_token: Hidden,
    lease_duration: u64,
    renewable: bool,
}

#[derive(Deserialize)]
struct Looked {
    data: Own,
}

#[derive(Deserialize)]
struct Own {
    #[serde(default)]
    ttl: u64,
    #[serde(default)]
    renewable: bool,
}

/// Lives longer than a century are as good as endless, and do not fit every clock.
const FOREVER: u64 = 100 * 366 * 24 * 3600;

fn life(began: Instant, seconds: u64) -> Option<Life> {
    (1..FOREVER).contains(&seconds).then(|| Life { began, length: Duration::from_secs(seconds) })
}

/// Logs in.
pub(super) async fn log_in(
    vault: &Vault,
    login: &Login,
    mount: Option<&Segments>,
    generation: u64,
) -> Result<Token, VaultError> {
    let began = Instant::now();
    let (method, body, hidden) = match login {
        Login::Token(token) => return look_up(vault, token, began, generation).await,
        Login::AppRole { role_id, secret_id } => {
            ("approle", json_body(&AppRole { role_id, secret_id }), vec![role_id.expose(), secret_id.expose()])
        }
        Login::Jwt { role, jwt } => ("jwt", json_body(&Jwt { role: role.as_deref(), jwt }), vec![jwt.expose()]),
    };
    let body = body.map_err(|cause| vault.unanswered(cause))?;
    let mount = mount.map_or_else(|| method.to_owned(), Segments::to_string);
    let told = vault.send(http::Method::POST, &format!("/v1/auth/{mount}/login"), None, body).await?;
    match told.status.as_u16() {
        200 => {}
        // A role, a proof or a statement that Vault does not accept is a bad request to it.
        400 | 403 => return Err(VaultError::LoginRefused { method, said: error::said(&told, &hidden) }),
        404 => return Err(VaultError::NoMount(format!("`auth/{mount}`"))),
        status => {
            let other = || VaultError::Other { status, said: error::said(&told, &hidden) };
            return Err(error::fault(vault.place(), &told, &hidden).unwrap_or_else(other));
        }
    }
    let Answer { auth } = told.json().map_err(|cause| vault.unanswered(cause))?;
    let life = life(began, auth.lease_duration);
    Ok(Token {
        header: header(vault, &auth.client_token)?,
        life,
        full: life.map_or(Duration::ZERO, |life| life.length),
        renewable: auth.renewable,
        generation,
        doubted: false,
    })
}

/// A token that is given needs no login; how long it lives is asked.
async fn look_up(vault: &Vault, token: &Hidden, began: Instant, generation: u64) -> Result<Token, VaultError> {
    let header = header(vault, token)?;
    let told = vault.send(http::Method::GET, LOOKUP_SELF, Some(&header), Default::default()).await?;
    if told.status == http::StatusCode::FORBIDDEN {
        return Err(VaultError::Expired);
    }
    vault.sound(&told, &[token.expose()])?;
    let Looked { data } = told.json().map_err(|cause| vault.unanswered(cause))?;
    let life = life(began, data.ttl);
    let full = life.map_or(Duration::ZERO, |life| life.length);
    Ok(Token { header, life, full, renewable: data.renewable, generation, doubted: false })
}

/// Where a token asks about itself.
pub(super) const LOOKUP_SELF: &str = "/v1/auth/token/lookup-self";

/// Makes a token live longer; `None` where Vault says that it is none any more or not to be renewed.
pub(super) async fn renew(vault: &Vault, token: &Token) -> Result<Option<Token>, VaultError> {
    let began = Instant::now();
    let body = json_body(&serde_json::json!({})).map_err(|cause| vault.unanswered(cause))?;
    let told = vault.send(http::Method::POST, "/v1/auth/token/renew-self", Some(&token.header), body).await?;
    match told.status.as_u16() {
        400 | 403 => return Ok(None),
        200 => {}
        _ => vault.sound(&told, &[])?,
    }
    let Answer { auth } = told.json().map_err(|cause| vault.unanswered(cause))?;
    let life = life(began, auth.lease_duration);
    Ok(Some(Token { life, renewable: auth.renewable, doubted: false, ..token.clone() }))
}

fn header(vault: &Vault, token: &Hidden) -> Result<HeaderValue, VaultError> {
    let cause = || VaultError::Garbage {
        place: vault.place().to_owned(),
        cause: "a token that no HTTP header can hold".to_owned(),
    };
    secret_header(token.expose()).ok_or_else(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_two_thirds_of_its_life_and_not_much_before() {
        let began = Instant::now();
        let life = Life { began, length: Duration::from_secs(900) };
        for random in [0, 1, 12_345_678_901_234_567, u64::MAX] {
            let after = life.renew_at(random) - began;
            assert!((540..=600).contains(&after.as_secs()), "{after:?}");
        }
        assert_eq!(life.renew_at(0) - began, Duration::from_secs(600));
    }

    #[test]
    fn what_cannot_be_renewed_much_longer_is_logged_in_anew() {
        let token = |seconds, renewable| Token {
            header: HeaderValue::from_static("t"),
            life: life(Instant::now(), seconds),
            full: Duration::from_secs(60),
            renewable,
            generation: 1,
            doubted: false,
        };
        assert_eq!(token(60, true).next(), Next::Renew);
        assert_eq!(token(30, true).next(), Next::Renew);
        assert_eq!(token(29, true).next(), Next::LogIn);
        assert_eq!(token(60, false).next(), Next::LogIn);
        assert_eq!(token(0, true).life, None);
        assert_eq!(token(u64::MAX, true).life, None);
    }

    #[test]
    fn a_token_that_ended_in_its_own_time_is_told_from_one_that_was_taken_away() {
        let now = Instant::now();
        let life = Life { began: now, length: Duration::from_secs(60) };
        let header = HeaderValue::from_static("t");
        let token =
            Token { header, life: Some(life), full: life.length, renewable: false, generation: 1, doubted: false };
        assert!(!token.is_over(now) && !token.is_over(now + Duration::from_secs(58)));
        // Lives are told in whole seconds.
        assert!(token.is_over(now + Duration::from_secs(59)) && token.is_over(now + Duration::from_secs(3600)));
        assert!(!Token { life: None, ..token.clone() }.is_over(now + Duration::from_secs(3600)));
        assert!(!Token { doubted: true, ..token }.is_over(now + Duration::from_secs(3600)));
    }
}
