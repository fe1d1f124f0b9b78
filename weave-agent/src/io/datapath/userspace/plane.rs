//! The data plane: what the fast path says of a frame is done with it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use bytes::Bytes;
use socket2::Socket;
use tokio::sync::mpsc::Sender;
use weave_ebpf::fastpath::{self, HEARTBEAT_KIND, HEARTBEAT_REPLY, Tables as _, TunnelKey, Verdict, network_size, tunnel_vni};
use weave_ebpf::flow::{FlowKey, Ipv4, PeerSlot, short_ids, slot, upcall};
use weave_ebpf::packet::Packet;
use weave_ebpf::sleeve::{PREFIX, Prefix};
use weave_ebpf::stats::{Counter, DropReason};
use weave_ebpf::vxlan::{self, TTL, vxlan_header};

use super::outbox::{Body, Datagram, Outbox};
use crate::datapath::{Frame, Upcall};
use crate::frame::{tcp_segments_for, unfinished};
use crate::io::datapath::cut::{self, Cut};
use crate::io::datapath::received::{Place, Received, Said};
use crate::io::datapath::sockets::{self, Tunnel};
use crate::io::datapath::tables::Tables;
use crate::io::datapath::view::{NO_UPSTREAM, Tunnelled, View, hash};
use crate::io::net::sys;
use crate::peer::ShortId;
use crate::virtio::{Offload, VIRTIO_HEADER_LEN};

/// Most datagrams (`UDP_MAX_SEGMENTS` before Linux 6.9) and bytes that the kernel cuts at once.
const SEGMENTS: usize = 64;
const LARGEST: usize = 65_507;
/// Of a VXLAN header.
const VXLAN: usize = 8;

/// Everything that a frame meets.
pub(super) struct Plane {
    received: Received,
    carry: Carry,
}

/// The same without the frames.
struct Carry {
    tables: Tables,
    ports: BTreeMap<u32, Port>,
    tunnel: Tunnel,
    outbox: Outbox,
    upcalls: Sender<Vec<Upcall>>,
    /// Those of this batch.
    asked: Vec<Upcall>,
    /// The kernel cuts large datagrams.
    gso: bool,
    /// What sockets lost that are closed by now.
    overrun: u64,
}

struct Port {
    socket: Socket,
    /// The sleeve's TAP device.
    sleeve: bool,
}

/// A frame on its way.
#[derive(Clone, Copy)]
struct Moving {
    place: Place,
    offload: Offload,
    /// What it needs of an MTU.
    size: u32,
    /// The neighbour it came from.
    upstream: Ipv4,
    /// For the next neighbour; `None`: it was relayed too often.
    ttl: Option<u8>,
    /// The port it came from; zero if none.
    ingress: u32,
}

impl Plane {
    pub(super) fn open(tunnel_port: u16, upcalls: Sender<Vec<Upcall>>) -> Result<Self> {
        let carry = Carry {
            tables: Tables::new(tunnel_port),
            ports: BTreeMap::new(),
            tunnel: Tunnel::open(tunnel_port)?,
            outbox: Outbox::new(),
            upcalls,
            asked: Vec::new(),
            gso: true,
            overrun: 0,
        };
        Ok(Self { received: Received::new(), carry })
    }

    pub(super) fn tables(&mut self) -> &mut Tables {
        &mut self.carry.tables
    }

    /// The socket that tunnels come in by.
    pub(super) fn tunnel(&self) -> &Socket {
        &self.carry.tunnel.main
    }

    /// Takes frames from an interface; `None` if they are taken already.
    pub(super) fn add_port(&mut self, ifindex: u32, sleeve: bool) -> Result<Option<&Socket>> {
        if !sleeve {
            self.carry.tables.add_bucket(ifindex);
        }
        if self.carry.ports.contains_key(&ifindex) {
            return Ok(None);
        }
        let port = Port { socket: sockets::on_interface(ifindex)?, sleeve };
        Ok(Some(&self.carry.ports.entry(ifindex).or_insert(port).socket))
    }

    /// The interfaces that the sleeve's frames came by.
    pub(super) fn sleeves(&self) -> Vec<u32> {
        self.carry.ports.iter().filter(|(_, port)| port.sleeve).map(|(&ifindex, _)| ifindex).collect()
    }

    pub(super) fn remove_port(&mut self, ifindex: u32) {
        self.carry.tables.remove_bucket(ifindex);
        if let Some(port) = self.carry.ports.remove(&ifindex) {
            self.carry.overrun += sys::dropped(port.socket.as_fd());
        }
    }

    /// What came faster than it was taken.
    pub(super) fn overrun(&self) -> u64 {
        let sockets = self.carry.ports.values().map(|port| &port.socket).chain([&self.carry.tunnel.main]);
        self.carry.overrun + sockets.map(|socket| sys::dropped(socket.as_fd())).sum::<u64>()
    }

