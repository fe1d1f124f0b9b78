//! The user space half: what comes up is judged by the fast path's own code over plain tables, carried on, and made a flow of
//! the module's, so that the next one does not come up.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use tokio::sync::mpsc::Sender;
use weave_ebpf::fastpath::{self, HEARTBEAT_KIND, HEARTBEAT_REPLY, TunnelKey, Verdict, tunnel_vni};
use weave_ebpf::flow::{FlowKey, INGRESS_TUNNEL, Ipv4, short_ids, slot, upcall};
use weave_ebpf::sleeve::Prefix;
use weave_ebpf::stats::{Counter, DropReason};
use weave_ebpf::vxlan::{TTL, vxlan_header};

use super::cache::Of;
use super::compile::{Sight, Variant, variant_of};
use super::cookie::Cookie;
use super::flows::Flows;
use super::kernel::{Event, FEATURES, Kernel};
use super::pieces::pieces;
use super::ports::Ports;
use super::tap::Device;
use super::wire::{Act, Answer, Packet, PacketCommand, Tunnel};
use crate::datapath::{Action, Egress, FlowEntry, Frame, Op, Upcall};
use crate::frame::unfinished;
use crate::io::datapath::received::Said;
use crate::io::datapath::tables::Tables;
use crate::io::datapath::view::Tunnelled;
use crate::io::net::RawSender;
use crate::peer::ShortId;

/// Everything that a frame meets.
pub(super) struct Plane {
    pub(super) tables: Tables,
    pub(super) ports: Ports,
    pub(super) flows: Flows,
    pub(super) sleeve: Option<Arc<Device>>,
    pub(super) frames: RawSender,
    upcalls: Sender<Vec<Upcall>>,
    /// Those of this batch.
    asked: Vec<Upcall>,
}

/// A frame that came up because no flow matched it.
struct Missed<'a> {
    frame: &'a [u8],
    key: FlowKey,
    /// `None`: the module cannot be given a flow for its kind.
    variant: Option<Variant>,
}

impl Plane {
    pub(super) fn new(kernel: Kernel, datapath: u32, ports: Ports, tunnel_port: u16, upcalls: Sender<Vec<Upcall>>) -> Result<Self> {
        Ok(Self {
            tables: Tables::new(tunnel_port),
            ports,
            flows: Flows::new(kernel, datapath),
            sleeve: None,
            frames: RawSender::new().context("cannot open a packet socket")?,
            upcalls,
            asked: Vec::new(),
        })
    }

