//! Where this process is in a hierarchy of cgroups: what `/proc` says, read.

use std::path::{Path, PathBuf};

/// What the names of the groups that nodes move into have in common.
const OURS: &str = "sidereal-";
const LEAF: &str = ".node";

/// The name of the group that a node moves into, below the one it began in.
pub(super) fn leaf(name: &str) -> String {
    format!("{name}{LEAF}")
}

/// Where groups are made: beside the one of a node, where this process was started from one that a node had moved into.
pub(super) fn home(own: PathBuf) -> PathBuf {
    let name = own.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match own.parent().filter(|_| name.starts_with(OURS) && name.ends_with(LEAF)) {
        Some(parent) => parent.to_owned(),
        None => own,
    }
}

/// A mounted hierarchy: what of it is mounted, and where.
pub(super) struct Mounted<'a> {
    of: &'a str,
    at: &'a str,
}

pub(super) fn mounted<'a>(mounts: &'a str, kind: &str, has: impl Fn(&str) -> bool) -> Option<Mounted<'a>> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let found = right.next()? == kind && has(right.nth(1)?);
        let mut left = left.split(' ').skip(3);
        found.then_some(Mounted { of: left.next()?, at: left.next()? })
    })
}

/// Where a group is in the file system: in a container a part of the tree is mounted, and paths are from its own root.
pub(super) fn below(mount: &Mounted<'_>, path: &str) -> PathBuf {
    let rest = path.strip_prefix(mount.of.trim_end_matches('/')).unwrap_or(path);
    Path::new(mount.at).join(rest.trim_start_matches('/'))
}
