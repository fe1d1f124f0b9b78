//! What the switch is told once, at the start.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::Time;
use crate::peer::{PeerName, ShortId};

/// Who we are, and the switch's limits. [`Config::new`] gives limits that suit a host with a few hundred containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Our own name.
    pub name: PeerName,
    /// Our own short id, as kept in the state directory or chosen at random; the first [`View`](crate::mesh::View) may correct it.
    pub short: ShortId,
    /// UDP port of our tunnel, where the neighbours that dialled us send to.
    pub tunnel_port: u16,
    /// A flow not matched for this long is removed.
    pub flow_idle: Time,
    /// A MAC not seen for this long is forgotten.
    pub fdb_idle: Time,
    /// After the start, for this long, what the last agent left in the kernel ([`Adopted`](super::Adopted)) is added to and not taken away:
    /// longer than both ends of a link take to be started again and to find each other, on a slow machine.
    pub grace: Time,
    /// Most MACs behind one port.
    pub port_macs: usize,
    /// Most MACs behind one peer.
    pub peer_macs: usize,
    /// Most MACs in all.
    pub macs: usize,
    /// Most flows from one port or one neighbour.
    pub source_flows: usize,
    /// Most flows in all; the kernel's table should hold more.
    pub flows: usize,
    /// MACs announced to the other peers per second, and at most at once.
    pub announce_rate: u32,
    /// Largest inner packet tried while the route to a neighbour is not known: an Ethernet underlay without the 50 bytes of headers.
    pub default_mtu: u16,
    /// Frames leave this host sealed, but for these networks; `None`: in clear where the neighbours say nothing else.
    /// The router sets it from the mesh's settings.
    pub sealed_but_for: Option<Vec<Ipv4Net>>,
}

impl Config {
    /// The usual limits.
    pub fn new(name: PeerName, short: ShortId, tunnel_port: u16) -> Self {
        Self {
            name,
            short,
            tunnel_port,
            flow_idle: Time::from_secs(120),
            fdb_idle: Time::from_secs(600),
            grace: Time::from_secs(30),
            port_macs: 1024,
            peer_macs: 16_384,
            macs: 131_072,
            source_flows: 16_384,
            flows: 131_072,
            announce_rate: 200,
            default_mtu: 1450,
            sealed_but_for: None,
        }
    }

    /// Whether frames to an address may only go sealed, as far as our own settings say.
    pub(super) fn seals(&self, remote: Ipv4Addr) -> bool {
        self.sealed_but_for.as_ref().is_some_and(|trusted| !trusted.iter().any(|subnet| subnet.contains(&remote)))
    }
}
