//! The interfaces of a host: ports, underlay, vxlan device; what is at their other ends is in another namespace.

use nix::net::if_::if_nametoindex;

use crate::place::{Elsewhere, ip, wait_for_carrier};

pub(crate) const TUNNEL_PORT: u16 = 6784;
pub(crate) const PORTS: usize = 4;
/// Our address on each underlay interface; its neighbours are `.2` to `.9`.
pub(crate) const LOCAL: [[u8; 4]; 2] = [[10, 0, 0, 1], [10, 1, 0, 1]];

/// Interface indexes and MACs.
pub(crate) struct Wires {
    pub(crate) ports: Vec<u32>,
    pub(crate) underlay: [u32; 2],
    pub(crate) underlay_mac: [[u8; 6]; 2],
    pub(crate) vxlan: u32,
    /// The other ends.
    pub(crate) outside: Elsewhere,
}

impl Wires {
    /// Makes them in the calling thread's namespace.
    pub(crate) fn make() -> Self {
        let outside = Elsewhere::new();
        let ports = (0..PORTS).map(|index| (format!("p{index}"), format!("c{index}")));
        let pairs: Vec<_> = ports.chain((0..2).map(|index| (format!("u{index}"), format!("w{index}")))).collect();
        let there = outside.path();
        let mut lines: String =
            pairs.iter().map(|(a, b)| format!("link add {a} mtu 9000 type veth peer name {b} mtu 9000 netns {there}\n")).collect();
        let underlay_mac = [0, 1].map(|index| [2, 0, 0, 0, 0xaa, index]);
        for (index, mac) in (0u8..).zip(underlay_mac) {
            lines += &format!("link set u{index} address {}\naddr add 10.{index}.0.1/24 dev u{index}\n", text(mac));
        }
        pairs.iter().for_each(|(here, _)| lines += &format!("link set {here} up\n"));
        for (index, host) in (0..2).flat_map(|index| (2..10).map(move |host| (index, host))) {
            let neighbour = text(neighbour_mac([10, index, 0, host]));
            lines += &format!("neigh replace 10.{index}.0.{host} lladdr {neighbour} nud permanent dev u{index}\n");
        }
        ip(&lines);
        outside.enter(|| ip(&pairs.iter().map(|(_, there)| format!("link set {there} up\n")).collect::<String>()));
        wait_for_carrier(&["p0", "p1", "p2", "p3", "u0", "u1"]);
        outside.enter(|| wait_for_carrier(&["c0", "c1", "c2", "c3", "w0", "w1"]));
        let vxlan = make_vxlan("vx");
        Self {
            ports: (0..PORTS).map(|index| index_of(&format!("p{index}"))).collect(),
            underlay: [index_of("u0"), index_of("u1")],
            underlay_mac,
            vxlan,
            outside,
        }
    }
}

/// The tunnel's device; returns its index.
pub(crate) fn make_vxlan(name: &str) -> u32 {
    ip(&format!("link add {name} type vxlan external dstport {TUNNEL_PORT} nolearning\nlink set {name} mtu 8950 up"));
    index_of(name)
}

/// MAC of the machine that has an underlay address.
pub(crate) fn neighbour_mac(address: [u8; 4]) -> [u8; 6] {
    [2, 0xbb, address[0], address[1], address[2], address[3]]
}

pub(crate) fn index_of(name: &str) -> u32 {
    if_nametoindex(name).unwrap()
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
