//! A client of Vault or OpenBao: logs in, keeps its token alive, and says in plain words what is wrong when something is.
//!
//! A token is renewed at two thirds of its life by a task of its own; where it cannot be renewed, the client logs in anew.
//! A token that turns out to be none any more is replaced at the next call, once. While Vault is away a token that is
//! still good stays in use. One that may not look itself up is told from one that ended by whether Vault still shows it a mount
//! that it may use; where nothing is shown, a new login tells, and where it did not help, the next ones wait longer and longer.

mod error;
mod hidden;
mod login;
mod mount;
mod secrets;
mod session;

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use model::{AppName, ProviderName};
use zeroize::Zeroizing;

pub use error::VaultError;
pub use hidden::Hidden;
use login::{LOOKUP_SELF, Life, Next, Token};
pub use login::{Login, LoginSource};
pub use secrets::FromSecrets;
use session::{MOUNTS, Session, below};

use crate::breaker::{Breaker, Pauses, pause};
use crate::dial::{Caller, Dialer};
use crate::http_json::{Ask, HttpError, HttpJson, Server, SettingsError, Told};
use crate::path::Segments;

/// A login that was refused is tried again after a pause: what logs in may have been set anew.
const REFUSED: Pauses = Pauses { after: 1, least: Duration::from_millis(200), most: Duration::from_secs(5) };
/// Between two tries to renew while Vault does not answer.
const RENEW_LEAST: Duration = Duration::from_secs(1);
const RENEW_MOST: Duration = Duration::from_secs(30);
/// The most bytes of an answer.
pub const MAX_ANSWER: usize = 16 << 20;

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");

/// Where Vault is and how to log in.
pub struct Settings<'a> {
    /// For example `https://vault.example:8200`.
    pub url: &'a str,
    /// Certificates in PEM to believe instead of the public authorities.
    pub ca: Option<&'a str>,
    /// The namespace, where there is one.
    pub namespace: Option<&'a str>,
    /// Where the login method is mounted, if not at its own name.
    pub auth_mount: Option<&'a str>,
    /// What logs in.
    pub login: Arc<dyn LoginSource>,
}

/// One provider's Vault.
pub struct Vault {
    http: HttpJson,
    headers: HeaderMap,
    login: Arc<dyn LoginSource>,
    auth_mount: Option<Segments>,
    logging_in: tokio::sync::Mutex<()>,
    refused: Breaker<VaultError>,
    session: Mutex<Session>,
    jitter: RandomState,
    /// For the task that keeps the token alive.
    own: Weak<Self>,
}

