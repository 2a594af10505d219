//! Asks nameservers for the addresses of a name, where the operator names them. Nothing is remembered: what is decided on
//! is what was answered for this dial, and for no other.
//!
//! An answer counts only if it comes from that address, has the number of the question and repeats it; records of other
//! names than the one asked for, or what it is an alias of, do not.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures::future::BoxFuture;
use simple_dns::rdata::{OPT, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, SimpleDnsError, TYPE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use super::Resolve;

/// The largest answer that is taken as one datagram; a larger one is asked for over TCP.
const DATAGRAM: u16 = 1232;
/// The longest chain of aliases that is followed.
const MAX_ALIASES: usize = 16;

/// Nameservers that resolve recursively, and how they are asked: what `resolv.conf(5)` calls by the same names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nameservers {
    /// Asked in this order; one that says nothing, or that it does not know, is followed by the next.
    pub servers: Vec<SocketAddr>,
    /// Appended to names in turn, until there is one.
    pub searches: Vec<String>,
    /// A name with so many dots is tried as it is before anything is appended.
    pub ndots: usize,
    /// How long one question waits for its answer.
    pub timeout: Duration,
    /// How often all of them are asked.
    pub attempts: usize,
    /// Each name begins with the next server, and not with the one that answered last.
    pub rotate: bool,
    /// All questions for one name together wait no longer: whoever asked has gone on then.
    pub within: Duration,
}

impl Nameservers {
    /// The one at `address`, for names that are whole. All attempts together take less than a dial may, so that a
    /// nameserver that says nothing is named as the cause.
    pub fn one(address: SocketAddr) -> Self {
        let (timeout, attempts) = (Duration::from_millis(1500), 3);
        let within = Duration::from_millis(4500);
        Self { servers: vec![address], searches: Vec::new(), ndots: 0, timeout, attempts, rotate: false, within }
    }

    /// The names that `name` may stand for, in the order in which they are tried.
    fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(whole) = name.strip_suffix('.') {
            return vec![whole.to_owned()];
        }
        let searches = self.searches.iter().map(|search| search.trim_matches('.')).filter(|search| !search.is_empty());
        let mut all: Vec<_> = searches.map(|search| format!("{name}.{search}")).collect();
        let first = name.matches('.').count() >= self.ndots;
        all.insert(if first { 0 } else { all.len() }, name.to_owned());
        all
    }

    /// The addresses of one kind, by `until`; asks again where there is no answer. `first` is the server to begin with, and
    /// becomes the one that answered.
    async fn ask(&self, name: &str, kind: TYPE, first: &AtomicUsize, until: Instant) -> io::Result<Vec<IpAddr>> {
        let (mut strange, mut said) = (false, None);
        let begin = first.load(Relaxed);
        let servers = || self.servers.iter().enumerate().cycle().skip(begin).take(self.servers.len());
        for _ in 0..self.attempts {
            let mut silent = false;
            for (at, server) in servers() {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(said.unwrap_or_else(no_time));
                }
                // Each with a number and a port of its own, so that nobody can answer the one for the other.
                let query = Query::new(name, kind)?;
                said = Some(match timeout(self.timeout.min(left), exchange(*server, &query, &mut strange)).await {
                    Ok(Ok(Said::Addresses(found))) => {
                        first.store(at, Relaxed);
                        return Ok(found);
                    }
                    Ok(Ok(Said::NoSuchName)) => {
                        first.store(at, Relaxed);
                        return Err(no_such_name());
                    }
                    Ok(Ok(Said::Cut)) => useless(io::ErrorKind::Other, *server, "cut its answer short twice"),
                    Ok(Ok(Said::Failed(code))) => useless(io::ErrorKind::Other, *server, &format!("answered {code:?}")),
                    Ok(Err(cause)) => cause,
                    Err(_) => {
                        silent = true;
                        let what = if strange { "answered nothing that fits the question" } else { "does not answer" };
                        useless(io::ErrorKind::TimedOut, *server, what)
                    }
                });
            }
            if !silent {
                break;
            }
        }
        Err(said.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no nameserver to ask")))
    }

    async fn find(&self, name: &str, first: &AtomicUsize) -> io::Result<Vec<IpAddr>> {
        let until = Instant::now() + self.within;
        // RFC 6761, section 6.3: no server is asked.
        if name.trim_end_matches('.').eq_ignore_ascii_case("localhost") {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let (mut none, mut failed) = (Ok(Vec::new()), None);
        for candidate in self.candidates(name) {
            // Both or none: an address that is not known cannot be checked.
            let both = futures::try_join!(
                self.ask(&candidate, TYPE::A, first, until),
                self.ask(&candidate, TYPE::AAAA, first, until)
            );
            match both {
                Ok((four, six)) if four.is_empty() && six.is_empty() => none = Ok(Vec::new()),
                Ok((four, six)) => return Ok([four, six].concat()),
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => none = Err(cause),
                Err(cause) if cause.kind() == io::ErrorKind::TimedOut => return Err(cause),
                // It says nothing of the other names; but that there is none of all of them is not known either.
                Err(cause) => failed = failed.or(Some(cause)),
            }
        }
        failed.map_or(none, Err)
    }
}

