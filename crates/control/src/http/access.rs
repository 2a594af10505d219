//! What each route asks of whoever calls it. One table, nothing else: a route that is not in it is the operator's alone,
//! and a test finds it.
//!
//! A member sees one tenant: its own. Every other name, whether a tenant has it or not, is answered here, before anything
//! is looked up: with the same bytes, and in the same time.

use api::problem::Code;
use axum::http::Method;
use model::access::Role;

use super::refusal::{Answer, Refusal};
use crate::tokens::Caller;

/// Whom a route answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Everybody, also without a token.
    Nobody,
    /// Any token. What is shown is what its tenant may see.
    Token,
    /// A token of the tenant in the path, of this role at least.
    Role(Role),
    /// The operator.
    Operator,
}

/// Whether a request changes something, and so is in the audit log whatever comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It reads, or asks a component.
    Reads,
    /// It changes something.
    Changes,
}

use Effect::{Changes, Reads};
use Need::Operator;
use Role::{Deployer, Owner, Viewer};

type Row = (&'static str, &'static str, Need, Effect);

const VIEWER: Need = Need::Role(Viewer);
const DEPLOYER: Need = Need::Role(Deployer);
const OWNER: Need = Need::Role(Owner);

/// Every route.
pub(crate) const TABLE: &[Row] = &[
    ("GET", "/v1/healthz", Need::Nobody, Reads),
    ("GET", "/v1/version", Need::Token, Reads),
    ("GET", "/v1/whoami", Need::Token, Reads),
    ("GET", "/v1/openapi.json", Need::Token, Reads),
    ("GET", "/v1/contracts", Need::Token, Reads),
    ("GET", "/v1/events", Need::Token, Reads),
    ("GET", "/v1/tenants", Need::Token, Reads),
    ("GET", "/v1/nodes", Operator, Reads),
    ("GET", "/v1/audit", Operator, Reads),
    ("GET", "/v1/audit/verify", Operator, Reads),
    ("GET", "/v1/tenants/{tenant}/audit", OWNER, Reads),
    ("POST", "/v1/secrets/rotate-key", Operator, Changes),
    ("DELETE", "/v1/route-hosts/{host}", Operator, Changes),
    ("GET", "/v1/tenants/{tenant}", VIEWER, Reads),
    // An owner may change whom the tenant trusts and nothing else: the handler sees to that.
    ("PUT", "/v1/tenants/{tenant}", OWNER, Changes),
    ("DELETE", "/v1/tenants/{tenant}", Operator, Changes),
    ("GET", "/v1/tenants/{tenant}/providers", VIEWER, Reads),
    ("GET", "/v1/tenants/{tenant}/routes", VIEWER, Reads),
    ("GET", "/v1/tenants/{tenant}/hosts", VIEWER, Reads),
    ("GET", "/v1/tenants/{tenant}/metrics", VIEWER, Reads),
    ("GET", "/v1/tenants/{tenant}/flows", VIEWER, Reads),
    ("GET", "/v1/tenants/{tenant}/tokens", OWNER, Reads),
    ("POST", "/v1/tenants/{tenant}/tokens", OWNER, Changes),
    ("DELETE", "/v1/tenants/{tenant}/tokens/{token}", OWNER, Changes),
    ("HEAD", "/v1/tenants/{tenant}/blobs/{digest}", DEPLOYER, Reads),
    ("PUT", "/v1/tenants/{tenant}/blobs/{digest}", DEPLOYER, Changes),
    ("GET", "/v1/tenants/{tenant}/apps", VIEWER, Reads),
    ("GET", "/v1/tenants/{tenant}/apps/{app}", VIEWER, Reads),
    ("DELETE", "/v1/tenants/{tenant}/apps/{app}", DEPLOYER, Changes),
    ("POST", "/v1/tenants/{tenant}/apps/{app}/plan", DEPLOYER, Reads),
    ("GET", "/v1/tenants/{tenant}/apps/{app}/revisions", VIEWER, Reads),
    ("POST", "/v1/tenants/{tenant}/apps/{app}/revisions", DEPLOYER, Changes),
    ("GET", "/v1/tenants/{tenant}/apps/{app}/revisions/{revision}", VIEWER, Reads),
    ("POST", "/v1/tenants/{tenant}/apps/{app}/rollback", DEPLOYER, Changes),
    ("POST", "/v1/tenants/{tenant}/apps/{app}/links", DEPLOYER, Changes),
    ("POST", "/v1/tenants/{tenant}/apps/{app}/copy", DEPLOYER, Changes),
    ("GET", "/v1/tenants/{tenant}/apps/{app}/copy", VIEWER, Reads),
    ("DELETE", "/v1/tenants/{tenant}/apps/{app}/copy", DEPLOYER, Changes),
    ("GET", "/v1/tenants/{tenant}/apps/{app}/schedules", VIEWER, Reads),
    ("POST", "/v1/tenants/{tenant}/apps/{app}/schedules/{schedule}/run", DEPLOYER, Changes),
    ("POST", "/v1/tenants/{tenant}/apps/{app}/call", DEPLOYER, Reads),
    ("GET", "/v1/tenants/{tenant}/apps/{app}/logs", VIEWER, Reads),
    ("GET", "/v1/tenants/{tenant}/secrets", VIEWER, Reads),
    ("GET", "/v1/tenants/{tenant}/secrets/{secret}", VIEWER, Reads),
    ("PUT", "/v1/tenants/{tenant}/secrets/{secret}", DEPLOYER, Changes),
    ("DELETE", "/v1/tenants/{tenant}/secrets/{secret}", DEPLOYER, Changes),
    ("GET", "/v1/tenants/{tenant}/configs", VIEWER, Reads),
    ("GET", "/v1/tenants/{tenant}/configs/{config}", VIEWER, Reads),
    ("PUT", "/v1/tenants/{tenant}/configs/{config}", DEPLOYER, Changes),
    ("DELETE", "/v1/tenants/{tenant}/configs/{config}", DEPLOYER, Changes),
];

