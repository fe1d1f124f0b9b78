//! Carrying verdicts out: what the BPF binding does with real packets.

use bytes::Bytes;
use weave_agent::datapath::{Frame, PortId, Upcall};
use weave_ebpf::fastpath::{self, TunnelKey, Verdict};
use weave_ebpf::flow::{Ipv4, PeerSlot, slot, upcall};
use weave_ebpf::packet::ethertype;
use weave_ebpf::sleeve::Prefix;
use weave_ebpf::stats::{Counter, DropReason};
use weave_ebpf::vxlan::{self, Fields, OUTER, TTL};

use crate::kernel::{Break, Kernel};

/// What leaves a kernel.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    /// A frame for the container at a port.
    Deliver(PortId, Bytes),
    /// A packet on the underlay, from its outer Ethernet header on.
    Transmit(Bytes),
    /// A frame for the sleeve.
    Sleeve(Prefix, Bytes),
    /// A question to the agent.
    Upcall(Upcall),
}

/// A frame on its way through the kernel: the inner bytes and where they came from.
struct Passing<'a> {
    frame: &'a [u8],
    /// Port it came in by, if it did.
    ingress: Option<PortId>,
    /// Neighbour it came from, or zero.
    upstream: Ipv4,
    /// Outer headers it came with.
    outer: Option<&'a [u8; OUTER]>,
    /// TTL it came out of the sleeve with.
    ttl: Option<u8>,
    /// Seen by the underlay program: may yet be left to the stack.
    on_underlay: bool,
}

impl Kernel {
    /// A container sent a frame.
    pub(crate) fn port_frame(&mut self, port: PortId, frame: &[u8]) -> Vec<Effect> {
        let verdict = fastpath::from_port(frame, self, &self.config, port.0);
        let passing = Passing { frame, ingress: Some(port), upstream: [0; 4], outer: None, ttl: None, on_underlay: false };
        self.carry(verdict, &passing)
    }

    /// A frame came out of the sleeve.
    pub(crate) fn sleeve_frame(&mut self, prefix: &Prefix, frame: &[u8]) -> Vec<Effect> {
        self.outer_src = prefix.neighbour;
        let packet = [&prefix.bytes(ethertype(frame, 0).unwrap_or(0))[..], frame].concat();
        let verdict = fastpath::from_sleeve(packet.as_slice(), self, &self.config, prefix);
        let passing = Passing { frame, ingress: None, upstream: prefix.neighbour, outer: None, ttl: Some(prefix.ttl), on_underlay: false };
        self.carry(verdict, &passing)
    }

    /// A packet for this host arrived on the underlay.
    pub(crate) fn packet(&mut self, packet: &[u8]) -> Vec<Effect> {
        let Some((outer, frame)) = packet.split_first_chunk::<OUTER>() else {
            return Vec::new();
        };
        self.outer_src = [outer[26], outer[27], outer[28], outer[29]];
        let passing = Passing { frame, ingress: None, upstream: self.outer_src, outer: Some(outer), ttl: None, on_underlay: true };
        match fastpath::from_underlay(packet, self, &self.config) {
            // The policy of whoever must be sealed.
            Verdict::Pass if !self.ipsec.takes_in_clear(self.outer_src.into()) => Vec::new(),
            Verdict::Pass => self.stack(&passing),
            verdict => self.carry(verdict, &passing),
        }
    }

    /// A packet that came out of ESP: the stack has it already.
    pub(crate) fn opened(&mut self, packet: &[u8]) -> Vec<Effect> {
        let Some((outer, frame)) = packet.split_first_chunk::<OUTER>() else {
            return Vec::new();
        };
        self.outer_src = [outer[26], outer[27], outer[28], outer[29]];
        let upstream = self.outer_src;
        self.stack(&Passing { frame, ingress: None, upstream, outer: Some(outer), ttl: None, on_underlay: true })
    }

    /// The UDP socket of the vxlan device takes what the program left, and the program there meets it again.
    fn stack(&mut self, passing: &Passing<'_>) -> Vec<Effect> {
        let Some(outer) = passing.outer else {
            return Vec::new();
        };
        let address_is_ours = outer[30..34] == self.address.octets();
        let port_is_ours = u32::from(u16::from_be_bytes([outer[36], outer[37]])) == self.config.port;
        // Kernels drop VXLAN with reserved bits set.
        if !address_is_ours || !port_is_ours || outer[42] != 0x08 || outer[49] != 0 {
            return Vec::new();
        }
        let vni = u32::from_be_bytes([0, outer[46], outer[47], outer[48]]);
        let tunnel = TunnelKey { vni, remote: self.outer_src };
        let verdict = fastpath::from_vxlan(passing.frame, self, &self.config, &tunnel);
        self.carry(verdict, &Passing { on_underlay: false, ..*passing })
    }

    fn carry(&mut self, verdict: Verdict, passing: &Passing<'_>) -> Vec<Effect> {
        match verdict {
            Verdict::Pass => Vec::new(),
            Verdict::Drop(index) => self.dropped(index),
            Verdict::Port { flags, .. } if passing.on_underlay && !fastpath::delivers_directly(flags) => self.stack(passing),
            Verdict::Port { ifindex, .. } => self.deliver(PortId(ifindex), passing.frame).into_iter().collect(),
            Verdict::Peer { to, origin } => match (self.copy_to_peer(to, origin, passing), passing.ingress) {
                (Ok(packet), _) => vec![packet],
                (Err(DropReason::TooBig), Some(port)) => {
                    let verdict = fastpath::too_big(passing.frame, self, &self.config, port.0);
                    self.carry(verdict, passing)
                }
                (Err(reason), _) => self.dropped(reason.index()),
            },
            Verdict::Flood { origin } => self.flood(origin, passing),
            Verdict::Upcall { kind, key } => {
                let bytes = Bytes::copy_from_slice(passing.frame);
                vec![Effect::Upcall(match kind {
                    upcall::TOO_BIG => Upcall::TooBig { key, frame: Frame { bytes, gso_size: 0 } },
                    upcall::HEARTBEAT => Upcall::Heartbeat { key, frame: bytes },
                    _ => Upcall::Miss { key, frame: Frame { bytes, gso_size: 0 } },
                })]
            }
            Verdict::Reply { to } => self.reply(to, passing).into_iter().collect(),
        }
    }

