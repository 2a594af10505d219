//! What is kept of lines, what is left out, and who is told.

use super::*;
use api::agent::LogLevel;
use api::node::Since;
use model::Revision;
use model::unit::ByteSize;

fn line(app: &str, component: &str, text: String) -> LogLine {
    LogLine {
        time_ms: 0,
        app: app.parse().unwrap(),
        component: component.parse().unwrap(),
        revision: Revision(1),
        shard: 0,
        instance: String::new(),
        stream: LogStream::Stdout,
        context: String::new(),
        text,
    }
}

fn texts(logs: &Logs, tenant: &str, app: &str, query: LogQuery) -> Vec<String> {
    let stream = logs.query(&tenant.parse().unwrap(), &app.parse().unwrap(), query);
    futures::executor::block_on(stream.map(|line| line.text).collect())
}

#[test]
fn the_last_lines_of_one_app_and_component() {
    let logs = Logs::default();
    let tenant = "t".parse().unwrap();
    for n in 0..10 {
        logs.push(&tenant, line("a", if n % 2 == 0 { "even" } else { "odd" }, n.to_string()));
    }
    logs.push(&tenant, line("b", "even", "other".into()));
    let last = |n, component: Option<&str>| LogQuery {
        last: n,
        component: component.map(|name| name.parse().unwrap()),
        ..LogQuery::default()
    };
    assert_eq!(texts(&logs, "t", "a", last(3, None)), ["7", "8", "9"]);
    assert_eq!(texts(&logs, "t", "a", last(2, Some("even"))), ["6", "8"]);
    assert!(texts(&logs, "u", "a", last(3, None)).is_empty());
    logs.forget(&tenant, &"a".parse().unwrap());
    assert!(texts(&logs, "t", "a", last(3, None)).is_empty());
}

#[test]
fn a_quota_that_is_raised_is_felt_at_once() {
    let (logs, tenant) = (Logs::default(), "t".parse().unwrap());
    let limit = |log_rate| logs.limit(&tenant, &Quotas { log_rate, ..Quotas::default() });
    limit(ByteSize::kib(1));
    assert_eq!(logs.read(&tenant, 400 << 10), None);
    assert!(logs.read(&tenant, 1).is_some_and(|wait| wait > Duration::from_secs(100)));
    limit(ByteSize::mib(1));
    assert!(logs.read(&tenant, 1).is_none_or(|wait| wait < Duration::from_secs(1)));
}

#[test]
fn lines_are_chosen_by_level_age_and_instance() {
    let logs = Logs::default();
    let tenant = "t".parse().unwrap();
    let now = now_ms();
    for (stream, age_ms, instance, text) in [
        (LogStream::Error, 3_600_000, "0-0-1", "old"),
        (LogStream::Debug, 0, "0-0-1", "debug"),
        (LogStream::Stderr, 0, "0-0-2", "err"),
        (LogStream::Platform, 0, "", "trap"),
        (LogStream::Critical, 0, "0-0-2", "worst"),
    ] {
        let line = line("a", "c", text.into());
        logs.push(&tenant, LogLine { stream, time_ms: now - age_ms, instance: instance.into(), ..line });
    }
    let query = |level, since, instance: Option<&str>| {
        let instance = instance.map(str::to_owned);
        texts(&logs, "t", "a", LogQuery { last: 10, level, since, instance, ..LogQuery::default() })
    };
    assert_eq!(query(Some(LogLevel::Trace), None, None).len(), 5);
    assert_eq!(query(Some(LogLevel::Info), None, None), ["old", "err", "trap", "worst"]);
    assert_eq!(query(Some(LogLevel::Warn), None, None), ["old", "trap", "worst"]);
    assert_eq!(query(Some(LogLevel::Error), Some(Since::Ago("1m".parse().unwrap())), None), ["worst"]);
    assert_eq!(query(None, Some(Since::At(now)), None), ["debug", "err", "trap", "worst"]);
    assert_eq!(query(None, None, Some("0-0-2")), ["err", "worst"]);
}

#[test]
fn memory_is_bounded_per_app_and_in_all() {
    let logs = Logs::default();
    let tenant = "t".parse().unwrap();
    for n in 0..2000 {
        logs.push(&tenant, line("loud", "c", format!("{n:0>1000}")));
    }
    {
        let rings = logs.rings.lock().unwrap();
        let ring = rings.by_app.values().next().unwrap();
        assert!(ring.bytes <= PER_APP && ring.bytes == rings.bytes && ring.lines.len() > 200);
    }
    let free = Quotas { log_rate: model::unit::ByteSize::mib(1 << 20), ..Quotas::default() };
    logs.limit(&tenant, &free);
    for app in 0..400 {
        for _ in 0..250 {
            logs.push(&tenant, line(&format!("a{app}"), "c", "x".repeat(1000)));
        }
    }
    let rings = logs.rings.lock().unwrap();
    let sum: usize = rings.by_app.values().map(|ring| ring.lines.iter().map(|l| cost(l)).sum::<usize>()).sum();
    assert!(rings.bytes <= IN_ALL && sum == rings.bytes, "{} {sum}", rings.bytes);
}

