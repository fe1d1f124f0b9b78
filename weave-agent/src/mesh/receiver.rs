//! What is done about what comes in on links, and messages on channels both ways.

use bytes::Bytes;

use super::admission::collision;
use super::channels::count;
use super::link::Event;
use super::message::{
    Broadcast, Gossip, Heartbeat, MAX_CHANNEL, MAX_PAYLOAD, MAX_TOLD, Message, Reason, Record, Reject, Told, Topology, Unicast,
};
use super::{Channel, LinkId, Mesh, Output};
use crate::Time;
use crate::peer::PeerName;

/// Relays a unicast may pass. No sane mesh is deeper, and what circles does so for moments only.
const TTL: u8 = 32;

impl Mesh {
    pub(super) fn received(&mut self, now: Time, id: LinkId, bytes: &[u8]) {
        if let Some(link) = self.links.get_mut(&id) {
            link.receive(now, bytes);
            self.pump(now, id);
        }
    }

    /// Acts on all that a link's bytes mean so far.
    pub(super) fn pump(&mut self, now: Time, id: LinkId) {
        while let Some(link) = self.links.get_mut(&id) {
            match link.next() {
                Ok(Some(event)) => self.event(now, id, event),
                Ok(None) => return,
                Err(error) if error.concerns_password() => self.disagree(now, id, &error),
                Err(error) => {
                    self.counters.bad_input += 1;
                    self.reject(now, id, Reject { reason: Reason::Protocol, uid: None, text: error.to_string() });
                }
            }
        }
    }

    fn event(&mut self, now: Time, id: LinkId, event: Event) {
        match event {
            Event::Say(bytes) => self.outputs.push_back(Output::Send { link: id, bytes }),
            Event::Greet => self.greet(now, id),
            Event::Hello(hello) => self.meet(now, id, hello),
            Event::Welcome => self.admit(now, id),
            Event::Message(message) => self.message(now, id, message),
            Event::Unknown => self.counters.unknown_messages += 1,
            Event::Trailing(event) => {
                self.counters.trailing_bytes += 1;
                self.event(now, id, *event);
            }
        }
    }

    fn message(&mut self, now: Time, id: LinkId, message: Message) {
        if let Message::Reject(reject) = message {
            return self.rejected(now, id, reject);
        }
        let Some(from) = self.links.get(&id).and_then(|link| Some(link.peer()?.name)) else { return };
        match message {
            Message::Heartbeat(Heartbeat::Question) => self.send(now, id, &Message::Heartbeat(Heartbeat::Answer)),
            Message::Heartbeat(Heartbeat::Answer) => self.answered(now, id),
            Message::Notice(notice) => self.noticed(now, &notice),
            Message::Topology(topology) => self.learn(now, from, topology),
            Message::Broadcast(broadcast) => self.relay_broadcast(now, from, broadcast),
            Message::Unicast(unicast) => self.relay_unicast(now, unicast),
            Message::Told(Told { payload }) => self.outputs.push_back(Output::Told { peer: from, payload }),
            Message::Gossip(gossip) => self.relay_gossip(now, from, gossip),
            Message::Digest(digest) => self.compare_digest(now, id, digest),
            Message::Versions(versions) => self.compare_versions(now, id, &versions),
            // An idle heartbeat did its work by coming; the others belong to the handshake and do not get here.
            Message::Heartbeat(Heartbeat::Idle) | Message::Hello(_) | Message::Welcome(_) | Message::Reject(_) => {}
        }
    }

    pub(super) fn send(&mut self, now: Time, id: LinkId, message: &Message) {
        if let Some(link) = self.links.get_mut(&id) {
            link.sent(now);
            match link.seal(message.encode()) {
                Ok(bytes) => self.outputs.push_back(Output::Send { link: id, bytes }),
                Err(error) => self.close(now, id, &error.to_string()),
            }
        }
    }

    fn send_to(&mut self, now: Time, neighbour: PeerName, message: &Message) -> bool {
        let link = self.edges.get(&neighbour).and_then(|edge| edge.link);
        link.inspect(|id| self.send(now, *id, message)).is_some()
    }

    fn learn(&mut self, now: Time, from: PeerName, topology: Topology) {
        let merged = self.topology.merge(now, topology.records);
        self.counters.refused_records += merged.refused;
        for claim in merged.claims {
            self.outbid(now, &claim);
        }
        if !merged.changed.is_empty() {
            self.publisher.arrived(&merged.changed, from);
            self.changed(now);
        }
    }

    /// A record of our own name beats ours: an earlier incarnation's, or a clone's.
    fn outbid(&mut self, now: Time, claim: &Record) {
        let verdict = self.collisions.claimed(now, claim.uid);
        if verdict.clone {
            self.collision(now, claim.uid, collision(claim.name, &claim.nickname, claim.uid, "an unknown address"), None);
        } else {
            self.topology.inherit(now, claim);
            self.changed(now);
        }
        if verdict.outbid {
            self.edit_me(now, |me| me.version = me.version.max(claim.version));
        }
    }

