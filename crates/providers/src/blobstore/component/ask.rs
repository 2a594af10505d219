//! The operations on a component's object store that need no stream: each is answered with a value.

use runtime::wasmtime;
use runtime::wasmtime::component::ResourceAny;

use super::{Guest, Said, types};
use crate::blobstore::{ContainerInfo, ObjectInfo, PAGE, Page};

/// One operation; everything owned, since it travels into the component's store.
pub(super) enum Op {
    Create { container: String },
    Container { container: String },
    Delete { container: String },
    Clear { container: String },
    Object { container: String, object: String },
    List { container: String, after: Option<After> },
    Remove { container: String, objects: Vec<String> },
    Copy { from: (String, String), to: (String, String) },
}

/// What an operation answers.
pub(super) enum Out {
    Done,
    Container(Option<ContainerInfo>),
    Object(Option<ObjectInfo>),
    Page(Page),
}

/// Does one of them.
pub(super) async fn perform(guest: &mut Guest<'_>, op: Op) -> wasmtime::Result<Said<Out>> {
    match op {
        Op::Create { container } => match guest.blobstore.call_create_container(&mut *guest.store, &container).await? {
            Ok(made) => guest.close(made).await.map(|()| Ok(Out::Done)),
            Err(words) => Ok(Err(words)),
        },
        Op::Delete { container } => {
            Ok(guest.blobstore.call_delete_container(&mut *guest.store, &container).await?.map(|()| Out::Done))
        }
        Op::Container { container } => {
            match guest.blobstore.call_container_exists(&mut *guest.store, &container).await? {
                Ok(true) => on_container(guest, container, Ask::Info).await,
                Ok(false) => Ok(Ok(Out::Container(None))),
                Err(words) => Ok(Err(words)),
            }
        }
        Op::Copy { from, to } => {
            let id = |(container, object): (String, String)| types::ObjectId { container, object };
            let copied = guest.blobstore.call_copy_object(&mut *guest.store, &id(from), &id(to)).await?;
            Ok(copied.map(|()| Out::Done))
        }
        Op::Clear { container } => on_container(guest, container, Ask::Clear).await,
        Op::Object { container, object } => on_container(guest, container, Ask::Object(object)).await,
        Op::Remove { container, objects } => on_container(guest, container, Ask::Remove(objects)).await,
        Op::List { container, after } => on_container(guest, container, Ask::List(after)).await,
    }
}

/// What is asked of a container that is open.
enum Ask {
    Info,
    Clear,
    Object(String),
    Remove(Vec<String>),
    List(Option<After>),
}

/// Opens the container, asks and drops it.
async fn on_container(guest: &mut Guest<'_>, name: String, ask: Ask) -> wasmtime::Result<Said<Out>> {
    let open = match guest.open(name).await? {
        Ok(open) => open,
        Err(words) => return Ok(Err(words)),
    };
    let out = of_open(guest, open, ask).await?;
    guest.close(open).await?;
    Ok(out)
}

async fn of_open(guest: &mut Guest<'_>, open: ResourceAny, ask: Ask) -> wasmtime::Result<Said<Out>> {
    let after = match ask {
        Ask::Info => {
            let info = guest.container.container().call_info(&mut *guest.store, open).await?;
            return Ok(info.map(|info| Out::Container(Some(ContainerInfo { created_at: info.created_at }))));
        }
        Ask::Clear => {
            return Ok(guest.container.container().call_clear(&mut *guest.store, open).await?.map(|()| Out::Done));
        }
        Ask::Remove(objects) => {
            let removed = guest.container.container().call_delete_objects(&mut *guest.store, open, &objects).await?;
            return Ok(removed.map(|()| Out::Done));
        }
        Ask::Object(object) => {
            match guest.container.container().call_has_object(&mut *guest.store, open, &object).await? {
                Ok(true) => {}
                Ok(false) => return Ok(Ok(Out::Object(None))),
                Err(words) => return Ok(Err(words)),
            }
            let info = guest.container.container().call_object_info(&mut *guest.store, open, &object).await?;
            let info = info.map(|info| ObjectInfo { created_at: info.created_at, size: info.size });
            return Ok(info.map(|info| Out::Object(Some(info))));
        }
        Ask::List(after) => after,
    };
    list(guest, open, after).await
}

/// Where a listing goes on: after so many names, the last of which this was.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct After {
    count: u64,
    name: String,
}

impl After {
    pub(super) fn parse(cursor: &str) -> Option<Self> {
        let (count, name) = cursor.split_once(' ')?;
        Some(Self { count: count.parse().ok()?, name: name.to_owned() })
    }
}

/// The names after `after`. The contract has no cursor: the component lists anew, and what has been told is passed over.
async fn list(guest: &mut Guest<'_>, open: ResourceAny, after: Option<After>) -> wasmtime::Result<Said<Out>> {
    let before = after.as_ref().map_or(0, |after| after.count);
    let mut skip = before.saturating_sub(1);
    loop {
        let names = match guest.container.container().call_list_objects(&mut *guest.store, open).await? {
            Ok(names) => names,
            Err(words) => return Ok(Err(words)),
        };
        let page = one_page(guest, names, after.as_ref(), skip).await?;
        guest.close(names).await?;
        match page {
            Ok(Some(page)) => return Ok(Ok(Out::Page(page))),
            // Others that were before it are gone, or came: look for it from the first one on.
            Ok(None) if skip > 0 => skip = 0,
            Ok(None) => return Ok(Err("the object at which the listing was is gone; list them again".to_owned())),
            Err(words) => return Ok(Err(words)),
        }
    }
}

/// The page after `after` of a listing that has just begun; `None` where it is not found after `skip` names.
async fn one_page(
    guest: &mut Guest<'_>,
    names: ResourceAny,
    after: Option<&After>,
    skip: u64,
) -> wasmtime::Result<Said<Option<Page>>> {
    let mut told = skip;
    if skip > 0
        && let Err(words) =
            guest.container.stream_object_names().call_skip_stream_object_names(&mut *guest.store, names, skip).await?
    {
        return Ok(Err(words));
    }
    let mut found = after.is_none();
    let mut page = Page::default();
    loop {
        let room = PAGE.saturating_sub(page.names.len()) as u64;
        let read = guest.container.stream_object_names();
        let (some, end) = match read.call_read_stream_object_names(&mut *guest.store, names, room).await? {
            Ok(read) => read,
            Err(words) => return Ok(Err(words)),
        };
        for name in some {
            told += 1;
            match found {
                true => page.names.push(name),
                false => found = after.is_some_and(|after| after.name == name),
            }
        }
        if end {
            return Ok(Ok(found.then_some(page)));
        }
        if !found && skip > 0 {
            return Ok(Ok(None));
        }
        if page.names.len() >= PAGE {
            page.cursor = page.names.last().map(|name| format!("{told} {name}"));
            return Ok(Ok(Some(page)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_says_where_the_listing_was() {
        let after = |count, name: &str| Some(After { count, name: name.to_owned() });
        assert_eq!(After::parse("1000 a b/ü"), after(1000, "a b/ü"));
        for no in ["", "7", "x y", "-1 a"] {
            assert_eq!(After::parse(no), None, "{no:?}");
        }
    }
}
