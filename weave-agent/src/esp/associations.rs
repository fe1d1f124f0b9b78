//! Which associations there are with each neighbour: made when a link comes up, told over it, followed by others by time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use super::{Direction, Id, KEY, Key, LEAST_SPI, Op, Protection, Spi};
use crate::Time;
use crate::mesh::{Neighbour, View};
use crate::peer::PeerName;
use crate::sleeve::OVERLAP;

/// A neighbour that wants another association more often than this is not heard.
const PATIENCE: Time = Time::from_secs(1);
/// What was begun with an outgoing one is through it by then.
const FAREWELL: Time = Time::from_secs(5);
/// Incoming ones of a neighbour, with those that retire: no more are made before some have gone.
const MOST: usize = 8;
/// Outgoing ones that are remembered as told: to use one twice would count its nonces from zero twice.
const REMEMBERED: usize = 16;

/// What is said over the link. Later versions may add at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Message {
    /// Its receiver has it: send with it.
    Offer { spi: Spi, key: [u8; 32], salt: [u8; KEY - 32] },
    /// What was sent with is lost: make another.
    Want,
}

/// What happens to the associations.
#[derive(Clone, Debug)]
pub enum Input {
    /// What an earlier agent left in the kernel, before any other input.
    Found {
        /// Who is protected.
        protected: BTreeSet<Ipv4Addr>,
        /// Its associations.
        ids: BTreeSet<Id>,
    },
    /// A link is up.
    LinkUp(Neighbour),
    /// A link is down; its associations go on.
    LinkDown(PeerName),
    /// A neighbour said something over its link.
    Told {
        /// Who.
        peer: PeerName,
        /// What.
        payload: Bytes,
    },
    /// [`Op::Protect`] is carried out.
    Protected(Ipv4Addr),
    /// The kernel has an association. The sender of an incoming one may be told.
    Installed(Id),
    /// The kernel has one no more, or did not take it.
    Missing(Id),
    /// Who is in the mesh.
    View(Arc<View>),
}

/// What the associations want done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// An order to `io::esp`.
    Op(Op),
    /// Whether VXLAN to and from this address cannot go in clear, and can go. What follows from `false` must be done before the next
    /// output.
    Protected {
        /// The neighbour's outer address.
        remote: Ipv4Addr,
        /// Whether it is so.
        protected: bool,
    },
    /// Tell a neighbour, over the link with it and not at all without.
    Tell {
        /// Whom.
        peer: PeerName,
        /// What.
        payload: Bytes,
    },
}

/// One that we receive with.
#[derive(Debug)]
struct Incoming {
    id: Id,
    /// What is told once the kernel has it.
    offer: Option<Bytes>,
    /// When it goes; `None` as long as it is the latest.
    until: Option<Time>,
}

/// A neighbour, or one that was.
#[derive(Debug)]
struct Party {
    neighbour: Neighbour,
    linked: bool,
    incoming: VecDeque<Incoming>,
    /// When the latest of them was made.
    made: Time,
    /// Since when another is wanted: it comes a little later, in case many are.
    wanted: Option<Time>,
    outgoing: Option<Id>,
    /// The one that the kernel is just given, and one that was told meanwhile.
    coming: Option<Id>,
    next: Option<(Spi, Key)>,
    /// Outgoing ones that go soon.
    leaving: Vec<(Id, Time)>,
    told: VecDeque<Spi>,
    /// [`Op::Protect`] is carried out.
    protected: bool,
    /// There has been something to send with.
    sends: bool,
}

impl Party {
    fn new(neighbour: Neighbour) -> Self {
        Self {
            neighbour,
            linked: true,
            incoming: VecDeque::new(),
            made: Time::ZERO,
            wanted: None,
            coming: None,
            next: None,
            leaving: Vec::new(),
            outgoing: None,
            told: VecDeque::new(),
            protected: false,
            sends: false,
        }
    }

    fn id(&self, direction: Direction, spi: Spi) -> Id {
        Id { remote: self.neighbour.remote, local: self.neighbour.local, direction, spi }
    }

