//! A host with a datapath on real interfaces, and what is at their other ends.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socket};
use tokio::time::timeout;
use weave_agent::addr::Mac;
use weave_agent::config::Xdp;
use weave_agent::datapath::{Action, FlowEntry, Frame, Op, PeerRoute, PortId, Source, TunnelKind, Upcall};
use weave_agent::io::datapath::ebpf::{Ebpf, Options};
use weave_agent::io::datapath::odp::{self, Odp};
use weave_agent::io::datapath::userspace::Userspace;
use weave_agent::io::datapath::{Datapath, NextHop, Upcalls};
use weave_agent::io::net::RawSender;
use weave_agent::io::object::OBJECT;
use weave_agent::peer::ShortId;
use weave_ebpf::flow::{FlowKey, INGRESS_TUNNEL, vni};

use crate::capture::{Capture, Seen};
use crate::frames::{address, without_choices};
use crate::place::ip;
use crate::wires::{LOCAL, PORTS, TUNNEL_PORT, Wires, index_of, neighbour_mac};

/// Our own short id.
pub(crate) const OWN: u16 = 1;
/// Peers that are neighbours. The kernel's way to 4 is not known.
pub(crate) const NEIGHBOURS: [u16; 3] = [2, 3, 4];
/// Largest inner packet on the way to each.
pub(crate) const MTU: u16 = 8_950;

/// Long enough for anything that is going to happen.
pub(crate) const SOON: Duration = Duration::from_secs(5);
/// Long enough to see that something does not.
const QUIET: Duration = Duration::from_millis(60);

/// Who keeps the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ebpf,
    Odp,
    Userspace,
}

impl Kind {
    /// Not every kernel has all: a test of what it lacks is skipped, and says so.
    pub(crate) fn is_there(self) -> bool {
        self != Self::Odp || !vm_tests::is_root() || crate::module::module().is_some()
    }

    /// How often a large frame of so many segments counts. The openvswitch module counts it once.
    pub(crate) fn counted(self, segments: u64) -> u64 {
        if self == Self::Odp { segments.min(1) } else { segments }
    }

    /// Whether a large frame comes up whole. The openvswitch module cuts it into its segments.
    pub(crate) fn asks_whole(self) -> bool {
        self != Self::Odp
    }

    /// In the calling thread's namespace. `vxlan`: the device, if this kind wants one.
    pub(crate) fn open(self, pins: &Path, vxlan: &str) -> (Box<dyn Datapath>, Upcalls) {
        match self {
            Self::Ebpf => {
                let options =
                    Options { pins: pins.to_owned(), vxlan_ifindex: index_of(vxlan), tunnel_port: TUNNEL_PORT, tcx: None, xdp: Xdp::Off };
                let (datapath, upcalls) = Ebpf::load(OBJECT, &options).unwrap();
                (Box::new(datapath), upcalls)
            }
            Self::Odp => {
                let options = odp::Options { tunnel_port: TUNNEL_PORT, vxlan_ifindex: index_of(vxlan), kept: None };
                let (datapath, upcalls) = Odp::open(&options).unwrap();
                (Box::new(datapath), upcalls)
            }
            Self::Userspace => {
                ip(&format!("link del {vxlan}"));
                let (datapath, upcalls) = Userspace::open(TUNNEL_PORT).unwrap();
                (Box::new(datapath), upcalls)
            }
        }
    }
}

/// Interfaces and the datapath on them.
pub(crate) struct Host {
    pub(crate) kind: Kind,
    pub(crate) wires: Wires,
    pub(crate) datapath: Box<dyn Datapath>,
    upcalls: Upcalls,
    capture: Capture,
    containers: Vec<Sender>,
    underlay: Vec<Sender>,
}

impl Host {
    /// Four ports and two underlay interfaces; three neighbours; an own tree to all of them.
    pub(crate) fn new(kind: Kind, pins: &Path) -> Self {
        Self::with(kind, |vxlan| kind.open(&pins.join("host"), vxlan))
    }

    /// The same with a datapath that was opened in another way.
    pub(crate) fn with(kind: Kind, open: impl FnOnce(&str) -> (Box<dyn Datapath>, Upcalls)) -> Self {
        let wires = Wires::make();
        let (datapath, upcalls) = open("vx");
        let (capture, containers, underlay) = wires.outside.enter(|| {
            let containers = (0..PORTS).map(|port| Sender::open(&format!("c{port}"))).collect();
            (Capture::open(), containers, (0..2).map(|underlay| Sender::open(&format!("w{underlay}"))).collect())
        });
        let mut host = Self { kind, wires, datapath, upcalls, capture, containers, underlay };
        host.settle();
        host
    }

