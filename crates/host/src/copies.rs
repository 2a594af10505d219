//! Copies under way: both providers held open, and the steps that whoever directs the copy asks for, one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::copy::{CopyRequest, Cursor, Keys, Step};
use api::{Code, Problem};
use model::{AppName, ProviderName};
use providers::blobstore::{self, copy as objects};
use providers::keyvalue::copy::{self, Copied, CopyError, End};
use providers::keyvalue::journal::{Journal, MAX_NOTED_BYTES, Overflow, size};

use crate::links::{Opened, Providers};

/// Copies of one host at once.
const MAX_COPIES: usize = 16;

/// One copy.
pub(crate) struct Copy {
    request: CopyRequest,
    from: Arc<Opened>,
    to: Arc<Opened>,
    /// Where other links stay, in the order of the request.
    others: Vec<Arc<Opened>>,
    /// Whose writes are noted: `from`, and where a revision that is still ending has it with other settings, that. Both may
    /// reach the same data.
    noted: Vec<Arc<Opened>>,
    /// Of a page of objects, what is still to be copied.
    rest: tokio::sync::Mutex<objects::Rest>,
    /// Who else reaches one of both, once it was looked at.
    reached: tokio::sync::OnceCell<Option<Reached>>,
}

/// Who reaches what is copied, or what is filled.
#[derive(Debug, Clone, Copy)]
enum Reached {
    /// The source reaches what is filled: both are one store.
    Source,
    /// Another link reaches what is filled, by its place in the request.
    Other(usize),
    /// Another link reaches what is copied and would stay there.
    Stays(usize),
}

