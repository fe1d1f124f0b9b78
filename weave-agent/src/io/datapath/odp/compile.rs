//! From what the switch said to what the module does: no I/O.
//!
//! The module cannot point at a peer's slot, take eight from a TTL, or match "with any tag or without". So one flow of the
//! switch's becomes as many of the module's as there are kinds of frames for it ([`Variant`]), each made when its first frame
//! comes up, and a changed slot rewrites the flows of that peer.

use std::net::Ipv4Addr;

use weave_ebpf::fastpath::{self, HEARTBEAT_REPLY, Tables as _, tunnel_vni};
use weave_ebpf::flow::{FlowKey, INGRESS_TUNNEL, Ipv4, PeerSlot, short_ids, slot, source};
use weave_ebpf::packet::ETHERNET;
use weave_ebpf::stats::{Counter, DropReason};
use weave_ebpf::vxlan::{self, TTL};

use super::cookie::Cookie;
use super::ports::Ports;
use super::wire::{Act, Fields, Tunnel, Vlan};
use crate::addr::Mac;
use crate::datapath::{Action, PortId};
use crate::io::datapath::tables::Tables;
use crate::peer::ShortId;

/// Bytes of a VLAN tag.
const TAG: u32 = 4;
/// "There is a tag", in its control information; the module wants to be asked for that bit exactly.
const TAGGED: u16 = 0x1000;
const VLAN: u16 = 0x8100;
/// Version and kind of a heartbeat's reply, as the id of a VLAN.
const REPLY: u16 = 1 << 8 | HEARTBEAT_REPLY as u16;
/// Bytes of a heartbeat that are sent back.
const SMALLEST: u32 = 60;
const ALL: Mac = Mac([0xff; 6]);
const NONE: Mac = Mac([0; 6]);

/// What tells frames apart that are one to the switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Variant {
    /// EtherType of the VLAN tag.
    pub(super) tag: Option<u16>,
    /// Outer TTL, where what is done depends on it.
    pub(super) ttl: Option<u8>,
}

/// A flow of the module's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Compiled {
    /// What it does.
    pub(super) actions: Vec<Act>,
    /// What each of its frames counts as besides: indexes of the list of counters.
    pub(super) counts: Vec<u32>,
    /// It is so for this TTL only.
    pub(super) by_ttl: bool,
}

/// What is compiled against.
#[derive(Clone, Copy)]
pub(super) struct Sight<'a> {
    pub(super) tables: &'a Tables,
    pub(super) ports: &'a Ports,
}

/// A frame on its way, or all frames of a flow.
#[derive(Clone, Copy)]
struct Way {
    /// The port it came from; zero if none.
    ingress: u32,
    /// The neighbour it came from.
    upstream: Ipv4,
    /// For the next neighbour; `None`: it was relayed too often.
    ttl: Option<u8>,
    /// A tag stands beside it.
    tag_beside: bool,
    /// Number of the port that upcalls are of.
    asker: u32,
}

