//! Who has none of the network's passwords any more is no neighbour any more. An edge outlives its link as long as its
//! tunnel works, so that an agent may restart; who was left out when the passwords changed would stay in the data plane that way.

use std::collections::BTreeMap;

use super::Mesh;
use crate::Time;
use crate::peer::PeerName;

/// A neighbour has so long to come back after the passwords have changed.
const GRACE: Time = Time::from_secs(60);

/// Neighbours without a link since the passwords changed, and until when they are waited for.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    until: BTreeMap<PeerName, Time>,
}

impl Suspects {
    /// It has come back.
    pub(super) fn clear(&mut self, peer: PeerName) {
        self.until.remove(&peer);
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.until.values().min().copied()
    }
}

impl Mesh {
    /// The passwords have changed, and links with others are closed.
    pub(super) fn suspect(&mut self, now: Time) {
        for (peer, _) in self.edges.iter().filter(|(_, edge)| edge.link.is_none() && edge.counts()) {
            self.suspects.until.entry(*peer).or_insert(now + GRACE);
        }
    }

    /// Drops the edges of those who have not come back. Once nobody has an edge to them they have left the mesh.
    pub(super) fn expel(&mut self, now: Time) {
        let due: Vec<PeerName> = self.suspects.until.iter().filter(|(_, until)| **until <= now).map(|(peer, _)| *peer).collect();
        for peer in due {
            self.suspects.clear(peer);
            if self.edges.get(&peer).is_some_and(|edge| edge.link.is_none()) {
                tracing::warn!(%peer, "no neighbour any more: it has not connected since the network's passwords changed");
                self.edges.remove(&peer);
                self.sync_edges(now);
            }
        }
    }
}
