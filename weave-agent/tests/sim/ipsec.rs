//! What IPsec in a host's kernel does to the packets of its tunnel. It stays when the agent goes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use bytes::Bytes;
use weave_agent::esp::{Direction, Id, Input, KEY, Op, Spi};

use crate::kernel::TUNNEL_PORT;

const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_ESP: u8 = 50;
/// Where, from the outer Ethernet header on, the IPv4 header has its protocol, and where it ends.
const PROTOCOL: usize = 23;
const IP_END: usize = 34;
/// In here a packet is sealed by having the key before what is inside.
const HEAD: usize = 4 + KEY;

/// Associations and policies.
#[derive(Debug, Default)]
pub(crate) struct Ipsec {
    protected: BTreeSet<Ipv4Addr>,
    ids: BTreeMap<Id, [u8; KEY]>,
    /// Outgoing ones in the order in which they came: the latest is sent with.
    added: Vec<Id>,
    /// Keys that there ever were: none is used twice.
    used: BTreeSet<[u8; KEY]>,
}

/// What becomes of a packet that leaves.
pub(crate) enum Leaves {
    AsItIs,
    Sealed(Bytes),
    Nowhere,
}

impl Ipsec {
    /// Carries out an order; the agent is told what came of it.
    pub(crate) fn apply(&mut self, op: Op) -> Option<Input> {
        match op {
            Op::Protect(protection) => {
                self.protected.insert(protection.remote);
                Some(Input::Protected(protection.remote))
            }
            Op::Unprotect(remote) => {
                self.protected.remove(&remote);
                None
            }
            Op::Add(id, key) => {
                assert!(self.used.insert(key.0), "a key is used for a second time: {id:?}");
                self.ids.insert(id, key.0);
                self.added.extend((id.direction == Direction::Out).then_some(id));
                Some(Input::Installed(id))
            }
            Op::Remove(id) => {
                self.ids.remove(&id);
                self.added.retain(|added| *added != id);
                None
            }
        }
    }

    /// What an agent that starts finds.
    pub(crate) fn found(&self) -> Input {
        Input::Found { protected: self.protected.clone(), ids: self.ids.keys().copied().collect() }
    }

    pub(crate) fn leaves(&self, packet: &[u8]) -> Leaves {
        match address(packet, 30).filter(|to| is_vxlan(packet) && self.protected.contains(to)) {
            None => Leaves::AsItIs,
            Some(to) => match self.added.iter().rfind(|id| id.remote == to).and_then(|id| Some((id, self.ids.get(id)?))) {
                Some((id, key)) => Leaves::Sealed(sealed(packet, id.spi, key)),
                None => Leaves::Nowhere,
            },
        }
    }

    /// The packet inside, if it is one of ours.
    pub(crate) fn open(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let remote = address(packet, 26)?;
        let (spi, rest) = packet.get(IP_END..)?.split_first_chunk::<4>()?;
        let (key, inside) = rest.split_first_chunk::<KEY>()?;
        let spi = Spi(u32::from_be_bytes(*spi));
        let is_it = |(id, has): (&Id, &[u8; KEY])| id.direction == Direction::In && id.remote == remote && id.spi == spi && has == key;
        if !self.ids.iter().any(is_it) {
            return None;
        }
        let mut plain = [&packet[..IP_END], inside].concat();
        plain[PROTOCOL] = PROTOCOL_UDP;
        Some(plain)
    }

    /// Whether the policy lets VXLAN in clear from an address through to the stack.
    pub(crate) fn takes_in_clear(&self, remote: Ipv4Addr) -> bool {
        !self.protected.contains(&remote)
    }
}

pub(crate) fn is_esp(packet: &[u8]) -> bool {
    packet.get(PROTOCOL) == Some(&PROTOCOL_ESP) && packet.len() >= IP_END + HEAD
}

pub(crate) fn is_vxlan(packet: &[u8]) -> bool {
    packet.get(PROTOCOL) == Some(&PROTOCOL_UDP) && packet.get(36..38) == Some(&TUNNEL_PORT.to_be_bytes())
}

fn sealed(packet: &[u8], spi: Spi, key: &[u8; KEY]) -> Bytes {
    let mut sealed = [&packet[..IP_END], &spi.0.to_be_bytes(), key, &packet[IP_END..]].concat();
    sealed[PROTOCOL] = PROTOCOL_ESP;
    sealed.into()
}

fn address(packet: &[u8], at: usize) -> Option<Ipv4Addr> {
    packet.get(at..)?.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes))
}