impl Sight<'_> {
    /// What is done with frames of this key and variant; `None` if each must be looked at. `tag_beside`: the kernel keeps
    /// their tags beside them, as it does with what comes in, and not with what user space gives it.
    pub(super) fn compile(&self, key: &FlowKey, action: Action, variant: Variant, tag_beside: bool) -> Option<Compiled> {
        let is_tunnel = key.ingress == INGRESS_TUNNEL;
        if is_tunnel && !self.accepts(key) {
            return None;
        }
        let asker = if is_tunnel { self.ports.vxlan() } else { self.ports.number(key.ingress)? };
        let (upstream, ttl) = if is_tunnel { (key.outer_src, vxlan::relay_ttl(variant.ttl.unwrap_or(TTL))) } else { ([0; 4], Some(TTL)) };
        let way = Way { ingress: key.ingress, upstream, ttl, tag_beside: tag_beside && variant.tag.is_some(), asker };
        let mut compiled = Compiled { actions: Vec::new(), counts: Vec::new(), by_ttl: false };
        let origin = if is_tunnel { short_ids(key.vni).1 } else { self.tables.config.short };
        match action {
            Action::Drop(reason) => compiled.drop(reason),
            Action::Port(port) if port.0 == key.ingress => compiled.drop(DropReason::Reflected),
            Action::Port(port) => self.deliver(port, &mut compiled),
            Action::Peer(to) => {
                compiled.by_ttl = is_tunnel;
                self.address(way, to, origin, is_tunnel, &mut compiled);
            }
            Action::Flood(of) => {
                compiled.by_ttl = is_tunnel && !self.tables.hops(of.get().into()).is_empty();
                self.flood(way, of.get().into(), &mut compiled);
            }
        }
        Some(compiled)
    }

    /// Whether frames of this key may come from where it says.
    fn accepts(&self, key: &FlowKey) -> bool {
        let (_, origin) = short_ids(key.vni);
        let is_open = |source: weave_ebpf::flow::Source| source.flags & source::SEALED == 0;
        let has_slot = |slot: PeerSlot| slot.flags & slot::VALID != 0;
        self.tables.source(key.outer_src).is_some_and(is_open)
            && self.tables.peer(origin).is_some_and(has_slot)
            && origin != self.tables.config.short
    }

    fn deliver(&self, port: PortId, compiled: &mut Compiled) {
        match self.ports.number(port.0) {
            Some(number) => compiled.actions.push(Act::Output(number)),
            None => compiled.drop(DropReason::Kernel),
        }
    }

    /// One copy for a peer. `alone`: nothing else is done with the frame, so that its sender is told if it is too big.
    fn address(&self, way: Way, to: ShortId, origin: u32, is_tunnel: bool, compiled: &mut Compiled) {
        let larger = if is_tunnel { Cookie::Drop(DropReason::TooBig) } else { Cookie::TooBig };
        if let Err(reason) = self.copy(way, to.get().into(), origin, larger, compiled) {
            compiled.drop(reason);
        }
    }

    fn copy(&self, way: Way, to: u32, origin: u32, larger: Cookie, compiled: &mut Compiled) -> Result<(), DropReason> {
        let slot = fastpath::egress(self.tables, to, way.upstream)?;
        let ttl = way.ttl.ok_or(DropReason::HopLimit)?;
        if slot.flags & slot::SLEEVE != 0 {
            compiled.actions.push(self.ask(way.asker, Cookie::Sleeve { to: to as u16, origin: origin as u16, ttl }));
            return Ok(());
        }
        let fits = self.send(&slot, tunnel_vni(to, origin), ttl)?;
        let tag = if way.tag_beside { TAG } else { 0 };
        let at_most = u16::try_from(slot.mtu + ETHERNET as u32 - tag.min(slot.mtu)).unwrap_or(u16::MAX);
        compiled.actions.push(Act::CheckLength { at_most, fits, larger: vec![self.ask(way.asker, larger)] });
        Ok(())
    }

    /// Into the tunnel, whatever its size.
    pub(super) fn send(&self, slot: &PeerSlot, vni: u32, ttl: u8) -> Result<Vec<Act>, DropReason> {
        let path = vxlan::path(slot).ok_or(DropReason::NoRoute)?;
        let tunnel = Tunnel {
            id: Some(vni.into()),
            src: Some(path.local.into()),
            dst: Some(path.remote.into()),
            ttl: Some(ttl),
            dont_fragment: true,
            port: Some(path.port),
            ..Tunnel::default()
        };
        Ok(vec![Act::SetTunnel(tunnel), Act::Output(self.ports.vxlan())])
    }

    fn flood(&self, way: Way, origin: u32, compiled: &mut Compiled) {
        if way.ingress == INGRESS_TUNNEL && self.tables.parent(origin) != Some(way.upstream) {
            return compiled.drop(DropReason::WrongUpstream);
        }
        compiled.counts.push(Counter::Flooded.index());
        for &port in self.tables.flood_ports.iter().filter(|port| **port != way.ingress) {
            self.deliver(PortId(port), compiled);
        }
        let hops = self.tables.hops(origin);
        if way.ttl.is_none() && !hops.is_empty() {
            return compiled.drop(DropReason::HopLimit);
        }
        for &hop in hops {
            if let Err(reason) = self.copy(way, hop.into(), origin, Cookie::Drop(DropReason::TooBig), compiled) {
                compiled.drop(reason);
            }
        }
    }

    fn ask(&self, port: u32, cookie: Cookie) -> Act {
        Act::Userspace { pid: self.ports.pid_of(port), cookie: cookie.bytes() }
    }

    /// What such frames look like to the module: key, and which bits of it.
    pub(super) fn pattern(&self, key: &FlowKey, variant: Variant) -> Option<(Fields, Fields)> {
        let mut pattern = if key.ingress == INGRESS_TUNNEL {
            let local = self.tables.source(key.outer_src)?.local;
            let addresses = (Ipv4Addr::from(key.outer_src), local.into());
            from_tunnel(self.ports.vxlan(), (key.vni.into(), u64::MAX), addresses, variant.ttl)
        } else {
            let mask = Fields { in_port: Some(u32::MAX), ..Fields::default() };
            (Fields { in_port: Some(self.ports.number(key.ingress)?), ..Fields::default() }, mask)
        };
        let in_transit = key.ingress == INGRESS_TUNNEL && short_ids(key.vni).0 != self.tables.config.short;
        pattern.0.ethernet = Some([Mac(key.src), Mac(key.dst)]);
        // The module wants addresses in both, also where none counts.
        pattern.1.ethernet = Some([if in_transit { NONE } else { ALL }; 2]);
        if let Some(tag) = variant.tag {
            pattern.0.ethertype = Some(tag);
            pattern.0.vlan = Some(Vlan { tci: TAGGED, inner: Vec::new() });
            pattern.1.ethertype = Some(u16::MAX);
            pattern.1.vlan = Some(Vlan { tci: TAGGED, inner: any_ethertype() });
        }
        Some(pattern)
    }

    /// Heartbeats of a neighbour for us, or what its module makes of ours (`turned`). They have a socket of their own, or a
    /// flood from that neighbour would starve them. The module answers, too: agents come and go, and a tunnel is as good as
    /// what carries its frames. It can change no byte, but put a tag between two; see `switch::heartbeat`.
    pub(super) fn heartbeats(&self, remote: Ipv4Addr, turned: bool) -> Option<(Fields, Fields, Vec<Act>)> {
        let neighbour = self.tables.neighbour(remote).filter(|source| source.flags & source::SEALED == 0)?;
        let own = self.tables.config.short;
        let key = FlowKey { vni: tunnel_vni(own, neighbour.short), outer_src: remote.octets(), ..FlowKey::default() };
        let (key, mask) = self.pattern(&key, Variant { tag: turned.then_some(VLAN), ttl: None })?;
        let mut actions = vec![Act::Userspace { pid: self.ports.heartbeat_pid(), cookie: Cookie::Heartbeat.bytes() }];
        if !turned {
            actions.extend([Act::PushVlan { kind: VLAN, tci: TAGGED | REPLY }, Act::Truncate(SMALLEST)]);
            actions.extend(self.send(&self.back(neighbour.local, remote.octets()), tunnel_vni(neighbour.short, own), TTL).ok()?);
        }
        Some((key, mask, actions))
    }

    /// The way to who sent something here, to our own UDP port.
    pub(super) fn back(&self, local: Ipv4, remote: Ipv4) -> PeerSlot {
        let port = self.tables.config.port as u16;
        vxlan::slot(&vxlan::Path { local, remote, port, mtu: u16::MAX.into(), next_hop: Some((0, [0; 6], [0; 6])), esp: false, big: false })
    }

    /// All that comes from one address.
    pub(super) fn blanket(&self, remote: Ipv4Addr) -> (Fields, Fields) {
        let any = Ipv4Addr::BROADCAST;
        let (mut key, mut mask) = from_tunnel(self.ports.vxlan(), (0, 0), (remote, any), None);
        if let Some(tunnel) = &mut mask.tunnel {
            tunnel.dst = Some(Ipv4Addr::UNSPECIFIED);
        }
        (key.ethernet, mask.ethernet) = (Some([NONE; 2]), Some([NONE; 2]));
        (key, mask)
    }
}

