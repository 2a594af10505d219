//! Addresses that stand for names. DNS answers stay with the node, which resolves when it connects and decides on the
//! very address it connects to; a guest gets an address nobody has, which means the name and nothing else.

use std::net::{IpAddr, Ipv4Addr};

/// Names one instance may have asked for.
const MOST: usize = 256;

/// The names an instance asked for. The address of the first is 240.0.0.1, from the range that is reserved and unused.
#[derive(Debug, Default)]
pub(crate) struct Names(Vec<String>);

impl Names {
    /// The address that stands for a name; `None` where there are too many.
    pub(super) fn address(&mut self, name: String) -> Option<IpAddr> {
        let at = match self.0.iter().position(|known| *known == name) {
            Some(at) => at,
            None if self.0.len() >= MOST => return None,
            None => {
                self.0.push(name);
                self.0.len() - 1
            }
        };
        let [high, low] = u16::try_from(at + 1).ok()?.to_be_bytes();
        Some(Ipv4Addr::new(240, 0, high, low).into())
    }

    /// What is to be dialled where a guest says this address: the name it stands for, or itself.
    pub(super) fn host(&self, address: IpAddr) -> String {
        let named = match address {
            IpAddr::V4(v4) => match v4.octets() {
                [240, 0, high, low] => {
                    usize::from(u16::from_be_bytes([high, low])).checked_sub(1).and_then(|at| self.0.get(at))
                }
                _ => None,
            },
            IpAddr::V6(_) => None,
        };
        named.cloned().unwrap_or_else(|| address.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_means_the_name_it_was_given_for() {
        let mut names = Names::default();
        let first = names.address("a.example".into()).unwrap();
        let second = names.address("b.example".into()).unwrap();
        assert_eq!(names.address("a.example".into()), Some(first));
        assert_eq!((names.host(first).as_str(), names.host(second).as_str()), ("a.example", "b.example"));
        for literal in ["240.0.0.3", "240.0.0.0", "240.1.0.1", "10.0.0.1", "::1", "fd00::1"] {
            assert_eq!(names.host(literal.parse().unwrap()), literal);
        }
        for n in 2..MOST {
            assert!(names.address(format!("n{n}.example")).is_some());
        }
        assert_eq!(names.address("one.more.example".into()), None);
        assert_eq!(names.host("240.0.1.0".parse().unwrap()), "n255.example");
    }
}