/// Both sides, by what is in them.
enum Ends<'a> {
    Keys(End<'a>, End<'a>),
    Objects(objects::End<'a>, objects::End<'a>, objects::Scope),
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
        let (from, to) = (open(&request.from)?, open(&request.to)?);
        let others = request.others.iter().map(open).collect::<Result<_, _>>()?;
        let noted = providers.named(app, &request.from.provider);
        let copy = Copy { from, to, others, noted, request, rest: Default::default(), reached: Default::default() };
        if Arc::ptr_eq(&copy.from, &copy.to) && copy.request.from.bucket == copy.request.to.bucket {
            return Err(Problem::new(Code::RequestInvalid, "the copy would be from a bucket to itself"));
        }
        copy.to.check(&[], app).await?;
        copy.ends()?;
        let mut copies = self.lock();
        // An app has one move at a time: what is left of an earlier one is what nobody could end here. It would keep
        // its providers open, and its place.
        copies.retain(|(of, known), left| {
            let stays = of != app || known == id;
            if !stays {
                left.journals().for_each(|(journal, _)| journal.end());
            }
            stays
        });
        let again = copies.contains_key(&(app.clone(), id.to_owned()));
        if copies.len() >= MAX_COPIES && !again {
            return Err(Problem::new(Code::Busy, format!("{MAX_COPIES} copies are under way in this host")));
        }
        copy.journals().for_each(|(journal, of)| journal.begin(of));
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
        if let Some(copy) = self.lock().remove(&(app.clone(), id.to_owned())) {
            copy.journals().for_each(|(journal, _)| journal.end());
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

/// Whether the link to `other` has what `side` reaches cannot be seen.
fn unseen(error: &CopyError, other: &ProviderName, side: &ProviderName) -> Problem {
    let (by, cause) = match error {
        CopyError::Source(cause) => (other, cause),
        CopyError::Target(cause) => (side, cause),
        CopyError::Differs(_) => return problem(error),
    };
    let what =
        format!("whether another link of the app has the same data by `{other}` cannot be seen: `{by}`: {cause}");
    Problem::new(Code::ProviderUnavailable, what).help("nothing was moved; mend that provider and set the link again")
}

fn step(copied: Copied) -> Step {
    Step { read: copied.read, written: copied.written, bytes: copied.bytes, cursor: copied.next }
}

fn object_problem(error: &objects::CopyError) -> Problem {
    let problem = Problem::new(Code::ProviderUnavailable, error.to_string());
    match error {
        objects::CopyError::Differs { .. } => {
            problem.help("the new provider does not keep what is written to it: do not use it")
        }
        _ => problem.help("nothing was moved; mend the provider and set the link again"),
    }
}

fn object_step(copied: objects::Copied) -> Step {
    Step { read: copied.read, written: copied.written, bytes: copied.bytes, cursor: copied.next }
}

fn unsupported() -> Problem {
    let what = "data can be copied between two key-value providers or between two object stores only";
    Problem::new(Code::CopyUnsupported, what).help("set the link without `--copy-data`")
}

impl Copy {
    fn ends(&self) -> Result<Ends<'_>, Problem> {
        if let (Some(from), Some(to)) = (self.from.keyvalue(), self.to.keyvalue()) {
            let from = End { backend: from.backend(), bucket: &self.request.from.bucket };
            return Ok(Ends::Keys(from, End { backend: to.backend(), bucket: &self.request.to.bucket }));
        }
        let (Some(from), Some(to)) = (self.from.blobstore(), self.to.blobstore()) else { return Err(unsupported()) };
        let one = || objects::Scope::One(self.request.from.bucket.clone());
        let scope = self.request.all_but.clone().map_or_else(one, objects::Scope::AllBut);
        Ok(Ends::Objects(objects::End { backend: from.backend() }, objects::End { backend: to.backend() }, scope))
    }

    /// Both sides, once it is certain that they are two, and that nobody else of the app is at either. Only the host that
    /// copies looks: two that look at once would see each other.
    async fn apart(&self) -> Result<Ends<'_>, Problem> {
        let ends = self.ends()?;
        match *self.reached.get_or_try_init(|| self.look(&ends)).await? {
            None => Ok(ends),
            Some(reached) => Err(self.one_store(reached)),
        }
    }

    async fn look(&self, ends: &Ends<'_>) -> Result<Option<Reached>, Problem> {
        let (from, to) = match ends {
            Ends::Keys(from, to) => (from, to),
            Ends::Objects(from, to, scope) => {
                let same = objects::same(*from, *to, scope).await.map_err(|error| object_problem(&error))?;
                return Ok(same.then_some(Reached::Source));
            }
        };
        if copy::same(*from, *to).await.map_err(|error| problem(&error))? {
            return Ok(Some(Reached::Source));
        }
        for (index, (open, end)) in self.others.iter().zip(&self.request.others).enumerate() {
            let other = End { backend: open.keyvalue().ok_or_else(unsupported)?.backend(), bucket: &end.bucket };
            let CopyRequest { from: source, to: target, .. } = &self.request;
            let sides = [(to, target, Reached::Other(index)), (from, source, Reached::Stays(index))];
            // One of another kind cannot be it, and need not be written to.
            for (side, named, reached) in sides.into_iter().filter(|(_, named, _)| named.spec.kind == end.spec.kind) {
                let seen = copy::same(other, *side).await;
                if seen.map_err(|error| unseen(&error, &end.provider, &named.provider))? {
                    return Ok(Some(reached));
                }
            }
        }
        Ok(None)
    }

    /// Why nothing is copied where somebody else reaches what would be copied or filled.
    fn one_store(&self, reached: Reached) -> Problem {
        let CopyRequest { from, to, others, .. } = &self.request;
        let other = match reached {
            Reached::Source => None,
            Reached::Other(index) | Reached::Stays(index) => others.get(index),
        };
        let Some(other) = other else {
            let what =
                format!("`{}` and `{}` reach the same data: there is nothing to copy", from.provider, to.provider);
            return Problem::new(Code::RequestInvalid, what).help("set the link without `--copy-data`");
        };
        if matches!(reached, Reached::Stays(_)) {
            let what = format!(
                "another link of the app has the same data by `{}` as `{}` reaches: it would go on there with what is moved",
                other.provider, from.provider
            );
            return Problem::new(Code::RequestInvalid, what).help(
                "set the link without `--copy-data`, or let both links name one provider: they move together then",
            );
        }
        let what = format!(
            "another link of the app has the same data by `{}` as `{}` reaches: what it writes there would be replaced by older values",
            other.provider, to.provider
        );
        Problem::new(Code::RequestInvalid, what)
            .help("set the link without `--copy-data`, or give it a bucket or container of its own")
    }

    /// The notes of what is copied from, and of which bucket.
    fn journals(&self) -> impl Iterator<Item = (&Journal, &str)> {
        self.noted.iter().filter_map(move |open| match (open.keyvalue(), open.blobstore()) {
            (Some(store), _) => Some((store.journal(), self.request.from.bucket.as_str())),
            (None, Some(store)) => Some((store.journal(), blobstore::journal::ALL)),
            (None, None) => None,
        })
    }

    pub(crate) async fn page(&self, cursor: &Cursor) -> Result<Step, Problem> {
        let at = cursor.cursor.as_deref();
        match self.apart().await? {
            Ends::Keys(from, to) => copy::page(from, to, at).await.map(step).map_err(|error| problem(&error)),
            Ends::Objects(from, to, scope) => {
                let mut rest = self.rest.lock().await;
                let done = objects::page(from, to, &scope, at, &mut rest).await;
                done.map(object_step).map_err(|error| object_problem(&error))
            }
        }
    }

    pub(crate) async fn keys(&self, keys: Vec<String>) -> Result<Step, Problem> {
        match self.apart().await? {
            Ends::Keys(from, to) => copy::keys(from, to, keys).await.map(step).map_err(|error| problem(&error)),
            Ends::Objects(from, to, _) => {
                let keys = keys.iter().map(|key| objects::Key::parse(key)).collect();
                objects::keys(from, to, keys).await.map(object_step).map_err(|error| object_problem(&error))
            }
        }
    }

    pub(crate) async fn extra(&self, cursor: &Cursor) -> Result<Keys, Problem> {
        let at = cursor.cursor.as_deref();
        let (keys, cursor) = match self.apart().await? {
            Ends::Keys(from, to) => copy::extra(from, to, at).await.map_err(|error| problem(&error))?,
            Ends::Objects(from, to, scope) => {
                let extra = objects::extra(from, to, &scope, at).await;
                let (keys, cursor) = extra.map_err(|error| object_problem(&error))?;
                (keys.iter().map(ToString::to_string).collect(), cursor)
            }
        };
        Ok(Keys { keys, cursor })
    }

    /// What was written since the round before.
    pub(crate) fn noted(&self, round: u64) -> Result<Keys, Problem> {
        let too_many = |cause: Overflow| {
            Problem::new(Code::Busy, cause.to_string()).help("copy at a quieter time, or stop the writers first")
        };
        let mut keys = BTreeSet::new();
        for (journal, _) in self.journals() {
            keys.extend(journal.round(round).map_err(too_many)?);
        }
        // Each of them is bounded, and so is the answer.
        if keys.iter().map(|key| size(key)).sum::<usize>() > MAX_NOTED_BYTES {
            return Err(too_many(Overflow));
        }
        if let Ends::Objects(_, _, scope) = self.ends()? {
            keys.retain(|key| scope.has(objects::Key::parse(key).container()));
        }
        Ok(Keys { keys: keys.into_iter().collect(), cursor: None })
    }
}
