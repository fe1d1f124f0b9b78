//! What should become of a packet: the library's verdict, carried out on bytes.

use weave_ebpf::fastpath::{
    self, HEARTBEAT_KIND, HEARTBEAT_REPLY, TunnelKey, Verdict, delivers_directly, egress, egress_of, encapsulates, network_size, tunnel_vni,
};
use weave_ebpf::flow::{EXECUTE_MARK, FlowKey, Ipv4, PeerSlot, UpcallHeader, short_ids, slot};
use weave_ebpf::packet::{ETHERNET, Packet, ethertype, is_ip};
use weave_ebpf::stats::{Counter, DropReason};
use weave_ebpf::vxlan::{self, Fields, OUTER, OUTER_SOURCE, TTL};

use crate::capture::Seen;
use crate::context::Context;
use crate::frames::Tunnel;
use crate::kernel::Sample;
use crate::stack;
use crate::tables::Memory;
use crate::wires::Wires;

/// The kernel's codes (`linux/pkt_cls.h`).
pub(crate) const OK: i32 = 0;
pub(crate) const SHOT: i32 = 2;
pub(crate) const REDIRECT: i32 = 7;

const NO_UPSTREAM: Ipv4 = [0; 4];

/// A packet with what the kernel keeps beside it.
#[derive(Clone, Copy)]
pub(crate) struct Given<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) context: &'a Context,
}

impl Packet for Given<'_> {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.read(offset)
    }

    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn segments(&self) -> u32 {
        self.context.gso_segs.max(1)
    }

    fn gso_size(&self) -> u32 {
        self.context.gso_size
    }
}

/// What should come out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    /// The packet afterwards; that of a dropped one is nobody's business.
    pub(crate) packet: Option<Vec<u8>>,
    pub(crate) mark: Option<u32>,
    /// Copies sent while the program ran.
    pub(crate) copies: Vec<Seen>,
    pub(crate) samples: Vec<Sample>,
}

/// Carries verdicts out over tables in memory.
pub(crate) struct Carrier<'a> {
    pub(crate) memory: &'a Memory,
    pub(crate) wires: &'a Wires,
}

