//! Answers that may be large: a whole revision, or the list of a tenant's. Each takes room in memory before what it says is read, and keeps
//! what it needs of it until it is sent; a list is read and written page by page, so that it may be as long as it likes.

use std::sync::Arc;

use api::problem::Code;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use model::TenantName;
use serde::Serialize;
use tokio::time::timeout;

use super::Api;
use super::body::IDLE;
use super::refusal::{Answer, Refusal};
use super::shares::{Held, Shares};
use super::system::stopped;

/// Bytes of such answers that are held in memory, those of all tenants together.
pub(crate) const ANSWERS: usize = 64 * ROOM;
/// What one page of a list takes while it is made, or one revision: as it is stored, and as it is sent.
const ROOM: usize = 2 << 20;
/// A page is sent once it is so large, bytes.
const PAGE: usize = 256 << 10;
/// The most room that one answer waits for: what is larger takes no more.
const MOST: usize = ANSWERS / 8;

/// Room for one answer, or for one page of it.
pub(super) struct Room {
    held: Held,
    /// So much of it is held already, bytes.
    has: usize,
}

/// A text, and the room it takes for as long as it is there.
struct Kept {
    text: Vec<u8>,
    _room: Held,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

fn busy<T>(_: T) -> Refusal {
    Refusal::new(Code::Busy, "too many answers are being read at once").help("try again in a moment")
}

impl Room {
    /// Waits for room, a while.
    pub(super) async fn take(answers: &Arc<Shares>, tenant: &TenantName) -> Answer<Self> {
        Self::of(ROOM, answers, tenant).await
    }

    /// The same for an answer that is made whole before anybody knows how large it is: as much as one may have.
    pub(super) async fn whole(answers: &Arc<Shares>, tenant: &TenantName) -> Answer<Self> {
        Self::of(MOST, answers, tenant).await
    }

    async fn of(has: usize, answers: &Arc<Shares>, tenant: &TenantName) -> Answer<Self> {
        let mut held = answers.hold(tenant);
        timeout(IDLE, held.more(has)).await.map_err(busy)?;
        Ok(Self { held, has })
    }

    /// The text in as much room as it needs.
    async fn keep(self, text: Vec<u8>) -> Answer<Bytes> {
        let Self { mut held, has } = self;
        let needs = text.len().min(MOST);
        if needs > has {
            timeout(IDLE, held.more(needs - has)).await.map_err(busy)?;
        }
        held.only(needs);
        Ok(Bytes::from_owner(Kept { text, _room: held }))
    }

    /// A JSON answer.
    pub(super) async fn json(self, value: &(impl Serialize + Sync)) -> Answer<Response> {
        let mut text = Vec::new();
        write(&mut text, value)?;
        let text = self.keep(text).await?;
        Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
    }
}

fn write(text: &mut Vec<u8>, value: &impl Serialize) -> Answer<()> {
    serde_json::to_writer(text, value)
        .map_err(|cause| Refusal::new(Code::Internal, format!("the answer cannot be written: {cause}")))
}

/// A list that is read as it is sent.
struct Pages<T> {
    api: Arc<Api>,
    tenant: TenantName,
    items: BoxStream<'static, Answer<T>>,
    /// Whether something is in it already, or only its beginning is to come.
    begun: Option<bool>,
    done: bool,
}

impl<T: Serialize> Pages<T> {
    async fn next(&mut self) -> Answer<Bytes> {
        let room = Room::take(&self.api.answers, &self.tenant).await?;
        let mut text = Vec::new();
        {
            // Nobody waits behind whoever does not read his answer: the turn is that of one page.
            let _look = self.api.looks.take(Some(&self.tenant)).await.ok_or_else(stopped)?;
            if self.begun.is_none() {
                text.push(b'[');
            }
            while text.len() < PAGE {
                let Some(item) = self.items.next().await else {
                    text.push(b']');
                    self.done = true;
                    break;
                };
                if self.begun == Some(true) {
                    text.push(b',');
                }
                self.begun = Some(true);
                write(&mut text, &item?)?;
            }
            self.begun.get_or_insert(false);
        }
        room.keep(text).await
    }
}

/// A JSON list of `items`, which are asked for one by one as the answer is read. What goes wrong in the first page is refused; later it breaks
/// the answer off.
pub(super) async fn list<T: Serialize + Send + 'static>(
    api: Arc<Api>,
    tenant: TenantName,
    items: BoxStream<'static, Answer<T>>,
) -> Answer<Response> {
    let mut pages = Pages { api, tenant, items, begun: None, done: false };
    let first = pages.next().await?;
    let body = if pages.done {
        Body::from(first)
    } else {
        let rest = stream::try_unfold(pages, |mut pages| async move {
            if pages.done {
                return Ok(None);
            }
            let page = pages.next().await.map_err(|refusal| std::io::Error::other(refusal.problem.detail))?;
            Ok::<_, std::io::Error>(Some((page, pages)))
        });
        Body::from_stream(stream::iter([Ok(first)]).chain(rest))
    };
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}
