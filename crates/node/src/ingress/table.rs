//! Which route a request takes: an immutable table, built once per change and swapped whole.
//!
//! Rules, in this order:
//! 1. An exact host owns its name: wildcards are not asked when the host is in the table, even if no path of it matches.
//!    Otherwise the longest `*.suffix` wins; `*` stands for one or more labels. Case and port do not matter. A host that is
//!    `*` alone takes what is left: no app can ask for it, only a listener that serves one component (a task).
//! 2. The longest path prefix on segment borders wins: `/a` matches `/a` and `/a/b`, not `/ab`. `/a/` is the same as `/a`.
//! 3. Among the routes of that prefix the method decides; `GET` includes `HEAD`. No other prefix is asked, so a request
//!    whose method alone differs is refused with the methods that would do.
//!
//! A lookup allocates nothing and costs O(log n) in the host's prefixes.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use model::{AppName, Revision, Route, TenantName};

use super::shard::Target;

/// The host of a route that answers for every name.
const ANY_HOST: &[u8] = b"*";
/// Longest host name looked up; DNS allows 253.
const MAX_HOST: usize = 255;

/// One route and who answers it.
#[derive(Debug, Clone)]
pub struct RouteEntry {
    /// Whose.
    pub tenant: TenantName,
    /// Which app.
    pub app: AppName,
    /// Which revision of it serves.
    pub revision: Revision,
    /// What matches.
    pub route: Route,
    /// Where matching requests go.
    pub target: Arc<Target>,
}

/// The table everyone reads. Readers never wait and never see half a change.
#[derive(Debug)]
pub struct Routes(ArcSwap<RouteTable>);

impl Default for Routes {
    fn default() -> Self {
        Self::new(RouteTable::default())
    }
}

impl Routes {
    /// Starts with a table.
    pub fn new(table: RouteTable) -> Self {
        Self(ArcSwap::from_pointee(table))
    }

    /// The table as it is now.
    pub fn load(&self) -> Guard<Arc<RouteTable>> {
        self.0.load()
    }

    /// Replaces the table: every request that is routed from now on sees the new one, and all of it.
    pub fn store(&self, table: RouteTable) {
        self.0.store(Arc::new(table));
    }
}

/// What a lookup found.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// This route.
    Found(&'a RouteEntry),
    /// Host and path match, the method does not; the value of `Allow`.
    MethodNotAllowed(&'a str),
    /// No route.
    NotFound,
}

/// All routes, arranged for lookups. Immutable.
#[derive(Debug, Default)]
pub struct RouteTable {
    exact: HashMap<Box<[u8]>, Paths>,
    /// By suffix with its leading dot.
    wildcard: HashMap<Box<[u8]>, Paths>,
    entries: Vec<RouteEntry>,
}

/// The prefixes of one host, sorted so that a prefix comes right before everything under it.
#[derive(Debug, Default)]
struct Paths(Vec<Prefix>);

#[derive(Debug)]
struct Prefix {
    /// Without a trailing slash; the root is empty.
    path: Box<[u8]>,
    /// The longest other prefix this one lies under.
    parent: Option<usize>,
    /// `None` stands for all methods.
    methods: Vec<(Option<Box<[u8]>>, usize)>,
    allow: Box<str>,
}

impl RouteTable {
    /// Arranges the entries. Where two have the same host, path and method, the earlier one wins: control refuses such
    /// routes, so this only settles what happens while two revisions trade places.
    pub fn build(entries: Vec<RouteEntry>) -> Self {
        let mut table = Self { entries, ..Self::default() };
        for (index, entry) in table.entries.iter().enumerate() {
            let host = entry.route.host.to_ascii_lowercase();
            let paths = match host.strip_prefix('*') {
                Some(suffix) if suffix.starts_with('.') => table.wildcard.entry(suffix.as_bytes().into()).or_default(),
                _ => table.exact.entry(host.into_bytes().into()).or_default(),
            };
            paths.add(&entry.route, index);
        }
        for paths in table.exact.values_mut().chain(table.wildcard.values_mut()) {
            paths.arrange();
        }
        table
    }

    /// Every route.
    pub fn entries(&self) -> &[RouteEntry] {
        &self.entries
    }

    /// Finds the route of a request. `host` is without port, in any case; `path` is a
    /// [routing path](super::target::routing_path).
    pub fn lookup(&self, host: &[u8], path: &[u8], method: &[u8]) -> Lookup<'_> {
        let mut lower = [0u8; MAX_HOST];
        let host = host.strip_suffix(b".").unwrap_or(host);
        let Some(name) = lower.get_mut(..host.len()) else { return Lookup::NotFound };
        name.copy_from_slice(host);
        name.make_ascii_lowercase();
        let Some(paths) = self.paths(name) else { return Lookup::NotFound };
        let Some(prefix) = paths.longest(path.strip_suffix(b"/").unwrap_or(path)) else { return Lookup::NotFound };
        match prefix.method(method).and_then(|index| self.entries.get(index)) {
            Some(entry) => Lookup::Found(entry),
            None => Lookup::MethodNotAllowed(&prefix.allow),
        }
    }

    fn paths(&self, host: &[u8]) -> Option<&Paths> {
        if let Some(paths) = self.exact.get(host) {
            return Some(paths);
        }
        // A wildcard needs at least one byte before its dot.
        let mut dots = host.iter().enumerate().skip(1).filter(|&(_, &byte)| byte == b'.');
        let suffix = match self.wildcard.is_empty() {
            true => None,
            false => dots.find_map(|(dot, _)| self.wildcard.get(host.get(dot..)?)),
        };
        suffix.or_else(|| self.exact.get(ANY_HOST))
    }
}

