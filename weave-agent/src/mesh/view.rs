//! What the mesh tells the switch: who is there and which way the data plane goes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::peer::{PeerName, ShortId};

/// The data plane's routes, recomputed whenever the topology changes (established and symmetric edges only).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Our own name.
    pub name: PeerName,
    /// Our own short id.
    pub short: ShortId,
    /// Every other peer known, reachable or not.
    pub peers: BTreeMap<PeerName, PeerView>,
    /// Our own broadcast tree: the neighbours that get a copy of local floods.
    pub hops: Vec<PeerName>,
}

impl View {
    /// Those that are not in the mesh.
    pub fn strangers(&self, peers: impl Iterator<Item = PeerName>) -> Vec<PeerName> {
        peers.filter(|name| !self.peers.contains_key(name)).collect()
    }
}

/// One other peer, seen from here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerView {
    /// Free text, for people.
    pub nickname: String,
    /// Its short id, unless it lost arbitration and has not chosen a new one yet.
    pub short: Option<ShortId>,
    /// The neighbour that unicast goes through (the peer itself if adjacent); `None` when there is no way.
    pub next_hop: Option<PeerName>,
    /// Messages find a way to it, from link to link, whether frames do or not.
    pub linked: bool,
    /// The neighbour that this peer's floods reach us through.
    pub parent: Option<PeerName>,
    /// The neighbours to which we pass this peer's floods on.
    pub hops: Vec<PeerName>,
}

impl PeerView {
    /// It can be asked, and answers: messages find a way to it, and so do frames. The one shows that its agent runs, and takes
    /// long to end when a wire is cut; the other shows that the wire is whole, even when only its kernel lives.
    pub fn answers(&self) -> bool {
        self.linked && self.next_hop.is_some()
    }

    /// Something of it lives: its agent, or its kernel, which carries its containers' frames.
    pub fn lives(&self) -> bool {
        self.linked || self.next_hop.is_some()
    }
}

/// A mesh link whose handshake is done: the switch may probe the tunnel beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Who.
    pub name: PeerName,
    /// Its short id as of the handshake.
    pub short: ShortId,
    /// The same at both ends (the two connection ids XORed); a token in heartbeats.
    pub connection: u64,
    /// Our end of the TCP connection.
    pub local: Ipv4Addr,
    /// Its end.
    pub remote: Ipv4Addr,
    /// UDP port of its tunnel.
    pub port: u16,
    /// UDP port of its sleeve.
    pub sleeve_port: u16,
    /// Both ends' CPUs have AES instructions.
    pub aes: bool,
    /// What goes to it must be encrypted: there is a password, and not both ends trust the network between them.
    pub sealed: bool,
    /// Both ends' kernels can do that for the kernel's tunnel, with ESP, and the tunnel has one port at both.
    pub esp: bool,
    /// Both ends take segments longer than an IPv4 packet can be off the tunnel (BIG TCP).
    pub big_tcp: bool,
    /// We dialled.
    pub outbound: bool,
}
