//! A real nameserver on a port of loopback, over UDP and TCP, that says what a test wants: also what no honest one says.
//! The node's own tests include this file too.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

use simple_dns::rdata::{CNAME, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

/// What is answered to one question.
#[derive(Debug, Clone)]
pub enum Reply {
    /// These addresses, those of the kind that was asked for, with a time to live of 0.
    Has(Vec<IpAddr>),
    /// The name is an alias of this one, which has these addresses.
    Alias(String, Vec<IpAddr>),
    /// There is no such name.
    NoSuchName,
    /// The nameserver could not find out.
    Failure,
    /// Nothing.
    Silence,
    /// Bytes that are no answer.
    Garbage,
    /// An honest answer with these addresses under another number, then one to another question, then nothing.
    Forged(Vec<IpAddr>),
}

impl Reply {
    /// These addresses.
    ///
    /// # Panics
    /// When one is none.
    pub fn has(addresses: &[&str]) -> Self {
        Self::Has(addresses.iter().map(|text| text.parse().expect("an address")).collect())
    }
}

/// What a name means, given which time it is asked for, from 0; each kind of question counts for itself.
type Zone = dyn Fn(&str, usize) -> Reply + Send + Sync;

/// The nameserver; its threads end with the process.
pub struct Nameserver {
    /// Where it is asked.
    pub address: SocketAddr,
    asked: Arc<Mutex<HashMap<(String, bool), usize>>>,
}

impl Nameserver {
    /// Starts one.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start(zone: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Self {
        let sockets = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("an address")) {
                break (tcp, udp);
            }
        };
        Self::on(sockets, zone)
    }

    /// Starts one on these sockets, which have one address.
    ///
    /// # Panics
    /// When they have none.
    pub fn on(
        (tcp, udp): (TcpListener, UdpSocket),
        zone: impl Fn(&str, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let address = tcp.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(HashMap::new()));
        let zone: Arc<Zone> = Arc::new(zone);
        let (counted, said) = (asked.clone(), zone.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((size, from)) = udp.recv_from(&mut buffer) {
                for answer in answers(&buffer[..size], &said, &counted, false) {
                    drop(udp.send_to(&answer, from));
                }
            }
        });
        let counted = asked.clone();
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                drop(serve(stream, &zone, &counted));
            }
        });
        Self { address, asked }
    }

    /// How often the IPv4 addresses of a name were asked for.
    pub fn asked(&self, name: &str) -> usize {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.get(&(name.to_owned(), false)).copied().unwrap_or_default()
    }
}

fn serve(
    mut stream: TcpStream,
    zone: &Arc<Zone>,
    asked: &Mutex<HashMap<(String, bool), usize>>,
) -> std::io::Result<()> {
    let mut size = [0; 2];
    stream.read_exact(&mut size)?;
    let mut query = vec![0; usize::from(u16::from_be_bytes(size))];
    stream.read_exact(&mut query)?;
    for answer in answers(&query, zone, asked, true) {
        stream.write_all(&u16::try_from(answer.len()).expect("an answer fits").to_be_bytes())?;
        stream.write_all(&answer)?;
    }
    Ok(())
}

/// What goes back; over UDP, an answer that does not fit is cut, and the client comes again.
fn answers(query: &[u8], zone: &Arc<Zone>, asked: &Mutex<HashMap<(String, bool), usize>>, whole: bool) -> Vec<Vec<u8>> {
    let Ok(query) = Packet::parse(query) else { return Vec::new() };
    let [question] = query.questions.as_slice() else { return Vec::new() };
    let name = question.qname.to_string();
    let six = question.qtype == QTYPE::TYPE(TYPE::AAAA);
    let nth = {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let count = asked.entry((name.clone(), six)).or_default();
        // Who comes again over TCP asks the same question.
        if !whole {
            *count += 1;
        }
        count.saturating_sub(1)
    };
    let own = |owner: &str, addresses: &[IpAddr]| -> Vec<ResourceRecord<'static>> {
        let owner = Name::new_unchecked(owner).into_owned();
        let fitting = addresses.iter().filter(|address| address.is_ipv6() == six);
        fitting.map(|address| ResourceRecord::new(owner.clone(), CLASS::IN, 0, data(*address))).collect()
    };
    let answer = |code: RCODE, records: Vec<ResourceRecord<'static>>| {
        let mut packet = Packet::new_reply(query.id());
        packet.set_flags(PacketFlag::RECURSION_AVAILABLE);
        packet.questions.push(question.clone());
        packet.answers = records;
        *packet.rcode_mut() = code;
        packet
    };
    let send = |mut packet: Packet<'_>| {
        let bytes = packet.build_bytes_vec_compressed().expect("an answer can be written");
        if whole || bytes.len() <= 1232 {
            return bytes;
        }
        packet.answers.clear();
        packet.set_flags(PacketFlag::TRUNCATION);
        packet.build_bytes_vec().expect("an answer can be written")
    };
    match zone(&name, nth) {
        Reply::Has(addresses) => vec![send(answer(RCODE::NoError, own(&name, &addresses)))],
        Reply::Alias(of, addresses) => {
            let alias = RData::CNAME(CNAME(Name::new_unchecked(&of).into_owned()));
            let alias = ResourceRecord::new(Name::new_unchecked(&name).into_owned(), CLASS::IN, 0, alias);
            vec![send(answer(RCODE::NoError, [vec![alias], own(&of, &addresses)].concat()))]
        }
        Reply::NoSuchName => vec![send(answer(RCODE::NameError, Vec::new()))],
        Reply::Failure => vec![send(answer(RCODE::ServerFailure, Vec::new()))],
        Reply::Silence => Vec::new(),
        Reply::Garbage => vec![b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), Vec::new(), vec![0xc0; 600]],
        Reply::Forged(addresses) => {
            let mut numbered = answer(RCODE::NoError, own(&name, &addresses));
            numbered.set_id(query.id().wrapping_add(1));
            let mut other = answer(RCODE::NoError, own(&name, &addresses));
            other.questions[0].qname = Name::new_unchecked("other.example");
            vec![send(numbered), send(other)]
        }
    }
}

fn data(address: IpAddr) -> RData<'static> {
    match address {
        IpAddr::V4(v4) => RData::A(v4.into()),
        IpAddr::V6(v6) => RData::AAAA(v6.into()),
    }
}