impl Vault {
    /// A client of one Vault. Nothing is connected before the first call.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(
        app: &AppName,
        provider: &ProviderName,
        settings: &Settings<'_>,
        dialer: Arc<dyn Dialer>,
    ) -> Result<Arc<Self>, SettingsError> {
        let server = Server::parse(settings.url, settings.ca)?;
        let segments = |name, text: Option<&str>| text.map(|text| Segments::setting(name, text)).transpose();
        let namespace = segments("namespace", settings.namespace)?;
        let auth_mount = segments("auth_mount", settings.auth_mount)?;
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST, HeaderValue::from_static("true"));
        if let Some(namespace) = namespace {
            let bad = |_| SettingsError::Value { name: "namespace", why: "holds what no HTTP header can".to_owned() };
            headers.insert(NAMESPACE, HeaderValue::try_from(namespace.to_string()).map_err(bad)?);
        }
        let http = HttpJson::new(server, app.clone(), Caller::Provider(provider.clone()), dialer);
        let login = settings.login.clone();
        Ok(Arc::new_cyclic(|own| Self {
            http,
            headers,
            login,
            auth_mount,
            logging_in: tokio::sync::Mutex::default(),
            // One login is everybody's.
            refused: Breaker::new(REFUSED).in_common(),
            session: Mutex::default(),
            jitter: RandomState::new(),
            own: own.clone(),
        }))
    }

    /// Scheme, host and port.
    pub fn place(&self) -> &str {
        self.http.place()
    }

    /// Logs in, if there is no token yet.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn check(&self) -> Result<(), VaultError> {
        self.token().await.map(|_| ())
    }

    /// Which login of ours it is that holds now: another number for every token that Vault gave. What Vault made for a token ends with it.
    pub(crate) fn login_now(&self) -> u64 {
        self.lock().token.as_ref().filter(|token| !token.doubted).map_or(0, |token| token.generation)
    }

    /// One request with our token: an answer of status 200, 204 or 404.
    ///
    /// # Errors
    /// Everything else, as [`VaultError`].
    pub async fn call(&self, method: Method, path: &str, body: Zeroizing<Vec<u8>>) -> Result<Told, VaultError> {
        let token = self.token().await?;
        let told = self.send(method.clone(), path, Some(&token.header), body.clone()).await?;
        if told.status != StatusCode::FORBIDDEN {
            self.sound(&told, &[exposed(&token)])?;
            let mut session = self.lock();
            if token.doubted
                && let Some(token) = session.of(token.generation)
            {
                token.doubted = false;
            }
            // Also what is not mounted is answered with 404.
            if told.status != StatusCode::NOT_FOUND {
                session.was_answered(path);
            }
            drop(session);
            return Ok(told);
        }
        // Not allowed, or the token is no token any more: Vault has one status for both.
        let (token, told) = match self.is_good(&token, path).await? {
            true => (token, told),
            false => {
                let token = self.another(&token).await?;
                let told = self.send(method, path, Some(&token.header), body).await?;
                if told.status != StatusCode::FORBIDDEN {
                    self.lock().can_tell();
                    return self.sound(&told, &[exposed(&token)]).map(|()| told);
                }
                let random = self.jitter.hash_one((path, token.generation));
                self.lock().was_in_vain(token.generation, path, Instant::now(), random);
                (token, told)
            }
        };
        Err(VaultError::Denied(error::said(&told, &[exposed(&token)])))
    }

    /// One request as it is.
    async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&HeaderValue>,
        body: Zeroizing<Vec<u8>>,
    ) -> Result<Told, VaultError> {
        let mut headers = self.headers.clone();
        if let Some(token) = token {
            headers.insert(TOKEN, token.clone());
        }
        let ask = Ask { method, path, headers, body, limit: MAX_ANSWER };
        self.http.send(ask).await.map_err(|cause| self.unanswered(cause))
    }

    fn unanswered(&self, cause: HttpError) -> VaultError {
        error::unanswered(self.place(), cause)
    }

    /// An answer in JSON.
    ///
    /// # Errors
    /// [`VaultError::Garbage`].
    pub fn read<T: serde::de::DeserializeOwned>(&self, told: &Told) -> Result<T, VaultError> {
        told.json().map_err(|cause| self.unanswered(cause))
    }

    fn sound(&self, told: &Told, hidden: &[&str]) -> Result<(), VaultError> {
        error::fault(self.place(), told, hidden).map_or(Ok(()), Err)
    }

    fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn usable(&self) -> Option<Token> {
        self.lock().usable(Instant::now())
    }

    async fn token(&self) -> Result<Token, VaultError> {
        if let Some(token) = self.usable() {
            return Ok(token);
        }
        let _one = self.logging_in.lock().await;
        match self.usable() {
            Some(token) => Ok(token),
            None => self.log_in().await,
        }
    }

    /// Another token than this one, which Vault does not take: of a new login, or what another call got meanwhile. Where
    /// there is none, this one stays in use: it may be good, and only not allowed to look itself up.
    async fn another(&self, refused: &Token) -> Result<Token, VaultError> {
        let _one = self.logging_in.lock().await;
        match self.usable() {
            Some(other) if other.generation != refused.generation => return Ok(other),
            _ => self.lock().doubt(refused.generation, Instant::now()),
        }
        self.log_in().await
    }

    /// Logs in and lets a task of its own keep the token alive. The caller holds `logging_in`.
    async fn log_in(&self) -> Result<Token, VaultError> {
        let pass = self.refused.enter().map_err(|cause| self.in_its_time(cause))?;
        let logged_in = async {
            let login = self.login.login().await?;
            let generation = {
                let mut session = self.lock();
                session.logins += 1;
                session.logins
            };
            login::log_in(self, &login, self.auth_mount.as_ref(), generation).await
        };
        match logged_in.await {
            Ok(mut token) => {
                pass.answered();
                // A token that was given and looked at anew is the same one: what Vault made for it lives on.
                let before = self.lock().token.clone().filter(|before| before.header == token.header);
                if let Some(before) = before {
                    token.generation = before.generation;
                    token.life = token.life.or_else(|| before.life.map(|_| Life::last(Instant::now())));
                }
                self.install(token.clone());
                Ok(token)
            }
            Err(cause) => {
                // What answers in no time or not at all has a breaker of its own.
                if !matches!(cause, VaultError::Unreachable { .. } | VaultError::Slow { .. }) {
                    pass.failed(cause.clone());
                }
                tracing::warn!(%cause, "no login to Vault");
                Err(self.in_its_time(cause))
            }
        }
    }

    /// Why there is no login, with whether the last one ended in its own time.
    fn in_its_time(&self, cause: VaultError) -> VaultError {
        let refused = matches!(cause, VaultError::Expired | VaultError::LoginRefused { .. });
        match refused && self.lock().is_over(Instant::now()) {
            true => VaultError::RanOut(Box::new(cause)),
            false => cause,
        }
    }

    fn install(&self, token: Token) {
        let mut session = self.lock();
        let keeper = token.life.map(|_| tokio::spawn(keep(self.own.clone(), token.generation)).abort_handle());
        let before = session.install(token, keeper);
        drop(session);
        // It may be this very task: it ends where it would next wait, and it has nothing left to do.
        if let Some(before) = before {
            before.abort();
        }
    }

    /// Whether Vault knows the token, to which it refuses `path`.
    async fn is_good(&self, token: &Token, path: &str) -> Result<bool, VaultError> {
        {
            let session = self.lock();
            let same = session.token.as_ref().is_some_and(|current| current.generation == token.generation);
            // Somebody else replaced it already.
            if !same {
                return Ok(false);
            }
            if session.is_seen_good(path, Instant::now()) {
                return Ok(true);
            }
        }
        let told = self.send(Method::GET, LOOKUP_SELF, Some(&token.header), Zeroizing::default()).await?;
        if told.status != StatusCode::FORBIDDEN {
            self.sound(&told, &[exposed(token)])?;
            let mut session = self.lock();
            session.can_tell();
            session.saw_good(path, Instant::now());
            return Ok(true);
        }
        // It ended, or may not look itself up. Where nothing else tells and a new one has just not helped, it is the latter.
        let told = self.is_shown(token, path).await?;
        let (mut session, now) = (self.lock(), Instant::now());
        let good = told.unwrap_or_else(|| session.is_in_vain(now));
        if good {
            session.saw_good(path, now);
        }
        Ok(good)
    }

    /// Whether Vault shows the token a mount that it may use: that of `path`, or one that a token of ours was shown before.
    /// `None` where neither can be told.
    async fn is_shown(&self, token: &Token, path: &str) -> Result<Option<bool>, VaultError> {
        let path = below(path);
        let (shown, answered) = self.lock().witnesses();
        match self.shows(token, path).await? {
            Some(true) => return Ok(Some(true)),
            Some(false) => {}
            // This server, or what stands before it, does not say.
            None => return Ok(None),
        }
        match (shown, answered) {
            (Some(shown), _) if shown == path => Ok(Some(false)),
            (Some(shown), _) => self.shows(token, &shown).await,
            // Nobody saw it shown before: that it is not says nothing.
            (None, Some(answered)) if answered != path => {
                Ok(self.shows(token, &answered).await?.filter(|shows| *shows))
            }
            (None, _) => Ok(None),
        }
    }

    async fn shows(&self, token: &Token, path: &str) -> Result<Option<bool>, VaultError> {
        let told =
            self.send(Method::GET, &format!("{MOUNTS}{path}"), Some(&token.header), Zeroizing::default()).await?;
        match told.status {
            StatusCode::OK => self.lock().shows(path),
            StatusCode::FORBIDDEN => {}
            _ => return Ok(None),
        }
        Ok(Some(told.status == StatusCode::OK))
    }

    /// When the token of this generation is to be renewed; `None` where it is not in use any more or does not end.
    fn due(&self, generation: u64, tries: u32) -> Option<Instant> {
        let session = self.lock();
        let token = session.token.as_ref().filter(|token| token.generation == generation)?;
        let life = token.life?;
        let now = Instant::now();
        if tries == 0 {
            let at = life.renew_at(self.jitter.hash_one((generation, life.began)));
            return Some(at.max(life.began + RENEW_LEAST));
        }
        // Nothing is gained by more tries once it has ended: the next call logs in.
        let wait = pause(tries - 1, RENEW_LEAST.min(life.length / 10), RENEW_MOST, self.jitter.hash_one(tries));
        (now < life.end()).then(|| now + wait)
    }

    /// Renews the token or logs in anew: whether the token of this generation lives on.
    async fn refresh(&self, generation: u64) -> Result<bool, VaultError> {
        let current = || self.lock().token.clone().filter(|token| token.generation == generation);
        let Some(token) = current() else { return Ok(false) };
        if token.next() == Next::Renew
            && let Some(renewed) = login::renew(self, &token).await?
        {
            if let Some(token) = self.lock().of(generation) {
                *token = renewed;
            }
            return Ok(true);
        }
        let _one = self.logging_in.lock().await;
        if current().is_none() {
            return Ok(false);
        }
        self.log_in().await.map(|_| false)
    }
}

fn exposed(token: &Token) -> &str {
    token.header.to_str().unwrap_or_default()
}

/// Keeps the token of one login alive for as long as the client is.
async fn keep(vault: Weak<Vault>, generation: u64) {
    let mut tries = 0;
    while let Some(due) = vault.upgrade().and_then(|vault| vault.due(generation, tries)) {
        tokio::time::sleep_until(due.into()).await;
        let Some(vault) = vault.upgrade() else { return };
        match vault.refresh(generation).await {
            Ok(true) => tries = 0,
            Ok(false) => return,
            Err(cause) => {
                tries += 1;
                tracing::warn!(%cause, tries, "the token for Vault is not renewed");
            }
        }
    }
}
