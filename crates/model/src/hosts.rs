//! Which hosts a tenant's apps may have routes on: those that the operator gave it, by patterns. One that was given none has
//! names below `localhost`, which lead to the machine of whoever asks and nowhere else: a name that others are sent to is
//! nobody's before the operator says so, and a wildcard would be all of what is below it, also what nobody has yet.

use crate::name::TenantName;
use crate::rules::route::check_host;
use crate::rules::{Code, Violation, list, shown};
use crate::tenant::TenantSettings;

/// The pattern of all hosts.
pub const ANY: &str = "*";
/// Patterns of a tenant that a refusal names.
const SHOWN: usize = 8;

/// Why `pattern` is none, in one sentence.
pub fn problem(pattern: &str) -> Option<String> {
    if pattern == ANY {
        return None;
    }
    let bad = check_host(pattern).err()?;
    let help = bad.help.map(|help| format!(": {help}")).unwrap_or_default();
    Some(format!("hosts: {}{help}, or `{ANY}` for every host", bad.message))
}

/// Whether everything that a route on `host` answers for is in the pattern.
fn covers(pattern: &str, host: &str) -> bool {
    let below = |suffix: &str| host.strip_prefix('*').unwrap_or(host).ends_with(suffix);
    pattern == host || pattern.strip_prefix('*').is_some_and(below)
}

fn may(tenant: &TenantSettings, owner: &TenantName, host: &str) -> bool {
    match tenant.hosts.as_slice() {
        [] if *owner == TenantName::local() => true,
        [] => host.ends_with(".localhost") && !host.starts_with('*'),
        given => given.iter().any(|pattern| covers(pattern, host)),
    }
}

/// The hosts that tenant `owner` was not given, each with what to do.
pub fn check<'h>(
    hosts: impl IntoIterator<Item = &'h str>,
    owner: &TenantName,
    tenant: &TenantSettings,
) -> Vec<Violation> {
    let foreign = hosts.into_iter().filter(|host| !may(tenant, owner, host));
    foreign.map(|host| not_given(host, owner, &tenant.hosts)).collect()
}

fn not_given(host: &str, owner: &TenantName, given: &[String]) -> Violation {
    let host = shown(host);
    let first: Vec<&str> = given.iter().take(SHOWN).map(String::as_str).collect();
    let has = match given.len() {
        0 => "it was given none, and has whole names below `localhost`".to_owned(),
        all if all > SHOWN => format!("it has {} and {} more", list(&first), all - SHOWN),
        _ => format!("it has {}", list(&first)),
    };
    let message = format!("host `{host}` is none of those that tenant `{owner}` was given: {has}");
    Violation::new(Code::RouteHostNotGiven, message)
        .help(format!("choose another host, or ask your operator: `sidereal tenant set {owner} --host '{host}'`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(owner: &str, given: &[&str], host: &str) -> bool {
        let hosts = given.iter().map(|pattern| (*pattern).to_owned()).collect();
        let tenant = TenantSettings { hosts, ..TenantSettings::default() };
        !check([host], &owner.parse().unwrap(), &tenant).is_empty()
    }

    #[test]
    fn a_tenant_has_what_it_was_given() {
        let given = ["acme.example", "*.acme.example"];
        for host in ["acme.example", "shop.acme.example", "a.b.acme.example", "*.acme.example", "*.b.acme.example"] {
            assert!(!refused("acme", &given, host), "{host}");
        }
        for host in ["*.example", "example", "notacme.example", "acme.example.com", "a.localhost", "*.com"] {
            assert!(refused("acme", &given, host), "{host}");
        }
        assert!(
            refused("acme", &["acme.example"], "*.acme.example")
                && refused("acme", &["*.acme.example"], "acme.example")
        );
        for host in ["*.com", "shop.example", "a.localhost"] {
            assert!(!refused("acme", &["*"], host), "{host}");
            // Whose tenant it is makes no difference to what was said.
            assert!(refused("local", &["*.acme.example"], host), "{host}");
        }
    }

    #[test]
    fn one_that_was_given_nothing_takes_no_name_from_others() {
        assert!(!refused("acme", &[], "counter.localhost") && !refused("acme", &[], "a.b.localhost"));
        for host in ["shop.example", "*.com", "*.localhost", "*.a.localhost", "localhost", "notlocalhost", "127.0.0.1"]
        {
            assert!(refused("acme", &[], host), "{host}");
            assert!(!refused("local", &[], host), "{host}");
        }
    }

    #[test]
    fn a_refusal_names_the_host_what_there_is_and_what_to_do() {
        let tenant = TenantSettings { hosts: vec!["*.acme.example".to_owned()], ..TenantSettings::default() };
        let found = check(["acme.example", "a.acme.example", "*.com"], &"acme".parse().unwrap(), &tenant);
        let said: Vec<_> = found.iter().map(|v| (v.code, v.message.as_str())).collect();
        let of = |host: &str| {
            format!("host `{host}` is none of those that tenant `acme` was given: it has `*.acme.example`")
        };
        assert_eq!(
            said,
            [(Code::RouteHostNotGiven, of("acme.example").as_str()), (Code::RouteHostNotGiven, of("*.com").as_str())]
        );
        assert!(found[1].help.as_ref().unwrap().contains("sidereal tenant set acme --host '*.com'"));
        let tenant = TenantSettings { hosts: (0..9).map(|n| format!("{n}.example")).collect(), ..tenant };
        let found = check(["a.example"], &"acme".parse().unwrap(), &tenant);
        assert!(found[0].message.ends_with("`7.example` and 1 more"), "{found:?}");
    }

    #[test]
    fn patterns_are_hosts_of_routes_or_all() {
        for good in ["*", "*.example", "shop.example", "localhost"] {
            assert_eq!(problem(good), None);
        }
        for bad in ["", "*.*.example", "a*.example", "Shop.example", "http://shop.example", "*."] {
            let said = problem(bad).unwrap();
            assert!(said.starts_with("hosts: host `") && said.ends_with("for every host"), "{said}");
        }
    }
}