    pub(super) fn broadcast(&mut self, now: Time, channel: Channel, payload: Bytes) {
        if !self.fits(&channel, &payload) {
            return;
        }
        // Others go by what they know of us: that goes first, or a new neighbour might be left out.
        self.refresh_routes(now);
        self.publish(now);
        let number = self.channels.number();
        let broadcast = Broadcast { channel, origin: self.config.name, uid: self.config.uid, number, payload };
        let hops = self.gossip.hops(self.config.name).to_vec();
        self.forward(now, &hops, None, &Message::Broadcast(broadcast));
    }

    fn relay_broadcast(&mut self, now: Time, from: PeerName, broadcast: Broadcast) {
        let Broadcast { origin, uid, number, .. } = broadcast;
        // Nothing is remembered of peers that are not known (yet): their names could be anything.
        let known = self.topology.get(origin).is_some();
        if origin == self.config.name || known && !self.channels.hear(origin, uid, number) {
            self.counters.duplicates += 1;
            return;
        }
        self.refresh_routes(now);
        let hops = self.gossip.hops(origin).to_vec();
        self.deliver(&broadcast.channel, origin, &broadcast.payload);
        if !hops.is_empty() {
            count(&mut self.counters.relayed, &broadcast.channel);
        }
        self.forward(now, &hops, Some(from), &Message::Broadcast(broadcast));
    }

    fn forward(&mut self, now: Time, hops: &[PeerName], except: Option<PeerName>, message: &Message) {
        for hop in hops.iter().filter(|hop| Some(**hop) != except) {
            if !self.send_to(now, *hop, message) {
                self.counters.undeliverable += 1;
            }
        }
    }

    pub(super) fn unicast(&mut self, now: Time, channel: Channel, to: PeerName, payload: Bytes) {
        if self.fits(&channel, &payload) {
            self.pass_on(now, Unicast { channel, origin: self.config.name, to, ttl: TTL, payload });
        }
    }

    fn relay_unicast(&mut self, now: Time, unicast: Unicast) {
        if unicast.to == self.config.name {
            return self.deliver(&unicast.channel, unicast.origin, &unicast.payload);
        }
        match unicast.ttl.checked_sub(1) {
            Some(ttl) => {
                count(&mut self.counters.relayed, &unicast.channel);
                self.pass_on(now, Unicast { ttl, ..unicast });
            }
            None => self.counters.undeliverable += 1,
        }
    }

    pub(super) fn tell(&mut self, now: Time, peer: PeerName, payload: Bytes) {
        if payload.len() > MAX_TOLD {
            tracing::error!(%peer, bytes = payload.len(), "not telling a neighbour what is longer than {MAX_TOLD} bytes");
            self.counters.undeliverable += 1;
        } else if !self.send_to(now, peer, &Message::Told(Told { payload })) {
            self.counters.undeliverable += 1;
        }
    }

    fn pass_on(&mut self, now: Time, unicast: Unicast) {
        // A cut wire is noticed by its tunnel within seconds, by TCP within minutes: where frames go, messages arrive.
        let hops = [&self.data, &self.gossip].map(|routes| routes.next_hops.get(&unicast.to).copied());
        let message = Message::Unicast(unicast);
        if !hops.into_iter().flatten().any(|hop| self.send_to(now, hop, &message)) {
            self.counters.undeliverable += 1;
        }
    }

    pub(super) fn spread(&mut self, now: Time, channel: Channel, payload: Bytes) {
        if self.fits(&channel, &payload) {
            let gossip = Gossip { channel, origin: self.config.name, payload };
            self.channels.see(now, &gossip);
            self.hand_on(now, None, gossip);
        }
    }

    /// Replicas among the agent's parts get it; and as none of them passes it on in our stead, we do.
    fn relay_gossip(&mut self, now: Time, from: PeerName, gossip: Gossip) {
        if !self.channels.see(now, &gossip) {
            self.counters.duplicates += 1;
            return;
        }
        self.deliver(&gossip.channel, gossip.origin, &gossip.payload);
        count(&mut self.counters.relayed, &gossip.channel);
        self.hand_on(now, Some(from), gossip);
    }

    fn hand_on(&mut self, now: Time, except: Option<PeerName>, gossip: Gossip) {
        let message = Message::Gossip(gossip);
        for (id, _) in self.some_neighbours(except) {
            self.send(now, id, &message);
        }
    }

    fn deliver(&mut self, channel: &Channel, from: PeerName, payload: &Bytes) {
        count(&mut self.counters.delivered, channel);
        self.outputs.push_back(Output::Delivered { channel: channel.clone(), from, payload: payload.clone() });
    }

    /// Whether others would take it.
    fn fits(&mut self, channel: &Channel, payload: &Bytes) -> bool {
        let fits = channel.0.len() <= MAX_CHANNEL && !channel.0.contains(char::is_control) && payload.len() <= MAX_PAYLOAD;
        if !fits {
            tracing::error!(channel = channel.0, bytes = payload.len(), "not sending a message that is too long");
            self.counters.undeliverable += 1;
        }
        fits
    }
}