    /// When it is time for another.
    fn renewal(&self, lifetime: Time) -> Option<Time> {
        let wanted = self.wanted.map(|wanted| wanted.max(self.made + PATIENCE));
        self.linked.then(|| wanted.unwrap_or(self.made + lifetime))
    }

    fn due(&self, lifetime: Time) -> Option<Time> {
        let over = self.incoming.iter().filter_map(|incoming| incoming.until).chain(self.leaving.iter().map(|(_, until)| *until));
        over.chain(self.renewal(lifetime)).min()
    }

    fn ids(&self) -> impl Iterator<Item = Id> {
        let outgoing = self.outgoing.into_iter().chain(self.coming).chain(self.leaving.iter().map(|(id, _)| *id));
        self.incoming.iter().map(|incoming| incoming.id).chain(outgoing)
    }

    /// Takes out what is over.
    fn over(&mut self, now: Time) -> Vec<Id> {
        let all = std::mem::take(&mut self.incoming).into_iter();
        let (over, rest): (VecDeque<_>, VecDeque<_>) = all.partition(|incoming| incoming.until.is_some_and(|until| until <= now));
        self.incoming = rest;
        let (left, leaving): (Vec<_>, Vec<_>) = std::mem::take(&mut self.leaving).into_iter().partition(|(_, until)| *until <= now);
        self.leaving = leaving;
        over.into_iter().map(|incoming| incoming.id).chain(left.into_iter().map(|(id, _)| id)).collect()
    }
}

/// What an earlier agent left: as good as new until this one has had time for its own.
#[derive(Debug)]
struct Inheritance {
    protected: BTreeSet<Ipv4Addr>,
    ids: BTreeSet<Id>,
    until: Time,
}

/// All associations.
#[derive(Debug)]
pub struct Associations {
    parties: BTreeMap<PeerName, Party>,
    inheritance: Option<Inheritance>,
    /// Port of our tunnel.
    port: u16,
    lifetime: Time,
    rng: StdRng,
    out: VecDeque<Output>,
}

impl Associations {
    /// None yet. All keys come from `seed`, which must be secret and never be used again. Each lives for `lifetime`.
    pub fn new(seed: [u8; 32], port: u16, lifetime: Time) -> Self {
        Self { parties: BTreeMap::new(), inheritance: None, port, lifetime, rng: StdRng::from_seed(seed), out: VecDeque::new() }
    }