impl Paths {
    fn add(&mut self, route: &Route, index: usize) {
        let path: Box<[u8]> = route.path.trim_end_matches('/').as_bytes().into();
        let mut methods: Vec<_> =
            route.methods.iter().map(|name| (Some(name.to_ascii_uppercase().into_bytes().into()), index)).collect();
        if methods.is_empty() {
            methods.push((None, index));
        }
        self.0.push(Prefix { path, parent: None, methods, allow: "".into() });
    }

    /// Sorts the prefixes, joins those of the same path and finds every parent.
    fn arrange(&mut self) {
        self.0.sort_by(|a, b| by_segments(&a.path, &b.path));
        self.0.dedup_by(|later, earlier| {
            let same = later.path == earlier.path;
            if same {
                earlier.methods.append(&mut later.methods);
            }
            same
        });
        // The prefixes the current one lies under, outermost first.
        let mut above: Vec<(usize, Box<[u8]>)> = Vec::new();
        for (at, prefix) in self.0.iter_mut().enumerate() {
            while above.last().is_some_and(|(_, path)| !lies_under(&prefix.path, path)) {
                above.pop();
            }
            prefix.parent = above.last().map(|&(at, _)| at);
            above.push((at, prefix.path.clone()));
            prefix.settle_methods();
        }
    }

    /// The longest prefix `path` lies under. If one exists, it is the last entry not after `path`, or above that entry:
    /// everything between a prefix and a path under it lies under the prefix too.
    fn longest(&self, path: &[u8]) -> Option<&Prefix> {
        let after = self.0.partition_point(|prefix| by_segments(&prefix.path, path) != Ordering::Greater);
        let mut at = after.checked_sub(1)?;
        loop {
            let prefix = self.0.get(at)?;
            if lies_under(path, &prefix.path) {
                return Some(prefix);
            }
            at = prefix.parent?;
        }
    }
}

impl Prefix {
    fn settle_methods(&mut self) {
        // A route for all methods comes after those that name theirs.
        self.methods.sort_by_key(|(method, _)| method.is_none());
        let named = self.methods.iter().filter_map(|(method, _)| std::str::from_utf8(method.as_deref()?).ok());
        let mut names: Vec<&str> = named.collect();
        if names.contains(&"GET") {
            names.push("HEAD");
        }
        names.sort_unstable();
        names.dedup();
        self.allow = names.join(", ").into();
    }

    fn method(&self, method: &[u8]) -> Option<usize> {
        let find = |wanted: &[u8]| {
            self.methods.iter().find(|(name, _)| name.as_deref().is_none_or(|name| name == wanted)).map(|&(_, at)| at)
        };
        // A route that names HEAD goes before one whose GET includes it, and both before one for all methods.
        let named = |wanted: &[u8]| self.methods.iter().find(|(name, _)| name.as_deref() == Some(wanted)).map(|m| m.1);
        if method == b"HEAD" { named(b"HEAD").or_else(|| find(b"GET")) } else { find(method) }
    }
}

/// `path` is `prefix` or lies under it, on a segment border.
fn lies_under(path: &[u8], prefix: &[u8]) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.first().is_none_or(|&byte| byte == b'/'))
}

