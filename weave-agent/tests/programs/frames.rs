//! Generated frames and packets, proper and broken.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use weave_ebpf::fastpath::{HEARTBEAT_REPLY, HEARTBEAT_REQUEST};
use weave_ebpf::flow::{FlowKey, INGRESS_TUNNEL, Ipv4, Mac, vni};
use weave_ebpf::packet::ETHERNET;
use weave_ebpf::vxlan::{Fields, OUTER, Path, headers, slot};

use crate::wires::{LOCAL, TUNNEL_PORT};
use crate::world::{SHORTS, World};

/// A test run takes no packet that is shorter (`bpf_test_init`), and no driver hands one up.
pub(crate) const SHORTEST: usize = ETHERNET;
/// Largest frame made here: a test run's packet has to fit a page with the kernel's own needs.
const LONGEST: usize = 1_600;

const MACS: [Mac; 8] = [
    [0; 6],
    [2, 0, 0, 0, 0, 1],
    [2, 0, 0, 0, 0, 2],
    [2, 0, 0, 0, 0, 3],
    [0xff; 6],
    [0x33, 0x33, 0, 0, 0, 1],
    [1, 0, 0x5e, 0, 0, 0xfb],
    [1, 0x80, 0xc2, 0, 0, 0],
];

/// A packet and the key that the programs should make of it, were it in order.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) packet: Vec<u8>,
    pub(crate) key: FlowKey,
}

/// A frame from a container.
pub(crate) fn from_port(rng: &mut StdRng, ingress: u32) -> Made {
    let packet = if rng.random_bool(0.03) { garbage(rng) } else { frame(rng) };
    let key = FlowKey { ingress, vni: 0, outer_src: [0; 4], src: mac(&packet, 6), dst: mac(&packet, 0) };
    Made { packet, key }
}

/// What a tunnel says of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tunnel {
    pub(crate) vni: u32,
    pub(crate) remote: Ipv4,
    pub(crate) ttl: u8,
}

impl Tunnel {
    pub(crate) fn generate(rng: &mut StdRng, world: &World) -> Self {
        let own = world.memory.config.short;
        let to = if rng.random_bool(0.7) { own } else { short(rng) };
        let ttl = *[0, 1, 7, 8, 9, 10, 16, 56, 63, 64, 64, 64, 65, 72, 73, 255].choose(rng).unwrap();
        let remote = remote(rng, world);
        let neighbour = world.memory.sources.get(&remote).filter(|_| rng.random_bool(0.4));
        let origin = neighbour.map_or_else(|| short(rng), |source| source.short);
        Self { vni: vni(to, origin), remote, ttl }
    }
}

/// A frame that came out of the vxlan device.
pub(crate) fn from_vxlan(rng: &mut StdRng, world: &World, tunnel: Tunnel) -> Made {
    let packet = inner(rng);
    let key = tunnel_key(world, tunnel, &packet);
    Made { packet, key }
}

/// A packet on the underlay.
pub(crate) fn from_underlay(rng: &mut StdRng, world: &World) -> Made {
    let tunnel = Tunnel::generate(rng, world);
    let inner = inner(rng);
    let local = if rng.random_bool(0.95) { LOCAL[usize::from(tunnel.remote[1] & 1)] } else { [10, 0, 0, 77] };
    // As the sender sees it.
    let path = Path {
        local: tunnel.remote,
        remote: local,
        port: port(rng),
        mtu: 9_000,
        next_hop: Some((1, [2; 6], [4; 6])),
        esp: false,
        big: false,
    };
    let fields = Fields { ttl: tunnel.ttl, ..Fields::new(inner.len() as u32, rng.random()) };
    let mut packet = [headers(&slot(&path), tunnel.vni, fields).as_slice(), &inner].concat();
    let key = tunnel_key(world, tunnel, &inner);
    match rng.random_range(0..20) {
        0 => break_header(rng, &mut packet),
        1 => {
            let at = rng.random_range(0..packet.len());
            packet[at] = rng.random();
        }
        2 => packet.truncate(rng.random_range(SHORTEST..packet.len())),
        3 => packet = if rng.random_bool(0.5) { garbage(rng) } else { frame(rng) },
        _ => {}
    }
    Made { packet, key }
}

/// IP version and options, fragments, protocol, UDP checksum, VXLAN flags and reserved bits.
fn break_header(rng: &mut StdRng, packet: &mut [u8]) {
    let at = *[12, 14, 20, 21, 23, 40, 41, 42, 49].choose(rng).unwrap();
    packet[at] = rng.random();
}