    /// Something happened.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Found { protected, ids } => self.found(now, protected, ids),
            Input::LinkUp(neighbour) => self.link_up(now, neighbour),
            Input::LinkDown(peer) => {
                if let Some(party) = self.parties.get_mut(&peer) {
                    party.linked = false;
                }
            }
            Input::Told { peer, payload } => self.told(now, peer, &payload),
            Input::Protected(remote) => self.update(|party| {
                party.protected |= party.neighbour.remote == remote;
            }),
            Input::Installed(id) => self.installed(now, id),
            Input::Missing(id) => self.missing(now, id),
            Input::View(view) => self.forget_strangers(&view),
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        let names: Vec<PeerName> = self.parties.keys().copied().collect();
        for name in names {
            let Some(party) = self.parties.get_mut(&name) else { continue };
            let renew = party.renewal(self.lifetime).is_some_and(|due| due <= now);
            let over = party.over(now);
            self.out.extend(over.into_iter().map(|id| Output::Op(Op::Remove(id))));
            if renew {
                self.renew(now, name);
            }
        }
        if self.inheritance.as_ref().is_some_and(|left| left.until <= now) {
            self.give_up_inheritance();
        }
    }

    /// When that is.
    pub fn poll_timeout(&self) -> Option<Time> {
        let parties = self.parties.values().filter_map(|party| party.due(self.lifetime));
        parties.chain(self.inheritance.as_ref().map(|left| left.until)).min()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    fn is_party(&self, remote: Ipv4Addr) -> bool {
        self.parties.values().any(|party| party.neighbour.remote == remote)
    }

    fn found(&mut self, now: Time, protected: BTreeSet<Ipv4Addr>, ids: BTreeSet<Id>) {
        if protected.is_empty() && ids.is_empty() {
            return;
        }
        self.out.extend(protected.iter().map(|remote| Output::Protected { remote: *remote, protected: true }));
        self.inheritance = Some(Inheritance { protected, ids, until: now + OVERLAP });
    }

    /// Whom an earlier agent protected need not wait until that is given up.
    fn disinherit(&mut self, remote: Ipv4Addr) {
        if self.inheritance.as_mut().is_some_and(|left| left.protected.remove(&remote)) && !self.is_party(remote) {
            self.unprotect(remote);
        }
    }

    /// What nobody here uses goes.
    fn give_up_inheritance(&mut self) {
        let Some(left) = self.inheritance.take() else { return };
        let strangers: Vec<Ipv4Addr> = left.protected.into_iter().filter(|remote| !self.is_party(*remote)).collect();
        strangers.into_iter().for_each(|remote| self.unprotect(remote));
        let used: BTreeSet<Id> = self.parties.values().flat_map(Party::ids).collect();
        self.out.extend(left.ids.difference(&used).map(|id| Output::Op(Op::Remove(*id))));
    }

    fn link_up(&mut self, now: Time, neighbour: Neighbour) {
        let name = neighbour.name;
        let protection = Protection { remote: neighbour.remote, port: self.port };
        let ends = |n: &Neighbour| (n.remote, n.local, n.port);
        match self.parties.get_mut(&name) {
            _ if !neighbour.sealed || !neighbour.esp => {
                self.disinherit(neighbour.remote);
                return self.forget(name);
            }
            Some(party) if ends(&party.neighbour) == ends(&neighbour) => {
                party.linked = true;
                party.neighbour = neighbour;
            }
            _ => {
                self.forget(name);
                self.parties.insert(name, Party::new(neighbour));
            }
        }
        self.out.push_back(Output::Op(Op::Protect(protection)));
        self.renew(now, name);
    }

    /// Makes another to receive with.
    fn renew(&mut self, now: Time, name: PeerName) {
        let spi = self.unused();
        let (key, salt): ([u8; 32], [u8; KEY - 32]) = (self.rng.random(), self.rng.random());
        let Some(party) = self.parties.get_mut(&name) else { return };
        (party.made, party.wanted) = (now, None);
        for incoming in party.incoming.iter_mut().filter(|incoming| incoming.until.is_none()) {
            incoming.until = Some(now + OVERLAP);
        }
        let id = party.id(Direction::In, spi);
        let offer = postcard::to_stdvec(&Message::Offer { spi, key, salt }).ok().map(Bytes::from);
        party.incoming.push_back(Incoming { id, offer, until: None });
        let excess = party.incoming.len().saturating_sub(MOST);
        let over = party.incoming.drain(..excess).map(|incoming| Output::Op(Op::Remove(incoming.id)));
        self.out.extend(over);
        self.out.push_back(Output::Op(Op::Add(id, joined(key, salt))));
    }

    /// A number that none of ours has.
    fn unused(&mut self) -> Spi {
        loop {
            let spi = Spi(self.rng.random_range(LEAST_SPI..=u32::MAX));
            if !self.parties.values().flat_map(Party::ids).any(|id| id.spi == spi) {
                return spi;
            }
        }
    }

    /// Changes parties; who can be spoken to safely from then on is told.
    fn update(&mut self, change: impl Fn(&mut Party)) {
        for party in self.parties.values_mut() {
            let before = party.protected && party.sends;
            change(party);
            if party.protected && party.sends && !before {
                self.out.push_back(Output::Protected { remote: party.neighbour.remote, protected: true });
            }
        }
    }

    fn installed(&mut self, now: Time, id: Id) {
        for party in self.parties.values_mut().filter(|party| party.coming == Some(id)) {
            party.coming = None;
            // What was begun with the one before is not sealed yet.
            party.leaving.extend(party.outgoing.replace(id).map(|before| (before, now + FAREWELL)));
        }
        self.update(|party| party.sends |= party.outgoing == Some(id));
        self.send_with_next();
        for (name, party) in &mut self.parties {
            let here = party.incoming.iter_mut().find(|incoming| incoming.id == id);
            if let Some(payload) = here.and_then(|incoming| incoming.offer.take()) {
                self.out.push_back(Output::Tell { peer: *name, payload });
            }
        }
    }

    fn missing(&mut self, now: Time, id: Id) {
        if let Some(left) = &mut self.inheritance {
            left.ids.remove(&id);
        }
        for (name, party) in &mut self.parties {
            party.leaving.retain(|(leaving, _)| *leaving != id);
            if party.outgoing == Some(id) || party.coming == Some(id) {
                tracing::warn!(peer = %name, spi = %id.spi, "the kernel has no IPsec association that we shall send with: asking for another");
                party.outgoing = party.outgoing.filter(|outgoing| *outgoing != id);
                party.coming = party.coming.filter(|coming| *coming != id);
                if let Ok(payload) = postcard::to_stdvec(&Message::Want) {
                    self.out.push_back(Output::Tell { peer: *name, payload: payload.into() });
                }
            }
            let before = party.incoming.len();
            party.incoming.retain(|incoming| incoming.id != id);
            if party.incoming.len() < before {
                tracing::warn!(peer = %name, spi = %id.spi, "the kernel has no IPsec association that we receive with: making another");
                party.wanted = party.wanted.or(Some(now));
            }
        }
        self.send_with_next();
    }

    /// One at a time is put into the kernel: whoever tells many gets the latest of them.
    fn send_with_next(&mut self) {
        for party in self.parties.values_mut().filter(|party| party.coming.is_none()) {
            let Some((spi, key)) = party.next.take() else { continue };
            let id = party.id(Direction::Out, spi);
            party.coming = Some(id);
            self.out.push_back(Output::Op(Op::Add(id, key)));
        }
    }

    fn told(&mut self, now: Time, peer: PeerName, payload: &[u8]) {
        let Some(party) = self.parties.get_mut(&peer) else { return };
        let (spi, key) = match postcard::take_from_bytes::<Message>(payload) {
            Ok((Message::Want, _)) => {
                party.wanted = party.wanted.or(Some(now));
                return;
            }
            Ok((Message::Offer { spi, key, salt }, _)) if spi.0 >= LEAST_SPI => (spi, joined(key, salt)),
            _ => return tracing::warn!(%peer, "a neighbour told us an IPsec association that we cannot read: it has another version?"),
        };
        if party.told.contains(&spi) {
            return;
        }
        party.told.push_back(spi);
        if party.told.len() > REMEMBERED {
            party.told.pop_front();
        }
        party.next = Some((spi, key));
        self.send_with_next();
    }

    fn forget_strangers(&mut self, view: &View) {
        let unlinked = self.parties.iter().filter(|(_, party)| !party.linked).map(|(name, _)| *name);
        view.strangers(unlinked).into_iter().for_each(|name| self.forget(name));
    }

    fn forget(&mut self, name: PeerName) {
        let Some(party) = self.parties.remove(&name) else { return };
        if !self.is_party(party.neighbour.remote) {
            self.unprotect(party.neighbour.remote);
        }
        self.out.extend(party.ids().map(|id| Output::Op(Op::Remove(id))));
    }

    fn unprotect(&mut self, remote: Ipv4Addr) {
        self.out.push_back(Output::Protected { remote, protected: false });
        self.out.push_back(Output::Op(Op::Unprotect(remote)));
    }
}

fn joined(key: [u8; 32], salt: [u8; KEY - 32]) -> Key {
    let mut joined = [0; KEY];
    joined[..32].copy_from_slice(&key);
    joined[32..].copy_from_slice(&salt);
    Key(joined)
}

#[cfg(test)]
mod tests;
