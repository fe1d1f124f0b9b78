//! A TCP stream between containers on two hosts: it crosses as large packets, on the wire and into the container.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use nix::sys::socket::{setsockopt, sockopt};
use weave_agent::addr::Mac;
use weave_agent::config::Xdp;
use weave_agent::datapath::{Action, Op, PeerRoute, PortId, Source, TunnelKind};
use weave_agent::io::datapath::ebpf::{Ebpf, NextHop, Options, Upcalls};
use weave_agent::io::object::OBJECT;
use weave_ebpf::flow::{FlowKey, INGRESS_TUNNEL, vni};

use crate::capture::{Capture, Seen};
use crate::host::{short, writes_headers};
use crate::place::{Elsewhere, ip, private_async};
use crate::wires::{TUNNEL_PORT, index_of};

/// Bytes of the stream.
const LENGTH: usize = 20_000_000;
/// No interface here takes more than 1,600 in one piece.
const LARGE: usize = 10_000;

/// One of the two hosts, with a container.
struct Side {
    namespace: Elsewhere,
    container: Elsewhere,
    ebpf: Ebpf,
    upcalls: Upcalls,
}

#[test]
fn a_stream_crosses_as_large_packets() {
    private_async(|pins| async move { assert_stream(&pins, true) });
}

/// The same with headers written and removed by the stack.
#[test]
fn a_stream_crosses_as_large_packets_through_the_vxlan_device() {
    private_async(|pins| async move { assert_stream(&pins, false) });
}

fn assert_stream(pins: &Path, direct: bool) {
    let (a, b) = hosts(pins, direct);
    let (wire, u) = a.namespace.enter(|| (Capture::open(), index_of("u")));
    let (inside, c) = b.container.enter(|| (Capture::open(), index_of("c")));
    let (mut sent, mut received) = (0, 0);
    transfer(&a, &b, || {
        sent = sent.max(largest(&wire.sent(), u));
        received = received.max(largest(&inside.received(), c));
    });
    assert!(sent > LARGE && received > LARGE, "largest packet on the wire {sent}, in the container {received}");
    for mut side in [a, b] {
        let flows = side.ebpf.flows().unwrap();
        // One way every segment of 1,500 bytes is counted; the other way acknowledgements, of which there may be few.
        assert!(flows.iter().all(|flow| flow.packets > 0), "{flows:?}");
        assert!(flows.iter().any(|flow| flow.packets >= (LENGTH / 1_500) as u64), "{flows:?}");
        let counters = side.ebpf.counters().unwrap();
        let told = |name| counters.iter().any(|&(counter, count)| counter == name && count != 0);
        let by_stack = !direct || !writes_headers();
        assert_eq!((told("upcalls"), told("too-big"), told("kernel"), told("via-stack")), (false, false, false, by_stack));
        drop(side.upcalls);
    }
}

/// Sends from `a`'s container to `b`'s, and looks on.
fn transfer(a: &Side, b: &Side, mut look: impl FnMut()) {
    let listener = b.container.enter(|| TcpListener::bind("10.32.0.2:4000").unwrap());
    let mut sender = a.container.enter(|| TcpStream::connect("10.32.0.2:4000").unwrap());
    // With bbr segments stay small where round trips take long, as they do on a busy machine.
    setsockopt(&sender, sockopt::TcpCongestion, &OsString::from("cubic")).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    let sending = thread::spawn(move || sender.write_all(&vec![7; LENGTH]).unwrap());
    let mut received = 0;
    let mut buffer = vec![0; 1 << 16];
    while let Ok(len @ 1..) = receiver.read(&mut buffer) {
        received += len;
        // Before the captures' buffers are full.
        look();
    }
    sending.join().unwrap();
    assert_eq!(received, LENGTH);
}

fn largest(seen: &[Seen], ifindex: u32) -> usize {
    seen.iter().filter(|seen| seen.ifindex == ifindex).map(|seen| seen.bytes.len()).max().unwrap_or(0)
}

fn hosts(pins: &Path, direct: bool) -> (Side, Side) {
    let (a, b) = (Elsewhere::new(), Elsewhere::new());
    ip("link add ua mtu 1600 type veth peer name ub mtu 1600");
    a.take("ua");
    b.take("ub");
    (side(a, 1, "ua", pins, direct), side(b, 2, "ub", pins, direct))
}

/// Host 1 or 2; the other one is the other.
fn side(namespace: Elsewhere, own: u8, underlay: &str, pins: &Path, direct: bool) -> Side {
    let other = 3 - own;
    let container = Elsewhere::new();
    namespace.enter(|| {
        ip(&format!(
            "link set {underlay} name u address 02:00:00:00:00:0{own} up
            addr add 10.0.0.{own}/24 dev u
            neigh add 10.0.0.{other} lladdr 02:00:00:00:00:0{other} dev u
            link add p mtu 1500 type veth peer name c mtu 1500 address 02:00:00:00:01:0{own}
            link set p up
            link add vx type vxlan external dstport {TUNNEL_PORT} nolearning
            link set vx mtu 1550 up"
        ));
        container.take("c");
    });
    container.enter(|| {
        ip(&format!(
            "addr add 10.32.0.{own}/24 dev c
            link set c up
            neigh add 10.32.0.{other} lladdr 02:00:00:00:01:0{other} dev c"
        ));
    });
    let (ebpf, upcalls) = namespace.enter(|| programs(own, &pins.join(own.to_string()), direct));
    Side { namespace, container, ebpf, upcalls }
}

fn programs(own: u8, pins: &Path, direct: bool) -> (Ebpf, Upcalls) {
    let other = 3 - own;
    let options = Options { pins: pins.to_owned(), vxlan_ifindex: index_of("vx"), tunnel_port: TUNNEL_PORT, tcx: None, xdp: Xdp::Off };
    let (mut ebpf, upcalls) = Ebpf::load(OBJECT, &options).unwrap();
    let (port, ifindex) = (index_of("p"), index_of("u"));
    ebpf.attach_port(PortId(port), true).unwrap();
    ebpf.attach_underlay(ifindex).unwrap();
    let (local, remote) = (Ipv4Addr::new(10, 0, 0, own), Ipv4Addr::new(10, 0, 0, other));
    let peer = short(other.into());
    let mac = |kind, host| [2, 0, 0, 0, kind, host];
    if direct {
        let hop = NextHop { ifindex, source: Mac(mac(0, own)), next_hop: Mac(mac(0, other)) };
        ebpf.set_next_hop(remote, Some(hop)).unwrap();
    }
    let out = FlowKey { ingress: port, vni: 0, outer_src: [0; 4], src: mac(1, own), dst: mac(1, other) };
    let vni = vni(own.into(), other.into());
    let back = FlowKey { ingress: INGRESS_TUNNEL, vni, outer_src: remote.octets(), src: mac(1, other), dst: mac(1, own) };
    for op in [
        Op::SetSelf(short(own.into())),
        Op::SetPeer(peer, Some(PeerRoute { remote, local, port: TUNNEL_PORT, mtu: 1_550, tunnel: TunnelKind::Vxlan, big: false })),
        Op::SetSource { remote, neighbour: Some(Source { short: peer, local, least: TunnelKind::Vxlan }) },
        Op::Install(out, Action::Peer(peer)),
        Op::Install(back, Action::Port(PortId(port))),
    ] {
        ebpf.apply(&op).unwrap();
    }
    (ebpf, upcalls)
}