/// What a route asks; that of an unknown one is the operator's, and counts as a change.
pub(crate) fn needs(method: &Method, path: &str) -> (Need, Effect) {
    let row = |method: &str| TABLE.iter().find(|row| row.0 == method && row.1 == path).map(|row| (row.2, row.3));
    // A route that answers GET answers HEAD, too.
    let found = row(method.as_str()).or_else(|| row("GET").filter(|_| *method == Method::HEAD));
    found.unwrap_or((Operator, Changes))
}

/// What a name that is not the caller's own is answered with, whether it is anybody's or nobody's.
pub(crate) fn no_such_tenant() -> Refusal {
    Refusal::new(Code::NotFound, "there is no such tenant").denied()
}

/// Whether a caller gets through to a route. `tenant` is the one in the path, as the handler will read it.
pub(crate) fn admit(caller: &Caller, need: Need, tenant: Option<&str>) -> Answer<()> {
    let Caller::Member { tenant: own, role, .. } = caller else { return Ok(()) };
    // What another name is asked for does not matter: it is not there.
    if tenant.is_some_and(|tenant| tenant != own.as_str()) {
        return Err(no_such_tenant());
    }
    match need {
        Need::Nobody | Need::Token => Ok(()),
        Need::Operator => Err(Refusal::new(Code::Forbidden, "only the operator may do this")
            .help("the operator's token is in the file `token` of the data folder")),
        Need::Role(_) if tenant.is_none() => Err(no_such_tenant()),
        Need::Role(least) if *role < least => {
            Err(Refusal::new(Code::Forbidden, format!("a token of role `{role}` may not do this; it needs `{least}`"))
                .help("an owner of the tenant makes tokens with `sidereal tenant token create --role`"))
        }
        Need::Role(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_route_is_in_the_table_and_nothing_else_is() {
        let document: serde_json::Value = serde_json::from_str(&super::super::openapi()).unwrap();
        let mut routes = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            routes.extend(methods.as_object().unwrap().keys().map(|m| (m.to_uppercase(), path.clone())));
        }
        let table: BTreeSet<_> = TABLE.iter().map(|row| (row.0.to_owned(), row.1.to_owned())).collect();
        assert_eq!(routes, table);
        assert_eq!(table.len(), TABLE.len(), "no route is there twice");
        for (method, path, need, effect) in TABLE {
            // What names a tenant asks for a role in it, or is the operator's; nothing else can ask for a role.
            let named = path.starts_with("/v1/tenants/{tenant}");
            assert!(matches!((need, named), (Need::Role(_), true) | (Operator, _) | (_, false)), "{method} {path}");
            assert!(named || !matches!(need, Need::Role(_)), "{method} {path}");
            assert!(!matches!((*method, effect), ("GET" | "HEAD", Changes)), "{method} {path}");
            assert!(matches!((*effect, need), (Reads, _) | (_, Operator | Need::Role(Deployer | Owner))), "{path}");
        }
    }

    #[test]
    fn a_member_is_admitted_to_its_own_tenant_by_its_role() {
        let member =
            |role| Caller::Member { tenant: "acme".parse().unwrap(), id: "aaaaaaaaaaaaaaaa".parse().unwrap(), role };
        let code = |caller: &Caller, need, tenant| admit(caller, need, tenant).map_err(|r| r.problem.code);
        for least in Role::ALL {
            for role in Role::ALL {
                let found = code(&member(role), Need::Role(least), Some("acme"));
                assert_eq!(found.is_ok(), role >= least, "{role} {least}");
            }
            for other in ["beta", "acme-b", "acm", "ACME", "", "..", "acme/", "a\0"] {
                let found = code(&member(Owner), Need::Role(least), Some(other));
                assert_eq!(found, Err(Code::NotFound), "{other}");
            }
            assert_eq!(code(&member(Owner), Need::Role(least), None), Err(Code::NotFound));
            assert_eq!(code(&Caller::Operator, Need::Role(least), Some("beta")), Ok(()));
        }
        assert_eq!(code(&member(Owner), Operator, None), Err(Code::Forbidden));
        assert_eq!(code(&member(Owner), Operator, Some("acme")), Err(Code::Forbidden));
        assert_eq!(code(&member(Owner), Operator, Some("beta")), Err(Code::NotFound));
        assert_eq!(needs(&Method::GET, "/v1/new"), (Operator, Changes));
        assert_eq!(needs(&Method::HEAD, "/v1/tenants"), (Need::Token, Reads));
    }
}