/// Resolves by [`Nameservers`].
#[derive(Debug)]
pub struct Nameserver {
    own: Arc<Nameservers>,
    /// With which server the next name begins.
    next: Arc<AtomicUsize>,
}

impl Nameserver {
    /// The one at `address`.
    pub fn new(address: SocketAddr) -> Self {
        Self::of(Nameservers::one(address))
    }

    /// These.
    pub fn of(own: Nameservers) -> Self {
        Self { own: Arc::new(own), next: Arc::default() }
    }
}

impl Resolve for Nameserver {
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let own = self.own.clone();
        let first = match own.rotate {
            true => Arc::new(AtomicUsize::new(self.next.fetch_add(1, Relaxed) % own.servers.len().max(1))),
            false => self.next.clone(),
        };
        Box::pin(async move { own.find(&name, &first).await })
    }
}

fn no_time() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no time was left to ask a nameserver")
}

fn no_such_name() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "there is no such name")
}

/// A nameserver that was of no use, as the node's own log says it.
#[derive(Debug, thiserror::Error)]
#[error("the nameserver {server} {what}")]
struct Useless {
    server: SocketAddr,
    what: String,
}

fn useless(kind: io::ErrorKind, server: SocketAddr, what: &str) -> io::Error {
    io::Error::new(kind, Useless { server, what: what.to_owned() })
}

/// Why a name was not found, as its tenant may know it: which nameservers its node has is the operator's.
pub(super) fn told(cause: &io::Error) -> String {
    match cause.get_ref().and_then(|cause| cause.downcast_ref::<Useless>()) {
        Some(Useless { what, .. }) => format!("the nameserver {what}"),
        None => cause.to_string(),
    }
}

async fn exchange(server: SocketAddr, query: &Query<'_>, strange: &mut bool) -> io::Result<Said> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&query.bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let size = socket.recv(&mut buffer).await?;
        match query.read(buffer.get(..size).unwrap_or_default()) {
            Some(Said::Cut) => return whole(server, query).await,
            Some(said) => return Ok(said),
            // Somebody else's, or nobody's: the right one may still come.
            None => *strange = true,
        }
    }
}

/// Over TCP, where an answer has no end before its end.
async fn whole(server: SocketAddr, query: &Query<'_>) -> io::Result<Said> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &query.bytes].concat()).await?;
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    let unfit = || useless(io::ErrorKind::Other, server, "answered nothing that fits");
    query.read(&bytes).ok_or_else(unfit)
}

/// What a nameserver said.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Addresses(Vec<IpAddr>),
    /// The rest did not fit.
    Cut,
    NoSuchName,
    Failed(RCODE),
}

/// A question, and the bytes that ask it.
struct Query<'n> {
    id: u16,
    question: Question<'n>,
    bytes: Vec<u8>,
}

