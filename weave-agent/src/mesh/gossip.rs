//! Topology and broadcasts between neighbours.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::machine::Mesh;
use super::message::{self, Broadcast, MAX_CHANNEL, Message};
use super::topology::PeerRecord;
use super::{Channel, LinkId, Output, routes};
use crate::Time;
use crate::peer::{PeerName, PeerUid};

/// Broadcasts remembered.
const MAX_SEEN: usize = 4096;
/// Impostors remembered.
const MAX_IMPOSTORS: usize = 64;
/// An earlier incarnation of ours may be outbid so often; who goes on then is alive.
const ALIVE: u32 = 5;
/// Between bids against an impostor that is alive.
const TRUCE: Duration = Duration::from_secs(30);

/// Broadcasts that came already.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    known: BTreeSet<(PeerName, u64)>,
    order: VecDeque<(PeerName, u64)>,
}

impl Seen {
    /// Whether it is new.
    fn add(&mut self, origin: PeerName, id: u64) -> bool {
        if !self.known.insert((origin, id)) {
            return false;
        }
        self.order.push_back((origin, id));
        if self.order.len() > MAX_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

/// How often, and when last, we outbid another uid's word about us.
#[derive(Debug, Default)]
pub(crate) struct Impostors(BTreeMap<PeerUid, (u32, Time)>);

impl Mesh {
    /// Sends records to all neighbours but one.
    pub(super) fn gossip(&mut self, records: impl IntoIterator<Item = PeerRecord>, except: Option<LinkId>) {
        let frames = message::topology_frames(records);
        let links: Vec<LinkId> = self.neighbours.values().copied().filter(|id| Some(*id) != except).collect();
        for link in links {
            for bytes in &frames {
                self.outputs.push_back(Output::Send { link, bytes: bytes.clone() });
            }
        }
    }

    /// Sends all records to one neighbour.
    pub(super) fn full_state(&mut self, link: LinkId) {
        for bytes in message::topology_frames(self.topology.records().cloned()) {
            self.outputs.push_back(Output::Send { link, bytes });
        }
    }

    pub(super) fn learn(&mut self, now: Time, id: LinkId, records: Vec<PeerRecord>) {
        let applied = self.topology.apply(now, records);
        self.counters.records += applied.fresh.len() as u64;
        self.counters.records_refused += applied.refused;
        if let Some((uid, version)) = applied.impostor {
            self.impostor(now, uid, version);
        }
        if !applied.fresh.is_empty() {
            self.dirty = true;
            let fresh: Vec<PeerRecord> = applied.fresh.iter().filter_map(|name| self.topology.get(*name).cloned()).collect();
            self.gossip(fresh, Some(id));
        }
    }

    /// Somebody says something newer about us than we did: our earlier incarnation, or a clone that we have no link with.
    fn impostor(&mut self, now: Time, uid: PeerUid, version: u64) {
        if self.impostors.0.len() >= MAX_IMPOSTORS && !self.impostors.0.contains_key(&uid) {
            self.impostors.0.clear();
        }
        let (count, last) = self.impostors.0.entry(uid).or_insert((0, now));
        *count = count.saturating_add(1);
        let alive = *count > ALIVE && uid != self.config.uid;
        if alive && now < *last + TRUCE {
            self.collided(now, self.config.name, None, uid, self.config.uid);
            return;
        }
        *last = now;
        self.topology.outbid(version);
        self.announce(now);
    }

    pub(super) fn broadcast(&mut self, channel: Channel, payload: &Bytes) {
        let origin = self.config.name;
        let id = self.random_id();
        let channel_fits = channel.0.len() <= MAX_CHANNEL;
        let Some(bytes) = Message::Broadcast(Broadcast { channel, origin, id, payload: payload.to_vec() }).frame().filter(|_| channel_fits)
        else {
            self.counters.broadcasts_too_long += 1;
            return;
        };
        self.counters.broadcasts_sent += 1;
        self.pass_on(origin, &bytes, None);
    }

    pub(super) fn relay(&mut self, from: LinkId, broadcast: Broadcast) {
        let origin = broadcast.origin;
        if origin == self.config.name || !self.seen.add(origin, broadcast.id) {
            self.counters.broadcasts_repeated += 1;
            return;
        }
        self.counters.broadcasts_received += 1;
        let message = Message::Broadcast(broadcast);
        if let Some(bytes) = message.frame() {
            self.pass_on(origin, &bytes, Some(from));
        }
        if let Message::Broadcast(Broadcast { channel, payload, .. }) = message {
            self.outputs.push_back(Output::Delivered { channel, from: origin, payload: payload.into() });
        }
    }

    /// Along the origin's tree; to all neighbours while we do not know it.
    fn pass_on(&mut self, origin: PeerName, bytes: &Bytes, except: Option<LinkId>) {
        let hops = routes::relays(&self.topology, self.config.name, origin);
        let links: Vec<LinkId> = match hops {
            Some(hops) => hops.iter().filter_map(|hop| self.neighbours.get(hop)).copied().collect(),
            None => self.neighbours.values().copied().collect(),
        };
        for link in links.into_iter().filter(|link| Some(*link) != except) {
            self.outputs.push_back(Output::Send { link, bytes: bytes.clone() });
        }
    }
}