    pub(crate) fn dropped(&self, index: u32) -> Vec<Effect> {
        self.add(index);
        Vec::new()
    }

    /// A port that is gone takes nothing.
    pub(crate) fn deliver(&self, port: PortId, frame: &[u8]) -> Option<Effect> {
        self.ports.contains(&port).then(|| Effect::Deliver(port, Bytes::copy_from_slice(frame)))
    }

    fn flood(&mut self, origin: u32, passing: &Passing<'_>) -> Vec<Effect> {
        self.add(Counter::Flooded.index());
        let back = self.fault == Some(Break::FloodToIngress);
        let ports = self.flood_ports.iter().filter(|port| back || Some(**port) != passing.ingress);
        let mut effects: Vec<Effect> = ports.filter_map(|port| self.deliver(*port, passing.frame)).collect();
        let hops = self.trees.get(&origin).map(|tree| tree.hops.clone()).unwrap_or_default();
        for hop in hops {
            match self.copy_to_peer(hop, origin, passing) {
                Ok(packet) => effects.push(packet),
                Err(reason) => self.add(reason.index()),
            }
        }
        effects
    }

    /// Outer headers for a frame that goes to `to`: new ones, or those it came with made to go on.
    fn copy_to_peer(&self, to: u32, origin: u32, passing: &Passing<'_>) -> Result<Effect, DropReason> {
        // What user space executes is not measured.
        let executed = passing.ingress.is_none() && passing.outer.is_none() && passing.ttl.is_none();
        let size = if executed { 0 } else { fastpath::network_size(passing.frame, 0) };
        let slot = fastpath::egress_of(size, self, to, passing.upstream)?;
        let vni = fastpath::tunnel_vni(to, origin);
        if slot.flags & slot::SLEEVE != 0 {
            return self.copy_to_sleeve(&slot, vni, passing);
        }
        if !fastpath::encapsulates(&slot, ethertype(passing.frame, 0), passing.frame.len() as u32) {
            self.add(Counter::ViaStack.index());
        }
        let new = Fields::new(passing.frame.len() as u32, hash(passing.frame));
        let fields = match (passing.outer, passing.ttl) {
            (Some(received), _) => Fields::relay(received.as_slice()).ok_or(DropReason::HopLimit)?,
            (None, Some(ttl)) => Fields { ttl: vxlan::relay_ttl(ttl).ok_or(DropReason::HopLimit)?, ..new },
            (None, None) => new,
        };
        Ok(transmit(&vxlan::headers(&slot, vni, fields), passing.frame))
    }

    fn copy_to_sleeve(&self, slot: &PeerSlot, vni: u32, passing: &Passing<'_>) -> Result<Effect, DropReason> {
        self.add(Counter::SleeveOut.index());
        let received = passing.ttl.or(passing.outer.map(|outer| outer[22]));
        let ttl = received.map_or(Some(TTL), vxlan::relay_ttl).ok_or(DropReason::HopLimit)?;
        Ok(Effect::Sleeve(Prefix { ttl, neighbour: slot.remote, vni }, Bytes::copy_from_slice(passing.frame)))
    }

    /// A frame of user space through the vxlan device, by mark.
    pub(crate) fn execute_to_peer(&self, to: u32, origin: u32, frame: &[u8]) -> Result<Effect, DropReason> {
        self.copy_to_peer(to, origin, &Passing { frame, ingress: None, upstream: [0; 4], outer: None, ttl: None, on_underlay: false })
    }

    fn reply(&self, to: u32, passing: &Passing<'_>) -> Option<Effect> {
        if self.fault == Some(Break::MuteHeartbeats) {
            return None;
        }
        let vni = fastpath::tunnel_vni(to, self.config.short);
        let mut frame = passing.frame.to_vec();
        *frame.get_mut(fastpath::HEARTBEAT_KIND)? = fastpath::HEARTBEAT_REPLY;
        Some(transmit(&vxlan::turn_round(passing.outer?, vni, self.config.port as u16), &frame))
    }

    /// A heartbeat of user space: only the datagram's payload is given, the stack writes the rest.
    pub(crate) fn heartbeat(&self, slot: &PeerSlot, datagram: &[u8]) -> Option<Effect> {
        let (vxlan_header, frame) = datagram.split_first_chunk::<8>()?;
        let mut headers = vxlan::headers(slot, 0, Fields::new(frame.len() as u32, 0));
        headers[42..].copy_from_slice(vxlan_header);
        Some(transmit(&headers, frame))
    }
}

fn transmit(headers: &[u8; OUTER], frame: &[u8]) -> Effect {
    Effect::Transmit([headers, frame].concat().into())
}

/// Stands for the kernel's flow hash.
fn hash(frame: &[u8]) -> u32 {
    frame.iter().take(12).fold(0, |hash, byte| u32::wrapping_mul(hash, 31) + u32::from(*byte))
}
