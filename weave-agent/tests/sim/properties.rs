//! What must hold, whatever happens. Assertions carry these numbers.
//!
//! "After quiescence" means: no wire loses anything, every agent runs and is past its [`GRACE`], and the tables had
//! time to settle.
//!
//! 1. After quiescence a frame between containers that can reach each other arrives exactly once.
//! 2. At no time does a frame come out of one port twice, unless a wire made two of it, or
//!    - it is for a group, and the host's parent in the sender's tree became another while it was on its way; or
//!    - it was flooded to an unknown unicast address while the hosts did not agree on the trees: the tunnel header does
//!      not tell such a copy from a frame sent to one peer, so the receiver cannot check where it came from.
//! 3. At no time does a frame come out of the port it went in by.
//! 4. After quiescence all views are equal, every host has a loop-free way to every other (the wire between them, if
//!    there is one), and every broadcast tree covers every host once. That takes at most [`SETTLES_WITHIN`].
//! 5. After quiescence only the first frame from one container to another is an upcall, on every host it meets.
//! 6. After quiescence no cached flow contradicts where containers are, which ports exist and who the peers are.
//! 7. After quiescence a broadcast or multicast reaches every other container exactly once and nobody twice.
//! 8. A MAC that moved is reached at its new place 1 s after its first frame there.
//! 9. A stranger's frames never come out anywhere.
//! 10. Agents that crash and start again cost established pairs no frame.
//! 11. No agent logs an ERROR, and none panics.
//! 12. One seed is one run.
//! 13. A relay's agent hears of the first frame between two others only. (This is 5, on hosts in between.)
//! 14. When a wire is cut and there is another way, frames arrive again after 3 s; 10 s after it is mended they go
//!     the direct way again.
//! 15. Tables and queues stay within their limits, whatever a container sends.
//! 16. Between hosts that must seal what they send each other no VXLAN is in clear, not for a moment.

use std::fmt;

use weave_agent::Time;

use crate::frame::FrameId;

/// See property 4.
pub(crate) const SETTLES_WITHIN: Time = Time::from_secs(90);
/// A new agent takes nothing of what it found away for this long: the switch's grace, and one more look at the flows.
pub(crate) const GRACE: Time = Time::from_secs(36);
/// See property 8.
pub(crate) const MOVES_WITHIN: Time = Time::from_secs(1);
/// See property 14.
pub(crate) const FAILS_OVER_WITHIN: Time = Time::from_secs(3);
/// See property 14.
pub(crate) const COMES_BACK_WITHIN: Time = Time::from_secs(10);

/// A property that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Its number in the list above.
    pub(crate) property: u8,
    /// What happened.
    pub(crate) text: String,
}

impl Violation {
    /// Property `property` did not hold.
    pub(crate) fn new(property: u8, text: String) -> Self {
        Self { property, text }
    }

    /// The frame it is about, if it is about one.
    pub(crate) fn frame(&self) -> Option<FrameId> {
        let (_, rest) = self.text.split_once("FrameId(")?;
        rest.split_once(')')?.0.parse().ok().map(FrameId)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "property {} does not hold: {}", self.property, self.text)
    }
}

/// Fails with a property's number unless `holds`.
pub(crate) fn ensure(property: u8, holds: bool, text: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation::new(property, text())) }
}
