//! Whom to dial and when: the user's targets, and (discovery) the neighbours of other peers.
//!
//! Back-off begins at 2 s and grows by half up to 30 s, each time somewhere between half and one and a half of it. Weave
//! Net goes on to 6 minutes: a host that was down for an hour then waits up to nine for its link. A SYN per address and
//! half a minute costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;

use rand::{Rng, RngExt};

use super::{LinkId, Target};
use crate::Time;
use crate::peer::PeerName;

/// First interval.
const FIRST: Time = Time::from_secs(2);
/// Last interval.
const LAST: Time = Time::from_secs(30);
/// A link that lived so long was fine: what ended it deserves an immediate new dial.
const LIVED: Time = Time::from_secs(60);

/// The dialler.
#[derive(Debug)]
pub(super) struct Dialler {
    targets: Vec<Target>,
    attempts: BTreeMap<SocketAddrV4, Attempt>,
}

/// What is known of an address that we want a link to, or have one.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) state: State,
    /// Who answered there last.
    pub(super) peer: Option<PeerName>,
    /// And what it called itself: with a clone, our own record would tell nothing.
    pub(super) nickname: Option<String>,
    pub(super) error: Option<String>,
    /// The user wants it. Else it was discovered, and a stranger there is not let in: the address may have been reused.
    pub(super) target: bool,
    wanted: bool,
    interval: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Dialled from this time on.
    Waiting(Time),
    /// Waiting for the answer to [`super::Output::Dial`].
    Dialling,
    Linked(LinkId),
    /// Like `Waiting`, but for a reason that only the user can remove.
    Refused(Time),
    /// Our own address.
    Myself,
}

/// How a link or a dial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It failed; try again later.
    Failed,
    /// It had been up for so long.
    Lived(Time),
    /// Someone else has our name, or the name of one of our neighbours: try again, but slowly.
    Collision,
    /// It was us.
    Myself,
    /// The network has other passwords now: dial again from this time on.
    Rekeyed(Time),
}

impl Dialler {
    pub(super) fn new(targets: Vec<Target>) -> Self {
        let mut dialler = Self { targets: Vec::new(), attempts: BTreeMap::new() };
        dialler.add(targets);
        dialler
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter()
    }

    pub(super) fn targets(&self) -> Vec<String> {
        self.all().map(|target| target.name.clone()).collect()
    }

    /// The user wants these, now: whatever back-off they were in is over.
    pub(super) fn connect(&mut self, now: Time, targets: Vec<Target>, replace: bool) {
        if replace {
            self.targets.clear();
        }
        for address in targets.iter().flat_map(|target| &target.addresses) {
            if let Some(attempt) = self.attempts.get_mut(address) {
                attempt.hurry(now);
            }
        }
        self.add(targets);
    }

    /// What kept us from links may be gone: no back-off goes on.
    pub(super) fn hurry(&mut self, now: Time) {
        self.attempts.values_mut().filter(|attempt| attempt.state != State::Myself).for_each(|attempt| attempt.hurry(now));
    }

    fn add(&mut self, targets: Vec<Target>) {
        for target in targets {
            match self.targets.iter_mut().find(|known| known.name == target.name) {
                Some(known) => *known = target,
                None => self.targets.push(target),
            }
        }
    }

    pub(super) fn forget(&mut self, names: &[String]) {
        self.targets.retain(|target| !names.contains(&target.name));
    }

    /// New addresses of a target, if it still is one.
    pub(super) fn resolved(&mut self, target: Target) {
        if let Some(known) = self.targets.iter_mut().find(|known| known.name == target.name) {
            *known = target;
        }
    }

    /// Brings the attempts in line with the targets and with what was discovered (and is not to be dialled before when).
    pub(super) fn refresh(&mut self, now: Time, discovered: BTreeMap<SocketAddrV4, Time>) {
        self.attempts.values_mut().for_each(|attempt| (attempt.wanted, attempt.target) = (false, false));
        for (address, from) in discovered {
            self.attempts.entry(address).or_insert_with(|| Attempt::new(from)).wanted = true;
        }
        for address in self.targets.iter().flat_map(|target| &target.addresses) {
            let attempt = self.attempts.entry(*address).or_insert_with(|| Attempt::new(now));
            (attempt.wanted, attempt.target) = (true, true);
        }
        // A back-off outlives a link by another way: what failed a moment ago is not news when that link ends.
        self.attempts.retain(|_, attempt| attempt.wanted || attempt.due().is_none_or(|due| due > now));
    }

    /// The addresses to dial now, at most `room`; they count as dialled. Passed over are those of peers in `linked`.
    pub(super) fn dial(&mut self, now: Time, linked: &Linked, room: usize) -> Vec<SocketAddrV4> {
        let due = |(address, attempt): (&SocketAddrV4, &mut Attempt)| {
            let due = attempt.due().is_some_and(|due| due <= now) && attempt.wanted && !linked.has(*address, attempt);
            due.then(|| attempt.state = State::Dialling).map(|()| *address)
        };
        self.attempts.iter_mut().filter_map(due).take(room).collect()
    }

