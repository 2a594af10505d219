//! Asks one nameserver for the addresses of a name, where the operator names it. Nothing is remembered: what is decided on
//! is what was answered for this dial, and for no other.
//!
//! An answer counts only if it comes from that address, has the number of the question and repeats it; records of other
//! names than the one asked for, or what it is an alias of, do not.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures::future::BoxFuture;
use simple_dns::rdata::{OPT, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, SimpleDnsError, TYPE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::Resolve;

/// One question waits so long for its answer, and is asked so often: together less than a dial may take, so that a
/// nameserver that says nothing is named as the cause.
const ATTEMPT: Duration = Duration::from_millis(1500);
const ATTEMPTS: usize = 3;
/// The largest answer that is taken as one datagram; a larger one is asked for over TCP.
const DATAGRAM: u16 = 1232;
/// The longest chain of aliases that is followed.
const MAX_ALIASES: usize = 16;

/// A nameserver that resolves recursively.
#[derive(Debug, Clone, Copy)]
pub struct Nameserver {
    address: SocketAddr,
}

impl Nameserver {
    /// The one at `address`.
    pub fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    /// The addresses of one kind; asks again where there is no answer.
    async fn ask(self, name: &str, kind: TYPE) -> io::Result<Vec<IpAddr>> {
        let mut strange = false;
        for _ in 0..ATTEMPTS {
            // Each with a number and a port of its own, so that nobody can answer the one for the other.
            let query = Query::new(name, kind)?;
            if let Ok(said) = timeout(ATTEMPT, self.exchange(&query, &mut strange)).await {
                return match said? {
                    Said::Addresses(found) => Ok(found),
                    Said::NoSuchName => Err(io::Error::new(io::ErrorKind::NotFound, "there is no such name")),
                    Said::Cut => Err(io::Error::other(format!("{} cut its answer short twice", self.address))),
                    Said::Failed(code) => Err(io::Error::other(format!("{} answered {code:?}", self.address))),
                };
            }
        }
        let what = if strange { "answered nothing that fits the question" } else { "does not answer" };
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("the nameserver {} {what}", self.address)))
    }

    async fn exchange(self, query: &Query<'_>, strange: &mut bool) -> io::Result<Said> {
        let any: IpAddr = match self.address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(self.address).await?;
        socket.send(&query.bytes).await?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let size = socket.recv(&mut buffer).await?;
            match query.read(buffer.get(..size).unwrap_or_default()) {
                Some(Said::Cut) => return self.whole(query).await,
                Some(said) => return Ok(said),
                // Somebody else's, or nobody's: the right one may still come.
                None => *strange = true,
            }
        }
    }

    /// Over TCP, where an answer has no end before its end.
    async fn whole(self, query: &Query<'_>) -> io::Result<Said> {
        let mut stream = TcpStream::connect(self.address).await?;
        let length = u16::try_from(query.bytes.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &query.bytes].concat()).await?;
        let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut bytes).await?;
        let unfit = || io::Error::other(format!("the nameserver {} answered nothing that fits", self.address));
        query.read(&bytes).ok_or_else(unfit)
    }
}

impl Resolve for Nameserver {
    fn resolve(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let own = *self;
        Box::pin(async move {
            // Both or none: an address that is not known cannot be checked.
            let (four, six) = futures::try_join!(own.ask(&name, TYPE::A), own.ask(&name, TYPE::AAAA))?;
            Ok([four, six].concat())
        })
    }
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