    /// The agent dies. One that has nothing to do with these interfaces stands in until the next one comes.
    pub(crate) fn close(&mut self) {
        let (nobody, upcalls) = Userspace::open(TUNNEL_PORT + 1).unwrap();
        self.reopen(Box::new(nobody), upcalls);
    }

    /// The next one comes.
    pub(crate) fn reopen(&mut self, datapath: Box<dyn Datapath>, upcalls: Upcalls) {
        (self.datapath, self.upcalls) = (datapath, upcalls);
    }

    fn settle(&mut self) {
        for port in self.ports() {
            self.datapath.attach_port(port, true).unwrap();
        }
        for ifindex in self.wires.underlay {
            self.datapath.attach_underlay(ifindex).unwrap();
        }
        self.op(Op::SetSelf(short(OWN)));
        for peer in NEIGHBOURS {
            let (remote, underlay) = (address(peer), usize::from(address(peer).octets()[1]));
            let local = LOCAL[underlay].into();
            self.set_peer(peer, peer);
            self.op(Op::SetSource { remote, neighbour: Some(Source { short: short(peer), local, least: TunnelKind::Vxlan }) });
            if peer != 4 {
                let (ifindex, source) = (self.wires.underlay[underlay], Mac(self.wires.underlay_mac[underlay]));
                let hop = NextHop { ifindex, source, next_hop: Mac(neighbour_mac(remote.octets())) };
                self.datapath.set_next_hop(remote, Some(hop)).unwrap();
            }
        }
        self.op(Op::SetTree { origin: short(OWN), parent: None, hops: NEIGHBOURS.map(short).to_vec() });
        self.op(Op::SetFloodPorts(self.ports()));
    }

    /// Peer's frames go to this neighbour.
    pub(crate) fn set_peer(&mut self, peer: u16, by: u16) {
        let remote = address(by);
        let local = LOCAL[usize::from(remote.octets()[1])].into();
        self.op(Op::SetPeer(
            short(peer),
            Some(PeerRoute { remote, local, port: TUNNEL_PORT, mtu: MTU, tunnel: TunnelKind::Vxlan, big: false }),
        ));
    }

    pub(crate) fn ports(&self) -> Vec<PortId> {
        self.wires.ports.iter().map(|&port| PortId(port)).collect()
    }

    pub(crate) fn port(&self, index: usize) -> PortId {
        PortId(self.wires.ports[index])
    }

    pub(crate) fn op(&mut self, op: Op) {
        self.datapath.apply(&op).unwrap();
    }

    /// The key of a container's frame, by its port's place.
    pub(crate) fn port_key(&self, port: usize, frame: &[u8]) -> FlowKey {
        FlowKey { ingress: self.wires.ports[port], vni: 0, outer_src: [0; 4], src: mac(frame, 6), dst: mac(frame, 0) }
    }

    /// The key of a frame for us from a peer.
    pub(crate) fn peer_key(&self, from: u16, frame: &[u8]) -> FlowKey {
        let outer_src = address(from).octets();
        FlowKey { ingress: INGRESS_TUNNEL, vni: vni(OWN.into(), from.into()), outer_src, src: mac(frame, 6), dst: mac(frame, 0) }
    }

    /// The key of a frame in transit.
    pub(crate) fn transit_key(&self, from: u16, vni: u32) -> FlowKey {
        FlowKey { ingress: INGRESS_TUNNEL, vni, outer_src: address(from).octets(), src: [0; 6], dst: [0; 6] }
    }

    pub(crate) fn cache(&mut self, port: usize, frame: &[u8], action: Action) {
        self.op(Op::Install(self.port_key(port, frame), action));
    }

    pub(crate) fn cache_peer(&mut self, from: u16, frame: &[u8], action: Action) {
        self.op(Op::Install(self.peer_key(from, frame), action));
    }

    /// The flow with this key.
    pub(crate) fn flow(&mut self, key: FlowKey) -> Option<FlowEntry> {
        self.datapath.flows().unwrap().into_iter().find(|flow| flow.key == key)
    }

    pub(crate) fn matched(&mut self) -> u64 {
        self.datapath.flows().unwrap().iter().map(|flow| flow.packets).sum()
    }

    /// One counter, as it is.
    pub(crate) fn count(&mut self, name: &str) -> u64 {
        let counters = self.datapath.counters().unwrap();
        counters.into_iter().find(|(counter, _)| *counter == name).map_or(0, |(_, count)| count)
    }

