//! Where a connection may go: whatever spelling of a forbidden address some reader of addresses understands, either we
//! refuse to read it or we refuse to connect.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::egress::{AllowedHost, Cidr, Class, Destination, Policy, Range, Transport, classify};

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::texts(&[
        "127.0.0.1",
        "0x7f.1",
        "017700000001",
        "2130706433",
        "127.1",
        "[::ffff:127.0.0.1]",
        "::ffff:7f00:1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "169.254.169.254",
        "fd00:ec2::254",
        "[fe80::1%25eth0]",
        "localhost",
        "example.com.",
        "user@10.0.0.1",
        "\u{ff11}27.0.0.1",
        "10.0.0.0/8",
        "fd00::/8",
        "https://*.example.com:8443",
        "https://*.example] a.example",
        "udp://*.example:443 a.example",
        "http://[::1]:80",
        "xn--bcher-kva.example",
    ])
}

pub(super) fn run(bytes: &[u8]) {
    if let Some(raw) = bytes.first_chunk::<16>() {
        address(Ipv6Addr::from(*raw).into());
    }
    if let Some(raw) = bytes.first_chunk::<4>() {
        address(Ipv4Addr::from(*raw).into());
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    spelled(text);
    range(text);
    entry(text);
}

/// What the standard library knows of special addresses, none of which is public.
fn special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_documentation()
                || v4.is_unspecified()
                || v4.octets()[0] == 0
                || v4.octets()[0] >= 240
        }
        IpAddr::V6(v6) => {
            let inner = v6.to_ipv4_mapped().is_some_and(|v4| special(v4.into()));
            let nat64 = v6.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
            inner
                || nat64
                || v6.is_loopback()
                || v6.is_multicast()
                || v6.is_unspecified()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
        }
    }
}

fn address(address: IpAddr) {
    let class = classify(address);
    assert!(class != Class::Public || !special(address), "{address} is public to us");
    let granted = Policy::default().decide(None, &Destination::Address(address), 80, &[address], &[]);
    assert_eq!(granted.is_ok(), class == Class::Public, "{address} is {class}");
    // One bad address among good ones is enough.
    let good: IpAddr = Ipv4Addr::new(93, 184, 216, 34).into();
    let mixed = Policy::default().decide(None, &Destination::Name("a.example".to_owned()), 80, &[good, address], &[]);
    assert_eq!(mixed.is_ok(), class == Class::Public, "{address} is {class}");
}

fn spelled(text: &str) {
    let ours = Destination::parse(text);
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    match &ours {
        Ok(Destination::Address(found)) => {
            assert_eq!(bare.parse::<IpAddr>().ok(), Some(*found), "{text:?}");
            assert_eq!(Destination::parse(&found.to_string()), ours.clone());
        }
        Ok(Destination::Name(name)) => {
            assert_eq!(Destination::parse(name), ours.clone(), "{text:?} is not read again");
            // Browsers, curl and resolvers read numbers in many bases; none of them may see an address where we see a name.
            assert!(
                !matches!(url::Host::parse(text), Ok(url::Host::Ipv4(_) | url::Host::Ipv6(_))),
                "{text:?} is an address"
            );
            assert_eq!(numeric(name), None, "{text:?} is an address to inet_aton");
        }
        Err(_) => {}
    }
    let read = match url::Host::parse(text) {
        Ok(url::Host::Ipv4(v4)) => IpAddr::from(v4),
        Ok(url::Host::Ipv6(v6)) => v6.into(),
        _ => return,
    };
    if let Ok(ours) = ours {
        assert_eq!(ours, Destination::Address(read), "{text:?} means two addresses");
    }
}

/// As `inet_aton` of the C library reads one to four numbers, each decimal, octal or hexadecimal.
fn numeric(text: &str) -> Option<u32> {
    let number = |part: &str| match part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None if part.len() > 1 && part.starts_with('0') => u64::from_str_radix(part, 8).ok(),
        None => part.bytes().all(|b| b.is_ascii_digit()).then(|| part.parse().ok()).flatten(),
    };
    let parts: Option<Vec<u64>> = text.split('.').map(number).collect();
    let parts = parts.filter(|parts| parts.len() <= 4)?;
    let (last, first) = parts.split_last()?;
    let room = 8 * (4 - first.len() as u32);
    let fits = first.iter().all(|part| *part < 256) && *last < 1 << room;
    let head = first.iter().enumerate().fold(0, |sum, (at, part)| sum | part << (24 - 8 * at));
    fits.then(|| u32::try_from(head | last).ok()).flatten()
}

fn range(text: &str) {
    if let Ok(range) = text.parse::<Range>() {
        assert_eq!(range.to_string().parse::<Range>(), Ok(range));
    }
    let Ok(cidr) = text.parse::<Cidr>() else { return };
    assert_eq!(cidr.to_string().parse::<Cidr>(), Ok(cidr));
    let written = cidr.to_string();
    let (first, prefix) = written.split_once('/').expect("it is written with its prefix");
    let (first, prefix): (IpAddr, u32) = (first.parse().expect("an address"), prefix.parse().expect("a number"));
    assert!(cidr.contains(first));
    // The address that differs in the last bit of the prefix is outside, the one that differs after it inside.
    let flip = |bit: u32| match first {
        IpAddr::V4(v4) => IpAddr::from(Ipv4Addr::from_bits(v4.to_bits() ^ 1 << (31 - bit))),
        IpAddr::V6(v6) => IpAddr::from(Ipv6Addr::from_bits(v6.to_bits() ^ 1 << (127 - bit))),
    };
    let width = if first.is_ipv4() { 32 } else { 128 };
    assert!(prefix == 0 || !cidr.contains(flip(prefix - 1)), "{cidr}");
    assert!(prefix == width || cidr.contains(flip(prefix)), "{cidr}");
}

fn entry(text: &str) {
    let (entry, host) = text.split_once(' ').unwrap_or((text, "a.example"));
    let Some(allowed) = AllowedHost::parse(entry) else { return };
    if ![Transport::Tcp, Transport::Udp].into_iter().any(|transport| allowed.covers(transport, host, 443)) {
        return;
    }
    // What lets a socket through is about sockets, and of one transport.
    let opened = [Transport::Tcp, Transport::Udp].map(|transport| allowed.opens(transport, host, 443));
    assert!(opened != [true, true] && opened.contains(&true) == allowed.is_for_sockets(), "{entry}");
    // Whoever reads the entry as a URL sees that host, or one it ends with.
    let suffix = entry.contains("://*.");
    let named = entry.to_ascii_lowercase();
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let ends =
        suffix && named.split_once("://*").is_some_and(|(_, rest)| host.ends_with(rest.trim_end_matches(":443")));
    assert!(ends || named.contains(&host), "{entry} lets {host} through");
}