    /// Carries out an order.
    pub(super) fn apply(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Install(key, action) => self.install(key, *action)?,
            Op::Remove(key) => {
                let ufids = self.flows.cache.of_key(key);
                self.forget(&ufids)?;
                self.tables.apply(op)?;
            }
            Op::BumpEpoch => {
                self.tables.apply(op)?;
                self.forget_switched()?;
            }
            Op::SetSelf(short) if self.tables.config.short == u32::from(short.get()) => {}
            Op::SetSelf(_) => {
                self.tables.apply(op)?;
                // Whom a number is for has changed: all is looked at anew.
                self.forget_switched()?;
                self.listen_to_heartbeats()?;
            }
            Op::SetPeer(short, _) => self.set_peer(op, *short)?,
            Op::SetSource { remote, .. } => self.set_source(op, *remote)?,
            Op::SetTree { .. } | Op::SetFloodPorts(_) => {
                self.tables.apply(op)?;
                let floods = self.flows.cache.those(|record| matches!(record.action, Action::Flood(_)));
                self.compile_again(&floods)?;
            }
            Op::Execute(frame, ways) => self.execute(frame, ways)?,
            Op::Heartbeat { .. } => bail!("not an order to the tables"),
        }
        Ok(())
    }

    /// What the module has of it goes first, with its counters; the first flow is made at once, for frames as the last miss.
    fn install(&mut self, key: &FlowKey, action: Action) -> Result<()> {
        let ufids = self.flows.cache.of_key(key);
        self.forget(&ufids)?;
        self.tables.apply(&Op::Install(*key, action))?;
        let variant = self.flows.last.remove(key).unwrap_or_default();
        self.make_flow(key, action, variant)
    }

    fn make_flow(&mut self, key: &FlowKey, action: Action, variant: Variant) -> Result<()> {
        let Self { tables, ports, flows, .. } = self;
        flows.make(Sight { tables, ports }, key, action, variant)
    }

    pub(super) fn compile_again(&mut self, ufids: &[[u8; 16]]) -> Result<()> {
        let Self { tables, ports, flows, .. } = self;
        flows.compile_again(Sight { tables, ports }, ufids)
    }

    pub(super) fn forget(&mut self, ufids: &[[u8; 16]]) -> Result<()> {
        self.flows.forget(&self.tables, ufids)
    }

    /// All that the switch said.
    pub(super) fn forget_switched(&mut self) -> Result<()> {
        let ufids = self.flows.cache.those(|record| matches!(record.of, Of::Flow(..)));
        self.forget(&ufids)
    }

    /// Only that peer's flows are touched, and floods, which may have a copy for it.
    fn set_peer(&mut self, op: &Op, short: ShortId) -> Result<()> {
        self.tables.apply(op)?;
        let own = self.flows.cache.to_peer(short);
        let id = u32::from(short.get());
        let others = self.flows.cache.those(|record| match record.of {
            // Who has no slot sends nothing here.
            Of::Flow(key, _) if key.ingress == INGRESS_TUNNEL && short_ids(key.vni).1 == id => true,
            _ => matches!(record.action, Action::Flood(_)),
        });
        self.compile_again(&own)?;
        self.compile_again(&others)
    }

    fn set_source(&mut self, op: &Op, remote: Ipv4Addr) -> Result<()> {
        let ufids = self.flows.cache.those(|record| match record.of {
            Of::Flow(key, _) => key.outer_src == remote.octets() && key.ingress == INGRESS_TUNNEL,
            Of::Blanket(blanket) => blanket == remote,
            _ => false,
        });
        let before = self.tables.neighbour(remote);
        self.tables.apply(op)?;
        // An order that says nothing new costs nothing.
        if before == self.tables.neighbour(remote) {
            return Ok(());
        }
        self.forget(&ufids)?;
        self.listen_to(remote)
    }

    /// Takes over what an earlier agent left in the module, once the tables are as it left them.
    pub(super) fn adopt(&mut self) -> Result<()> {
        let Self { tables, ports, flows, .. } = self;
        flows.adopt(tables, ports)?;
        self.listen_to_heartbeats()
    }

    pub(super) fn listen_to_heartbeats(&mut self) -> Result<()> {
        let sources = self.tables.sources();
        sources.into_iter().try_for_each(|remote| self.listen_to(remote))
    }

    /// Or no longer, if it is no neighbour.
    fn listen_to(&mut self, remote: Ipv4Addr) -> Result<()> {
        for turned in [false, true] {
            let of = Of::Heartbeats(remote, turned);
            match (Sight { tables: &self.tables, ports: &self.ports }).heartbeats(remote, turned) {
                Some((key, mask, actions)) => self.flows.replace(&self.tables, of, (key, mask), actions, DropReason::Switch)?,
                None => {
                    let before: Vec<_> = self.flows.cache.find(&of).into_iter().collect();
                    self.forget(&before)?;
                }
            }
        }
        Ok(())
    }

    /// By each of the ways, whatever becomes of the others.
    fn execute(&mut self, frame: &Frame, ways: &[Egress]) -> Result<()> {
        let mut cut = None;
        let mut result = Ok(());
        for way in ways {
            match *way {
                Egress::Port(port) => result = result.and(self.frames.send(port.0, None, frame)),
                Egress::Peer { to, origin } => {
                    let offload = unfinished(&frame.bytes, frame.gso_size);
                    let cut = cut.get_or_insert_with(|| pieces(&frame.bytes, offload));
                    if let Err(reason) = self.send_to_peer(cut, (to.get().into(), origin.get().into()), [0; 4], TTL) {
                        self.tables.drop(reason);
                    }
                }
            }
        }
        Ok(result?)
    }

    /// Segments, whatever their size, to a peer with a number of this origin.
    pub(super) fn send_to_peer(&self, pieces: &[Vec<u8>], (to, origin): (u32, u32), upstream: Ipv4, ttl: u8) -> Result<(), DropReason> {
        let slot = fastpath::egress(&self.tables, to, upstream)?;
        let vni = tunnel_vni(to, origin);
        if slot.flags & slot::SLEEVE != 0 {
            return pieces.iter().try_for_each(|piece| self.give_to_sleeve(piece, slot.remote, vni, ttl));
        }
        let actions = Sight { tables: &self.tables, ports: &self.ports }.send(&slot, vni, ttl)?;
        for piece in pieces {
            self.carry_out(piece, &actions);
        }
        Ok(())
    }

    fn give_to_sleeve(&self, frame: &[u8], neighbour: Ipv4, vni: u32, ttl: u8) -> Result<(), DropReason> {
        let device = self.sleeve.as_ref().ok_or(DropReason::Kernel)?;
        let kind = weave_ebpf::packet::ethertype(frame, 0).unwrap_or_default();
        self.tables.add(Counter::SleeveOut.index(), 1);
        device.send(&Prefix { ttl, neighbour, vni }.bytes(kind), frame).map_err(|_| DropReason::Kernel)
    }

    /// Has the module do something with a frame.
    fn carry_out(&self, frame: &[u8], actions: &[Act]) {
        if !actions.is_empty() && self.flows.kernel.execute(self.flows.datapath, frame, actions).is_err() {
            self.tables.drop(DropReason::Kernel);
        }
    }

    /// Something of the module's for us.
    pub(super) fn take(&mut self, answer: &Answer<'_>) {
        let Some((command, datapath, attributes)) = answer.of_datapath() else { return };
        if datapath != self.flows.datapath {
            return;
        }
        if let Some(packet) = Packet::read(command, attributes) {
            self.take_packet(&packet);
        }
    }

    /// Something became of the module's datapaths or ports.
    pub(super) fn heard(&mut self, answer: &Answer<'_>) {
        match self.flows.kernel.event(answer) {
            Some(Event::Datapath(changed)) if changed.ifindex == self.flows.datapath && changed.features != FEATURES => {
                tracing::warn!("somebody changed the openvswitch datapath {}: it is as it was", changed.name);
                if let Err(error) = self.flows.kernel.restore_features(&changed.name) {
                    tracing::error!(%error, "frames that no flow matches are lost");
                }
            }
            Some(Event::DatapathGone(_) | Event::VportGone(_)) => {
                if let Err(error) = self.mend() {
                    tracing::error!("the openvswitch datapath is out of order: {error:#}");
                }
            }
            _ => {}
        }
    }

    fn take_packet(&mut self, packet: &Packet<'_>) {
        let Some(number) = packet.key.in_port else { return };
        if packet.command == PacketCommand::Action {
            return match Cookie::read(packet.cookie) {
                Some(cookie) => self.take_told(packet, number, cookie),
                None => self.tables.drop(DropReason::Switch),
            };
        }
        let variant = variant_of(&packet.key);
        match (&packet.key.tunnel, self.ports.ifindex(number)) {
            (Some(tunnel), _) if number == self.ports.vxlan() => self.take_tunnel(packet.frame, tunnel, variant),
            (_, Some(ifindex)) => self.take_port(packet.frame, ifindex, variant),
            // The datapath's own interface, or a port that is gone.
            _ => self.tables.drop(DropReason::Switch),
        }
    }

    /// A frame that a flow gives to us.
    fn take_told(&mut self, packet: &Packet<'_>, number: u32, cookie: Cookie) {
        match cookie {
            Cookie::TooBig => {
                let ifindex = self.ports.ifindex(number).unwrap_or_default();
                match fastpath::too_big(packet.frame, &self.tables, &self.tables.config, ifindex) {
                    Verdict::Upcall { kind, key } => self.ask(packet.frame, 0, kind, key),
                    _ => self.tables.drop(DropReason::TooBig),
                }
            }
            Cookie::Drop(reason) => self.tables.drop(reason),
            Cookie::Sleeve { to, origin, ttl } => {
                let vni = tunnel_vni(to.into(), origin.into());
                let slot = fastpath::egress(&self.tables, to.into(), [0; 4]);
                let given = slot.and_then(|slot| self.give_to_sleeve(packet.frame, slot.remote, vni, ttl));
                given.unwrap_or_else(|reason| self.tables.drop(reason));
            }
            Cookie::Heartbeat => match &packet.key.tunnel {
                Some(tunnel) => self.take_tunnel(packet.frame, tunnel, None),
                None => self.tables.drop(DropReason::Malformed),
            },
        }
    }

    fn take_port(&mut self, frame: &[u8], ifindex: u32, variant: Option<Variant>) {
        let verdict = fastpath::from_port(frame, &self.tables, &self.tables.config, ifindex);
        let key = FlowKey { ingress: ifindex, ..flow_key(frame) };
        self.obey(verdict, &Missed { frame, key, variant });
    }

    /// As the programs see it on the underlay, and, if they leave it to the stack, as on the vxlan device.
    fn take_tunnel(&mut self, frame: &[u8], tunnel: &Tunnel, variant: Option<Variant>) {
        let (Some(id), Some(src), Some(dst), Some(ttl)) = (tunnel.id, tunnel.src, tunnel.dst, tunnel.ttl) else {
            return self.tables.drop(DropReason::Malformed);
        };
        let vni = id as u32 & 0xff_ffff;
        let said = Said { from: src.octets(), to: dst.octets(), ttl, ..Said::default() };
        let datagram = [vxlan_header(vni).as_slice(), frame].concat();
        let config = &self.tables.config;
        let mut verdict = fastpath::from_underlay(&Tunnelled::new(&datagram, &said, config.port as u16), &self.tables, config);
        if verdict == Verdict::Pass {
            verdict = fastpath::from_vxlan(frame, &self.tables, config, &TunnelKey { vni, remote: said.from });
        }
        if let Verdict::Reply { to } = verdict {
            return self.reply(frame, to, dst, src);
        }
        let refused = [DropReason::Stranger, DropReason::Unsealed].into_iter().find(|reason| verdict == Verdict::Drop(reason.index()));
        if let Some(reason) = refused {
            self.keep_from_asking(src, reason);
        }
        let in_transit = short_ids(vni).0 != self.tables.config.short;
        let macs = if in_transit { FlowKey::default() } else { flow_key(frame) };
        self.obey(verdict, &Missed { frame, key: FlowKey { vni, outer_src: said.from, ..macs }, variant });
    }

    /// A heartbeat request goes back as its reply, the way it came.
    fn reply(&mut self, frame: &[u8], to: u32, local: Ipv4Addr, remote: Ipv4Addr) {
        let mut reply = frame.to_vec();
        if let Some(kind) = reply.get_mut(HEARTBEAT_KIND) {
            *kind = HEARTBEAT_REPLY;
        }
        let sight = Sight { tables: &self.tables, ports: &self.ports };
        let back = sight.back(local.octets(), remote.octets());
        match sight.send(&back, tunnel_vni(to, self.tables.config.short), TTL) {
            Ok(actions) => self.carry_out(&reply, &actions),
            Err(reason) => self.tables.drop(reason),
        }
    }

    /// Who is refused whatever it sends need not come up for it.
    fn keep_from_asking(&mut self, remote: Ipv4Addr, reason: DropReason) {
        let of = Of::Blanket(remote);
        if !self.flows.cache.has(&of) && self.flows.cache.has_room(&of) {
            let pattern = Sight { tables: &self.tables, ports: &self.ports }.blanket(remote);
            if let Err(error) = self.flows.replace(&self.tables, of, pattern, Vec::new(), reason) {
                tracing::debug!(%remote, "no flow against a stranger: {error:#}");
            }
        }
    }

    fn obey(&mut self, verdict: Verdict, missed: &Missed<'_>) {
        match verdict {
            Verdict::Upcall { kind, key } => {
                if let (Some(variant), upcall::MISS) = (missed.variant, kind) {
                    self.flows.remember(key, variant);
                }
                return self.ask(missed.frame, 0, kind, key);
            }
            Verdict::Drop(index) => self.tables.drop_index(index),
            Verdict::Port { .. } | Verdict::Peer { .. } | Verdict::Flood { .. } => self.carry_on(missed),
            // Neither is said here.
            Verdict::Pass | Verdict::Reply { .. } => return,
        }
        let (Some(action), Some(variant)) = (self.tables.action(&missed.key), missed.variant) else { return };
        if let Err(error) = self.make_flow(&missed.key, action, variant) {
            tracing::debug!("a frame was carried on without a flow: {error:#}");
        }
    }

    /// What its flow says, for this frame.
    fn carry_on(&mut self, missed: &Missed<'_>) {
        let Some(action) = self.tables.action(&missed.key) else { return };
        let sight = Sight { tables: &self.tables, ports: &self.ports };
        let Some(compiled) = sight.compile(&missed.key, action, missed.variant.unwrap_or_default(), false) else { return };
        compiled.counts.iter().for_each(|count| self.tables.add(*count, 1));
        self.carry_out(missed.frame, &compiled.actions);
    }

    pub(super) fn ask(&mut self, frame: &[u8], gso_size: u16, kind: u32, key: FlowKey) {
        let bytes = Bytes::copy_from_slice(frame);
        self.asked.push(match kind {
            upcall::HEARTBEAT => Upcall::Heartbeat { key, frame: bytes },
            upcall::TOO_BIG => Upcall::TooBig { key, frame: Frame { bytes, gso_size } },
            _ => Upcall::Miss { key, frame: Frame { bytes, gso_size } },
        });
    }

    /// All that was asked goes up, and what the module would not do is counted.
    pub(super) fn end(&mut self) {
        self.tables.add(DropReason::Kernel.index(), self.flows.kernel.refused());
        if self.asked.is_empty() {
            return;
        }
        let asked = std::mem::take(&mut self.asked);
        let count = asked.len() as u64;
        if self.upcalls.try_send(asked).is_err() {
            self.tables.add(DropReason::UpcallLost.index(), count);
        }
    }

    /// All flows of this epoch, with what the module counted for them.
    pub(super) fn entries(&mut self) -> io::Result<Vec<FlowEntry>> {
        self.flows.harvest(&self.tables)?;
        Ok(self.flows.counted(self.tables.flows(), self.tables.now()))
    }

    /// Every counter with its name, drop reasons first.
    pub(super) fn counters(&mut self) -> io::Result<Vec<(&'static str, u64)>> {
        self.flows.harvest(&self.tables)?;
        let lost = self.flows.lost()?;
        let mut counters = self.tables.counters();
        let lost_name = DropReason::UpcallLost.name();
        counters.iter_mut().filter(|(name, _)| *name == lost_name).for_each(|(_, count)| *count += lost);
        Ok(counters)
    }
}

/// The addresses of a frame, which has some.
fn flow_key(frame: &[u8]) -> FlowKey {
    let mac = |at: usize| frame.get(at..).and_then(|rest| rest.first_chunk().copied()).unwrap_or_default();
    FlowKey { src: mac(6), dst: mac(0), ..FlowKey::default() }
}
