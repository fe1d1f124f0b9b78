//! A host with its programs on real interfaces, and frames for it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use weave_agent::addr::Mac;
use weave_agent::config::Xdp;
use weave_agent::datapath::{Action, Op, PeerRoute, PortId, Source, TunnelKind};
use weave_agent::io::datapath::ebpf::{Ebpf, NextHop, Options, Upcalls};
use weave_agent::io::object::OBJECT;
use weave_agent::peer::ShortId;
use weave_ebpf::flow::{self, FlowKey, INGRESS_TUNNEL, vni};
use weave_ebpf::vxlan::{self, Fields};

use crate::capture::Seen;
use crate::stack::without_choices;
use crate::wires::{LOCAL, TUNNEL_PORT, Wires, neighbour_mac};

/// Our own short id.
pub(crate) const OWN: u16 = 1;
/// Peers that are neighbours; peer n is at 10.0.0.n, but 3 at 10.1.0.3. The program writes headers for 2 and 3.
pub(crate) const DIRECT: [u16; 2] = [2, 3];
pub(crate) const BY_STACK: u16 = 4;

/// Long enough for anything that is going to happen.
pub(crate) const SOON: Duration = Duration::from_secs(5);
/// Long enough to see that something does not.
const QUIET: Duration = Duration::from_millis(60);

/// Interfaces and the programs on them.
pub(crate) struct Host {
    pub(crate) wires: Wires,
    pub(crate) ebpf: Ebpf,
    pub(crate) upcalls: Upcalls,
    pub(crate) options: Options,
}

impl Host {
    /// Programs on four ports and two underlay interfaces; three neighbours; an own tree to all of them.
    pub(crate) fn new(pins: &Path, tcx: Option<bool>) -> Self {
        Self::with(Wires::make(), pins, tcx, Xdp::Off)
    }

    /// The same on these wires, with something before the stack.
    pub(crate) fn with(wires: Wires, pins: &Path, tcx: Option<bool>, xdp: Xdp) -> Self {
        let options = Options { pins: pins.join("host"), vxlan_ifindex: wires.vxlan, tunnel_port: TUNNEL_PORT, tcx, xdp };
        let (ebpf, upcalls) = Ebpf::load(OBJECT, &options).unwrap();
        let mut host = Self { wires, ebpf, upcalls, options };
        host.attach();
        host.op(Op::SetSelf(short(OWN)));
        for peer in [DIRECT[0], DIRECT[1], BY_STACK] {
            host.neighbour(peer);
        }
        let hops = vec![short(2), short(3), short(BY_STACK)];
        host.op(Op::SetTree { origin: short(OWN), parent: None, hops });
        host.op(Op::SetFloodPorts(host.wires.ports.iter().map(|&port| PortId(port)).collect()));
        host
    }

    /// A second agent on the same pins.
    pub(crate) fn successor(&self) -> (Ebpf, Upcalls) {
        Ebpf::load(OBJECT, &self.options).unwrap()
    }

    pub(crate) fn attach(&mut self) {
        attach(&mut self.ebpf, &self.wires);
    }

    pub(crate) fn op(&mut self, op: Op) {
        self.ebpf.apply(&op).unwrap();
    }

    fn neighbour(&mut self, peer: u16) {
        let (remote, underlay) = (address(peer), usize::from(address(peer).octets()[1]));
        let local = Ipv4Addr::from(LOCAL[underlay]);
        self.op(Op::SetPeer(
            short(peer),
            Some(PeerRoute { remote, local, port: TUNNEL_PORT, mtu: 8_950, tunnel: TunnelKind::Vxlan, big: false }),
        ));
        self.op(Op::SetSource { remote, neighbour: Some(Source { short: short(peer), local, least: TunnelKind::Vxlan }) });
        if DIRECT.contains(&peer) {
            let (ifindex, source) = (self.wires.underlay[underlay], Mac(self.wires.underlay_mac[underlay]));
            self.ebpf.set_next_hop(remote, Some(NextHop { ifindex, source, next_hop: Mac(neighbour_mac(remote.octets())) })).unwrap();
        }
    }

    /// Caches what is done with a container's frame, by its port's place and its MACs.
    pub(crate) fn cache(&mut self, port: usize, frame: &[u8], action: Action) {
        let key = self.port_key(port, frame);
        self.op(Op::Install(key, action));
    }

    pub(crate) fn port_key(&self, port: usize, frame: &[u8]) -> FlowKey {
        FlowKey { ingress: self.wires.ports[port], vni: 0, outer_src: [0; 4], src: mac(frame, 6), dst: mac(frame, 0) }
    }

    /// Caches what is done with a frame for us from a peer.
    pub(crate) fn cache_tunnel(&mut self, from: u16, frame: &[u8], action: Action) {
        let outer_src = address(from).octets();
        let key = FlowKey { ingress: INGRESS_TUNNEL, vni: vni(OWN.into(), from.into()), outer_src, src: mac(frame, 6), dst: mac(frame, 0) };
        self.op(Op::Install(key, action));
    }

