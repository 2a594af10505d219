//! The `dns` block of a group's network: who resolves the task's names. Pure; with the defaults of `resolv.conf(5)`.

use std::net::IpAddr;

use api::task::TaskDns;
use plugin::Failure;
use plugin::contracts::hashicorp::nomad::plugins::drivers::proto::DnsConfig;

/// What the C library has where nothing is said: `ndots`, `timeout` in seconds, `attempts`.
const DEFAULTS: (usize, u64, usize) = (1, 5, 2);
/// The most it takes of each of them.
const MOST: (usize, u64, usize) = (15, 30, 5);
/// What changes nothing here: every question says how large an answer may be, has a socket of its own, and no answer is
/// believed to have been verified.
const NOTHING_TO_DO: [&str; 4] = ["edns0", "single-request", "single-request-reopen", "trust-ad"];

/// Whether names can be completed by it: labels of at most 63 characters, or the root.
fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    text == "." || (text.len() <= 253 && text.trim_matches('.').split('.').all(label))
}

/// What the block says; nothing where it is empty.
///
/// # Errors
/// Unrecoverable: a server that is no address, a search domain that is none, or an option that is not understood.
pub(super) fn dns(block: Option<&DnsConfig>) -> Result<Option<TaskDns>, Failure> {
    let Some(block) = block else { return Ok(None) };
    if block.servers.is_empty() && block.searches.is_empty() && block.options.is_empty() {
        return Ok(None);
    }
    let wrong = |what: String| Failure::unrecoverable(format!("the `dns` block of the group's network {what}"));
    let address = |text: &String| {
        text.parse::<IpAddr>().map_err(|_| wrong(format!("names the server `{text}`, which is no IP address")))
    };
    if let Some(search) = block.searches.iter().find(|search| !is_domain(search)) {
        return Err(wrong(format!("names the search domain `{search}`, which is no domain name")));
    }
    let (ndots, timeout, attempts) = DEFAULTS;
    let mut dns = TaskDns {
        servers: block.servers.iter().map(address).collect::<Result<_, _>>()?,
        searches: block.searches.clone(),
        ndots,
        timeout,
        attempts,
        rotate: false,
    };
    for option in &block.options {
        let (name, value) = option.split_once(':').unwrap_or((option, ""));
        let number = || value.parse::<u64>().map_err(|_| wrong(format!("has the option `{option}` without a number")));
        let count = || number().map(|number| usize::try_from(number).unwrap_or(usize::MAX));
        match name {
            "ndots" => dns.ndots = count()?.min(MOST.0),
            "timeout" => dns.timeout = number()?.clamp(1, MOST.1),
            "attempts" => dns.attempts = count()?.clamp(1, MOST.2),
            "rotate" => dns.rotate = true,
            other if NOTHING_TO_DO.contains(&other) => {}
            other => {
                return Err(wrong(format!(
                    "has the option `{other}`, which this driver does not know: take it out; it knows ndots, timeout, \
                     attempts and rotate"
                )));
            }
        }
    }
    Ok(Some(dns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(servers: &[&str], options: &[&str]) -> DnsConfig {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        DnsConfig { servers: list(servers), searches: vec!["corp.example".to_owned()], options: list(options) }
    }

    #[test]
    fn options_are_those_of_the_system() {
        let read = |options: &[&str]| dns(Some(&block(&["192.0.2.1", "2001:db8::1"], options))).unwrap().unwrap();
        let plain = read(&[]);
        assert_eq!((plain.ndots, plain.timeout, plain.attempts, plain.rotate), (1, 5, 2, false));
        assert_eq!(plain.servers.len(), 2);
        let all = read(&["ndots:3", "timeout:1", "attempts:9", "rotate", "edns0", "trust-ad"]);
        assert_eq!((all.ndots, all.timeout, all.attempts, all.rotate), (3, 1, 5, true));
        assert_eq!(dns(None).unwrap(), None);
        assert_eq!(dns(Some(&DnsConfig::default())).unwrap(), None);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (servers, option, said) in [
            ("dns.example", "rotate", "`dns.example`, which is no IP address"),
            ("192.0.2.1", "ndots:many", "without a number"),
            ("192.0.2.1", "use-vc", "`use-vc`, which this driver does not know"),
        ] {
            let refused = dns(Some(&block(&[servers], &[option]))).unwrap_err().message;
            assert!(refused.contains(said), "{refused}");
        }
        for (search, fine) in [
            ("corp.example.", true),
            (".", true),
            ("_tcp.corp-2.example", true),
            ("", false),
            ("corp..example", false),
            ("corp example", false),
            (&"x".repeat(64), false),
        ] {
            let block = DnsConfig { searches: vec![search.to_owned()], ..block(&["192.0.2.1"], &[]) };
            let read = dns(Some(&block));
            let told = read.as_ref().err().is_some_and(|cause| cause.message.contains("which is no domain name"));
            assert_eq!((read.is_ok(), told), (fine, !fine), "{search}");
        }
    }
}
