//! Who gets a link: limits, our own address, name collisions, duplicates; and how links end.

use std::net::SocketAddrV4;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::adjacency::COURTESY;
use super::dialler::Ending;
use super::frame::{self, Mode, ProtocolError};
use super::link::{Keys, Link, PROBE, Phase};
use super::machine::connection_id;
use super::message::{Feature, Heartbeat, Hello, Message, Reason, Reject, Welcome};
use super::ration::Cause;
use super::repair::COMPARES;
use super::{LinkId, Mesh, Output, Psk, noise};
use crate::Time;
use crate::peer::{PeerName, PeerUid};

/// Unfinished inbound links from one address: anyone can open them.
const UNFINISHED_PER_SOURCE: usize = 16;
/// Unfinished inbound links in all.
const UNFINISHED: usize = 256;
/// A link that lived so long and then ended for another password is dialled again at once.
const LIVED: Time = Time::from_secs(1);
/// What we can do beyond the protocol version: passing on channels that we know nothing about, and comparing records.
pub(super) const FEATURES: [&str; 2] = ["surrogate", COMPARES];
/// What not every kernel can do: seal the kernel's tunnel.
pub(super) const ESP: &str = "esp";
/// What the user must want: segments longer than an IPv4 packet can be.
pub(super) const BIG_TCP: &str = "big-tcp";

/// What is to be done about a hello.
enum Verdict {
    Welcome,
    /// Both ends keep this link and drop that one.
    Replace(LinkId),
    /// Another incarnation has a link: does it live?
    Probe(LinkId),
    Reject(Reject),
}

impl Mesh {
    pub(super) fn accepted(&mut self, now: Time, id: LinkId, local: SocketAddrV4, remote: SocketAddrV4) {
        let unfinished = || self.links.values().filter(|link| !link.outbound && link.peer().is_none());
        if self.failures.bars(now, *remote.ip()) {
            self.counters.barred += 1;
            self.outputs.extend([Output::Send { link: id, bytes: frame::preamble(Mode::Barred) }, Output::Close { link: id }]);
            return;
        }
        let from_there = unfinished().filter(|link| link.remote.ip() == remote.ip()).count();
        if from_there >= UNFINISHED_PER_SOURCE || unfinished().count() >= UNFINISHED {
            self.counters.refused += 1;
            self.outputs.push_back(Output::Close { link: id });
            return;
        }
        self.open(now, id, local, remote, false);
    }

    pub(super) fn dialled(&mut self, now: Time, id: LinkId, local: SocketAddrV4, remote: SocketAddrV4) {
        self.dialler.dialled(remote, id);
        self.open(now, id, local, remote, true);
    }

    fn open(&mut self, now: Time, id: LinkId, local: SocketAddrV4, remote: SocketAddrV4, outbound: bool) {
        let connection = connection_id(&mut self.rng);
        let keys = self.secret().then(|| Keys { psks: self.config.passwords.clone(), seed: self.handshake_seed() });
        let link = Link::new(now, (local, remote), outbound, connection, keys);
        self.outputs.push_back(Output::Send { link: id, bytes: frame::preamble(link.mode()) });
        self.links.insert(id, link);
    }

    /// Nobody who sees our memory later can make it again, and with it the keys of links that are gone: the generator goes on from
    /// another draw, as it were a new one.
    fn handshake_seed(&mut self) -> [u8; 32] {
        let seed = self.rng.random();
        self.rng = StdRng::from_seed(self.rng.random());
        seed
    }

    /// The network's passwords change. Who dials with one that is not among them fails from now on, and who failed may try again.
    pub(super) fn passwords(&mut self, now: Time, passwords: Vec<Psk>) {
        let before = std::mem::replace(&mut self.config.passwords, passwords);
        self.failures.clear();
        self.dialler.hurry(now);
        let stale: Vec<_> = self.links.iter().filter(|(_, link)| !link.is_of(&self.config.passwords)).map(|(id, _)| *id).collect();
        for id in stale {
            self.reject(now, id, reject(Reason::Password, "the network's passwords have changed".into()));
        }
        // One more password makes nobody suspect: an agent that is down meanwhile keeps its tunnels.
        if before.is_empty() || before.iter().any(|psk| !self.config.passwords.contains(psk)) {
            self.suspect(now);
        }
        self.redial = true;
    }

