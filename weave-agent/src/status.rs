//! What an agent says of itself: the JSON that the control API answers and `weave-agent status` shows.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::addr::Mac;

/// `GET /status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Of the program.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// Seconds since the agent started.
    pub uptime: f64,
    /// It serves: programs are loaded, it listens.
    pub ready: bool,
    /// The peer's name.
    pub name: String,
    /// The peer's nickname.
    pub nickname: String,
    /// The peer's short id.
    pub short_id: u16,
    /// TCP port of the mesh.
    pub port: u16,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// Dials peers that other peers tell of.
    pub discovery: bool,
    /// The network has a password.
    #[serde(default)]
    pub encrypted: bool,
    /// What carries frames.
    pub datapath: String,
    /// Of each underlay interface, whether strangers' packets end there before the stack sees them, and if not, why.
    #[serde(default)]
    pub xdp: Vec<String>,
    /// MTU for containers attached now.
    pub mtu: u32,
    /// Number of targets.
    pub targets: usize,
    /// How many connections are in which state.
    pub connections: BTreeMap<String, usize>,
    /// Number of peers known, with ourselves.
    pub peers: usize,
    /// Peers that frames reach now.
    pub reachable: usize,
    /// Local ports.
    pub ports: usize,
    /// Entries of the fdb.
    pub fdb: usize,
    /// Flows in the datapath's cache.
    pub flows: usize,
    /// Everything counted that is no drop, by name.
    pub counters: BTreeMap<String, u64>,
    /// Frames dropped, by reason; those that never happened are left out.
    pub drops: BTreeMap<String, u64>,
    /// What somebody should look at.
    pub warnings: Vec<String>,
}

/// One line of `GET /status/connections`: a mesh connection, or an address that one is wanted to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// We dialled.
    pub outbound: bool,
    /// The other end.
    pub address: SocketAddrV4,
    /// `established`, `pending`, `connecting`, `retrying`, `failed`.
    pub state: String,
    /// Who it is, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// And its nickname.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nickname: Option<String>,
    /// With a password: `encrypted`, or `trusted` if both ends trust the network between them and frames may go in clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    /// How frames for this peer travel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
    /// What is going on, or why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info: Option<String>,
    /// Seconds until the next attempt; none if there will be none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<f64>,
}

/// How frames for a peer travel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tunnel {
    /// `vxlan` (the kernel), `esp` (the same under IPsec) or `sleeve` (user space) straight to it, `relay` through another peer, `starting`, `down`.
    pub kind: String,
    /// Through whom, by name, if relayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// Largest inner packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Milliseconds for a heartbeat there and back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt: Option<f64>,
    /// Seconds it has been so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<f64>,
    /// Why it is not `vxlan` or `esp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One entry of `GET /peers`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its nickname.
    pub nickname: String,
    /// Its short id; none while it looks for a new one.
    pub short_id: Option<u16>,
    /// It is us.
    pub me: bool,
    /// The neighbour that frames for it go through (itself if adjacent); none if there is no way.
    pub next_hop: Option<String>,
    /// And its nickname.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop_nickname: Option<String>,
    /// Whom it is connected with.
    pub connections: Vec<PeerConnection>,
}

/// One connection of a [`Peer`], as it tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerConnection {
    /// With whom.
    pub name: String,
    /// And its nickname, if we know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nickname: Option<String>,
    /// The address it sees there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddrV4>,
    /// It dialled.
    pub outbound: bool,
    /// Both ways work.
    pub established: bool,
}

/// One entry of `GET /targets`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// As given.
    pub name: String,
    /// What it means now.
    pub addresses: Vec<SocketAddrV4>,
}

/// One entry of `GET /flows`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// What it matches.
    pub key: FlowKey,
    /// What is done with a frame that matches.
    pub action: FlowAction,
    /// Frames matched.
    pub packets: u64,
    /// Inner bytes matched.
    pub bytes: u64,
    /// Seconds since the last match; none if never matched.
    pub idle: Option<f64>,
}

/// What a [`Flow`] matches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowKey {
    /// Interface index of the port; none for frames out of a tunnel.
    pub port: Option<u32>,
    /// Name of that interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Tunnel's VNI; none for frames from a port.
    pub vni: Option<u32>,
    /// Outer source; none for frames from a port.
    pub outer_src: Option<Ipv4Addr>,
    /// Inner source; zero for frames in transit.
    #[serde(with = "text")]
    pub src: Mac,
    /// Inner destination; zero for frames in transit.
    #[serde(with = "text")]
    pub dst: Mac,
}

/// What a [`Flow`] does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum FlowAction {
    /// Drop and count.
    Drop {
        /// The counter's name.
        reason: String,
    },
    /// Deliver to a port.
    Port {
        /// Its interface index.
        port: u32,
        /// Its interface's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interface: Option<String>,
    },
    /// Send to a peer.
    Peer {
        /// Its short id.
        short_id: u16,
        /// Its name, if known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<String>,
    },
    /// Copy to all ports and along a tree.
    Flood {
        /// Short id of the tree's root.
        origin: u16,
        /// That peer's name, if known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<String>,
    },
}

