//! Copies under way: both providers held open, and the steps that whoever directs the copy asks for, one by one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::copy::{CopyRequest, Cursor, Keys, Step};
use api::{Code, Problem};
use model::AppName;
use providers::keyvalue::copy::{self, Copied, CopyError, End};

use crate::links::{Opened, Providers};

/// Copies of one host at once.
const MAX_COPIES: usize = 16;

/// One copy.
pub(crate) struct Copy {
    request: CopyRequest,
    from: Arc<Opened>,
    to: Arc<Opened>,
}

/// Every copy of this host.
#[derive(Default)]
pub(crate) struct Copies(Mutex<BTreeMap<(AppName, String), Arc<Copy>>>);

impl Copies {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(AppName, String), Arc<Copy>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens both sides and begins to note writes. The same again begins anew.
    pub(crate) async fn begin(
        &self,
        providers: &Providers,
        app: &AppName,
        id: &str,
        request: CopyRequest,
    ) -> Result<(), Problem> {
        let open =
            |end: &api::copy::CopyEnd| providers.shared(app, &end.provider, end.spec.clone(), request.sources.clone());
        let copy = Copy { from: open(&request.from)?, to: open(&request.to)?, request };
        if Arc::ptr_eq(&copy.from, &copy.to) && copy.request.from.bucket == copy.request.to.bucket {
            return Err(Problem::new(Code::RequestInvalid, "the copy would be from a bucket to itself"));
        }
        copy.to.check(&[], app).await?;
        copy.ends()?;
        let mut copies = self.lock();
        if copies.len() >= MAX_COPIES {
            return Err(Problem::new(Code::Busy, format!("{MAX_COPIES} copies are under way in this host")));
        }
        copy.journal()?.begin(&copy.request.from.bucket);
        copies.insert((app.clone(), id.to_owned()), Arc::new(copy));
        Ok(())
    }

    /// The copy of this id.
    pub(crate) fn find(&self, app: &AppName, id: &str) -> Result<Arc<Copy>, Problem> {
        let found = self.lock().get(&(app.clone(), id.to_owned())).cloned();
        found.ok_or_else(|| Problem::new(Code::NotFound, format!("no copy `{}` is under way", id.escape_debug())))
    }

    /// Ends it; one that is not there is ended already.
    pub(crate) fn end(&self, app: &AppName, id: &str) {
        if let Some(copy) = self.lock().remove(&(app.clone(), id.to_owned()))
            && let Ok(journal) = copy.journal()
        {
            journal.end();
        }
    }
}

fn problem(error: &CopyError) -> Problem {
    let problem = Problem::new(Code::ProviderUnavailable, error.to_string());
    match error {
        CopyError::Differs(_) => problem.help("the new provider does not keep what is written to it: do not use it"),
        _ => problem.help("nothing was moved; mend the provider and set the link again"),
    }
}

fn step(copied: Copied) -> Step {
    Step { read: copied.read, written: copied.written, bytes: copied.bytes, cursor: copied.next }
}

impl Copy {
    fn ends(&self) -> Result<(End<'_>, End<'_>), Problem> {
        match (self.from.keyvalue(), self.to.keyvalue()) {
            (Some(from), Some(to)) => Ok((
                End { backend: from.backend(), bucket: &self.request.from.bucket },
                End { backend: to.backend(), bucket: &self.request.to.bucket },
            )),
            _ => Err(Problem::new(Code::RequestInvalid, "data can be copied between key-value providers only")),
        }
    }

    fn journal(&self) -> Result<&providers::keyvalue::journal::Journal, Problem> {
        let store = self.from.keyvalue();
        Ok(store.ok_or_else(|| Problem::new(Code::RequestInvalid, "only keys can be copied"))?.journal())
    }

    pub(crate) async fn page(&self, cursor: &Cursor) -> Result<Step, Problem> {
        let (from, to) = self.ends()?;
        copy::page(from, to, cursor.cursor.as_deref()).await.map(step).map_err(|error| problem(&error))
    }

    pub(crate) async fn keys(&self, keys: Vec<String>) -> Result<Step, Problem> {
        let (from, to) = self.ends()?;
        copy::keys(from, to, keys).await.map(step).map_err(|error| problem(&error))
    }

    pub(crate) async fn extra(&self, cursor: &Cursor) -> Result<Keys, Problem> {
        let (from, to) = self.ends()?;
        let (keys, cursor) = copy::extra(from, to, cursor.cursor.as_deref()).await.map_err(|error| problem(&error))?;
        Ok(Keys { keys, cursor })
    }

    /// What was written since the round before.
    pub(crate) fn noted(&self, round: u64) -> Result<Keys, Problem> {
        let keys = self.journal()?.round(round).map_err(|cause| {
            Problem::new(Code::Busy, cause.to_string()).help("copy at a quieter time, or stop the writers first")
        })?;
        Ok(Keys { keys, cursor: None })
    }
}