#[test]
fn the_apps_of_one_tenant_however_many_cut_the_kept_log_of_no_other() {
    let (logs, loud, quiet): (_, TenantName, TenantName) =
        (Logs::default(), "loud".parse().unwrap(), "quiet".parse().unwrap());
    logs.limit(&loud, &Quotas { log_rate: model::unit::ByteSize::mib(1 << 20), ..Quotas::default() });
    let kept = |logs: &Logs| texts(logs, "quiet", "a", LogQuery { last: 1000, ..LogQuery::default() }).len();
    for n in 0..200 {
        logs.push(&quiet, line("a", "c", format!("{n:0>1000}")));
    }
    // Twice what all may have together, of 5,000 apps that each have next to nothing.
    for _ in 0..24 {
        for app in 0..5000 {
            logs.push(&loud, line(&format!("a{app}"), "c", "x".repeat(1000)));
        }
    }
    assert_eq!(kept(&logs), 200);
    let rings = logs.rings.lock().unwrap();
    assert!(rings.bytes <= IN_ALL, "{}", rings.bytes);
    let of_loud: Vec<usize> = rings.by_app.values().map(|ring| ring.lines.len()).collect();
    assert!(of_loud.iter().filter(|lines| **lines > 0).count() > 4000, "its own apps share what is its own");
}

#[test]
fn a_tenant_writes_no_more_than_its_quota_and_is_told() {
    let logs = Logs::default();
    let (loud, quiet): (TenantName, TenantName) = ("loud".parse().unwrap(), "quiet".parse().unwrap());
    logs.limit(&loud, &Quotas { log_rate: model::unit::ByteSize::kib(1), ..Quotas::default() });
    for n in 0..1000 {
        logs.push(&loud, line("a", "c", format!("{n:0>896}")));
    }
    logs.push(&quiet, line("a", "c", "heard".into()));
    // Ten seconds' worth, and what came in while this ran.
    let taken = texts(&logs, "loud", "a", LogQuery { last: 1000, ..LogQuery::default() }).len();
    assert!((10..20).contains(&taken), "{taken}");
    assert_eq!(logs.dropped(&loud) as usize + taken, 1000);
    assert_eq!(texts(&logs, "quiet", "a", LogQuery { last: 9, ..LogQuery::default() }), ["heard"]);
    logs.limit(&loud, &Quotas::default());
    logs.rings.lock().unwrap().quotas.get_mut(&loud).unwrap().paid = 0;
    logs.push(&loud, line("a", "c", "again".into()));
    let last = texts(&logs, "loud", "a", LogQuery { last: 2, ..LogQuery::default() });
    assert!(last[0].contains("lines of this tenant were left out") && last[1] == "again", "{last:?}");
}

#[tokio::test]
async fn a_follower_gets_past_and_coming_lines() {
    let logs = Logs::default();
    let tenant: TenantName = "t".parse().unwrap();
    logs.push(&tenant, line("a", "c", "past".into()));
    let query = LogQuery { last: 10, follow: true, level: Some(LogLevel::Info), ..LogQuery::default() };
    let mut stream = logs.query(&tenant, &"a".parse().unwrap(), query);
    logs.push(&tenant, LogLine { stream: LogStream::Debug, ..line("a", "c", "too little".into()) });
    logs.push(&tenant, line("a", "c", "coming".into()));
    assert_eq!(stream.next().await.unwrap().text, "past");
    assert_eq!(stream.next().await.unwrap().text, "coming");
    logs.forget(&tenant, &"a".parse().unwrap());
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn a_follower_that_is_too_slow_is_told_how_many_lines_it_missed() {
    let logs = Logs::default();
    let tenant: TenantName = "t".parse().unwrap();
    let query = LogQuery { follow: true, component: Some("c".parse().unwrap()), ..LogQuery::default() };
    let stream = logs.query(&tenant, &"a".parse().unwrap(), query);
    for n in 0..BEHIND + 5 {
        logs.push(&tenant, line("a", "c", n.to_string()));
    }
    // One of another component counts among those that were lost, and takes no part beside that.
    logs.push(&tenant, line("a", "other", "of another component".into()));
    logs.forget(&tenant, &"a".parse().unwrap());
    let seen: Vec<LogLine> = stream.collect().await;
    assert_eq!(seen[0].stream, LogStream::Platform);
    assert_eq!(seen[0].text, "6 lines were lost here: they came faster than they were read");
    let texts: Vec<&str> = seen.iter().skip(1).map(|line| line.text.as_str()).collect();
    assert_eq!((texts[0], texts.len(), texts.last().copied()), ("6", BEHIND - 1, Some("1028")));
}

#[test]
fn a_host_is_read_twice_as_fast_as_its_tenant_may_write_and_no_faster() {
    let (logs, tenant): (_, TenantName) = (Logs::default(), "t".parse().unwrap());
    let quotas = Quotas { log_rate: model::unit::ByteSize(10_000), ..Quotas::default() };
    logs.limit(&tenant, &quotas);
    let paused: Vec<_> = (0..300).filter_map(|_| logs.read(&tenant, 1000)).collect();
    // 200,000 bytes are read at once, and then 20,000 in a second.
    assert!((80..=110).contains(&paused.len()), "{}", paused.len());
    let longest = paused.iter().max().unwrap();
    assert!((Duration::from_millis(20)..Duration::from_millis(60)).contains(longest), "{longest:?}");
    let other: TenantName = "other".parse().unwrap();
    assert_eq!(logs.read(&other, 1000), None);
}
