//! What every keeper of secrets must do, as one suite: a value comes back as it was set, another one is seen and told of, one
//! that is gone is gone, nobody gets what is not theirs, and no error says a value.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use model::secret::MAX_SECRET;
use model::{AppName, SecretName, SecretRef};

use super::{Hold, Resolver, Revealed, SecretError};
use crate::meter::{ErrorKind, Kind as _};

/// The secrets that the suite sets; the app may have all of them, and nobody else one.
pub const NAMES: [&str; 3] = ["conformance-one", "conformance-two", "conformance-none"];
/// How long a change may take to be seen.
const SOON: Duration = Duration::from_secs(20);
/// Part of every value, so that it is found where it does not belong.
const CANARY: &str = "canary-of-the-suite";

/// Sets secrets where the store of the suite reads them.
pub trait Keeper: Send + Sync {
    /// Sets one.
    fn set<'a>(&'a self, name: &'a str, value: &'a [u8]) -> BoxFuture<'a, ()>;
    /// Removes one.
    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()>;
}

/// A store that does something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {got}")]
pub struct Mismatch {
    /// What was tried.
    pub step: String,
    /// What happened.
    pub got: String,
}

fn wrong(step: &str, got: impl std::fmt::Debug) -> Mismatch {
    Mismatch { step: step.to_owned(), got: format!("{got:?}").chars().take(400).collect() }
}

fn is(step: &str, so: bool) -> Result<(), Mismatch> {
    if so { Ok(()) } else { Err(wrong(step, "it is not so")) }
}

struct Asked<'a> {
    store: &'a dyn Resolver,
    keeper: &'a dyn Keeper,
    app: &'a AppName,
}

impl Asked<'_> {
    async fn as_app(&self, app: &AppName, name: &str) -> Result<Revealed, SecretError> {
        let invalid =
            |cause: model::name::NameError| SecretError::Unusable { secret: name.to_owned(), cause: cause.to_string() };
        let secret: SecretName = name.parse().map_err(invalid)?;
        self.store.reveal(app, &SecretRef::new(secret)).await
    }

    async fn reveal(&self, name: &str) -> Result<Revealed, SecretError> {
        self.as_app(self.app, name).await
    }

    /// Until it holds this.
    async fn holds(&self, step: &str, name: &str, value: &[u8]) -> Result<Revealed, Mismatch> {
        let began = Instant::now();
        loop {
            match self.reveal(name).await {
                Ok(revealed) if revealed.value.expose() == value => return Ok(revealed),
                // One that was not there a moment ago may be remembered as such for a moment.
                other if began.elapsed() > SOON => return Err(wrong(step, other)),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Until it is refused; the error.
    async fn refused(&self, step: &str, name: &str) -> Result<SecretError, Mismatch> {
        let began = Instant::now();
        loop {
            match self.reveal(name).await {
                Err(cause) if cause.kind() == ErrorKind::Refused => return Ok(cause),
                other if began.elapsed() > SOON => return Err(wrong(step, other)),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// Runs the suite. `stranger` is another app, of the same tenant or not.
///
/// # Errors
/// The first thing that is not as the contract says.
pub async fn run(store: &dyn Resolver, keeper: &dyn Keeper, app: &AppName, stranger: &AppName) -> Result<(), Mismatch> {
    // As whoever asks for them does.
    let names = NAMES.iter().filter_map(|name| name.parse().ok());
    let _held: Vec<Hold> = names.map(|name| store.hold(&SecretRef::new(name))).collect();
    let asked = Asked { store, keeper, app };
    missing(&asked).await?;
    values(&asked).await?;
    changes(&asked).await?;
    others(&asked, stranger).await?;
    gone(&asked).await
}

async fn missing(asked: &Asked<'_>) -> Result<(), Mismatch> {
    let [_, _, none] = NAMES;
    let cause = asked.refused("one that was never set", none).await?;
    is("it is named", cause.to_string().contains(none))
}

async fn values(asked: &Asked<'_>) -> Result<(), Mismatch> {
    let [one, two, _] = NAMES;
    let largest: Vec<u8> = (0..MAX_SECRET).map(|n| (n % 251) as u8 | 0x80).collect();
    let texts = [format!("{CANARY} naïve ☃"), "x".to_owned(), " with blanks \n".to_owned(), "{\"a\":1}".to_owned()];
    let texts = texts.iter().map(String::as_bytes);
    let mut versions = BTreeSet::new();
    for value in texts.chain([&[0, 255, 128][..], &largest]) {
        asked.keeper.set(one, value).await;
        let revealed = asked.holds("a value", one, value).await?;
        is("every value has a version of its own", versions.insert(revealed.version))?;
        let shown = format!("{revealed:?}");
        is("a value is not shown", !shown.contains(CANARY))?;
    }
    asked.keeper.set(two, format!("{CANARY} two").as_bytes()).await;
    asked.holds("another one", two, format!("{CANARY} two").as_bytes()).await?;
    asked.holds("the first is what it was", one, &largest).await?;
    let at_once = futures::future::join_all((0..50).map(|_| asked.reveal(two))).await;
    for revealed in at_once {
        let revealed = revealed.map_err(|cause| wrong("many at once", cause))?;
        is("each gets it", revealed.value.expose_text() == Some(&format!("{CANARY} two")))?;
    }
    Ok(())
}

async fn changes(asked: &Asked<'_>) -> Result<(), Mismatch> {
    let [one, ..] = NAMES;
    asked.keeper.set(one, b"before").await;
    let before = asked.holds("before", one, b"before").await?;
    let mut changes = asked.store.changes();
    changes.mark_unchanged();
    asked.keeper.set(one, b"after").await;
    let told = tokio::time::timeout(SOON, changes.changed()).await;
    is("a change is told of", matches!(told, Ok(Ok(()))))?;
    let after = asked.holds("after", one, b"after").await?;
    is("what was revealed stays what it was", before.value.expose() == b"before" && before.version != after.version)
}

async fn others(asked: &Asked<'_>, stranger: &AppName) -> Result<(), Mismatch> {
    let [_, two, _] = NAMES;
    let cause = match asked.as_app(stranger, two).await {
        Err(cause) => cause,
        Ok(revealed) => return Err(wrong("another app gets it", revealed.version)),
    };
    is("it is refused", matches!(cause.kind(), ErrorKind::Denied | ErrorKind::Refused))?;
    is("and not said", !format!("{cause} {cause:?}").contains(CANARY))
}

async fn gone(asked: &Asked<'_>) -> Result<(), Mismatch> {
    let [one, two, _] = NAMES;
    let mut changes = asked.store.changes();
    changes.mark_unchanged();
    asked.keeper.remove(two).await;
    let cause = asked.refused("one that was removed", two).await?;
    is("it is not said", !format!("{cause} {cause:?}").contains(CANARY))?;
    let told = tokio::time::timeout(SOON, changes.changed()).await;
    is("its end is told of", matches!(told, Ok(Ok(()))))?;
    asked.holds("another one is still there", one, b"after").await?;
    asked.keeper.set(two, b"again").await;
    asked.holds("one that came back", two, b"again").await?;
    asked.keeper.remove(one).await;
    asked.keeper.remove(two).await;
    asked.refused("nothing is left", one).await.map(drop)
}
