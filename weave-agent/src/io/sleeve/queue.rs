//! One thread: a queue of the TAP device and a socket.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::arrivals::{Arrivals, Inlet};
use super::counters::{Count, Counters};
use super::departures::{Departures, Outlet};
use super::slice;
use super::table::Shared;
use super::tap::Tap;
use super::wire::Wire;

/// While one side never runs dry the other is asked every so many turns.
const TURNS: u32 = 4;

/// What a thread works with.
pub(super) struct Queue {
    pub(super) tap: Tap,
    pub(super) wire: Wire,
    pub(super) lane: u8,
    pub(super) counters: Arc<[Counters]>,
    pub(super) shared: Arc<Shared>,
    pub(super) arrivals: Arrivals,
    /// Something has changed: the table, or it is time to end.
    pub(super) wake: Arc<EventFd>,
    pub(super) stop: Arc<AtomicBool>,
}

impl Queue {
    /// Until told to stop.
    pub(super) fn run(mut self) {
        if let Err(error) = slice::ask(slice::SLICE) {
            tracing::debug!(%error, "the kernel keeps its own length of slices");
        }
        let (mut table, mut generation) = (self.shared.table(), 0);
        let mut departures = Departures::new(self.lane);
        let mut ready = Ready::default();
        while !self.stop.load(Ordering::Relaxed) {
            if self.shared.refresh(&mut generation, &mut table) {
                departures.forget_way();
                self.wire.forgive();
            }
            let outlet = Outlet { wire: &self.wire, counters: &self.counters[usize::from(self.lane)], lane: self.lane };
            if ready.wire {
                ready.wire = self.arrivals.run(Inlet { tap: &self.tap, outlet, table: &table });
            }
            if ready.tap {
                ready.tap = departures.run(&self.tap, outlet, &table);
            }
            if ready.ask(&self.tap, &self.wire, &self.wake, outlet.counters)
                && let Some(tap) = self.shared.take_tap(self.lane)
            {
                self.tap = tap;
                ready.gone = false;
            }
        }
    }
}

/// Which side has something.
#[derive(Default)]
struct Ready {
    tap: bool,
    wire: bool,
    /// Somebody has deleted the device. It says so whenever it is asked: it is not, before there is another.
    gone: bool,
    turns: u32,
}

impl Ready {
    /// Look, and wait if neither has. Has somebody woken us?
    fn ask(&mut self, tap: &Tap, wire: &Wire, wake: &EventFd, counters: &Counters) -> bool {
        let busy = self.tap || self.wire;
        self.turns += 1;
        if self.tap && self.wire || busy && !self.turns.is_multiple_of(TURNS) {
            return false;
        }
        let timeout = if busy { PollTimeout::ZERO } else { PollTimeout::NONE };
        let mut asked = [wake.as_fd(), wire.as_fd(), tap.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let count = if self.gone { 2 } else { 3 };
        // Interrupted is as good as nothing new.
        let _ = poll(&mut asked[..count], timeout);
        let [woken, has_wire, has_tap] = asked.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        self.wire |= !has_wire.is_empty();
        self.tap |= has_tap.contains(PollFlags::POLLIN);
        if has_tap.contains(PollFlags::POLLERR) {
            self.gone = true;
            counters.one(Count::DeviceGone);
        }
        let is_woken = !woken.is_empty();
        if is_woken {
            let _ = wake.read();
        }
        is_woken
    }
}