    /// The two ends do not agree on a password.
    pub(super) fn disagree(&mut self, now: Time, id: LinkId, error: &ProtocolError) {
        let Some(link) = self.links.get(&id) else { return };
        if !link.outbound {
            self.counters.wrong_passwords += 1;
            self.failures.note(now, link.remote, error.to_string());
        }
        if *error == ProtocolError::WrongPassword {
            self.outputs.push_back(Output::Send { link: id, bytes: noise::REFUSAL });
        }
        self.end(now, id, &error.to_string(), Some(Reason::Password), true);
    }

    fn features(&self) -> Vec<Feature> {
        let able =
            [(self.config.esp, ESP), (self.config.big_tcp, BIG_TCP)].into_iter().filter_map(|(able, feature)| able.then_some(feature));
        FEATURES.into_iter().chain(able).map(|feature| Feature(feature.to_owned())).collect()
    }

    pub(super) fn greet(&mut self, now: Time, id: LinkId) {
        let Some(link) = self.links.get(&id) else { return };
        let hello = Hello {
            name: self.config.name,
            uid: self.config.uid,
            connection: link.connection,
            short: self.topology.me().short,
            port: self.config.port,
            tunnel_port: self.config.tunnel_port,
            sleeve_port: self.config.sleeve_port,
            aes: self.config.aes,
            trusts: self.trusts(*link.remote.ip()),
            nickname: self.config.nickname.clone(),
            features: self.features(),
        };
        self.send(now, id, &Message::Hello(hello));
    }

    /// The other end said who it is.
    pub(super) fn meet(&mut self, now: Time, id: LinkId, hello: Hello) {
        match self.judge(now, id, &hello) {
            Verdict::Welcome => self.welcome(now, id, hello),
            Verdict::Replace(old) => {
                self.reject(now, old, reject(Reason::Duplicate, "another link between the two is kept".into()));
                self.welcome(now, id, hello);
            }
            Verdict::Probe(old) => self.probe(now, old, id, hello),
            Verdict::Reject(reject) => self.reject(now, id, reject),
        }
    }

    fn judge(&mut self, now: Time, id: LinkId, hello: &Hello) -> Verdict {
        let Some(link) = self.links.get(&id) else { return Verdict::Reject(reject(Reason::Unexpected, "closed".into())) };
        let (outbound, remote, connection) = (link.outbound, link.remote, link.id(hello));
        self.collisions.met(link.listening(hello), hello.uid);
        if outbound {
            self.dialler.met(remote, hello.name, &hello.nickname);
        }
        if hello.name == self.config.name {
            return Verdict::Reject(self.judge_namesake(now, id, hello));
        }
        let discovered = outbound && self.dialler.get(remote).is_some_and(|attempt| !attempt.target);
        if discovered && !self.topology.mentions(hello.name) {
            let text = format!("{remote} was another peer's, but {} ({}) answers there", hello.name, hello.nickname);
            return Verdict::Reject(reject(Reason::Unexpected, text));
        }
        match self.other(id, hello.name) {
            Some((old, uid, _)) if uid != hello.uid => Verdict::Probe(old),
            // Both ends see both ids, so they agree.
            Some((old, _, older)) if connection < older => Verdict::Replace(old),
            Some(_) => Verdict::Reject(reject(Reason::Duplicate, "another link between the two is kept".into())),
            None if self.full() => Verdict::Reject(reject(Reason::Limit, format!("{} has as many links as it may", self.config.name))),
            None => Verdict::Welcome,
        }
    }

    /// Our own name at the other end.
    fn judge_namesake(&mut self, now: Time, id: LinkId, hello: &Hello) -> Reject {
        if hello.uid == self.config.uid {
            return reject(Reason::Myself, "this is our own address".into());
        }
        let (ours, theirs) = match self.links.get(&id) {
            Some(link) => (link.local, link.listening(hello)),
            None => return reject(Reason::Unexpected, "closed".into()),
        };
        self.collision(now, hello.uid, collision(hello.name, &hello.nickname, hello.uid, theirs), Some(theirs));
        let text = collision(self.config.name, &self.config.nickname, self.config.uid, ours);
        Reject { reason: Reason::Collision, uid: Some(self.config.uid), text }
    }