impl<'n> Query<'n> {
    fn new(name: &'n str, kind: TYPE) -> io::Result<Self> {
        let unfit = |cause: SimpleDnsError| io::Error::new(io::ErrorKind::InvalidInput, cause.to_string());
        let id = rand::random();
        let question = Question::new(Name::new(name).map_err(unfit)?, kind.into(), CLASS::IN.into(), false);
        let mut packet = Packet::new_query(id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        packet.questions.push(question.clone());
        *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: DATAGRAM, version: 0 });
        let bytes = packet.build_bytes_vec().map_err(unfit)?;
        Ok(Self { id, question, bytes })
    }

    /// What an answer to this question says; `None` of bytes that are none.
    fn read(&self, bytes: &[u8]) -> Option<Said> {
        let packet = Packet::parse(bytes).ok()?;
        let [asked] = packet.questions.as_slice() else { return None };
        let repeats = same(&asked.qname, &self.question.qname)
            && asked.qtype == self.question.qtype
            && asked.qclass == self.question.qclass;
        if packet.id() != self.id || !packet.has_flags(PacketFlag::RESPONSE) || !repeats {
            return None;
        }
        Some(match packet.rcode() {
            _ if packet.has_flags(PacketFlag::TRUNCATION) => Said::Cut,
            RCODE::NoError => Said::Addresses(addresses(&packet, &self.question.qname)),
            RCODE::NameError => Said::NoSuchName,
            other => Said::Failed(other),
        })
    }
}

/// What the name, or the last one of the aliases it leads to, has.
fn addresses(packet: &Packet<'_>, name: &Name<'_>) -> Vec<IpAddr> {
    let mut owner = name;
    for _ in 0..MAX_ALIASES {
        let alias = packet.answers.iter().find_map(|record| match &record.rdata {
            RData::CNAME(alias) if same(&record.name, owner) => Some(&alias.0),
            _ => None,
        });
        match alias {
            Some(next) => owner = next,
            None => break,
        }
    }
    let own = packet.answers.iter().filter(|record| record.class == CLASS::IN && same(&record.name, owner));
    own.filter_map(|record| match &record.rdata {
        RData::A(a) => Some(Ipv4Addr::from(a.address).into()),
        RData::AAAA(aaaa) => Some(Ipv6Addr::from(aaaa.address).into()),
        _ => None,
    })
    .collect()
}

/// Label by label: a dot inside a label is no border of one.
fn same(a: &Name<'_>, b: &Name<'_>) -> bool {
    a.get_labels().len() == b.get_labels().len()
        && a.as_bytes().zip(b.as_bytes()).all(|(a, b)| a.eq_ignore_ascii_case(b))
}

#[cfg(test)]
mod tests {
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::{A, CNAME};

    use super::*;

    fn a(owner: &'static str, last: u8) -> ResourceRecord<'static> {
        let rdata = RData::A(A::from(Ipv4Addr::new(192, 0, 2, last)));
        ResourceRecord::new(Name::new_unchecked(owner), CLASS::IN, 0, rdata)
    }

    fn alias(owner: &'static str, of: &'static str) -> ResourceRecord<'static> {
        let rdata = RData::CNAME(CNAME(Name::new_unchecked(of)));
        ResourceRecord::new(Name::new_unchecked(owner), CLASS::IN, 0, rdata)
    }