    /// Dials without an answer yet.
    pub(super) fn dialling(&self) -> usize {
        self.attempts.values().filter(|attempt| attempt.state == State::Dialling).count()
    }

    /// When there will be something to dial, as far as can be told now.
    pub(super) fn deadline(&self, linked: &Linked) -> Option<Time> {
        let open = self.attempts.iter().filter(|(address, attempt)| attempt.wanted && !linked.has(**address, attempt));
        open.filter_map(|(_, attempt)| attempt.due()).min()
    }

    pub(super) fn get(&self, address: SocketAddrV4) -> Option<&Attempt> {
        self.attempts.get(&address)
    }

    /// All but those that have a link, or need none.
    pub(super) fn open(&self, linked: &Linked) -> impl Iterator<Item = (SocketAddrV4, &Attempt)> {
        let open = move |(address, attempt): &(&SocketAddrV4, &Attempt)| match attempt.state {
            State::Linked(_) => false,
            State::Dialling | State::Myself => true,
            State::Waiting(_) | State::Refused(_) => attempt.wanted && !linked.has(**address, attempt),
        };
        self.attempts.iter().filter(open).map(|(address, attempt)| (*address, attempt))
    }

    /// A dial succeeded.
    pub(super) fn dialled(&mut self, address: SocketAddrV4, link: LinkId) {
        if let Some(attempt) = self.attempts.get_mut(&address) {
            attempt.state = State::Linked(link);
        }
    }

    /// Whoever answered there has said its name.
    pub(super) fn met(&mut self, address: SocketAddrV4, peer: PeerName, nickname: &str) {
        if let Some(attempt) = self.attempts.get_mut(&address) {
            attempt.peer = Some(peer);
            attempt.nickname = Some(nickname.to_owned());
        }
    }

    /// A dial failed (`link` is `None`), or a link with whoever listens there ended, whoever had dialled it.
    pub(super) fn ended(
        &mut self,
        now: Time,
        address: SocketAddrV4,
        link: Option<LinkId>,
        ending: Ending,
        error: &str,
        rng: &mut impl Rng,
    ) {
        let Some(attempt) = self.attempts.get_mut(&address).filter(|attempt| attempt.concerns(link)) else { return };
        attempt.error = Some(error.to_owned());
        match ending {
            Ending::Myself => attempt.state = State::Myself,
            Ending::Collision => attempt.state = State::Refused(now + LAST),
            Ending::Rekeyed(from) => (attempt.interval, attempt.state) = (FIRST, State::Waiting(from)),
            Ending::Lived(time) if time > LIVED => (attempt.interval, attempt.state) = (FIRST, State::Waiting(now)),
            Ending::Failed | Ending::Lived(_) => attempt.back_off(now, rng),
        }
    }
}

impl Attempt {
    fn new(now: Time) -> Self {
        Self { state: State::Waiting(now), peer: None, nickname: None, error: None, target: false, wanted: false, interval: FIRST }
    }

    fn hurry(&mut self, now: Time) {
        self.interval = FIRST;
        if !matches!(self.state, State::Dialling | State::Linked(_)) {
            self.state = State::Waiting(now);
        }
    }

    /// There may be more links with a peer for moments; the end of one says nothing about a dial or another link.
    fn concerns(&self, link: Option<LinkId>) -> bool {
        match self.state {
            State::Dialling => link.is_none(),
            State::Linked(linked) => link == Some(linked),
            State::Waiting(_) | State::Refused(_) | State::Myself => true,
        }
    }

    fn back_off(&mut self, now: Time, rng: &mut impl Rng) {
        self.state = State::Waiting(now + self.interval.mul_f64(rng.random_range(0.5..1.5)));
        self.interval = (self.interval * 3 / 2).min(LAST);
    }

    /// When it is to be dialled.
    pub(super) fn due(&self) -> Option<Time> {
        match self.state {
            State::Waiting(due) | State::Refused(due) => Some(due),
            State::Dialling | State::Linked(_) | State::Myself => None,
        }
    }
}

/// The peers that we have links with.
#[derive(Debug, Default)]
pub(super) struct Linked {
    /// Their names: an address whose peer is one of them is another way to the same.
    pub(super) names: BTreeSet<PeerName>,
    /// Where they accept links.
    pub(super) addresses: BTreeSet<SocketAddrV4>,
}

