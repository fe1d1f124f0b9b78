//! What the threads count, each for itself.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Count {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Count {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As status and metrics say it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// Frames that left sealed; a large segment is one.
    FramesOut = "frames-out",
    /// Bytes of them.
    BytesOut = "bytes-out",
    /// Frames delivered; parts that were joined are one.
    FramesIn = "frames-in",
    /// Bytes of them.
    BytesIn = "bytes-in",
    /// Datagrams sent.
    DatagramsOut = "datagrams-out",
    /// Datagrams opened.
    DatagramsIn = "datagrams-in",
    /// System calls that sent them.
    Sends = "sends",
    /// Requests of neighbours that were answered.
    Answered = "answered",
    /// A frame from the device without the programs' prefix.
    NoPrefix = "dropped-no-prefix",
    /// A frame for a neighbour that no session leads to.
    NoSession = "dropped-no-session",
    /// A session that has no numbers left.
    Exhausted = "dropped-exhausted",
    /// Datagrams that could not be sealed: too short, which is a defect of ours.
    Unsealed = "dropped-unsealed",
    /// A frame longer than any IP packet.
    TooLong = "dropped-too-long",
    /// Datagrams that the path's first hop does not take.
    TooBig = "dropped-too-big",
    /// Datagrams that the kernel had no room for.
    Congested = "dropped-congested",
    /// Datagrams that could not be sent for another reason: no route, a firewall.
    Unsent = "dropped-unsent",
    /// A datagram shorter than the shortest.
    Short = "refused-short",
    /// A datagram of a session that we do not accept.
    Stranger = "refused-stranger",
    /// A datagram that was seen before, or is too old to know.
    Replayed = "refused-replayed",
    /// A datagram that was not sealed with its session's key.
    Forged = "refused-forged",
    /// Something sealed that is not understood.
    Malformed = "dropped-malformed",
    /// A frame whose parts did not all come.
    FragmentLost = "dropped-fragment-lost",
    /// A frame that the device does not take.
    Undelivered = "dropped-undelivered",
    /// Threads that found the device deleted: nothing is carried before there is another.
    DeviceGone = "device-gone",
    /// Something for the switch, which does not keep up.
    Unheard = "dropped-unheard",
}

/// One thread's. Nobody else writes them: a cache line is not passed around.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Counters([AtomicU64; Count::ALL.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Counters {
    pub(super) fn add(&self, count: Count, n: usize) {
        self.0[count as usize].fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(super) fn one(&self, count: Count) {
        self.add(count, 1);
    }

    pub(super) fn read(&self, count: Count) -> u64 {
        self.0[count as usize].load(Ordering::Relaxed)
    }
}