fn tunnel_key(world: &World, tunnel: Tunnel, inner: &[u8]) -> FlowKey {
    let ours = tunnel.vni >> 12 == world.memory.config.short;
    let (src, dst) = if ours { (mac(inner, 6), mac(inner, 0)) } else { ([0; 6], [0; 6]) };
    FlowKey { ingress: INGRESS_TUNNEL, vni: tunnel.vni, outer_src: tunnel.remote, src, dst }
}

fn inner(rng: &mut StdRng) -> Vec<u8> {
    if rng.random_bool(0.15) { heartbeat(rng) } else { frame(rng) }
}

/// Ethernet, then ARP, IPv4, IPv6, a VLAN tag before one of them, or anything.
fn frame(rng: &mut StdRng) -> Vec<u8> {
    let mut frame = [*MACS.choose(rng).unwrap(), *MACS.choose(rng).unwrap()].concat();
    if rng.random_bool(0.1) {
        let tpid = *[0x8100u16, 0x88a8].choose(rng).unwrap();
        frame.extend(tpid.to_be_bytes());
        frame.extend(rng.random::<[u8; 2]>());
    }
    match rng.random_range(0..10) {
        0 | 1 => arp(rng, &mut frame),
        2..=5 => ipv4(rng, &mut frame),
        6 | 7 => ipv6(rng, &mut frame),
        _ => {
            frame.extend(rng.random::<[u8; 2]>());
            random(rng, &mut frame, 100);
        }
    }
    if rng.random_bool(0.1) {
        frame.truncate(rng.random_range(SHORTEST..=frame.len()));
    }
    frame
}

fn arp(rng: &mut StdRng, frame: &mut Vec<u8>) {
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(rng.random::<[u8; 20]>());
}

fn ipv4(rng: &mut StdRng, frame: &mut Vec<u8>) {
    let payload = transport(rng);
    let len = 20 + payload.len() as u16;
    frame.extend([0x08, 0, 0x45, rng.random()]);
    frame.extend(len.to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, *[1, 6, 17, 50].choose(rng).unwrap(), 0, 0, 10, 32, 0, 1, 10, 32, 0, 2]);
    frame.extend(payload);
}

fn ipv6(rng: &mut StdRng, frame: &mut Vec<u8>) {
    let payload = transport(rng);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([*[6, 17, 58].choose(rng).unwrap(), 64]);
    frame.extend(rng.random::<[u8; 32]>());
    frame.extend(payload);
}

fn transport(rng: &mut StdRng) -> Vec<u8> {
    let mut payload = rng.random::<[u8; 8]>().to_vec();
    let most = if rng.random_bool(0.1) { LONGEST } else { 60 };
    random(rng, &mut payload, most);
    payload
}

/// Zero MACs, any EtherType, version, kind, padding.
fn heartbeat(rng: &mut StdRng) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([0, 0, 1, *[HEARTBEAT_REQUEST, HEARTBEAT_REPLY, 0, 7].choose(rng).unwrap()]);
    random(rng, &mut frame, 60);
    if rng.random_bool(0.1) {
        frame.truncate(rng.random_range(SHORTEST..=frame.len()));
    }
    frame
}

fn garbage(rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = rng.random::<[u8; SHORTEST]>().to_vec();
    random(rng, &mut bytes, 200);
    bytes
}

fn random(rng: &mut StdRng, bytes: &mut Vec<u8>, most: usize) {
    let start = bytes.len();
    bytes.resize(start + rng.random_range(0..most), 0);
    rng.fill_bytes(&mut bytes[start..]);
}

fn short(rng: &mut StdRng) -> u32 {
    if rng.random_bool(0.05) { rng.random_range(0..0x1000) } else { *SHORTS.choose(rng).unwrap() }
}

fn remote(rng: &mut StdRng, world: &World) -> Ipv4 {
    if rng.random_bool(0.05) { [10, 0, 0, 250] } else { *world.neighbours.choose(rng).unwrap() }
}

fn port(rng: &mut StdRng) -> u16 {
    if rng.random_bool(0.03) { 4789 } else { TUNNEL_PORT }
}

fn mac(frame: &[u8], at: usize) -> Mac {
    frame[at..at + 6].try_into().unwrap()
}

const _: () = assert!(OUTER + LONGEST < 3_000);
