//! A TCP stream between containers of two hosts, for each pair of datapaths: large segments, acknowledgements, and all
//! that stacks do between them.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use nix::sys::socket::{setsockopt, sockopt};
use weave_agent::addr::Mac;
use weave_agent::datapath::{Action, Op, PeerRoute, PortId, Source, TunnelKind};
use weave_agent::io::datapath::{Datapath, NextHop, Upcalls};
use weave_ebpf::flow::{FlowKey, INGRESS_TUNNEL, vni};

use crate::host::{Kind, short};
use crate::place::{Elsewhere, ip, private_async};
use crate::wires::{TUNNEL_PORT, index_of};

/// Bytes of the stream.
const LENGTH: usize = 20_000_000;

macro_rules! streams {
    ($($name:ident: $from:ident $to:ident;)+) => {
        $(#[test] fn $name() { private_async(|pins| async move { assert_stream(&pins, Kind::$from, Kind::$to) }); })+
    };
}

streams! {
    a_stream_crosses_between_user_space_and_programs: Userspace Ebpf;
    a_stream_crosses_between_programs_and_user_space: Ebpf Userspace;
    a_stream_crosses_between_two_in_user_space: Userspace Userspace;
    a_stream_crosses_between_the_module_and_programs: Odp Ebpf;
    a_stream_crosses_between_user_space_and_the_module: Userspace Odp;
    a_stream_crosses_between_two_modules: Odp Odp;
}

/// One of the two hosts, with a container.
struct Side {
    namespace: Elsewhere,
    container: Elsewhere,
    datapath: Box<dyn Datapath>,
    _upcalls: Upcalls,
}

fn assert_stream(pins: &Path, from: Kind, to: Kind) {
    if !from.is_there() || !to.is_there() {
        return;
    }
    let (a, b) = (Elsewhere::new(), Elsewhere::new());
    ip("link add ua mtu 1600 type veth peer name ub mtu 1600");
    a.take("ua");
    b.take("ub");
    let (a, b) = (side(a, 1, "ua", pins, from), side(b, 2, "ub", pins, to));
    transfer(&a, &b);
    for (mut side, kind) in [(a, from), (b, to)] {
        // One that does not count segments counts large ones of at most 64 kB.
        let least = (LENGTH / if kind == Kind::Odp { 1 << 16 } else { 1_500 }) as u64;
        let flows = side.datapath.flows().unwrap();
        // One way every segment of 1,500 bytes is counted; the other way acknowledgements, of which there may be few.
        assert!(flows.iter().all(|flow| flow.packets > 0), "{flows:?}");
        assert!(flows.iter().any(|flow| flow.packets >= least), "{flows:?}");
        let counters = side.datapath.counters().unwrap();
        let told = |name| counters.iter().any(|&(counter, count)| counter == name && count != 0);
        assert_eq!((told("upcalls"), told("too-big"), told("kernel"), told("malformed")), (false, false, false, false), "{counters:?}");
        side.namespace.enter(|| drop(side.datapath));
    }
}

fn transfer(a: &Side, b: &Side) {
    let listener = b.container.enter(|| TcpListener::bind("10.32.0.2:4000").unwrap());
    let mut sender = a.container.enter(|| TcpStream::connect("10.32.0.2:4000").unwrap());
    setsockopt(&sender, sockopt::TcpCongestion, &OsString::from("cubic")).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    // Each byte says where it is, so that a segment out of place is seen.
    let sent: Vec<u8> = (0..LENGTH).map(|at| (at / 7) as u8).collect();
    let expected = sent.clone();
    let sending = thread::spawn(move || sender.write_all(&sent).unwrap());
    let mut received = Vec::new();
    receiver.read_to_end(&mut received).unwrap();
    sending.join().unwrap();
    assert!(received == expected);
}

/// Host 1 or 2; the other one is the other.
fn side(namespace: Elsewhere, own: u8, underlay: &str, pins: &Path, kind: Kind) -> Side {
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
    let (datapath, upcalls) = namespace.enter(|| tell(kind, own, &pins.join(own.to_string())));
    Side { namespace, container, datapath, _upcalls: upcalls }
}

fn tell(kind: Kind, own: u8, pins: &Path) -> (Box<dyn Datapath>, Upcalls) {
    let other = 3 - own;
    let (mut datapath, upcalls) = kind.open(pins, "vx");
    let (port, ifindex) = (index_of("p"), index_of("u"));
    datapath.attach_port(PortId(port), true).unwrap();
    datapath.attach_underlay(ifindex).unwrap();
    let (local, remote) = (Ipv4Addr::new(10, 0, 0, own), Ipv4Addr::new(10, 0, 0, other));
    let peer = short(other.into());
    let mac = |kind, host| [2, 0, 0, 0, kind, host];
    let hop = NextHop { ifindex, source: Mac(mac(0, own)), next_hop: Mac(mac(0, other)) };
    datapath.set_next_hop(remote, Some(hop)).unwrap();
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
        datapath.apply(&op).unwrap();
    }
    (datapath, upcalls)
}