    /// Another link that we want with a peer of this name: its number, the peer's uid, the connection's id.
    fn other(&self, id: LinkId, name: PeerName) -> Option<(LinkId, PeerUid, u64)> {
        self.links.iter().filter(|(other, _)| **other != id).find_map(|(other, link)| {
            let peer = link.welcomed().filter(|peer| peer.name == name)?;
            Some((*other, peer.uid, link.id(peer)))
        })
    }

    fn full(&self) -> bool {
        let limit = self.config.connection_limit;
        limit > 0 && self.links.values().filter(|link| link.welcomed().is_some()).count() >= limit
    }

    fn welcome(&mut self, now: Time, id: LinkId, hello: Hello) {
        if let Some(link) = self.links.get_mut(&id) {
            link.phase = Phase::Welcomed(hello);
            self.send(now, id, &Message::Welcome(Welcome {}));
        }
    }

    /// Both ends want the link.
    pub(super) fn admit(&mut self, now: Time, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(hello) = link.welcomed().cloned() else { return };
        link.phase = Phase::Up(hello.clone(), now);
        self.edge_up(now, id, &hello);
        self.send_everything(now, id);
    }

    /// Holds a new link until it is known whether the older one, of another incarnation, lives. One at a time.
    fn probe(&mut self, now: Time, old: LinkId, new: LinkId, hello: Hello) {
        let older_held = self.held(hello.name).is_some_and(|(held, _)| held != new);
        if older_held || self.links.get(&old).is_none_or(|link| link.peer().is_none()) {
            return self.reject(now, new, reject(Reason::Duplicate, "an earlier link is still being judged".into()));
        }
        if let Some(link) = self.links.get_mut(&new) {
            link.phase = Phase::Held(hello);
        }
        if let Some(link) = self.links.get_mut(&old) {
            link.probe.get_or_insert(now + PROBE);
        }
        self.send(now, old, &Message::Heartbeat(Heartbeat::Question));
    }

    fn held(&self, name: PeerName) -> Option<(LinkId, &Hello)> {
        self.links.iter().find_map(|(id, link)| match &link.phase {
            Phase::Held(hello) if hello.name == name => Some((*id, hello)),
            _ => None,
        })
    }

    /// An older link answered: its peer lives, so the one held for it has the same name by mistake. Both are told.
    pub(super) fn answered(&mut self, now: Time, old: LinkId) {
        let Some(link) = self.links.get_mut(&old) else { return };
        let (Some(_), Some(peer)) = (link.probe.take(), link.peer().cloned()) else { return };
        let Some((new, hello)) = self.held(peer.name).map(|(id, hello)| (id, hello.clone())) else { return };
        let text_of = |id, hello: &Hello| {
            let address = self.links.get(&id).map_or(SocketAddrV4::new([0; 4].into(), 0), |link: &Link| link.listening(hello));
            collision(hello.name, &hello.nickname, hello.uid, address)
        };
        let (about_old, about_new) = (text_of(old, &peer), text_of(new, &hello));
        let address = self.links.get(&new).map(|link| link.listening(&hello));
        self.collision(now, hello.uid, about_new.clone(), address);
        let notice = Reject { reason: Reason::Collision, uid: Some(hello.uid), text: about_new };
        self.send(now, old, &Message::Notice(notice));
        self.reject(now, new, Reject { reason: Reason::Collision, uid: Some(peer.uid), text: about_old });
    }

    /// Notes that two peers have one name, and tells people if it is news.
    pub(super) fn collision(&mut self, now: Time, uid: PeerUid, text: String, address: Option<SocketAddrV4>) {
        if uid != self.config.uid && self.collisions.report(now, uid, text.clone(), address) {
            tracing::warn!("{text}");
        }
    }

    /// The other end does not want this link.
    pub(super) fn rejected(&mut self, now: Time, id: LinkId, reject: Reject) {
        self.noticed(now, &reject);
        let error = format!("the other end says: {}", reject.text);
        // That an address is our own we see by ourselves: nobody else can keep us from dialling.
        let reason = Some(reject.reason).filter(|reason| *reason != Reason::Myself);
        self.end(now, id, &error, reason, true);
    }