/// In a mask: what is behind the tag may be anything. The module takes a list with nothing in it for none, and then the tag
/// for a mistake; so it has one field, no bit of which counts.
fn any_ethertype() -> Vec<u8> {
    const LEN: u16 = 6;
    const ETHERTYPE: u16 = 6;
    [LEN.to_ne_bytes(), ETHERTYPE.to_ne_bytes(), [0; 2], [0; 2]].concat()
}

/// What comes out of the tunnel: number and the bits of it that count; source and our address. The module wants a destination
/// and a TTL in every key.
fn from_tunnel(vxlan: u32, id: (u64, u64), (src, dst): (Ipv4Addr, Ipv4Addr), ttl: Option<u8>) -> (Fields, Fields) {
    let exactly = Some(Ipv4Addr::BROADCAST);
    let key = Tunnel { id: Some(id.0), src: Some(src), dst: Some(dst), ttl: Some(ttl.unwrap_or(TTL)), ..Tunnel::default() };
    let ttl = Some(ttl.map_or(0, |_| u8::MAX));
    let mask = Tunnel { id: Some(id.1), src: exactly, dst: exactly, ttl, ..Tunnel::default() };
    let fields = |in_port, tunnel| Fields { in_port: Some(in_port), tunnel: Some(tunnel), ..Fields::default() };
    (fields(vxlan, key), fields(u32::MAX, mask))
}

impl Compiled {
    fn drop(&mut self, reason: DropReason) {
        self.counts.push(reason.index());
    }
}

/// The key that the switch would know a frame by; `None` if the module's key lacks something.
pub(super) fn variant_of(fields: &Fields) -> Option<Variant> {
    const INNER_VLAN: u16 = 5;
    let tag = match &fields.vlan {
        Some(vlan) if vlan.tci & TAGGED != 0 => {
            // Two tags: the module cannot be told to look at one only.
            if super::wire::Attributes(&vlan.inner).any(|(kind, _)| kind == INNER_VLAN) {
                return None;
            }
            Some(fields.ethertype?)
        }
        _ => None,
    };
    Some(Variant { tag, ttl: fields.tunnel.as_ref().and_then(|tunnel| tunnel.ttl) })
}
