//! Every way we know to spell an address that must not be reached, and the ones that must.

use std::net::IpAddr;

use super::*;
use crate::app::{ProviderKind, ProviderSpec};
use crate::name::ProviderName;
use crate::tenant::TenantSettings;

/// What a policy without grants says to `host` as written.
fn verdict(policy: &Policy, host: &str) -> Result<Grant, String> {
    match Destination::parse(host).map_err(|cause| cause.to_string())? {
        Destination::Address(address) => policy
            .decide(None, &Destination::Address(address), 80, &[address], &[])
            .map_err(|denied| denied.to_string()),
        // Resolved later and then decided on the addresses; here it must only not be an address in disguise.
        Destination::Name(name) => Err(format!("name {name}")),
    }
}

/// Literals that the system would connect to, and that are denied as addresses.
const DENIED: &[&str] = &[
    // this machine
    "127.0.0.1",
    "127.0.0.2",
    "127.1.2.3",
    "127.255.255.255",
    "0.0.0.0",
    "0.1.2.3",
    "0.255.255.255",
    "::1",
    "::",
    "[::1]",
    "[::]",
    "0:0:0:0:0:0:0:1",
    "0:0:0:0:0:0:0:0",
    "0000:0000:0000:0000:0000:0000:0000:0001",
    "[0:0:0:0:0:0:0:1]",
    "::0",
    "::0001",
    "0::1",
    "0:0::0:1",
    // IPv4 inside IPv6
    "::ffff:127.0.0.1",
    "[::ffff:127.0.0.1]",
    "::ffff:7f00:1",
    "::ffff:7F00:0001",
    "::FFFF:127.0.0.1",
    "0:0:0:0:0:ffff:127.0.0.1",
    "0:0:0:0:0:ffff:7f00:1",
    "::ffff:0.0.0.0",
    "::ffff:10.0.0.1",
    "::ffff:a00:1",
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::ffff:192.168.1.1",
    "::ffff:172.16.0.1",
    "::ffff:100.64.0.1",
    "::ffff:8.8.8.8",
    "::7f00:1",
    "::127.0.0.1",
    "::10.0.0.1",
    "::a9fe:a9fe",
    "::169.254.169.254",
    "::2",
    "::8.8.8.8",
    "::ffff:0:127.0.0.1",
    "::ffff:0:7f00:1",
    "::ffff:0:a9fe:a9fe",
    // NAT64
    "64:ff9b::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::192.168.0.1",
    "64:ff9b::8.8.8.8",
    "64:ff9b:1::127.0.0.1",
    "64:ff9b:1::a00:1",
    "64:ff9b:1:ffff::7f00:1",
    "0064:ff9b::7f00:0001",
    // 6to4, Teredo, ISATAP
    "2002:7f00:1::",
    "2002:7f00:0001::1",
    "2002:a00:1::",
    "2002:a9fe:a9fe::",
    "2002:c0a8:101::1",
    "2002:808:808::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "2001:0:0:0:0:0:f5ff:fffe",
    "2001:0::80ff:fffe",
    "2a00:1450::5efe:127.0.0.1",
    "2a00:1450::5efe:7f00:1",
    "2a00:1450:0:0:200:5efe:a00:1",
    "fe80::5efe:c0a8:101",
    // private and shared
    "10.0.0.0",
    "10.0.0.1",
    "10.255.255.255",
    "172.16.0.1",
    "172.20.10.5",
    "172.31.255.255",
    "192.168.0.1",
    "192.168.255.255",
    "100.64.0.1",
    "100.100.100.100",
    "100.127.255.255",
    "fc00::1",
    "fd00::1",
    "fdff:ffff::1",
    "[fd12:3456:789a::1]",
    "fec0::1",
    "feff::1",
    // link-local
    "169.254.0.1",
    "169.254.255.255",
    "fe80::1",
    "fe80::1234:5678",
    "febf::1",
    "[fe80::1]",
    // metadata
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "fd00:ec2::254",
    "[fd00:ec2::254]",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fe80::a9fe:a9fe",
    // multicast, broadcast, reserved, documentation, benchmarks
    "224.0.0.1",
    "239.255.255.250",
    "ff02::1",
    "ff05::2",
    "ff0e::1",
    "255.255.255.255",
    "240.0.0.1",
    "254.255.255.255",
    "192.0.0.1",
    "192.0.0.170",
    "192.88.99.1",
    "192.0.2.1",
    "198.51.100.7",
    "203.0.113.9",
    "2001:db8::1",
    "3fff::1",
    "3fff:fff::1",
    "198.18.0.1",
    "198.19.255.255",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:1ff::1",
    "100::1",
    "100:0:0:1::1",
    "5f00::1",
    "4000::1",
    "8000::1",
    "e000::1",
    "1::1",
    "200::1",
    "64:ff9a::1",
    "fe00::1",
];