    /// One counter.
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.ebpf.counters().unwrap().into_iter().find(|(counter, _)| *counter == name).unwrap().1
    }

    /// Matches of all flows.
    pub(crate) fn matched(&mut self) -> u64 {
        self.ebpf.flows().unwrap().iter().map(|flow| flow.packets).sum()
    }

    /// What the host puts on the wire for a peer, from the outer header on, without what is the kernel's choice.
    pub(crate) fn sent_to(&self, peer: u16, frame: &[u8]) -> Vec<u8> {
        without_choices(outer(self.wires.underlay_mac, OWN, peer, frame))
    }
}

/// Whether programs write outer headers; below Linux 5.13 the vxlan device does, for all peers.
pub(crate) fn writes_headers() -> bool {
    vm_tests::kernel::is_at_least(5, 13)
}

/// Whether programs take headers off IPv6, too (Linux 6.3, commit d219df60a70e: DECAP_L3_IPV6); else the stack does.
pub(crate) fn decapsulates_ipv6() -> bool {
    vm_tests::kernel::is_at_least(6, 3)
}

/// Puts the programs on all interfaces.
pub(crate) fn attach(ebpf: &mut Ebpf, wires: &Wires) {
    wires.ports.iter().for_each(|&port| ebpf.attach_port(PortId(port), true).unwrap());
    wires.underlay.iter().for_each(|&ifindex| ebpf.attach_underlay(ifindex).unwrap());
}

fn outer(macs: [[u8; 6]; 2], from: u16, to: u16, frame: &[u8]) -> Vec<u8> {
    let underlay = usize::from(address(to).octets()[1]);
    let path = vxlan::Path {
        local: LOCAL[underlay],
        remote: address(to).octets(),
        port: TUNNEL_PORT,
        mtu: 0,
        next_hop: Some((0, macs[underlay], neighbour_mac(address(to).octets()))),
        esp: false,
        big: false,
    };
    let fields = Fields::new(frame.len() as u32, 0);
    [vxlan::headers(&vxlan::slot(&path), vni(to.into(), from.into()), fields).as_slice(), frame].concat()
}

/// A packet from a neighbour as it arrives.
pub(crate) fn tunnelled(wires: &Wires, from: u16, vni: u32, frame: &[u8]) -> Vec<u8> {
    let remote = address(from).octets();
    let underlay = usize::from(remote[1]);
    let next_hop = Some((0, neighbour_mac(remote), wires.underlay_mac[underlay]));
    let path = vxlan::Path { local: remote, remote: LOCAL[underlay], port: TUNNEL_PORT, mtu: 0, next_hop, esp: false, big: false };
    [vxlan::headers(&vxlan::slot(&path), vni, Fields::new(frame.len() as u32, 0)).as_slice(), frame].concat()
}

pub(crate) fn short(id: u16) -> ShortId {
    ShortId::new(id).unwrap()
}

pub(crate) fn address(peer: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, u8::from(peer == 3), 0, peer as u8)
}

/// A container's frame: UDP, so that nobody answers.
pub(crate) fn udp(src: u8, dst: [u8; 6]) -> Vec<u8> {
    let mut frame = [dst, container(src)].concat();
    frame.extend([8, 0, 0x45, 0, 0, 48, 0, 0, 0, 0, 64, 17, 0, 0, 10, 32, 0, src, 10, 32, 0, 99, 0, 80, 0, 90, 0, 28, 0, 0]);
    frame.extend([src; 20]);
    frame
}

pub(crate) fn ipv6(src: u8, dst: [u8; 6]) -> Vec<u8> {
    let mut frame = [dst, container(src)].concat();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 17, 64]);
    frame.resize(14 + 60, src);
    frame
}

pub(crate) fn arp(src: u8, dst: [u8; 6]) -> Vec<u8> {
    let mut frame = [dst, container(src)].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.resize(42, src);
    frame
}

/// A TCP segment of `len` bytes in all.
pub(crate) fn tcp(src: u8, dst: [u8; 6], len: usize) -> Vec<u8> {
    let [high, low] = (len as u16 - 14).to_be_bytes();
    let mut frame = [dst, container(src)].concat();
    frame.extend([8, 0, 0x45, 0, high, low, 0, 0, 0, 0, 64, 6, 0, 0, 10, 32, 0, src, 10, 32, 0, 99]);
    frame.extend([0, 80, 0, 90, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0, 0, 0, 0, 0, 0]);
    frame.resize(len, src);
    frame
}

/// The same frame with a VLAN tag in it.
pub(crate) fn with_tag(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat()
}

pub(crate) fn container(number: u8) -> [u8; 6] {
    [2, 0xcc, 0, 0, 0, number]
}

pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];

fn mac(frame: &[u8], at: usize) -> flow::Mac {
    frame[at..at + 6].try_into().unwrap()
}

/// Collects until there are as many as wanted, and a little longer in case there are more.
#[expect(clippy::disallowed_methods, reason = "real packets take real time")]
pub(crate) fn collect(wanted: usize, mut look: impl FnMut() -> Vec<Seen>) -> Vec<Seen> {
    let (mut seen, deadline) = (Vec::new(), Instant::now() + SOON);
    while seen.len() < wanted && Instant::now() < deadline {
        seen.extend(look());
        std::thread::yield_now();
    }
    let quiet = Instant::now() + QUIET;
    while Instant::now() < quiet {
        seen.extend(look());
        std::thread::yield_now();
    }
    seen.sort();
    seen
}