    fn answer(query: &Query<'_>, records: Vec<ResourceRecord<'static>>) -> Packet<'static> {
        let mut packet = Packet::new_reply(query.id);
        packet.questions.push(query.question.clone().into_owned());
        packet.answers = records;
        packet
    }

    fn found(query: &Query<'_>, records: Vec<ResourceRecord<'static>>) -> Vec<u8> {
        match query.read(&answer(query, records).build_bytes_vec_compressed().unwrap()) {
            Some(Said::Addresses(found)) => found
                .iter()
                .map(|ip| match ip {
                    IpAddr::V4(v4) => v4.octets()[3],
                    IpAddr::V6(_) => 0,
                })
                .collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_are_completed_as_the_system_would() {
        let address = SocketAddr::from(([192, 0, 2, 1], 53));
        let searches = vec!["one.example".to_owned(), "two.example.".to_owned()];
        let own = Nameservers { searches, ndots: 1, ..Nameservers::one(address) };
        let own = |ndots| Nameservers { ndots, ..own.clone() };
        assert_eq!(own(1).candidates("db"), ["db.one.example", "db.two.example", "db"]);
        assert_eq!(own(1).candidates("db.eu"), ["db.eu", "db.eu.one.example", "db.eu.two.example"]);
        assert_eq!(own(2).candidates("db.eu"), ["db.eu.one.example", "db.eu.two.example", "db.eu"]);
        assert_eq!(own(2).candidates("db.eu."), ["db.eu"]);
        let root = Nameservers { searches: vec![".".to_owned()], ..own(1) };
        assert_eq!(root.candidates("db"), ["db"], "how systemd-resolved writes that there is none");
        assert_eq!(Nameservers::one(address).candidates("db"), ["db"]);
    }

    #[test]
    fn only_records_of_the_name_and_its_aliases_count() {
        let query = Query::new("a.example", TYPE::A).unwrap();
        assert_eq!(found(&query, vec![a("A.Example", 1), a("b.example", 2), a("example", 3)]), [1]);
        let chain = vec![a("c.example", 3), alias("b.example", "c.example"), alias("a.example", "b.example")];
        assert_eq!(found(&query, chain), [3], "in whatever order");
        assert_eq!(found(&query, vec![alias("a.example", "b.example"), a("a.example", 1)]), [0; 0]);
        let round = vec![alias("a.example", "b.example"), alias("b.example", "a.example")];
        assert_eq!(found(&query, round), [0; 0], "a circle has an end");
        assert_eq!(found(&query, Vec::new()), [0; 0]);
    }

    #[test]
    fn an_answer_is_one_to_this_question() {
        let query = Query::new("a.example", TYPE::A).unwrap();
        let good = answer(&query, vec![a("a.example", 1)]);
        let read = |packet: &Packet<'_>| query.read(&packet.build_bytes_vec().unwrap());
        assert!(matches!(read(&good), Some(Said::Addresses(_))));
        let mut other = good.clone();
        other.set_id(query.id.wrapping_add(1));
        assert_eq!(read(&other), None, "another number");
        let mut other = good.clone();
        other.remove_flags(PacketFlag::RESPONSE);
        assert_eq!(read(&other), None, "no answer");
        for question in [Query::new("b.example", TYPE::A), Query::new("a.example", TYPE::AAAA)] {
            let mut other = good.clone();
            other.questions = vec![question.unwrap().question];
            assert_eq!(read(&other), None, "another question");
        }
        let mut other = good.clone();
        other.questions.clear();
        assert_eq!(read(&other), None, "no question");
        let mut other = good.clone();
        other.set_flags(PacketFlag::TRUNCATION);
        assert_eq!(read(&other), Some(Said::Cut));
        let mut other = good;
        *other.rcode_mut() = RCODE::NameError;
        assert_eq!(read(&other), Some(Said::NoSuchName));
        // A label with a dot in it is not two labels.
        let mut dotted = query.bytes.clone();
        assert_eq!(dotted[12..22], *b"\x01a\x07example");
        dotted[2] |= 0x80;
        dotted.splice(12..23, *b"\x09a.example\x00");
        assert_eq!(query.read(&dotted), None);
    }

    #[test]
    fn nothing_that_arrives_ends_the_node() {
        let query = Query::new("a.example", TYPE::A).unwrap();
        let records = vec![alias("a.example", "b.example"), a("b.example", 1)];
        let good = answer(&query, records).build_bytes_vec_compressed().unwrap();
        for at in 0..good.len() {
            drop(query.read(&good[..at]));
            for value in 0..=255 {
                let mut bad = good.clone();
                bad[at] = value;
                drop(query.read(&bad));
            }
        }
    }
}
