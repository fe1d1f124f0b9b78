//! One way to a neighbour, kernel tunnel or sleeve: whether heartbeats are answered, and what size gets through.

use super::heartbeat::Heartbeat;
use super::liveness::Liveness;
use super::path_mtu::PathMtu;
use crate::Time;

/// A way that only small packets get through would be a black hole for the rest, so it is not up before a heartbeat of
/// full size, or of the size that a quick search finds, was answered.
#[derive(Debug)]
pub(super) struct Way {
    sequence: u32,
    liveness: Liveness,
    path: PathMtu,
}

impl Way {
    /// `ceiling`: the largest size that the route takes, in the way's own measure.
    pub(super) fn new(now: Time, ceiling: u16) -> Self {
        Self { sequence: 0, liveness: Liveness::new(now), path: PathMtu::new(now, ceiling) }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.liveness.is_alive()
    }

    /// It worked, and does no more.
    pub(super) const fn is_dead(&self) -> bool {
        self.liveness.is_dead()
    }

    pub(super) fn is_up(&self) -> bool {
        self.is_alive() && self.path.proven().is_some()
    }

    /// The largest size that is known to get through, while the way is up.
    pub(super) fn mtu(&self) -> Option<u16> {
        self.path.proven().filter(|_| self.is_alive())
    }

    pub(super) const fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    pub(super) const fn path(&self) -> &PathMtu {
        &self.path
    }

    pub(super) fn due(&self) -> Time {
        let due = self.liveness.due(self.hurries());
        if self.liveness.is_answered() { due.min(self.path.due()) } else { due }
    }

    /// See [`Liveness::set_pace`].
    pub(super) fn set_pace(&mut self, pace: Time) {
        self.liveness.set_pace(pace);
        self.path.set_pace(pace);
    }

    fn hurries(&self) -> bool {
        self.path.is_in_doubt() && self.liveness.is_answered()
    }

    /// The heartbeats that are due, for the link with this id.
    pub(super) fn poll(&mut self, now: Time, connection: u64) -> Vec<Heartbeat> {
        let mut heartbeats = Vec::new();
        let was_dead = self.liveness.is_dead();
        if self.liveness.poll(now, self.sequence, self.hurries()) {
            heartbeats.push(self.request(now, connection, 0));
        }
        if self.liveness.is_dead() && !was_dead {
            self.path.forget(now);
        }
        if self.liveness.is_answered()
            && let Some(size) = self.path.poll(now, self.sequence, self.liveness.last_answer(), self.liveness.rtt())
        {
            heartbeats.push(self.request(now, connection, size));
        }
        heartbeats
    }

    fn request(&mut self, now: Time, connection: u64, size: u16) -> Heartbeat {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        Heartbeat::request(connection, sequence, now.as_nanos() as u64, size)
    }

    /// Takes a reply of this size; false if it answers nothing that was asked.
    pub(super) fn answer(&mut self, now: Time, sequence: u32, size: u16) -> bool {
        self.path.answer(now, sequence, size) || self.liveness.answer(now, sequence)
    }

    pub(super) fn set_ceiling(&mut self, now: Time, ceiling: u16) {
        self.path.set_ceiling(now, ceiling);
    }
}
