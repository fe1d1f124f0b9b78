//! Every frame that was sent and every place where a copy of it came out.

use std::collections::BTreeMap;

use weave_agent::Time;
use weave_agent::datapath::PortId;

use crate::frame::FrameId;
use crate::properties::Violation;
use crate::wire::HostId;

/// A port of a host.
pub(crate) type Place = (HostId, PortId);

/// One frame's fate.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    /// Where it went in; `None` for a stranger's.
    pub(crate) from: Option<Place>,
    pub(crate) at: Time,
    /// A wire lost a copy of it: nobody can be blamed if it does not arrive.
    pub(crate) lost: bool,
    /// Two copies may come to one place, and nobody can be blamed: a wire made two of one, or see property 2.
    pub(crate) duplicated: bool,
    /// Copies per place.
    pub(crate) copies: BTreeMap<Place, u32>,
}

/// All frames of a run.
#[derive(Default)]
pub(crate) struct Ledger {
    frames: BTreeMap<FrameId, Sent>,
    next: u64,
}

impl Ledger {
    /// A new frame.
    pub(crate) fn send(&mut self, from: Option<Place>, at: Time) -> FrameId {
        self.next += 1;
        let id = FrameId(self.next);
        self.frames.insert(id, Sent { from, at, lost: false, duplicated: false, copies: BTreeMap::new() });
        id
    }

    /// A wire lost a copy.
    pub(crate) fn lost(&mut self, id: FrameId) {
        if let Some(sent) = self.frames.get_mut(&id) {
            sent.lost = true;
        }
    }

    /// A wire made two of one.
    pub(crate) fn duplicated(&mut self, id: FrameId) {
        if let Some(sent) = self.frames.get_mut(&id) {
            sent.duplicated = true;
        }
    }

    /// A copy came out. What may never happen is a violation at once.
    pub(crate) fn deliver(&mut self, id: FrameId, place: Place, now: Time) -> Result<(), Violation> {
        let Some(sent) = self.frames.get_mut(&id) else {
            return Ok(());
        };
        let copies = sent.copies.entry(place).or_default();
        *copies += 1;
        match sent.from {
            None => Err(Violation::new(9, format!("a stranger's {id:?} came out at {place:?}"))),
            Some(from) if from == place => Err(Violation::new(3, format!("{id:?} was reflected to {place:?}"))),
            Some(_) if *copies > 1 && !sent.duplicated => {
                let age = now.saturating_sub(sent.at);
                Err(Violation::new(2, format!("{id:?} came out at {place:?} {copies} times, the last after {age:?}")))
            }
            Some(_) => Ok(()),
        }
    }

    /// What became of a frame.
    pub(crate) fn get(&self, id: FrameId) -> Option<&Sent> {
        self.frames.get(&id)
    }

    /// Frames sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.next
    }
}