/// One entry of `GET /fdb`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FdbEntry {
    /// The address.
    #[serde(with = "text")]
    pub mac: Mac,
    /// Interface index of the port it is at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// Name of that interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Name of the peer it is at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// And the peer's nickname.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nickname: Option<String>,
    /// Seconds since it was last seen.
    pub age: f64,
    /// It moves too often and is held where it is.
    #[serde(default)]
    pub contested: bool,
}

/// One entry of `GET /ps`: who is on the network here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// As it was given to `attach`; `weave:expose` for the host itself.
    pub target: String,
    /// Interface index of its port.
    pub port: u32,
    /// Name of the port's interface.
    pub interface: String,
    /// Its Ethernet address.
    #[serde(with = "text")]
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// MTU of its interface.
    pub mtu: u32,
}

/// `GET /status/ipam`: who gives out which addresses. Counts of addresses are text: JSON readers round large numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ipam {
    /// `off`, `none` (nobody wanted an address yet), `awaiting` (the hosts vote), `ready`.
    pub ring: String,
    /// While the hosts vote: those that take part, and how many must.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub votes: Option<(usize, usize)>,
    /// One per range.
    pub ranges: Vec<IpamRange>,
    /// Addresses in use on this host, by the interface of the port.
    pub owned: BTreeMap<String, Vec<IpNet>>,
    /// Requests that wait.
    pub pending: Vec<String>,
    /// What somebody should look at.
    pub warnings: Vec<String>,
    /// How long the latest requests waited for their answers.
    pub answered: Answered,
    /// What happened, counted.
    pub counters: serde_json::Value,
}

/// `GET /status/dns`: names. `null` if this agent keeps none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dns {
    /// All names of the network.
    pub names: crate::dns::Status,
    /// Where this host's server listens, whom it asks, and what it has answered.
    pub server: serde_json::Value,
}

/// How long the latest requests waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// How many they are, at most 1,000.
    pub requests: usize,
    /// Half of them waited no longer, in milliseconds.
    pub p50_ms: f64,
    /// 99 % waited no longer.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

/// One range of [`Ipam`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IpamRange {
    /// The range.
    pub range: IpNet,
    /// What is meant if no subnet is said.
    pub subnet: IpNet,
    /// Who may give it out, ourselves included.
    pub owners: Vec<IpamOwner>,
    /// This host's own addresses that are free.
    pub free: String,
    /// In use on this host.
    pub used: u64,
    /// Perhaps this host's own: not used until the other owners have told what they know.
    pub quarantined: String,
}

/// One owner of an [`IpamRange`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IpamOwner {
    /// Its name.
    pub name: String,
    /// And its nickname, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nickname: Option<String>,
    /// It is us.
    pub me: bool,
    /// It can be asked.
    pub reachable: bool,
    /// How many addresses it has.
    pub addresses: String,
    /// How much of the range that is.
    pub percent: f64,
    /// In how many pieces.
    pub pieces: usize,
}

/// `GET /report`: everything, for a bug report or a program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// As `GET /status`.
    pub status: Summary,
    /// As `GET /status/connections`.
    pub connections: Vec<Connection>,
    /// As `GET /peers`.
    pub peers: Vec<Peer>,
    /// As `GET /targets`.
    pub targets: Vec<Target>,
    /// As `GET /flows`.
    pub flows: Vec<Flow>,
    /// As `GET /fdb`.
    pub fdb: Vec<FdbEntry>,
    /// As `GET /status/ipam`.
    pub ipam: Ipam,
    /// As `GET /status/dns`.
    pub dns: Option<Dns>,
    /// What happened to the mesh, counted.
    pub mesh: serde_json::Value,
    /// What happened to the switch, counted.
    pub switch: serde_json::Value,
    /// What the sleeve's threads counted, and where their neighbours are; null without a sleeve.
    #[serde(default)]
    pub sleeve: serde_json::Value,
}

/// Addresses as people write them.
mod text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::addr::Mac;

    pub(super) fn serialize<S: Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(mac)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_one_flat_object_that_people_can_read() {
        let key = FlowKey { port: Some(7), interface: None, vni: None, outer_src: None, src: Mac([2; 6]), dst: Mac::BROADCAST };
        let action = FlowAction::Peer { short_id: 9, peer: None };
        let flow = Flow { key, action, packets: 3, bytes: 180, idle: Some(0.5) };
        let json = serde_json::to_string(&flow).unwrap();
        insta::assert_snapshot!(json, @r#"{"key":{"port":7,"vni":null,"outer_src":null,"src":"02:02:02:02:02:02","dst":"ff:ff:ff:ff:ff:ff"},"action":{"do":"peer","short_id":9},"packets":3,"bytes":180,"idle":0.5}"#);
        assert_eq!(serde_json::from_str::<Flow>(&json).unwrap(), flow);
    }
}
