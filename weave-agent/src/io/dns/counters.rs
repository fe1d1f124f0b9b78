//! What the server did.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Live counters.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        /// What happened since the start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(super) fn read(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Queries that came over UDP.
    udp,
    /// Queries that came over TCP.
    tcp,
    /// Answered from what we know.
    answered,
    /// Passed on to an upstream server.
    forwarded,
    /// Passed on and answered with SERVFAIL, for no server answered.
    failed,
    /// Answered with SERVFAIL at once, for too many others waited.
    overloaded,
    /// No queries at all.
    garbage,
    /// Answers that could not be sent.
    unsent,
    /// TCP connections that were closed at once, for there were too many.
    refused,
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