    /// Waits until a counter is so large.
    pub(crate) fn counts(&mut self, name: &str, wanted: u64) {
        let done = vm_tests::wait_for(&format!("{wanted} of {name}"), SOON, || Ok(self.count(name) >= wanted));
        assert_eq!(self.count(name), wanted, "{name} ({done:?}): {:?}", self.datapath.counters());
    }

    /// Upcalls until there are as many as wanted; with `usize::MAX`: until no more come.
    pub(crate) async fn upcalls(&mut self, wanted: usize) -> Vec<Upcall> {
        let mut seen = Vec::new();
        let patience = if wanted == usize::MAX { SOON / 10 } else { SOON };
        while seen.len() < wanted {
            match timeout(patience, self.upcalls.recv()).await {
                Ok(Some(batch)) => seen.extend(batch),
                _ => break,
            }
        }
        seen
    }

    /// The one miss that there is.
    pub(crate) async fn miss(&mut self) -> (FlowKey, Frame) {
        match self.upcalls(1).await.as_slice() {
            [Upcall::Miss { key, frame }] => (*key, frame.clone()),
            other => panic!("{other:?}"),
        }
    }

    /// A container sends a frame.
    pub(crate) fn send_from(&self, port: usize, frame: &[u8]) {
        self.containers[port].send(frame);
    }

    /// A container sends a frame that is large, or unfinished.
    pub(crate) fn send_large_from(&self, port: usize, frame: &[u8], gso_size: u16) {
        let sender = &self.containers[port];
        self.wires.outside.enter(|| {
            let frame = Frame { bytes: frame.to_vec().into(), gso_size };
            RawSender::new().unwrap().send(sender.ifindex, None, &frame).unwrap();
        });
    }

    /// A neighbour sends a packet.
    pub(crate) fn arrive(&self, underlay: usize, packet: &[u8]) {
        self.underlay[underlay].send(packet);
    }

    /// What arrives at a container is seen so.
    pub(crate) fn at_container(&self, port: usize, frame: &[u8]) -> Seen {
        Seen { ifindex: self.containers[port].ifindex, bytes: frame.to_vec() }
    }

    /// What is on the wire to a peer.
    pub(crate) fn on_wire(&self, to: u16, packet: Vec<u8>) -> Seen {
        Seen { ifindex: self.underlay[usize::from(address(to).octets()[1])].ifindex, bytes: packet }
    }

    /// All that arrives, in order of place and bytes, once `wanted` have and a little later.
    #[expect(clippy::disallowed_methods, reason = "real packets take real time")]
    pub(crate) fn arrivals(&self, wanted: usize) -> Vec<Seen> {
        let (mut seen, deadline) = (Vec::new(), Instant::now() + SOON);
        while seen.len() < wanted && Instant::now() < deadline {
            seen.extend(self.capture.received());
            std::thread::yield_now();
        }
        let quiet = Instant::now() + QUIET;
        while Instant::now() < quiet {
            seen.extend(self.capture.received());
            std::thread::yield_now();
        }
        seen.iter_mut().for_each(|seen| seen.bytes = without_choices(std::mem::take(&mut seen.bytes)));
        seen.sort();
        seen
    }

    /// What arrives is this, in whatever order, and nothing else.
    pub(crate) fn expect(&self, mut expected: Vec<Seen>) {
        expected.sort();
        let seen = self.arrivals(expected.len());
        assert_eq!(seen, expected);
    }
}

/// A socket that sends whole frames by one interface.
struct Sender {
    socket: OwnedFd,
    ifindex: u32,
}

impl Sender {
    fn open(interface: &str) -> Self {
        // No protocol: it receives nothing.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let ifindex = index_of(interface);
        bind(&socket, ifindex);
        Self { socket, ifindex }
    }

    fn send(&self, frame: &[u8]) {
        assert_eq!(send(self.socket.as_raw_fd(), frame, MsgFlags::empty()), Ok(frame.len()));
    }
}

fn bind(socket: &OwnedFd, ifindex: u32) {
    use nix::sys::socket::{LinkAddr, SockaddrLike};
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: ifindex as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: an address of the family and size that the type is for.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(size_of_val(&raw) as u32)) }.unwrap();
    nix::sys::socket::bind(socket.as_raw_fd(), &address).unwrap();
}

pub(crate) fn short(id: u16) -> ShortId {
    ShortId::new(id).unwrap()
}

fn mac(frame: &[u8], at: usize) -> [u8; 6] {
    frame[at..at + 6].try_into().unwrap()
}
