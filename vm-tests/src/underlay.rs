//! Builds what connects the hosts: a switch or a router in the namespace `wire`, and a cable to each host.

use anyhow::Result;

use crate::netns::Netns;
use crate::plan::Uplink;
use crate::{LabConfig, Place, Underlay};

/// How much worse the second uplink is than the first, as a route metric.
const FALLBACK: u16 = 200;

impl LabConfig {
    /// The namespace of a host or container.
    pub(crate) fn netns(&self, place: Place) -> Netns {
        Netns::named(format!("wl-{}-{place}", self.name))
    }

    /// The namespace of the switch or router.
    pub(crate) fn wire(&self) -> Netns {
        Netns::named(format!("wl-{}-wire", self.name))
    }

    /// All hosts and containers, hosts first.
    pub fn places(&self) -> Vec<Place> {
        let hosts = (1..=self.hosts).map(Place::Host);
        hosts.chain(self.containers()).collect()
    }

    pub(crate) fn containers(&self) -> impl Iterator<Item = Place> {
        let containers = self.containers;
        (1..=self.hosts).flat_map(move |host| (1..=containers).map(move |c| Place::Container(host, c)))
    }

    pub(crate) fn namespaces(&self) -> impl Iterator<Item = Netns> {
        let places = self.places().into_iter().map(|place| self.netns(place));
        places.chain([self.wire()])
    }
}

/// Makes all namespaces and connects the hosts.
pub(crate) fn build(config: &LabConfig) -> Result<()> {
    for netns in config.namespaces() {
        netns.create()?;
    }
    if config.underlay == Underlay::Direct {
        return connect_directly(config);
    }
    prepare(config)?;
    for uplink in config.uplinks() {
        connect(config, uplink)?;
    }
    Ok(())
}

fn connect_directly(config: &LabConfig) -> Result<()> {
    let [near, far] = [1, 2].map(|host| config.netns(Place::Host(host)));
    let mtu = config.mtu;
    near.ip(&format!("link add eth0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n", far.name()))?;
    for uplink in config.uplinks() {
        config.netns(Place::Host(uplink.host)).ip(&near_end(uplink))?;
    }
    Ok(())
}

fn prepare(config: &LabConfig) -> Result<()> {
    let wire = config.wire();
    match config.underlay {
        Underlay::Direct => Ok(()),
        Underlay::Flat => wire.ip("link add dev bridge type bridge\nlink set bridge up\n"),
        Underlay::Routed => {
            wire.sysctl("ip_forward", 1)?;
            accept_any_path(&wire)?;
            (1..=config.hosts).try_for_each(|host| accept_any_path(&config.netns(Place::Host(host))))
        }
    }
}

/// With two uplinks a packet may come in where the way back does not lead out, and an unplugged one must not be used.
fn accept_any_path(netns: &Netns) -> Result<()> {
    for scope in ["all", "default"] {
        netns.sysctl(&format!("conf/{scope}/rp_filter"), 0)?;
        netns.sysctl(&format!("conf/{scope}/ignore_routes_with_linkdown"), 1)?;
    }
    Ok(())
}

fn connect(config: &LabConfig, uplink: Uplink) -> Result<()> {
    let host = config.netns(Place::Host(uplink.host));
    let wire = config.wire();
    let (device, port, mtu) = (uplink.device(), uplink.port(), config.mtu);
    host.ip(&format!("link add {device} mtu {mtu} type veth peer name {port} mtu {mtu} netns {}\n", wire.name()))?;
    wire.ip(&far_end(uplink))?;
    host.ip(&near_end(uplink))
}

fn near_end(uplink: Uplink) -> String {
    let device = uplink.device();
    let mut lines = format!("addr add {}/24 dev {device}\nlink set {device} up\n", uplink.address());
    if let Some(gateway) = uplink.gateway() {
        lines += &format!("route add default via {gateway} dev {device} metric {}\n", metric(uplink));
    }
    lines
}

fn far_end(uplink: Uplink) -> String {
    let port = uplink.port();
    let Some(gateway) = uplink.gateway() else {
        return format!("link set {port} master bridge\nlink set {port} up\n");
    };
    let mut lines = format!("addr add {gateway}/24 dev {port}\nlink set {port} up\n");
    if uplink.index > 0 {
        let [a, b, c, _] = Uplink { index: 0, ..uplink }.address().octets();
        lines += &format!("route add {a}.{b}.{c}.0/24 via {} metric {FALLBACK}\n", uplink.address());
    }
    lines
}

fn metric(uplink: Uplink) -> u16 {
    100 + u16::from(uplink.index) * FALLBACK
}