/// Byte order in which `/` is the lowest byte, so that `/a/b` comes right after `/a` and before `/a-b`.
fn by_segments(a: &[u8], b: &[u8]) -> Ordering {
    let key = |&byte: &u8| if byte == b'/' { 0 } else { byte };
    a.iter().map(key).cmp(b.iter().map(key))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::super::shard::ShardSet;
    use super::*;

    fn entry(host: &str, path: &str, methods: &[&str], component: &str) -> RouteEntry {
        RouteEntry {
            tenant: "acme".parse().unwrap(),
            app: "shop".parse().unwrap(),
            revision: Revision(1),
            route: Route {
                host: host.into(),
                path: path.into(),
                methods: methods.iter().map(|&m| m.into()).collect(),
                component: component.parse().unwrap(),
            },
            target: Arc::new(Target {
                header: HeaderValue::from_static("shop/1/web"),
                shards: ShardSet::new(Vec::new()),
                preference: 0,
                request_body: 0,
                gate: Arc::default(),
            }),
        }
    }

    fn look(table: &RouteTable, host: &str, path: &str, method: &str) -> String {
        match table.lookup(host.as_bytes(), path.as_bytes(), method.as_bytes()) {
            Lookup::Found(entry) => entry.route.component.to_string(),
            Lookup::MethodNotAllowed(allow) => format!("405 {allow}"),
            Lookup::NotFound => "404".into(),
        }
    }

    #[test]
    fn hosts_match_exactly_then_by_the_longest_wildcard() {
        let table = RouteTable::build(vec![
            entry("shop.example.com", "/", &[], "exact"),
            entry("only.example.com", "/api", &[], "api"),
            entry("*.example.com", "/", &[], "wild"),
            entry("*.eu.example.com", "/", &[], "wild-eu"),
            entry("counter.localhost", "/", &[], "local"),
        ]);
        for (host, want) in [
            ("shop.example.com", "exact"),
            ("SHOP.Example.COM", "exact"),
            ("shop.example.com.", "exact"),
            ("a.example.com", "wild"),
            ("a.b.example.com", "wild"),
            ("x.eu.example.com", "wild-eu"),
            ("eu.example.com", "wild"),
            ("only.example.com", "404"),
            ("example.com", "404"),
            (".example.com", "404"),
            ("counter.localhost", "local"),
            ("localhost", "404"),
            ("", "404"),
        ] {
            assert_eq!(look(&table, host, "/", "GET"), want, "{host}");
        }
        assert_eq!(look(&table, &"a".repeat(300), "/", "GET"), "404");
        let any = RouteTable::build(vec![entry("*", "/", &[], "any"), entry("*.example.com", "/", &[], "wild")]);
        for (host, want) in [("a.example.com", "wild"), ("example.com", "any"), ("10.0.0.1", "any"), ("", "any")] {
            assert_eq!(look(&any, host, "/", "GET"), want, "{host}");
        }
    }

    #[test]
    fn the_longest_prefix_on_segment_borders_wins() {
        let table = RouteTable::build(vec![
            entry("h", "/", &[], "root"),
            entry("h", "/a", &[], "a"),
            entry("h", "/a-b", &[], "a-b"),
            entry("h", "/a/b/", &[], "ab"),
            entry("h", "/a/b/c/d", &[], "abcd"),
            entry("h", "/z", &[], "z"),
        ]);
        for (path, want) in [
            ("/", "root"),
            ("/a", "a"),
            ("/a/", "a"),
            ("/ab", "root"),
            ("/a.b", "root"),
            ("/a/c", "a"),
            ("/a-b", "a-b"),
            ("/a-b/x", "a-b"),
            ("/a-c", "root"),
            ("/a/b", "ab"),
            ("/a/b/c", "ab"),
            ("/a/b/c/dd", "ab"),
            ("/a/b/c/d/e", "abcd"),
            ("/zz", "root"),
            ("/~", "root"),
        ] {
            assert_eq!(look(&table, "h", path, "GET"), want, "{path}");
        }
    }

    #[test]
    fn methods_decide_last_and_get_includes_head() {
        let table = RouteTable::build(vec![
            entry("h", "/", &[], "any"),
            entry("h", "/form", &["POST", "get"], "form"),
            entry("h", "/form", &["PUT"], "put"),
            entry("h", "/mixed", &[], "rest"),
            entry("h", "/mixed", &["DELETE"], "delete"),
        ]);
        assert_eq!(look(&table, "h", "/form", "GET"), "form");
        assert_eq!(look(&table, "h", "/form", "HEAD"), "form");
        assert_eq!(look(&table, "h", "/form/x", "PUT"), "put");
        assert_eq!(look(&table, "h", "/form", "DELETE"), "405 GET, HEAD, POST, PUT");
        assert_eq!(look(&table, "h", "/form", "get"), "405 GET, HEAD, POST, PUT");
        assert_eq!(look(&table, "h", "/mixed", "DELETE"), "delete");
        assert_eq!(look(&table, "h", "/mixed", "GET"), "rest");
        assert_eq!(look(&table, "h", "/other", "DELETE"), "any");
    }

    #[test]
    fn the_earlier_of_two_equal_routes_wins() {
        let table = RouteTable::build(vec![entry("h", "/a", &["GET"], "first"), entry("h", "/a/", &["GET"], "second")]);
        assert_eq!(look(&table, "h", "/a", "GET"), "first");
    }

    #[test]
    fn lookups_agree_with_trying_every_route() {
        let segments = ["a", "b", "a-b", "c"];
        let mut paths = vec![String::from("/")];
        for x in segments {
            paths.push(format!("/{x}"));
            for y in segments {
                paths.push(format!("/{x}/{y}"));
                paths.push(format!("/{x}/{y}/{x}"));
            }
        }
        // Every third path is a route; all are asked for.
        let routes: Vec<&String> = paths.iter().step_by(3).collect();
        let table = RouteTable::build(
            routes.iter().enumerate().map(|(n, path)| entry("h", path, &[], &format!("c{n}"))).collect(),
        );
        for path in &paths {
            let best = routes
                .iter()
                .enumerate()
                .filter(|(_, route)| lies_under(path.as_bytes(), route.trim_end_matches('/').as_bytes()))
                .max_by_key(|(_, route)| route.trim_end_matches('/').len());
            let want = best.map_or("404".into(), |(n, _)| format!("c{n}"));
            assert_eq!(look(&table, "h", path, "GET"), want, "{path}");
        }
    }
}
