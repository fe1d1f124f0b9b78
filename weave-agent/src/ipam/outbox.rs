//! What goes out, and when: not before what it depends on is on disk.

use std::collections::VecDeque;

use super::{Answer, Error, Output};
use crate::Time;

/// Most that waits for a disk; messages beyond are lost, as messages may be.
const MAX_HELD: usize = 1 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    ready: VecDeque<Output>,
    held: VecDeque<Held>,
    /// Number of the last snapshot handed out.
    issued: u64,
    /// Number of the last one on disk.
    stored: u64,
    /// There were changes since the last one handed out.
    dirty: bool,
}

#[derive(Debug)]
struct Held {
    /// Number of the snapshot it waits for.
    needs: u64,
    /// When an answer is wanted at the latest.
    deadline: Option<Time>,
    /// For whom an answer is.
    owner: Option<String>,
    output: Output,
}

impl Outbox {
    /// Something changed that must survive. To be called before what depends on it is sent.
    pub(super) fn changed(&mut self) {
        self.dirty = true;
    }

    /// Sends a message that depends on everything so far.
    pub(super) fn send(&mut self, output: Output) {
        if self.held.len() < MAX_HELD {
            self.hold(None, None, output);
        }
    }

    /// Answers a request with something that depends on everything so far.
    pub(super) fn answer(&mut self, request: u64, deadline: Time, owner: Option<&str>, answer: Answer) {
        self.hold(Some(deadline), owner.map(str::to_owned), Output::Answer { request, result: Ok(answer) });
    }

    /// Answers a request with something that depends on nothing.
    pub(super) fn refuse(&mut self, request: u64, error: Error) {
        self.ready.push_back(Output::Answer { request, result: Err(error) });
    }

    fn hold(&mut self, deadline: Option<Time>, owner: Option<String>, output: Output) {
        let needs = self.issued + u64::from(self.dirty);
        self.held.push_back(Held { needs, deadline, owner, output });
        self.release();
    }

    /// In the order in which it was sent: nothing waits for less than what is before it.
    fn release(&mut self) {
        while let Some(held) = self.held.pop_front_if(|held| held.needs <= self.stored) {
            self.ready.push_back(held.output);
        }
    }

    /// A snapshot is on disk.
    pub(super) fn stored(&mut self, number: u64) {
        self.stored = self.stored.max(number.min(self.issued));
        self.release();
    }

    /// The number of the snapshot that must be written now, if one must.
    pub(super) fn due(&mut self) -> Option<u64> {
        if !self.dirty || self.stored < self.issued {
            return None;
        }
        self.dirty = false;
        self.issued += 1;
        Some(self.issued)
    }

    pub(super) fn store(&mut self, output: Output) {
        self.ready.push_back(output);
    }

    /// Answers that cannot wait for the disk any longer say so.
    pub(super) fn expire(&mut self, now: Time) {
        self.withdraw(|held| held.deadline.is_some_and(|deadline| deadline <= now), &Error::NotStored);
    }

    /// An owner is gone: what it was to get is not its any more.
    pub(super) fn cancel(&mut self, owner: &str) {
        self.withdraw(|held| held.owner.as_deref() == Some(owner), &Error::Cancelled);
    }

    fn withdraw(&mut self, which: impl Fn(&Held) -> bool, error: &Error) {
        if !self.held.iter().any(&which) {
            return;
        }
        let (withdrawn, held): (VecDeque<Held>, _) = std::mem::take(&mut self.held).into_iter().partition(which);
        self.held = held;
        for held in withdrawn {
            if let Output::Answer { request, .. } = held.output {
                self.refuse(request, error.clone());
            }
        }
    }

    /// When to call [`expire`](Self::expire).
    pub(super) fn deadline(&self) -> Option<Time> {
        self.held.iter().filter_map(|held| held.deadline).min()
    }

    /// Whether an answer with this number waits.
    pub(super) fn waits(&self, number: u64) -> bool {
        self.held.iter().any(|held| matches!(held.output, Output::Answer { request, .. } if request == number))
    }

    pub(super) fn pop(&mut self) -> Option<Output> {
        self.ready.pop_front()
    }
}
