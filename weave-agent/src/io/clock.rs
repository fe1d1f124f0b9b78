//! The one clock of the agent.

use std::time::Instant;

use crate::Time;

/// Counts from when it was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// Zero is now.
    #[expect(clippy::new_without_default, reason = "two clocks made alike are not alike")]
    #[expect(clippy::disallowed_methods, reason = "this is the one clock")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Time since the start.
    pub fn now(&self) -> Time {
        self.start.elapsed()
    }

    /// The same moment for tokio's timers.
    pub fn instant(&self, time: Time) -> tokio::time::Instant {
        (self.start + time).into()
    }
}