impl Carrier<'_> {
    /// A frame from the port that the context names.
    pub(crate) fn port(&self, given: Given<'_>) -> Outcome {
        let (memory, ingress) = (self.memory, given.context.ifindex);
        match fastpath::from_port(&given, memory, &memory.config, ingress) {
            Verdict::Drop(reason) => self.drop(reason),
            Verdict::Port { .. } => forwarded(REDIRECT, given, given.bytes),
            Verdict::Peer { to, origin } => match egress_of(network_size(&given, 0), memory, to, NO_UPSTREAM) {
                Ok(slot) => self.send(given, &slot, tunnel_vni(to, origin)),
                Err(DropReason::TooBig) => match fastpath::too_big(&given, memory, &memory.config, ingress) {
                    Verdict::Upcall { kind, key } => upcall(given, kind, key, 0),
                    _ => self.drop(DropReason::TooBig.index()),
                },
                Err(reason) => self.drop(reason.index()),
            },
            Verdict::Flood { origin } => self.flood_from_port(given, origin),
            Verdict::Upcall { kind, key } => upcall(given, kind, key, 0),
            verdict @ (Verdict::Pass | Verdict::Reply { .. }) => panic!("{verdict:?} from a port"),
        }
    }

    /// A packet on the underlay.
    pub(crate) fn underlay(&self, given: Given<'_>) -> Outcome {
        let memory = self.memory;
        match fastpath::from_underlay(&given, memory, &memory.config) {
            Verdict::Pass => forwarded(OK, given, given.bytes),
            Verdict::Drop(reason) => self.drop(reason),
            Verdict::Port { flags, .. } => {
                assert!(delivers_directly(flags), "the stack delivers to this port");
                if stack::shrinks(given) { forwarded(REDIRECT, given, &given.bytes[OUTER..]) } else { self.refused() }
            }
            Verdict::Peer { to, origin } => self.relay(given, to, origin),
            Verdict::Flood { origin } => self.flood_from_underlay(given, origin),
            Verdict::Upcall { kind, key } => upcall(given, kind, key, OUTER as u32),
            Verdict::Reply { to } => self.reply(given, to),
        }
    }

    /// A frame that the stack took out of a tunnel.
    pub(crate) fn vxlan(&self, given: Given<'_>, tunnel: Tunnel) -> Outcome {
        let memory = self.memory;
        let key = TunnelKey { vni: tunnel.vni, remote: tunnel.remote };
        match fastpath::from_vxlan(&given, memory, &memory.config, &key) {
            Verdict::Drop(reason) => self.drop(reason),
            Verdict::Port { .. } => forwarded(REDIRECT, given, given.bytes),
            Verdict::Peer { to, .. } => match egress_of(network_size(&given, 0), memory, to, tunnel.remote) {
                Err(reason) => self.drop(reason.index()),
                Ok(_) if vxlan::relay_ttl(tunnel.ttl).is_none() => self.drop(DropReason::HopLimit.index()),
                Ok(_) => through_device(given),
            },
            Verdict::Flood { origin } => self.flood_from_vxlan(given, origin, tunnel),
            Verdict::Upcall { kind, key } => upcall(given, kind, key, 0),
            Verdict::Reply { .. } => reply_by_stack(given),
            Verdict::Pass => panic!("Pass from the vxlan device"),
        }
    }

    /// A frame on its way into the vxlan device.
    pub(crate) fn execute(&self, given: Given<'_>) -> Outcome {
        let mark = given.context.mark;
        if mark & EXECUTE_MARK == 0 {
            return forwarded(OK, given, given.bytes);
        }
        match egress(self.memory, short_ids(mark & 0xff_ffff).0, NO_UPSTREAM) {
            Ok(_) => Outcome { mark: Some(0), ..forwarded(OK, given, given.bytes) },
            Err(reason) => self.drop(reason.index()),
        }
    }

    fn drop(&self, index: u32) -> Outcome {
        self.memory.add(index);
        dropped()
    }

    fn refused(&self) -> Outcome {
        self.drop(DropReason::Kernel.index())
    }

    fn send(&self, given: Given<'_>, slot: &PeerSlot, vni: u32) -> Outcome {
        if !encapsulates(slot, ethertype(&given, 0), given.len()) {
            self.memory.add(Counter::ViaStack.index());
            return through_device(given);
        }
        if !stack::grows(given) {
            return self.refused();
        }
        let outer = vxlan::headers(slot, vni, Fields::new(given.len(), 0));
        forwarded(REDIRECT, given, &[outer.as_slice(), given.bytes].concat())
    }

    fn relay(&self, given: Given<'_>, to: u32, origin: u32) -> Outcome {
        let upstream = given.read(OUTER_SOURCE).unwrap();
        let slot = match egress_of(network_size(&given, OUTER), self.memory, to, upstream) {
            Ok(slot) => slot,
            Err(reason) => return self.drop(reason.index()),
        };
        assert_ne!(slot.flags & slot::DIRECT, 0, "the stack relays to this peer");
        let Some(fields) = Fields::relay(&given) else {
            return self.drop(DropReason::HopLimit.index());
        };
        let outer = vxlan::headers(&slot, tunnel_vni(to, origin), fields);
        forwarded(REDIRECT, given, &[outer.as_slice(), &given.bytes[OUTER..]].concat())
    }

    fn reply(&self, given: Given<'_>, to: u32) -> Outcome {
        let config = &self.memory.config;
        let outer = vxlan::turn_round(&given.read(0).unwrap(), tunnel_vni(to, config.short), config.port as u16);
        let mut packet = [outer.as_slice(), &given.bytes[OUTER..]].concat();
        packet[OUTER + HEARTBEAT_KIND] = HEARTBEAT_REPLY;
        forwarded(REDIRECT, given, &packet)
    }

    fn flood_from_port(&self, given: Given<'_>, origin: u32) -> Outcome {
        self.memory.add(Counter::Flooded.index());
        let mut copies = self.copies_to_ports(given.bytes, given.context.ifindex);
        let ip = matches!(ethertype(&given, 0), Some(kind) if is_ip(kind));
        let fields = Fields::new(given.len(), 0);
        let hops = self.hops(given, origin, NO_UPSTREAM, true);
        let direct = |slot: &PeerSlot| ip && slot.flags & slot::DIRECT != 0;
        if hops.iter().any(|(_, slot)| direct(slot)) && !stack::grows(given) {
            self.memory.add_drop(DropReason::Kernel);
        }
        for (to, slot) in hops {
            let vni = tunnel_vni(to, origin);
            if !direct(&slot) {
                copies.extend(stack::sends(given, &slot, vni, TTL, self.wires));
            } else if stack::grows(given) {
                copies.push(direct_copy(given.bytes, &slot, vni, fields));
            }
        }
        self.flooded(given, copies)
    }

    fn flood_from_underlay(&self, given: Given<'_>, origin: u32) -> Outcome {
        self.memory.add(Counter::Flooded.index());
        let upstream = given.read(OUTER_SOURCE).unwrap();
        let frame = Given { bytes: &given.bytes[OUTER..], ..given };
        let mut copies = Vec::new();
        // Hops that get no copy are counted after the headers are off.
        let counted = stack::shrinks(given);
        let onward = self.onward(origin, Fields::relay(&given), counted);
        let hops = onward.map(|fields| (fields, self.hops(frame, origin, upstream, counted)));
        if let Some((fields, hops)) = &hops {
            for (to, slot) in hops.iter().filter(|(_, slot)| slot.flags & slot::DIRECT != 0) {
                copies.push(direct_copy(frame.bytes, slot, tunnel_vni(*to, origin), *fields));
            }
        }
        if !stack::shrinks(given) {
            self.memory.add_drop(DropReason::Kernel);
            return self.flooded(given, copies);
        }
        if let Some((fields, hops)) = &hops {
            for (to, slot) in hops.iter().filter(|(_, slot)| slot.flags & slot::DIRECT == 0) {
                copies.extend(stack::sends(frame, slot, tunnel_vni(*to, origin), fields.ttl, self.wires));
            }
        }
        copies.extend(self.copies_to_ports(frame.bytes, 0));
        self.flooded(given, copies)
    }

    fn flood_from_vxlan(&self, given: Given<'_>, origin: u32, tunnel: Tunnel) -> Outcome {
        self.memory.add(Counter::Flooded.index());
        let mut copies = self.copies_to_ports(given.bytes, 0);
        if let Some(ttl) = self.onward(origin, vxlan::relay_ttl(tunnel.ttl), true) {
            for (to, slot) in self.hops(given, origin, tunnel.remote, true) {
                copies.extend(stack::sends(given, &slot, tunnel_vni(to, origin), ttl, self.wires));
            }
        }
        self.flooded(given, copies)
    }

    /// No device sends a GSO packet of no known kind, which is all that a test run can make: each copy is refused.
    fn flooded(&self, given: Given<'_>, mut copies: Vec<Seen>) -> Outcome {
        if given.context.gso_size != 0 {
            copies.drain(..).for_each(|_| self.memory.add_drop(DropReason::Kernel));
        }
        Outcome { copies, ..dropped() }
    }

    /// What a relayed flood takes along, if it may go on. One that has come too far is worth a count only where it
    /// would have gone on.
    fn onward<T>(&self, origin: u32, relayed: Option<T>, counted: bool) -> Option<T> {
        if counted && relayed.is_none() && self.memory.tree(origin).len != 0 {
            self.memory.add_drop(DropReason::HopLimit);
        }
        relayed
    }

    fn copies_to_ports(&self, frame: &[u8], ingress: u32) -> Vec<Seen> {
        let list = &self.memory.flood_ports;
        let ports = list.ports[..list.len as usize].iter().filter(|&&port| port != ingress);
        let (there, gone): (Vec<u32>, Vec<u32>) = ports.partition(|port| self.wires.ports.contains(port));
        gone.iter().for_each(|_| self.memory.add_drop(DropReason::Kernel));
        there.into_iter().map(|ifindex| Seen { ifindex, bytes: frame.to_vec() }).collect()
    }

    /// The neighbours that get a copy.
    fn hops(&self, frame: Given<'_>, origin: u32, upstream: Ipv4, counted: bool) -> Vec<(u32, PeerSlot)> {
        let tree = self.memory.tree(origin);
        let size = network_size(&frame, 0);
        let mut hops = Vec::new();
        for &hop in &tree.hops[..tree.len as usize] {
            match egress_of(size, self.memory, hop.into(), upstream) {
                Ok(slot) => hops.push((hop.into(), slot)),
                Err(reason) if counted => self.memory.add_drop(reason),
                Err(_) => {}
            }
        }
        hops
    }
}

