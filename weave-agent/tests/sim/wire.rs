//! The underlay: which host's packets reach which, how late, and in what state.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weave_agent::Time;

/// A host, by its place in [`World::hosts`](crate::world::World::hosts).
pub(crate) type HostId = usize;

/// What all wires do to datagrams, in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Noise {
    pub(crate) loss: u32,
    pub(crate) duplication: u32,
    pub(crate) reordering: u32,
}

/// What became of one datagram: the delay of each copy that arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Lost,
    Arrives(Time),
    Twice(Time, Time),
}

/// Every wire between two hosts.
pub(crate) struct Wires {
    /// Pairs without a wire at all, smaller first: routing around them is the normal state of things.
    absent: BTreeSet<(HostId, HostId)>,
    /// Directions cut for now: from, to.
    cut: BTreeSet<(HostId, HostId)>,
    /// Pairs between which VXLAN is dropped, smaller first.
    blocked: BTreeSet<(HostId, HostId)>,
    pub(crate) noise: Noise,
    /// Largest IP packet.
    pub(crate) mtu: usize,
    /// What hosts believe that to be.
    pub(crate) route_mtu: usize,
    latency: Time,
    rng: StdRng,
}

impl Wires {
    /// All hosts wired to all but the `absent` pairs.
    pub(crate) fn new(absent: BTreeSet<(HostId, HostId)>, mtu: usize, latency: Time, seed: u64) -> Self {
        let noise = Noise::default();
        Self {
            absent,
            cut: BTreeSet::new(),
            blocked: BTreeSet::new(),
            noise,
            mtu,
            route_mtu: 1500,
            latency,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Whether a packet from one gets to the other.
    pub(crate) fn carries(&self, from: HostId, to: HostId) -> bool {
        self.exists(from, to) && !self.cut.contains(&(from, to))
    }

    /// Whether both directions work.
    pub(crate) fn joins(&self, a: HostId, b: HostId) -> bool {
        self.carries(a, b) && self.carries(b, a)
    }

    /// Whether there is a wire, cut or not.
    pub(crate) fn exists(&self, a: HostId, b: HostId) -> bool {
        !self.absent.contains(&(a.min(b), a.max(b)))
    }

    /// Cuts one direction.
    pub(crate) fn cut(&mut self, from: HostId, to: HostId) {
        if from != to {
            self.cut.insert((from, to));
        }
    }

    /// Mends both directions.
    pub(crate) fn mend(&mut self, a: HostId, b: HostId) {
        self.cut.remove(&(a, b));
        self.cut.remove(&(b, a));
    }

    /// A firewall that drops UDP 6784, or no longer.
    pub(crate) fn block(&mut self, a: HostId, b: HostId, blocked: bool) {
        if blocked {
            self.blocked.insert((a.min(b), a.max(b)));
        } else {
            self.blocked.remove(&(a.min(b), a.max(b)));
        }
    }

    /// Whether a firewall drops VXLAN between the two.
    pub(crate) fn blocks(&self, a: HostId, b: HostId) -> bool {
        self.blocked.contains(&(a.min(b), a.max(b)))
    }

    /// Mends all.
    pub(crate) fn heal(&mut self) {
        self.blocked.clear();
        self.cut.clear();
    }

    /// Time that one packet takes.
    pub(crate) fn delay(&mut self) -> Time {
        let jitter = self.rng.random_range(0..=100);
        self.latency + self.latency * jitter / 400
    }

    /// What becomes of a datagram of `len` bytes (IP header included, DF set).
    pub(crate) fn fate(&mut self, from: HostId, to: HostId, len: usize) -> Fate {
        if !self.carries(from, to) || len > self.mtu || self.happens(self.noise.loss) {
            return Fate::Lost;
        }
        let mut delay = self.delay();
        if self.happens(self.noise.reordering) {
            delay += self.latency * self.rng.random_range(1..=20);
        }
        if self.happens(self.noise.duplication) {
            let second = self.delay() * self.rng.random_range(1..=10);
            return Fate::Twice(delay, second);
        }
        Fate::Arrives(delay)
    }

    /// Lost TCP segments only come later.
    pub(crate) fn stream_delay(&mut self) -> Time {
        let retransmission = if self.happens(self.noise.loss) { Time::from_millis(200) } else { Time::ZERO };
        self.delay() + retransmission
    }

    fn happens(&mut self, thousandths: u32) -> bool {
        thousandths > 0 && self.rng.random_range(0..1000) < thousandths
    }

    /// A random cut for a chunk of bytes.
    pub(crate) fn split(&mut self, len: usize) -> usize {
        if len < 2 || self.rng.random_range(0..4) > 0 { len } else { self.rng.random_range(1..len) }
    }
}
