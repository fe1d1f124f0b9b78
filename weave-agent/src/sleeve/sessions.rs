//! Which sessions there are with each neighbour: made when a link comes up, told over it, followed by others by time and
//! volume.
//!
//! What we receive with is ours to make: [`Sessions`] makes number and key, accepts them first and tells the neighbour
//! then. What we send with the neighbour tells us. A session outlives its link, as the tunnel does: it goes
//! [`OVERLAP`] after the next one was told, or when its peer has left the mesh.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;

use bytes::Bytes;
use ipnet::Ipv4Net;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};

use super::{Cipher, Inbound, Key, Op, Outbound, SessionId};
use crate::Time;
use crate::mesh::{Neighbour, View};
use crate::peer::PeerName;

/// A sealed session is followed by another after this time, if nobody says otherwise.
pub const LIFETIME: Time = Time::from_secs(3600);
/// What is under way with the last session may still come for so long.
pub const OVERLAP: Time = Time::from_secs(60);
/// Sessions of a neighbour that are remembered as told, so that none is begun twice.
const REMEMBERED: usize = 16;
/// A neighbour that tells more sessions in a row than anyone needs is not believed: accepted and retiring ones at most.
const ACCEPTED: usize = 8;

/// What the receiver of a session tells its sender, sealed by the link. Later versions may add at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Offer {
    session: SessionId,
    cipher: Cipher,
    key: Key,
}

/// What happens to the sessions.
#[derive(Clone, Debug)]
pub enum Input {
    /// A link is up.
    LinkUp(Neighbour),
    /// A link is down; its sessions go on.
    LinkDown(PeerName),
    /// There is a password from now on: only in these networks sessions may be in clear.
    SealedButFor(Vec<Ipv4Net>),
    /// A neighbour said something over its link.
    Told {
        /// Who.
        peer: PeerName,
        /// What.
        payload: Bytes,
    },
    /// A session has carried enough.
    Worn(SessionId),
    /// Who is in the mesh.
    View(std::sync::Arc<View>),
}

/// What the sessions want done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// An order to `io::sleeve`.
    Op(Op),
    /// Tell a neighbour, over the link with it and not at all without.
    Tell {
        /// Whom.
        peer: PeerName,
        /// What.
        payload: Bytes,
    },
}

/// One session that we receive with.
#[derive(Debug)]
struct Accepted {
    session: SessionId,
    /// When it is refused; `None` as long as it is the latest.
    until: Option<Time>,
}

/// A neighbour, or one that was.
#[derive(Debug)]
struct Party {
    neighbour: Neighbour,
    linked: bool,
    accepted: VecDeque<Accepted>,
    /// When the latest of them was made.
    made: Time,
    /// Sessions that it told us, the latest last.
    told: VecDeque<SessionId>,
}

impl Party {
    fn cipher(&self) -> Cipher {
        match (self.neighbour.sealed, self.neighbour.aes) {
            (false, _) => Cipher::Clear,
            (true, true) => Cipher::Aes256Gcm,
            (true, false) => Cipher::ChaCha20Poly1305,
        }
    }

    /// When it is time for another session.
    fn renewal(&self, lifetime: Time) -> Option<Time> {
        (self.linked && self.cipher() != Cipher::Clear).then(|| self.made + lifetime)
    }

    fn due(&self, lifetime: Time) -> Option<Time> {
        self.accepted.iter().filter_map(|accepted| accepted.until).chain(self.renewal(lifetime)).min()
    }
}

/// All sessions.
#[derive(Debug)]
pub struct Sessions {
    parties: BTreeMap<PeerName, Party>,
    lifetime: Time,
    rng: StdRng,
    out: VecDeque<Output>,
}

impl Sessions {
    /// None yet. All keys come from `seed`, which must be secret and never be used again. Each lives for `lifetime`.
    pub fn new(seed: [u8; 32], lifetime: Time) -> Self {
        Self { parties: BTreeMap::new(), lifetime, rng: StdRng::from_seed(seed), out: VecDeque::new() }
    }

