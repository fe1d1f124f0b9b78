//! Per-interface settings under /proc/sys/net, which shows the namespace of the thread that looks.

use std::fs;

/// Settings of a container's interface: a moved address is found again in about 10 s even by neighbours that missed the
/// announcement; what a router says does not configure us; addresses are usable at once (they are unique: our MACs are random,
/// our addresses given) and outlive their elders in the same subnet.
const CONTAINER: &[(&str, &str, &str)] = &[
    ("ipv4/neigh", "base_reachable_time_ms", "5000"),
    ("ipv4/neigh", "delay_first_probe_time", "2"),
    ("ipv4/neigh", "ucast_solicit", "1"),
    ("ipv6/neigh", "base_reachable_time_ms", "5000"),
    ("ipv6/neigh", "delay_first_probe_time", "2"),
    ("ipv6/neigh", "ucast_solicit", "1"),
    ("ipv4/conf", "promote_secondaries", "1"),
    ("ipv6/conf", "accept_ra", "0"),
    ("ipv6/conf", "accept_dad", "0"),
    ("ipv6/conf", "dad_transmits", "0"),
];

/// Settings of a port: the host has nothing to say there.
const PORT: &[(&str, &str, &str)] = &[("ipv6/conf", "disable_ipv6", "1"), ("ipv6/conf", "accept_ra", "0")];

/// Settings of the name server's interface, besides: it has an address that every host's has, so nobody may ask who has it.
const NAMESERVER: &[(&str, &str, &str)] =
    &[("ipv4/conf", "arp_ignore", "8"), ("ipv4/conf", "rp_filter", "0"), ("ipv6/conf", "disable_ipv6", "0")];

/// Settle the interface that carries addresses. Where /proc/sys cannot be written it works without, only slower.
pub(super) fn settle_container(ifname: &str) {
    write_all(ifname, CONTAINER);
}

/// Settle the interface that the name server listens behind.
pub(super) fn settle_nameserver(ifname: &str) {
    settle_container(ifname);
    write_all(ifname, NAMESERVER);
}

/// Settle the host side of a port, or the vxlan device.
pub(in crate::io) fn settle_port(ifname: &str) {
    write_all(ifname, PORT);
}

/// Docker switches IPv6 off where nobody asked for it; an IPv6 address asks for it.
pub(super) fn enable_ipv6(ifname: &str) {
    write_all(ifname, &[("ipv6/conf", "disable_ipv6", "0")]);
}

fn write_all(ifname: &str, settings: &[(&str, &str, &str)]) {
    for (table, key, value) in settings {
        let path = format!("/proc/sys/net/{table}/{ifname}/{key}");
        if let Err(error) = fs::write(&path, value) {
            tracing::debug!(%path, %error, "setting left as it is");
        }
    }
}
