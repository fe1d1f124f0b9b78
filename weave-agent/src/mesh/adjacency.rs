//! Our own edges: they live as long as the link or the tunnel of a neighbour does, so that an agent that restarts costs
//! no routes. And what follows from edges for the dialler.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::admission::{BIG_TCP, ESP};
use super::dialler::Linked;
use super::link::Link;
use super::message::{Connection, Hello, MAX_PEERS};
use super::ration::Cause;
use super::{LinkId, Mesh, Neighbour, Output};
use crate::Time;
use crate::peer::PeerName;

/// What a dial and a handshake take at most, usually.
pub(super) const COURTESY: Time = Time::from_millis(500);

/// A neighbour of ours. It is kept while its peer is known, even with both ways down: the tunnel may come back before
/// the link does.
#[derive(Debug)]
pub(super) struct Edge {
    address: SocketAddrV4,
    outbound: bool,
    pub(super) link: Option<LinkId>,
    pub(super) tunnel: bool,
}

impl Edge {
    /// Whether it is in our record.
    pub(super) fn counts(&self) -> bool {
        self.link.is_some() || self.tunnel
    }

    fn connection(&self) -> Connection {
        Connection { address: self.address, outbound: self.outbound, linked: self.link.is_some(), established: self.tunnel }
    }
}

impl Mesh {
    /// A link's handshake is done.
    pub(super) fn edge_up(&mut self, now: Time, id: LinkId, hello: &Hello) {
        let Some(link) = self.links.get(&id) else { return };
        let tunnel = self.tunnels.contains(&hello.name);
        let edge = Edge { address: link.listening(hello), outbound: link.outbound, link: Some(id), tunnel };
        let neighbour = Neighbour {
            name: hello.name,
            short: hello.short,
            connection: link.id(hello),
            local: *link.local.ip(),
            remote: *link.remote.ip(),
            port: hello.tunnel_port,
            sleeve_port: hello.sleeve_port,
            aes: hello.aes && self.config.aes,
            sealed: link.is_sealed() && !self.both_trust(link, hello),
            // With one port at both ends, so that what a kernel answers by itself is sealed as well.
            esp: self.config.esp && hello.has(ESP) && hello.tunnel_port == self.config.tunnel_port,
            big_tcp: self.config.big_tcp && hello.has(BIG_TCP),
            outbound: link.outbound,
        };
        if self.ration.allows(now, Cause::Up) {
            tracing::info!(peer = %hello.name, nickname = hello.nickname, remote = %link.remote, "link up");
        }
        self.edges.insert(hello.name, edge);
        self.suspects.clear(hello.name);
        self.outputs.push_back(Output::LinkUp(neighbour));
        self.redial = true;
        self.sync_edges(now);
    }

    /// Whether the network has a password.
    pub(super) fn secret(&self) -> bool {
        !self.config.passwords.is_empty()
    }

    /// Whether both ends trust the network between them.
    pub(super) fn both_trust(&self, link: &Link, hello: &Hello) -> bool {
        hello.trusts && self.trusts(*link.remote.ip())
    }

    /// Whether the user trusts the network between us and an address.
    pub(super) fn trusts(&self, address: Ipv4Addr) -> bool {
        self.config.trusted_subnets.iter().any(|subnet| subnet.contains(&address))
    }

    /// A link that was up has ended.
    pub(super) fn edge_down(&mut self, now: Time, id: LinkId, peer: PeerName) {
        if let Some(edge) = self.edges.get_mut(&peer)
            && edge.link == Some(id)
        {
            edge.link = None;
            self.outputs.push_back(Output::LinkDown { peer });
            self.redial = true;
            self.sync_edges(now);
        }
    }

    /// The switch says whether frames get through to a neighbour.
    pub(super) fn tunnel(&mut self, now: Time, peer: PeerName, up: bool) {
        // Noted even if there is no edge: the switch says it once, and a link may come later.
        if up {
            self.tunnels.insert(peer)
        } else {
            self.tunnels.remove(&peer)
        };
        if let Some(edge) = self.edges.get_mut(&peer) {
            edge.tunnel = up;
            self.sync_edges(now);
        }
    }

    pub(super) fn sync_edges(&mut self, now: Time) {
        let connections = self.edges.iter().filter(|(_, edge)| edge.counts()).map(|(peer, edge)| (*peer, edge.connection())).collect();
        if self.topology.me().connections != connections {
            self.edit_me(now, |me| me.connections = connections);
        }
    }

    /// Whom we have links with.
    pub(super) fn linked(&self) -> Linked {
        let mut linked = Linked::default();
        for link in self.links.values() {
            if let Some(hello) = link.claimed() {
                linked.names.insert(hello.name);
                linked.addresses.insert(link.listening(hello));
            }
        }
        linked
    }

    /// Where peers that we have no link with accept links, as their neighbours (and we, for tunnels without a link) know,
    /// and when to dial them. They discover us at the same time: the higher name gives the other time to dial.
    pub(super) fn discover(&self, now: Time) -> BTreeMap<SocketAddrV4, Time> {
        let reached = self.topology.records().filter(|record| self.reachable.contains(&record.name));
        let edges = reached.flat_map(|record| &record.connections);
        let new = edges.filter(|(peer, _)| **peer != self.config.name && !self.linked.names.contains(peer));
        let from = |peer: &PeerName| if self.config.name < *peer { now } else { now + COURTESY };
        new.map(|(peer, edge)| (edge.address, from(peer))).take(MAX_PEERS).collect()
    }
}