    /// The other end tells us something that does not concern this link.
    pub(super) fn noticed(&mut self, now: Time, reject: &Reject) {
        if reject.reason == Reason::Collision
            && let Some(uid) = reject.uid
        {
            self.collision(now, uid, reject.text.clone(), None);
        }
    }

    /// Tells the other end why, and closes.
    pub(super) fn reject(&mut self, now: Time, id: LinkId, reject: Reject) {
        let (reason, error) = (reject.reason, reject.text.clone());
        if self.links.get(&id).is_some_and(Link::can_speak) {
            self.send(now, id, &Message::Reject(reject));
        }
        self.end(now, id, &error, Some(reason), true);
    }

    pub(super) fn close(&mut self, now: Time, id: LinkId, error: &str) {
        self.end(now, id, error, None, true);
    }

    /// The stream ended. After a close of our own there is nothing left to do.
    pub(super) fn closed(&mut self, now: Time, id: LinkId, error: &str) {
        self.end(now, id, error, None, false);
    }

    fn end(&mut self, now: Time, id: LinkId, error: &str, reason: Option<Reason>, close: bool) {
        let Some(link) = self.links.remove(&id) else { return };
        if close {
            self.outputs.push_back(Output::Close { link: id });
        }
        self.tell_of_end(now, &link, error, reason);
        self.counters.terminations += u64::from(reason != Some(Reason::Myself));
        self.note_ending(now, id, &link, error, reason);
        self.redial = true;
        match link.phase {
            Phase::Up(hello, _) => {
                self.edge_down(now, id, hello.name);
                self.resume(now, hello.name);
            }
            Phase::Held(hello) => self.stop_probe(hello.name),
            Phase::Preamble | Phase::Keys(..) | Phase::Keyed | Phase::Hello | Phase::Welcomed(_) => {}
        }
    }

    fn tell_of_end(&mut self, now: Time, link: &Link, error: &str, reason: Option<Reason>) {
        let cause = match (&link.phase, link.outbound) {
            (Phase::Up(..), _) => Cause::Down,
            _ if reason == Some(Reason::Password) => Cause::Password,
            (_, true) => Cause::Dialled,
            (_, false) => Cause::Stranger,
        };
        if !self.ration.allows(now, cause) {
            return;
        }
        if cause == Cause::Password {
            tracing::warn!(remote = %link.remote, outbound = link.outbound, error, "no link");
        } else {
            tracing::info!(remote = %link.remote, outbound = link.outbound, error, "link ended");
        }
    }

    fn note_ending(&mut self, now: Time, id: LinkId, link: &Link, error: &str, reason: Option<Reason>) {
        let address = match link.claimed() {
            Some(hello) => link.listening(hello),
            None if link.outbound => link.remote,
            None => return,
        };
        let ending = match (reason, link.lived(now)) {
            (Some(Reason::Myself), _) => Ending::Myself,
            (Some(Reason::Collision), _) => Ending::Collision,
            (Some(Reason::Password), Some(lived)) if link.is_sealed() && lived > LIVED => {
                // Both ends dial again; the higher name gives the other time to, as always.
                let first = link.peer().is_some_and(|peer| self.config.name < peer.name);
                Ending::Rekeyed(if first { now } else { now + COURTESY })
            }
            (_, Some(lived)) => Ending::Lived(lived),
            (_, None) => Ending::Failed,
        };
        self.dialler.ended(now, address, Some(id), ending, error, &mut self.rng);
    }

    /// The link that one was held for is gone: judge that again.
    fn resume(&mut self, now: Time, name: PeerName) {
        if let Some((id, hello)) = self.held(name).map(|(id, hello)| (id, hello.clone())) {
            self.meet(now, id, hello);
            self.pump(now, id);
        }
    }

    fn stop_probe(&mut self, name: PeerName) {
        for link in self.links.values_mut().filter(|link| link.peer().is_some_and(|peer| peer.name == name)) {
            link.probe = None;
        }
    }
}

fn reject(reason: Reason, text: String) -> Reject {
    Reject { reason, uid: None, text }
}

/// What to tell people about a peer that has a name it should not have.
pub(super) fn collision(name: PeerName, nickname: &str, uid: PeerUid, address: impl std::fmt::Display) -> String {
    let uid = uid.0;
    format!("peer name collision: {name} is also {nickname:?} (uid {uid}) at {address}; run `weave-agent reset` on one of the two")
}