    /// Something happened.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::LinkUp(neighbour) => self.link_up(now, neighbour),
            Input::LinkDown(peer) => {
                if let Some(party) = self.parties.get_mut(&peer) {
                    party.linked = false;
                }
            }
            Input::SealedButFor(trusted) => self.end_those_in_clear(&trusted),
            Input::Told { peer, payload } => self.told(peer, &payload),
            Input::Worn(session) => self.worn(now, session),
            Input::View(view) => self.forget_strangers(&view),
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        let due: Vec<PeerName> = self
            .parties
            .iter()
            .filter(|(_, party)| party.due(self.lifetime).is_some_and(|due| due <= now))
            .map(|(name, _)| *name)
            .collect();
        for name in due {
            let Some(party) = self.parties.get_mut(&name) else { continue };
            let renew = party.renewal(self.lifetime).is_some_and(|due| due <= now);
            let all = std::mem::take(&mut party.accepted).into_iter();
            let (over, rest): (VecDeque<_>, _) = all.partition(|accepted| accepted.until.is_some_and(|until| until <= now));
            party.accepted = rest;
            self.refuse(over);
            if renew {
                self.renew(now, name);
            }
        }
    }

    /// When that is.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.parties.values().filter_map(|party| party.due(self.lifetime)).min()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    fn link_up(&mut self, now: Time, neighbour: Neighbour) {
        let name = neighbour.name;
        if neighbour.sleeve_port == 0 {
            return self.forget(name);
        }
        match self.parties.get_mut(&name) {
            Some(party) if party.neighbour.remote == neighbour.remote && party.neighbour.sealed == neighbour.sealed => {
                party.linked = true;
                party.neighbour = neighbour;
            }
            _ => {
                // Another address, or another secrecy: nothing of before may be used.
                self.forget(name);
                let party = Party { neighbour, linked: true, accepted: VecDeque::new(), made: now, told: VecDeque::new() };
                self.parties.insert(name, party);
            }
        }
        self.renew(now, name);
    }

    /// Makes another session to receive with.
    fn renew(&mut self, now: Time, name: PeerName) {
        let session = self.unused();
        let key = Key(self.rng.random());
        let Some(party) = self.parties.get_mut(&name) else { return };
        party.made = now;
        for accepted in party.accepted.iter_mut().filter(|accepted| accepted.until.is_none()) {
            accepted.until = Some(now + OVERLAP);
        }
        party.accepted.push_back(Accepted { session, until: None });
        let excess = party.accepted.len().saturating_sub(ACCEPTED);
        let over: Vec<_> = party.accepted.drain(..excess).collect();
        let cipher = party.cipher();
        let neighbour = party.neighbour.remote;
        self.refuse(over);
        self.out.push_back(Output::Op(Op::Accept(Inbound { session, neighbour, cipher, key: key.clone() })));
        if let Ok(payload) = postcard::to_stdvec(&Offer { session, cipher, key }) {
            self.out.push_back(Output::Tell { peer: name, payload: payload.into() });
        }
    }

    /// A number that no session of ours has.
    fn unused(&mut self) -> SessionId {
        loop {
            let Some(id) = NonZeroU32::new(self.rng.random()) else { continue };
            let session = SessionId(id);
            if !self.parties.values().flat_map(|party| &party.accepted).any(|accepted| accepted.session == session) {
                return session;
            }
        }
    }

    fn refuse(&mut self, over: impl IntoIterator<Item = Accepted>) {
        self.out.extend(over.into_iter().map(|accepted| Output::Op(Op::Refuse(accepted.session))));
    }

    /// What was agreed on when there was no password.
    fn end_those_in_clear(&mut self, trusted: &[Ipv4Net]) {
        let is_trusted = |remote: &Ipv4Addr| trusted.iter().any(|subnet| subnet.contains(remote));
        let open = |party: &Party| !party.neighbour.sealed && !is_trusted(&party.neighbour.remote);
        let ended: Vec<PeerName> = self.parties.iter().filter(|(_, party)| open(party)).map(|(name, _)| *name).collect();
        ended.into_iter().for_each(|name| self.forget(name));
    }

    fn told(&mut self, peer: PeerName, payload: &[u8]) {
        let Some(party) = self.parties.get_mut(&peer) else { return };
        let Ok((offer, _)) = postcard::take_from_bytes::<Offer>(payload) else {
            tracing::warn!(%peer, "a neighbour told us a sleeve session that we cannot read: it has another version?");
            return;
        };
        if offer.cipher != party.cipher() {
            tracing::warn!(%peer, theirs = ?offer.cipher, ours = ?party.cipher(), "a neighbour wants another cipher than was agreed: not used");
            return;
        }
        // To begin one twice would count from zero twice.
        if party.told.contains(&offer.session) {
            return;
        }
        party.told.push_back(offer.session);
        if party.told.len() > REMEMBERED {
            party.told.pop_front();
        }
        let Neighbour { remote, sleeve_port, .. } = party.neighbour;
        let session =
            Outbound { session: offer.session, cipher: offer.cipher, key: offer.key, remote: SocketAddrV4::new(remote, sleeve_port) };
        self.out.push_back(Output::Op(Op::Send { neighbour: remote, session: Some(session) }));
    }

    fn worn(&mut self, now: Time, session: SessionId) {
        let latest = |party: &Party| party.accepted.iter().any(|accepted| accepted.session == session && accepted.until.is_none());
        let name = self.parties.iter().find(|(_, party)| party.linked && latest(party)).map(|(name, _)| *name);
        if let Some(name) = name {
            self.renew(now, name);
        }
    }

    fn forget_strangers(&mut self, view: &View) {
        let unlinked = self.parties.iter().filter(|(_, party)| !party.linked).map(|(name, _)| *name);
        view.strangers(unlinked).into_iter().for_each(|name| self.forget(name));
    }

    fn forget(&mut self, name: PeerName) {
        let Some(party) = self.parties.remove(&name) else { return };
        self.refuse(party.accepted);
        self.out.push_back(Output::Op(Op::Send { neighbour: party.neighbour.remote, session: None }));
    }
}

#[cfg(test)]
mod tests;