    /// Carries a batch of what came in by a port.
    pub(super) fn serve_port(&mut self, ifindex: u32) {
        let Some(port) = self.carry.ports.get(&ifindex) else { return };
        let (socket, sleeve) = (port.socket.as_raw_fd(), port.sleeve);
        // An interface that is down says so once, and is heard again when it is up.
        let Ok(count) = self.received.receive(socket, true) else { return };
        self.carry.tables.tick();
        for i in 0..count {
            let (place, said) = self.received.frame(i);
            match sleeve {
                _ if said.outgoing => {}
                _ if said.truncated => self.carry.tables.drop(DropReason::TooBig),
                true => self.carry.take_sleeve(&mut self.received, place, said.offload),
                false => self.carry.take_port(&mut self.received, ifindex, place, said.offload),
            }
        }
        self.carry.end(&self.received);
    }

    /// Carries a batch of what came in by the tunnel.
    pub(super) fn serve_tunnel(&mut self) {
        let Ok(count) = self.received.receive(self.carry.tunnel.main.as_raw_fd(), false) else { return };
        self.carry.tables.tick();
        for i in 0..count {
            let (mut rest, said) = self.received.datagram(i);
            let each = if said.each == 0 { rest.len } else { usize::from(said.each) };
            loop {
                self.carry.take_tunnel(&mut self.received, rest.first(each), &said);
                rest = rest.after(each);
                if rest.len == 0 {
                    break;
                }
            }
        }
        self.carry.end(&self.received);
    }

    /// Sends a frame of the agent's to a peer.
    pub(super) fn execute(&mut self, frame: &Frame, to: ShortId, origin: ShortId) -> Result<()> {
        let place = self.received.put(&frame.bytes).with_context(|| format!("a frame of {} bytes is too large", frame.bytes.len()))?;
        let offload = unfinished(&frame.bytes, frame.gso_size);
        let moving = Moving { place, offload, size: 0, upstream: NO_UPSTREAM, ttl: Some(TTL), ingress: 0 };
        if let Err(reason) = self.carry.send_to_peer(&mut self.received, moving, to.get().into(), origin.get().into()) {
            self.carry.tables.drop(reason);
        }
        self.carry.end(&self.received);
        Ok(())
    }
}

impl Carry {
    fn take_port(&mut self, received: &mut Received, ingress: u32, place: Place, offload: Offload) {
        let frame = View { bytes: received.get(place), offload };
        let verdict = fastpath::from_port(&frame, &self.tables, &self.tables.config, ingress);
        let size = network_size(&frame, 0);
        self.obey(received, verdict, Moving { place, offload, size, upstream: NO_UPSTREAM, ttl: Some(TTL), ingress });
    }

    /// One datagram: as the programs see it on the underlay, and, if they leave it to the stack, as on the vxlan device.
    fn take_tunnel(&mut self, received: &mut Received, place: Place, said: &Said) {
        let (tables, port) = (&self.tables, self.tables.config.port as u16);
        let mut packet = Tunnelled::new(received.get(place), said, port);
        let place = place.after(VXLAN);
        let bytes = received.get(place);
        let offload = undone(bytes, tables.peer(short_ids(packet.vni()).1));
        packet.offload = offload;
        let frame = View { bytes, offload };
        let size = network_size(&frame, 0);
        let verdict = match fastpath::from_underlay(&packet, tables, &tables.config) {
            Verdict::Reply { to } => return self.reply(received, place, said, to),
            Verdict::Pass => match vxlan::parse(&packet, port) {
                Ok(outer) => {
                    let key = TunnelKey { vni: outer.vni, remote: outer.src };
                    fastpath::from_vxlan(&frame, tables, &tables.config, &key)
                }
                // Counted already.
                Err(_) => return,
            },
            verdict => verdict,
        };
        let moving = Moving { place, offload, size, upstream: said.from, ttl: vxlan::relay_ttl(said.ttl), ingress: 0 };
        self.obey(received, verdict, moving);
    }

    fn take_sleeve(&mut self, received: &mut Received, place: Place, offload: Offload) {
        let whole = View { bytes: received.get(place), offload };
        let Some(prefix) = Prefix::parse(&whole) else {
            return self.tables.drop(DropReason::Malformed);
        };
        let verdict = fastpath::from_sleeve(&whole, &self.tables, &self.tables.config, &prefix);
        let (place, offload) = (place.after(PREFIX), offload.without(PREFIX as u16));
        let size = network_size(&View { bytes: received.get(place), offload }, 0);
        let moving = Moving { place, offload, size, upstream: prefix.neighbour, ttl: vxlan::relay_ttl(prefix.ttl), ingress: 0 };
        self.obey(received, verdict, moving);
    }