fn direct_copy(frame: &[u8], slot: &PeerSlot, vni: u32, fields: Fields) -> Seen {
    Seen { ifindex: slot.ifindex, bytes: [vxlan::headers(slot, vni, fields).as_slice(), frame].concat() }
}

fn dropped() -> Outcome {
    Outcome { code: SHOT, packet: None, mark: None, copies: Vec::new(), samples: Vec::new() }
}

fn forwarded(code: i32, given: Given<'_>, packet: &[u8]) -> Outcome {
    Outcome { code, packet: Some(packet.to_vec()), mark: Some(given.context.mark), ..dropped() }
}

/// As it is; the device's own mark must not be taken for an order of user space's.
fn through_device(given: Given<'_>) -> Outcome {
    Outcome { mark: Some(0), ..forwarded(REDIRECT, given, given.bytes) }
}

fn reply_by_stack(given: Given<'_>) -> Outcome {
    let mut packet = given.bytes.to_vec();
    packet[HEARTBEAT_KIND] = HEARTBEAT_REPLY;
    Outcome { mark: Some(0), ..forwarded(REDIRECT, given, &packet) }
}

fn upcall(given: Given<'_>, kind: u32, key: FlowKey, offset: u32) -> Outcome {
    let header = UpcallHeader { kind, key, len: given.len(), offset, gso_size: given.context.gso_size, vlan: 0 };
    Outcome { samples: vec![Sample { header, packet: given.bytes.to_vec() }], ..dropped() }
}

const _: () = assert!(ETHERNET + 36 == OUTER);
