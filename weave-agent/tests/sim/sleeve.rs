//! A host's sleeve: the real sealing, one frame or heartbeat in each datagram. It lives and dies with the agent.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use bytes::Bytes;
use weave_agent::sleeve::codec::{self, Body, kind};
use weave_agent::sleeve::prefix::Tag;
use weave_agent::sleeve::seal::{HEAD, Opener, Sealer, session_of};
use weave_agent::sleeve::{Heard, Op};
use weave_ebpf::flow::Ipv4;
use weave_ebpf::sleeve::Prefix;

use crate::ops::underlay_mac;

/// Bytes of the outer Ethernet, IPv4 and UDP headers.
pub(crate) const OUTER: usize = 14 + 20 + 8;
/// UDP port of every sleeve here.
pub(crate) const SLEEVE_PORT: u16 = 6783;

/// What a datagram was.
#[derive(Debug)]
pub(crate) enum Received {
    /// A frame for the fast path.
    Frame(Prefix, Bytes),
    /// For the switch.
    Heard(Heard),
    /// To be sent.
    Answer(Bytes),
    /// Nobody's, seen before, or not understood.
    Nothing,
}

/// Sessions, as the agent ordered them.
#[derive(Debug, Default)]
pub(crate) struct Sleeve {
    accepted: BTreeMap<u32, (Opener, Ipv4Addr)>,
    ways: BTreeMap<Ipv4Addr, (Sealer, SocketAddrV4)>,
}

impl Sleeve {
    /// Carries out an order; a probe is a packet.
    pub(crate) fn apply(&mut self, local: Ipv4Addr, op: Op) -> Option<Bytes> {
        match op {
            Op::Accept(inbound) => {
                let opener = Opener::new(inbound.session, inbound.cipher, &inbound.key).ok()?;
                self.accepted.insert(inbound.session.0.get(), (opener, inbound.neighbour));
            }
            Op::Refuse(session) => drop(self.accepted.remove(&session.0.get())),
            Op::Send { neighbour, session: None } => drop(self.ways.remove(&neighbour)),
            Op::Send { neighbour, session: Some(outbound) } => {
                if self.ways.get(&neighbour).is_none_or(|(sealer, _)| sealer.session() != outbound.session) {
                    let sealer = Sealer::new(outbound.session, outbound.cipher, &outbound.key).ok()?;
                    self.ways.insert(neighbour, (sealer, outbound.remote));
                }
            }
            Op::Path { .. } => {}
            Op::Probe { neighbour, heartbeat, datagram } => {
                let (sealer, _) = self.ways.get(&neighbour)?;
                let body = codec::request(&heartbeat, usize::from(datagram).saturating_sub(HEAD + sealer.tag_len()))?;
                return self.send(local, neighbour, &body);
            }
        }
        None
    }

    /// A frame that the kernel handed over.
    pub(crate) fn carry(&self, local: Ipv4Addr, prefix: &Prefix, frame: &[u8]) -> Option<Bytes> {
        let item = codec::item(Tag { vni: prefix.vni, hop_limit: prefix.ttl }, frame.len(), None)?;
        self.send(local, prefix.neighbour.into(), &[&[kind::FRAMES], &item[..], frame].concat())
    }

    fn send(&self, local: Ipv4Addr, neighbour: Ipv4Addr, body: &[u8]) -> Option<Bytes> {
        let (sealer, remote) = self.ways.get(&neighbour)?;
        let number = sealer.numbers(0, 1)?.take()?;
        let mut datagram = [&[0; HEAD], body, &vec![0; sealer.tag_len()]].concat();
        sealer.seal(number, &mut datagram).then(|| packet(local, *remote.ip(), &datagram))
    }

    /// A packet arrived at the sleeve's port.
    pub(crate) fn receive(&self, local: Ipv4Addr, packet: &[u8]) -> Received {
        let mut datagram = packet[OUTER..].to_vec();
        let length = datagram.len();
        let Some((opener, neighbour)) = session_of(&datagram).and_then(|session| self.accepted.get(&session)) else {
            return Received::Nothing;
        };
        let Ok(opened) = opener.open(&mut datagram) else { return Received::Nothing };
        match Body::decode(opened.body) {
            Ok(Body::Frames(frames)) => match frames.flatten().next() {
                Some(item) => {
                    let prefix = Prefix { ttl: item.tag.hop_limit, neighbour: neighbour.octets(), vni: item.tag.vni };
                    Received::Frame(prefix, Bytes::copy_from_slice(item.frame))
                }
                None => Received::Nothing,
            },
            Ok(Body::Request(heartbeat)) => {
                let body = codec::reply(heartbeat, opened.body.len()).unwrap_or_default();
                self.send(local, *neighbour, &body).map_or(Received::Nothing, Received::Answer)
            }
            Ok(Body::Reply(heartbeat)) => {
                let heartbeat = Bytes::copy_from_slice(heartbeat);
                Received::Heard(Heard::Reply { neighbour: *neighbour, heartbeat, datagram: length as u16 })
            }
            _ => Received::Nothing,
        }
    }
}

/// Whether a packet is for the sleeve's port.
pub(crate) fn is_for(packet: &[u8]) -> bool {
    packet.get(36..38) == Some(&SLEEVE_PORT.to_be_bytes())
}

fn packet(from: Ipv4Addr, to: Ipv4Addr, datagram: &[u8]) -> Bytes {
    let addresses: [Ipv4; 2] = [from.octets(), to.octets()];
    let port = SLEEVE_PORT.to_be_bytes();
    let mut ip = [0; 20];
    (ip[0], ip[8], ip[9]) = (0x45, 64, 17);
    ip[12..16].copy_from_slice(&addresses[0]);
    ip[16..20].copy_from_slice(&addresses[1]);
    [&underlay_mac(to)[..], &underlay_mac(from), &[8, 0], &ip, &port, &port, &[0; 4], datagram].concat().into()
}