    fn obey(&mut self, received: &mut Received, verdict: Verdict, moving: Moving) {
        match verdict {
            Verdict::Drop(index) => self.tables.drop_index(index),
            Verdict::Port { ifindex, .. } => self.send_to_port(received, moving, ifindex),
            Verdict::Peer { to, origin } => match self.send_to_peer(received, moving, to, origin) {
                Ok(()) => {}
                Err(DropReason::TooBig) if moving.ingress != 0 => self.too_big(received, moving),
                Err(reason) => self.tables.drop(reason),
            },
            Verdict::Flood { origin } => self.flood(received, moving, origin),
            Verdict::Upcall { kind, key } => self.ask(received, moving, kind, key),
            // Neither is said of a frame without its outer headers.
            Verdict::Pass | Verdict::Reply { .. } => {}
        }
    }

    fn too_big(&mut self, received: &Received, moving: Moving) {
        let frame = View { bytes: received.get(moving.place), offload: moving.offload };
        match fastpath::too_big(&frame, &self.tables, &self.tables.config, moving.ingress) {
            Verdict::Upcall { kind, key } => self.ask(received, moving, kind, key),
            _ => self.tables.drop(DropReason::TooBig),
        }
    }

    fn flood(&mut self, received: &mut Received, mut moving: Moving, origin: u32) {
        self.tables.count(Counter::Flooded);
        if !self.tables.hops(origin).is_empty() {
            // Before any copy waits: they share their bytes.
            self.settle(received, &mut moving);
        }
        for i in 0..self.tables.flood_ports.len() {
            match self.tables.flood_ports.get(i) {
                Some(&port) if port != moving.ingress => self.send_to_port(received, moving, port),
                _ => {}
            }
        }
        if moving.ttl.is_none() && !self.tables.hops(origin).is_empty() {
            return self.tables.drop(DropReason::HopLimit);
        }
        for i in 0..self.tables.hops(origin).len() {
            let Some(&hop) = self.tables.hops(origin).get(i) else { break };
            if let Err(reason) = self.send_to_peer(received, moving, hop.into(), origin) {
                self.tables.drop(reason);
            }
        }
    }

    fn send_to_port(&mut self, received: &Received, moving: Moving, ifindex: u32) {
        let Some(port) = self.ports.get(&ifindex) else {
            return self.tables.drop(DropReason::Kernel);
        };
        let socket = port.socket.as_raw_fd();
        self.make_room(received, 0);
        self.outbox.push(socket, &moving.offload.to_virtio(0), Body::Received(moving.place), None);
    }

    fn send_to_peer(&mut self, received: &mut Received, mut moving: Moving, to: u32, origin: u32) -> Result<(), DropReason> {
        let slot = fastpath::egress_of(moving.size, &self.tables, to, moving.upstream)?;
        let ttl = moving.ttl.ok_or(DropReason::HopLimit)?;
        let vni = tunnel_vni(to, origin);
        if slot.flags & slot::SLEEVE != 0 {
            return self.send_to_sleeve(received, moving, &slot, vni, ttl);
        }
        // The port is in the template alone.
        let path = vxlan::path(&slot).ok_or(DropReason::NoRoute)?;
        let datagram = Datagram { remote: slot.remote, port: path.port, local: slot.local, ttl, each: 0 };
        if moving.offload.is_large() {
            return self.send_cut(received, moving, vni, datagram);
        }
        self.settle(received, &mut moving);
        self.make_room(received, 0);
        let socket = self.tunnel.sender(hash(received.get(moving.place)), false);
        self.outbox.push(socket, &vxlan_header(vni), Body::Received(moving.place), Some(datagram));
        Ok(())
    }

    /// A large frame as segments, many of them in one piece for the kernel to take apart.
    fn send_cut(&mut self, received: &Received, moving: Moving, vni: u32, datagram: Datagram) -> Result<(), DropReason> {
        let frame = received.get(moving.place);
        let cut = Cut::new(frame, moving.offload).ok_or(DropReason::Kernel)?;
        let each = VXLAN + cut.segment_len();
        let most = if self.gso { (LARGEST / each).clamp(1, SEGMENTS) } else { 1 };
        let socket = self.tunnel.sender(hash(frame), self.gso);
        let mut index = 0;
        while index < cut.count() {
            let several = most.min(cut.count() - index);
            self.make_room(received, several * each);
            let start = self.outbox.arena.len();
            for index in index..index + several {
                self.outbox.arena.extend_from_slice(&vxlan_header(vni));
                cut.write(index, &mut self.outbox.arena);
            }
            let made = Place { start, len: self.outbox.arena.len() - start };
            let each = if several == 1 { 0 } else { each as u16 };
            self.outbox.push(socket, &[], Body::Made(made), Some(Datagram { each, ..datagram }));
            index += several;
        }
        Ok(())
    }