impl Linked {
    fn has(&self, address: SocketAddrV4, attempt: &Attempt) -> bool {
        self.addresses.contains(&address) || attempt.peer.is_some_and(|peer| self.names.contains(&peer))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn address(last: u8) -> SocketAddrV4 {
        SocketAddrV4::new([192, 0, 2, last].into(), 6783)
    }

    fn target(name: &str, addresses: &[u8]) -> Target {
        Target { name: name.into(), addresses: addresses.iter().copied().map(address).collect() }
    }

    fn at(seconds: u64) -> Time {
        Time::from_secs(seconds)
    }

    fn dialler(addresses: &[u8]) -> Dialler {
        let mut dialler = Dialler::new(vec![target("t", addresses)]);
        dialler.refresh(at(0), BTreeMap::new());
        dialler
    }

    fn rng() -> StdRng {
        StdRng::from_seed([1; 32])
    }

    #[test]
    fn every_address_of_a_target_is_dialled_once() {
        let mut dialler = dialler(&[1, 2]);
        assert_eq!(dialler.dial(at(0), &Linked::default(), 9), [address(1), address(2)]);
        assert!(dialler.dial(at(0), &Linked::default(), 9).is_empty());
    }

    #[test]
    fn failures_are_further_and_further_apart_but_never_more_than_45_seconds() {
        let (mut dialler, mut rng, mut now) = (dialler(&[1]), rng(), at(0));
        let mut waits = Vec::new();
        for _ in 0..20 {
            assert_eq!(dialler.dial(now, &Linked::default(), 1), [address(1)]);
            dialler.ended(now, address(1), None, Ending::Failed, "refused", &mut rng);
            let next = dialler.deadline(&Linked::default()).unwrap();
            waits.push(next - now);
            now = next;
        }
        assert!(waits[0] >= at(1) && waits[0] < at(3), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait < at(45)) && waits[10..].iter().all(|wait| *wait >= at(15)), "{waits:?}");
    }

    #[test]
    fn a_link_that_lived_for_more_than_a_minute_is_dialled_again_at_once() {
        let mut dialler = dialler(&[1]);
        dialler.dial(at(0), &Linked::default(), 1);
        dialler.dialled(address(1), LinkId(1));
        dialler.ended(at(61), address(1), Some(LinkId(2)), Ending::Failed, "another", &mut rng());
        assert_eq!(dialler.get(address(1)).unwrap().state, State::Linked(LinkId(1)));
        dialler.ended(at(61), address(1), Some(LinkId(1)), Ending::Lived(at(61)), "reset", &mut rng());
        assert_eq!(dialler.dial(at(61), &Linked::default(), 1), [address(1)]);
    }

    #[test]
    fn our_own_address_is_dialled_again_only_when_the_user_says_so() {
        let mut dialler = dialler(&[1]);
        dialler.dial(at(0), &Linked::default(), 1);
        dialler.ended(at(0), address(1), None, Ending::Myself, "self", &mut rng());
        assert_eq!(dialler.deadline(&Linked::default()), None);
        dialler.connect(at(9), vec![target("t", &[1])], false);
        assert_eq!(dialler.deadline(&Linked::default()), Some(at(9)));
    }

    #[test]
    fn a_peer_that_is_linked_is_not_dialled_by_whatever_address() {
        let mut dialler = dialler(&[1, 2, 3]);
        let peer = PeerName([2, 0, 0, 0, 0, 1]);
        dialler.met(address(2), peer, "x");
        let linked = Linked { names: [peer].into(), addresses: [address(1)].into() };
        assert_eq!(dialler.dial(at(0), &linked, 9), [address(3)]);
        assert_eq!(dialler.deadline(&linked), None);
    }

    #[test]
    fn what_is_neither_target_nor_discovered_is_forgotten() {
        let mut dialler = dialler(&[1]);
        dialler.refresh(at(0), [(address(2), at(0))].into());
        dialler.forget(&["t".into()]);
        dialler.refresh(at(0), [(address(2), at(0))].into());
        assert_eq!(dialler.dial(at(0), &Linked::default(), 9), [address(2)]);
        assert!(!dialler.get(address(2)).unwrap().target);
    }

    #[test]
    fn a_back_off_is_not_forgotten_with_the_wish() {
        let mut dialler = dialler(&[]);
        dialler.refresh(at(0), [(address(2), at(0))].into());
        dialler.dial(at(0), &Linked::default(), 9);
        dialler.ended(at(0), address(2), None, Ending::Failed, "refused", &mut rng());
        dialler.refresh(at(0), BTreeMap::new());
        dialler.refresh(at(0), [(address(2), at(0))].into());
        assert!(dialler.deadline(&Linked::default()).unwrap() >= at(1));
    }

    #[test]
    fn a_name_that_resolves_anew_is_dialled_at_the_new_address() {
        let mut dialler = dialler(&[1]);
        dialler.resolved(target("t", &[2]));
        dialler.resolved(target("unknown", &[3]));
        dialler.refresh(at(0), BTreeMap::new());
        assert_eq!(dialler.dial(at(0), &Linked::default(), 9), [address(2)]);
    }

    #[test]
    fn no_more_are_dialled_than_there_is_room_for() {
        assert_eq!(dialler(&[1, 2, 3]).dial(at(0), &Linked::default(), 2).len(), 2);
    }
}
