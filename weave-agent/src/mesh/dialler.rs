//! Whom to dial, and when again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::Target;
use crate::Time;
use crate::peer::PeerName;

const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(30);
/// A link that lived so long starts the back-off anew.
const ALIVE: Duration = Duration::from_secs(60);
/// Between attempts at a peer that has another's name.
pub(crate) const COLLISION: Duration = Duration::from_secs(30);
/// Dials under way at once.
const AT_ONCE: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Until the time.
    Waiting(Time),
    /// Dialling, or the handshake is under way.
    Attempting,
    /// The link is up since.
    Up(Time),
    /// It is ourselves.
    Never,
}

#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) phase: Phase,
    interval: Duration,
    /// Why it failed last.
    pub(crate) error: String,
    /// Who answered last.
    pub(crate) peer: Option<PeerName>,
}

impl Attempt {
    pub(crate) fn is_due(&self, now: Time) -> bool {
        due(self).is_some_and(|at| at <= now)
    }
}

/// Why an attempt or its link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It broke, or never worked.
    Failed,
    /// There is a better link to the same peer.
    Duplicate,
    /// The name is taken.
    Collision,
    /// It is ourselves.
    Ourselves,
}

/// What is so elsewhere.
pub(crate) struct World<'a> {
    /// Peers with a link in use.
    pub(crate) linked: &'a BTreeSet<PeerName>,
    /// Where they listen.
    pub(crate) addresses: &'a BTreeSet<SocketAddrV4>,
    /// Where peers' peers listen.
    pub(crate) discovered: &'a BTreeSet<SocketAddrV4>,
    /// How many more links there may be.
    pub(crate) room: usize,
}

#[derive(Debug)]
pub(crate) struct Dialler {
    port: u16,
    targets: Vec<Target>,
    attempts: BTreeMap<SocketAddrV4, Attempt>,
}

impl Dialler {
    pub(crate) fn new(port: u16, targets: Vec<Target>) -> Self {
        Self { port, targets, attempts: BTreeMap::new() }
    }

    pub(crate) fn targets(&self) -> &[Target] {
        &self.targets
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.targets.iter().map(|target| target.name.clone()).collect()
    }

    pub(crate) fn attempts(&self) -> impl Iterator<Item = (SocketAddrV4, &Attempt)> {
        self.attempts.iter().map(|(address, attempt)| (*address, attempt))
    }

    /// The port we would use if none is given.
    pub(crate) fn complete(&self, address: SocketAddrV4) -> SocketAddrV4 {
        if address.port() == 0 { SocketAddrV4::new(*address.ip(), self.port) } else { address }
    }

    fn wanted(&self) -> BTreeSet<SocketAddrV4> {
        self.targets.iter().flat_map(|target| &target.addresses).map(|address| self.complete(*address)).collect()
    }

    /// Whether the user asked for this address.
    pub(crate) fn is_target(&self, address: SocketAddrV4) -> bool {
        self.wanted().contains(&address)
    }

    /// Adds targets; those named again are dialled at once.
    pub(crate) fn connect(&mut self, targets: Vec<Target>, replace: bool) {
        if replace {
            self.targets.clear();
        }
        for target in targets {
            for address in &target.addresses {
                let address = self.complete(*address);
                if let Some(attempt) = self.attempts.get_mut(&address)
                    && matches!(attempt.phase, Phase::Waiting(_) | Phase::Never)
                {
                    attempt.phase = Phase::Waiting(Time::ZERO);
                    attempt.interval = FIRST;
                }
            }
            self.resolved(target.clone());
            if !self.targets.iter().any(|known| known.name == target.name) {
                self.targets.push(target);
            }
        }
    }

    pub(crate) fn forget(&mut self, names: &[String]) {
        self.targets.retain(|target| !names.contains(&target.name));
    }

    /// A target has other addresses now; one that was forgotten meanwhile stays so.
    pub(crate) fn resolved(&mut self, target: Target) {
        if let Some(known) = self.targets.iter_mut().find(|known| known.name == target.name) {
            *known = target;
        }
    }

    /// The handshake with whoever is at `address` is done.
    pub(crate) fn up(&mut self, now: Time, address: SocketAddrV4, peer: PeerName) {
        if let Some(attempt) = self.attempts.get_mut(&address) {
            attempt.phase = Phase::Up(now);
            attempt.peer = Some(peer);
            attempt.error.clear();
        }
    }

    /// An attempt or link ended; schedules the next.
    pub(crate) fn ended(&mut self, now: Time, rng: &mut StdRng, address: SocketAddrV4, end: End, error: &str, peer: Option<PeerName>) {
        let Some(attempt) = self.attempts.get_mut(&address) else { return };
        error.clone_into(&mut attempt.error);
        attempt.peer = peer;
        attempt.phase = match (end, &attempt.phase) {
            (End::Ourselves, _) => Phase::Never,
            (End::Collision, _) => Phase::Waiting(now + COLLISION),
            (End::Failed, Phase::Up(since)) if now.saturating_sub(*since) > ALIVE => {
                attempt.interval = FIRST;
                Phase::Waiting(now)
            }
            (End::Failed | End::Duplicate, _) => {
                let wait = attempt.interval.mul_f64(rng.random_range(0.5..1.5));
                attempt.interval = attempt.interval.mul_f64(1.5).min(LONGEST);
                Phase::Waiting(now + wait)
            }
        };
    }

    /// What to dial now.
    pub(crate) fn dial(&mut self, now: Time, world: &World<'_>) -> Vec<SocketAddrV4> {
        let mut wanted = self.wanted();
        wanted.extend(world.discovered);
        self.attempts.retain(|address, attempt| wanted.contains(address) || matches!(attempt.phase, Phase::Attempting | Phase::Up(_)));
        for address in &wanted {
            let first = || Attempt { phase: Phase::Waiting(Time::ZERO), interval: FIRST, error: String::new(), peer: None };
            self.attempts.entry(*address).or_insert_with(first);
        }
        let under_way = self.attempts.values().filter(|attempt| attempt.phase == Phase::Attempting).count();
        let mut room = AT_ONCE.saturating_sub(under_way).min(world.room.saturating_sub(under_way));
        let mut dials = Vec::new();
        for (address, attempt) in &mut self.attempts {
            if room > 0 && attempt.is_due(now) && !reached(*address, attempt, world) {
                attempt.phase = Phase::Attempting;
                room -= 1;
                dials.push(*address);
            }
        }
        dials
    }

    /// When something that waits is due after `now` (what is due already waits for room or for a link to end).
    pub(crate) fn poll_timeout(&self, now: Time) -> Option<Time> {
        self.attempts.values().filter_map(due).filter(|at| *at > now).min()
    }
}

fn due(attempt: &Attempt) -> Option<Time> {
    if let Phase::Waiting(at) = attempt.phase { Some(at) } else { None }
}

/// Whether a link leads there already.
fn reached(address: SocketAddrV4, attempt: &Attempt, world: &World<'_>) -> bool {
    world.addresses.contains(&address) || attempt.peer.is_some_and(|peer| world.linked.contains(&peer))
}