/// Spellings that some resolver or URL library reads as an address: none is passed on, as an address or as a name.
const REFUSED: &[&str] = &[
    "",
    "2130706433",
    "017700000001",
    "0x7f000001",
    "0X7F000001",
    "0x7f.1",
    "0x7f.0x0.0x0.0x1",
    "0177.0.0.1",
    "0177.0.0.01",
    "127.1",
    "127.0.1",
    "127.0.0.01",
    "127.0.0.001",
    "127.000.000.001",
    "127.0.0.0x1",
    "127.0x0.1",
    "127.0.0.1.",
    "127.1.",
    "2130706433.",
    "0x7f000001.",
    "0",
    "0.",
    "1",
    "00000000",
    "10.1",
    "0xa000001",
    "0251.0376.0251.0376",
    "0xa9fea9fe",
    "2852039166",
    "025177524776",
    "169.254.43518",
    "169.16689662",
    "0xa9.0xfe.0xa9.0xfe",
    "169.254.169.254.",
    "169.254.169.0xfe",
    "4294967296",
    "99999999999999999999",
    "256.256.256.256",
    "127.0.0.256",
    "1.2.3.4.5",
    "1.2.3.4.5.",
    "foo.1",
    "localhost.0x1",
    "foo.0x",
    "0x",
    "a.b.1.",
    "..",
    ".",
    "127..1",
    "127.0.0.1..",
    ".127.0.0.1",
    " 127.0.0.1",
    "127.0.0.1 ",
    "127.0.0.1\t",
    "127.0.0.1\n",
    "127.0.0.1\0",
    "127.0.0.1%00",
    "127.0.0.1#",
    "127.0.0.1/",
    "127.0.0.1?",
    "127.0.0.1\\",
    "%31%32%37.0.0.1",
    "127%2e0.0.1",
    "user@127.0.0.1",
    "user:pw@127.0.0.1",
    "example.com@127.0.0.1",
    "127.0.0.1:80",
    "[127.0.0.1]",
    "[::1",
    "::1]",
    "[::1]:80",
    "[[::1]]",
    "[]",
    "[::1%lo]",
    "::1%lo",
    "fe80::1%eth0",
    "[fe80::1%25eth0]",
    "::1%0",
    "[::ffff:0x7f.1]",
    "::ffff:127.1",
    "::ffff:0177.0.0.1",
    ":::1",
    "1::2::3",
    "12345::1",
    "::g",
    "[v1.fe80]",
    "::1.",
    // full-width, circled and other digits and dots that Unicode normalisation folds
    "１２７.０.０.１",
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
    "127．0．0．1",
    "127｡0｡0｡1",
    "٠.٠.٠.٠",
    "१२७.०.०.१",
    "ｌｏｃａｌｈｏｓｔ",
    "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ",
    "localhoſt",
    "ex\u{ad}ample.com",
    "example\u{200b}.com",
    "bücher.example",
    "-a.example",
    "a-.example",
    "a..example",
    ".example",
    "exa mple.com",
    "http://example.com",
    "example.com/x",
    "*",
    "*.example.com",
    "example.com:80",
    "a,b",
    "a;b",
    "$(id)",
    "`id`",
    "a\r\nb",
    "a|b",
    "a=b",
    "a+b",
    "~",
    "!",
];