    /// A large frame goes as its segments: the kernel would look for their headers where the prefix is.
    fn send_to_sleeve(
        &mut self,
        received: &mut Received,
        mut moving: Moving,
        slot: &PeerSlot,
        vni: u32,
        ttl: u8,
    ) -> Result<(), DropReason> {
        let tap = self.ports.get(&slot.ifindex).filter(|port| port.sleeve).ok_or(DropReason::Kernel)?;
        let socket = tap.socket.as_raw_fd();
        self.tables.count(Counter::SleeveOut);
        self.settle(received, &mut moving);
        let frame = received.get(moving.place);
        let kind = weave_ebpf::packet::ethertype(frame, 0).unwrap_or_default();
        let mut head = [0; VIRTIO_HEADER_LEN + PREFIX];
        head[VIRTIO_HEADER_LEN..].copy_from_slice(&Prefix { ttl, neighbour: slot.remote, vni }.bytes(kind));
        if !moving.offload.is_large() {
            self.make_room(received, 0);
            self.outbox.push(socket, &head, Body::Received(moving.place), None);
            return Ok(());
        }
        let cut = Cut::new(frame, moving.offload).ok_or(DropReason::Kernel)?;
        for index in 0..cut.count() {
            self.make_room(received, cut.segment_len());
            let start = self.outbox.arena.len();
            cut.write(index, &mut self.outbox.arena);
            let made = Place { start, len: self.outbox.arena.len() - start };
            self.outbox.push(socket, &head, Body::Made(made), None);
        }
        Ok(())
    }

    /// A heartbeat request goes back as its reply.
    fn reply(&mut self, received: &mut Received, place: Place, said: &Said, to: u32) {
        if let Some(kind) = received.get_mut(place).get_mut(HEARTBEAT_KIND) {
            *kind = HEARTBEAT_REPLY;
        }
        let config = &self.tables.config;
        let header = vxlan_header(tunnel_vni(to, config.short));
        let datagram = Datagram { remote: said.from, port: config.port as u16, local: said.to, ttl: TTL, each: 0 };
        self.make_room(received, 0);
        self.outbox.push(self.tunnel.main.as_raw_fd(), &header, Body::Received(place), Some(datagram));
    }

    fn ask(&mut self, received: &Received, moving: Moving, kind: u32, key: FlowKey) {
        let frame = View { bytes: received.get(moving.place), offload: moving.offload };
        let bytes = Bytes::copy_from_slice(frame.bytes);
        self.asked.push(match kind {
            upcall::HEARTBEAT => Upcall::Heartbeat { key, frame: bytes },
            upcall::TOO_BIG => Upcall::TooBig { key, frame: Frame { bytes, gso_size: frame.gso_size() as u16 } },
            _ => Upcall::Miss { key, frame: Frame { bytes, gso_size: frame.gso_size() as u16 } },
        });
    }

    /// A checksum that its sender began is finished, where the kernel will not do it.
    fn settle(&mut self, received: &mut Received, moving: &mut Moving) {
        if moving.offload.checksum.is_some() && !moving.offload.is_large() {
            cut::finish(received.get_mut(moving.place), moving.offload);
            moving.offload = Offload::default();
        }
    }

    fn make_room(&mut self, received: &Received, bytes: usize) {
        if !self.outbox.has_room(bytes) {
            self.flush(received);
        }
    }

    fn flush(&mut self, received: &Received) {
        let Self { outbox, tables, gso, .. } = self;
        outbox.flush(received, |error, several| {
            // Some interfaces cannot, nor can kernels before 4.18: from now on each goes by itself.
            if several && matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO | libc::EOPNOTSUPP)) {
                *gso = false;
            }
            tables.drop(reason(error));
        });
    }

    /// All that waits goes: copies out, questions up.
    fn end(&mut self, received: &Received) {
        self.flush(received);
        if self.asked.is_empty() {
            return;
        }
        let asked = std::mem::take(&mut self.asked);
        let count = asked.len();
        if self.upcalls.try_send(asked).is_err() {
            (0..count).for_each(|_| self.tables.drop(DropReason::UpcallLost));
        }
    }
}

/// What was left to the wire and the wire did not do: between virtual interfaces a tunnel packet arrives as its sender's
/// stack made it, with the frame's checksum begun, and many TCP segments in one. A socket does not tell.
fn undone(frame: &[u8], origin: Option<PeerSlot>) -> Offload {
    let mtu = origin.filter(|slot| slot.flags & slot::VALID != 0).map_or(u32::MAX, |slot| slot.mtu);
    unfinished(frame, tcp_segments_for(frame, mtu))
}

/// Why the kernel did not send it.
fn reason(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        Some(libc::EMSGSIZE) => DropReason::TooBig,
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH) => DropReason::NoRoute,
        _ => DropReason::Kernel,
    }
}