const PUBLIC: &[&str] = &[
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.1",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.1",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2606:4700::1111",
    "[2606:4700::1111]",
    "2a00:1450:4001:800::200e",
    "2001:200::1",
    "2001:4860:4860::8888",
    "2620:fe::fe",
    "3ffe::1",
];

#[test]
fn every_spelling_has_its_verdict() {
    assert!(DENIED.len() + REFUSED.len() >= 150, "{}", DENIED.len() + REFUSED.len());
    let closed = Policy::default();
    for host in DENIED {
        assert!(matches!(Destination::parse(host), Ok(Destination::Address(_))), "{host} is an address");
        assert!(verdict(&closed, host).is_err_and(|cause| cause.contains("is not granted")), "{host}");
    }
    for host in REFUSED {
        assert!(Destination::parse(host).is_err(), "{host:?} gave {:?}", Destination::parse(host));
    }
    for host in PUBLIC {
        assert_eq!(verdict(&closed, host), Ok(Grant::Public), "{host}");
    }
}

#[test]
fn names_are_kept_in_one_form() {
    for (text, name) in [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("localhost", "localhost"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("_srv.example.com", "_srv.example.com"),
        ("127.0.0.1.example.com", "127.0.0.1.example.com"),
        ("0x7f.example", "0x7f.example"),
        ("a1", "a1"),
    ] {
        assert_eq!(Destination::parse(text), Ok(Destination::Name(name.into())), "{text}");
    }
    let long = format!("{}.example", "a".repeat(64));
    assert_eq!(Destination::parse(&long), Err(DestinationError::TooLong));
    assert_eq!(Destination::parse(&"ab.".repeat(100)), Err(DestinationError::TooLong));
}

fn policy(ranges: &[&str]) -> Policy {
    let egress = ranges.iter().map(|range| (*range).to_owned()).collect();
    let (policy, errors) = Policy::of(&TenantSettings { egress, ..TenantSettings::default() });
    assert!(errors.is_empty(), "{errors:?}");
    policy
}

#[test]
fn grants_open_exactly_their_range() {
    let cases: &[(&[&str], &str, bool)] = &[
        (&["10.1.0.0/16"], "10.1.2.3", true),
        (&["10.1.0.0/16"], "10.2.0.1", false),
        (&["127.0.0.0/8"], "127.0.0.1", true),
        (&["127.0.0.1"], "127.0.0.1", true),
        (&["127.0.0.1"], "127.0.0.2", false),
        (&["127.0.0.0/8"], "::1", false),
        (&["::1"], "::1", true),
        (&["fd00::/8"], "fd12::1", true),
        (&["0.0.0.0/0"], "10.0.0.1", true),
        // never, whatever is granted
        (&["0.0.0.0/0"], "0.0.0.0", false),
        (&["0.0.0.0/0"], "224.0.0.1", false),
        (&["0.0.0.0/0"], "255.255.255.255", false),
        (&["::/0"], "::", false),
        (&["::/0"], "ff02::1", false),
        // credentials only by name
        (&["0.0.0.0/0"], "169.254.169.254", false),
        (&["169.254.0.0/16"], "169.254.169.254", false),
        (&["169.254.0.0/16"], "169.254.1.1", true),
        (&["169.254.169.254"], "169.254.169.254", true),
        (&["fd00::/8"], "fd00:ec2::254", false),
        // wrapped: both the form and what is in it
        (&["10.0.0.0/8"], "::ffff:10.0.0.1", false),
        (&["::ffff:0:0/96"], "::ffff:10.0.0.1", false),
        (&["::ffff:0:0/96", "10.0.0.0/8"], "::ffff:10.0.0.1", true),
        (&["64:ff9b::/96"], "64:ff9b::8.8.8.8", true),
        (&["64:ff9b::/96"], "64:ff9b::127.0.0.1", false),
        (&["64:ff9b::/96", "0.0.0.0/0"], "64:ff9b::169.254.169.254", false),
        (&["::/0"], "2002:a00:1::", false),
        // with ports: these are asked for at 80
        (&["10.1.0.0/16:80"], "10.1.2.3", true),
        (&["10.1.0.0/16:81-90"], "10.1.2.3", false),
        (&["10.1.0.0/16:1-90", "10.1.0.0/16:8080"], "10.1.2.3", true),
        (&["10.1.0.0/16:80"], "10.2.0.1", false),
        (&["127.0.0.1:80"], "127.0.0.1", true),
        (&["[::1]:80"], "::1", true),
        (&["[fd00::/8]:79"], "fd12::1", false),
        (&["169.254.0.0/16:80"], "169.254.169.254", false),
        (&["169.254.169.254:80"], "169.254.169.254", true),
        (&["0.0.0.0/0:80"], "0.0.0.0", false),
        (&["[::ffff:0:0/96]:80", "10.0.0.0/8:81"], "::ffff:10.0.0.1", false),
        (&["[::ffff:0:0/96]:80", "10.0.0.0/8:80"], "::ffff:10.0.0.1", true),
    ];
    for (ranges, host, allowed) in cases {
        assert_eq!(verdict(&policy(ranges), host).is_ok(), *allowed, "{ranges:?} {host}");
    }
}

#[test]
fn one_denied_address_denies_the_name() {
    let name = Destination::parse("rebind.example").unwrap();
    let addresses = |list: &[&str]| -> Vec<IpAddr> { list.iter().map(|a| a.parse().unwrap()).collect() };
    let closed = Policy::default();
    assert_eq!(closed.decide(None, &name, 80, &addresses(&["8.8.8.8", "2606:4700::1111"]), &[]), Ok(Grant::Public));
    for mixed in [&["8.8.8.8", "127.0.0.1"], &["::1", "8.8.8.8"], &["8.8.8.8", "64:ff9b::a00:1"]] {
        assert!(closed.decide(None, &name, 80, &addresses(mixed), &[]).is_err(), "{mixed:?}");
    }
    assert!(policy(&["10.0.0.0/8"]).decide(None, &name, 80, &addresses(&["10.0.0.1", "192.168.0.1"]), &[]).is_err());
}

#[test]
fn an_address_of_the_machine_takes_a_grant_though_it_looks_public() {
    let own: IpAddr = "8.8.4.4".parse().unwrap();
    let to = Destination::Address(own);
    let denied = Policy::default().decide(None, &to, 6379, &[own], &[own]).unwrap_err();
    let said = "8.8.4.4 (an address of this machine, which only a range with ports grants) is not granted";
    assert_eq!(denied.to_string(), said);
    assert!(policy(&["8.8.4.4/32"]).decide(None, &to, 6379, &[own], &[own]).is_ok());
    assert!(Policy::default().decide(None, &to, 6379, &[own], &[]).is_ok());
    // The range of a network is not of the machine, but for the ports that it names.
    for (range, port, granted) in [
        ("8.8.4.0/24", 6379, false),
        ("8.8.4.0/24:6000-7000", 6379, true),
        ("8.8.4.0/24:6000-7000", 4646, false),
        ("8.8.4.4:6379", 6379, true),
        ("8.8.4.4:6379", 4646, false),
    ] {
        assert_eq!(policy(&[range]).decide(None, &to, port, &[own], &[own]).is_ok(), granted, "{range} {port}");
    }
}

#[test]
fn an_operator_s_provider_reaches_its_own_endpoint_only() {
    let spec = |url: &str| ProviderSpec {
        kind: ProviderKind::KeyvalueRedis,
        config: [("url".to_owned(), url.to_owned())].into(),
        secrets: [].into(),
        operator: true,
    };
    let cache: ProviderName = "cache".parse().unwrap();
    let other: ProviderName = "other".parse().unwrap();
    let mut settings = TenantSettings::default();
    settings.providers.insert(cache.clone(), spec("redis://:p@ss@127.0.0.1:7000/2"));
    let (policy, _) = Policy::of(&settings);
    let home: IpAddr = "127.0.0.1".parse().unwrap();
    let at = Destination::Address(home);
    assert_eq!(policy.decide(Some(&cache), &at, 7000, &[home], &[]), Ok(Grant::Operator));
    assert!(policy.decide(Some(&cache), &at, 7001, &[home], &[]).is_err());
    assert!(policy.decide(Some(&other), &at, 7000, &[home], &[]).is_err());
    assert!(policy.decide(None, &at, 7000, &[home], &[]).is_err());
    assert!(policy.decide(Some(&cache), &Destination::Name("localhost".into()), 7000, &[home], &[]).is_err());

    for (url, endpoint) in [
        ("redis://db.internal", Some(("db.internal", 6379))),
        ("redis://db.internal:1/0", Some(("db.internal", 1))),
        ("redis://u:p@[::1]:7", Some(("::1", 7))),
        ("redis://[::1]", Some(("::1", 6379))),
        ("redis://127.1", None),
        ("redis://h:notaport", None),
        ("http://db.internal", None),
    ] {
        let expected = endpoint.map(|(host, port)| (Destination::parse(host).unwrap(), port));
        assert_eq!(endpoint_of(&spec(url)), expected, "{url}");
    }
    for kind in [ProviderKind::KeyvalueVault, ProviderKind::KeyvalueConsul] {
        for (url, port) in [("http://v.internal", 80), ("https://v.internal/x", 443), ("https://v.internal:8200", 8200)]
        {
            let spec = ProviderSpec { kind, ..spec(url) };
            assert_eq!(endpoint_of(&spec), Some((Destination::Name("v.internal".into()), port)), "{url}");
        }
    }
    for (url, port) in [("nats://db.internal", 4222), ("tls://db.internal:7", 7)] {
        let spec = ProviderSpec { kind: ProviderKind::KeyvalueNats, ..spec(url) };
        assert_eq!(endpoint_of(&spec), Some((Destination::Name("db.internal".into()), port)), "{url}");
    }
}

#[test]
fn ranges_are_read_strictly() {
    for bad in [
        "",
        "10.0.0.0/33",
        "10.0.0.1/8",
        "10.0.0.0/",
        "10.0.0.0/+8",
        "10.0.0.0/08",
        "10.0.0.0/-1",
        "::/129",
        "::1/64",
        "10.0/8",
        "10.0.0.0/8 ",
        "a/8",
        "/8",
        "0x0a.0.0.0/8",
        "fe80::1%eth0/64",
    ] {
        assert!(bad.parse::<Cidr>().is_err(), "{bad:?}");
    }
    for good in ["0.0.0.0/0", "::/0", "10.0.0.0/8", "fd00::/8", "192.0.2.7/32", "::1/128"] {
        assert_eq!(good.parse::<Cidr>().unwrap().to_string(), good);
    }
    for bad in [
        "10.0.0.0/8:",
        "10.0.0.0/8:0",
        "10.0.0.0/8:080",
        "10.0.0.0/8:+80",
        "10.0.0.0/8:80-79",
        "10.0.0.0/8:80-",
        "10.0.0.0/8:-80",
        "10.0.0.0/8:80-81-82",
        "10.0.0.0/8:65536",
        "10.0.0.0/8:80 ",
        "10.0.0.1/8:80",
        "[10.0.0.0/8]:80",
        "[fd00::/8]",
        "[fd00::/8]:",
        "[fd00::/8:80",
        "fd00::/8:80",
        "db.example:80",
        ":80",
    ] {
        assert!(bad.parse::<Range>().is_err(), "{bad:?}");
    }
    for good in ["10.0.0.0/8", "fd00::/8", "10.0.0.0/8:80", "10.0.0.7/32:1-65535", "[fd00::/8]:6379", "[::1/128]:1-2"] {
        assert_eq!(good.parse::<Range>().unwrap().to_string(), good);
    }
    let (policy, errors) =
        Policy::of(&TenantSettings { egress: vec!["10.0.0.0/99".into()], ..TenantSettings::default() });
    assert_eq!((policy, errors.len()), (Policy::default(), 1));
}
