//! Counters and drop reasons: one list for kernel, agent, metrics and status.

macro_rules! counters {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[doc = $doc])+ $variant,)+ }

        impl $name {
            /// All of them, in index order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word shown in status and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The one with this index.
            pub fn from_index(index: u32) -> Option<Self> {
                Self::ALL.get(index as usize).copied()
            }
        }
    };
}

counters! {
    /// Why a frame was not carried on. The index is its place in the per-CPU counter map.
    DropReason {
        /// Too short for the headers it must have, or UDP to the tunnel's port that is no VXLAN.
        Malformed = "malformed",
        /// Its destination is the port it came from.
        Reflected = "reflected",
        /// A link-local group that bridges never forward (01:80:c2:00:00:0x, IEEE 802.1D 7.12.6).
        Reserved = "reserved-group",
        /// VXLAN from an address that is no neighbour's.
        Stranger = "stranger",
        /// A VNI whose destination or source is no peer of ours.
        UnknownPeer = "unknown-peer",
        /// The peer has no working tunnel and no relay.
        NoRoute = "no-route",
        /// A flood that did not come from the neighbour its tree says: a copy of one that did.
        WrongUpstream = "wrong-upstream",
        /// Relayed too often.
        HopLimit = "hop-limit",
        /// Larger than the way to the peer takes.
        TooBig = "too-big",
        /// The port or neighbour asks for more upcalls than it may.
        UpcallRate = "upcall-rate",
        /// The upcall ring was full, or the frame is too big for it.
        UpcallLost = "upcall-lost",
        /// The kernel refused to change the packet (headroom, memory).
        Kernel = "kernel",
        /// The switch said so.
        Switch = "switch",
        /// Same MAC on two ports: its moves are damped.
        Contested = "contested-mac",
        /// Larger fan-out than the kernel copies to.
        Fanout = "fanout",
        /// VXLAN from a neighbour whose frames must come encrypted.
        Unsealed = "unsealed",
    }
}

counters! {
    /// Things worth counting that are not drops and no flow counts already. Their indexes follow those of the drop reasons.
    Counter {
        /// VXLAN packets met on the vxlan device (what the programs leave to the stack).
        VxlanIn = "vxlan-in",
        /// Frames sent to a peer through the vxlan device.
        ViaStack = "via-stack",
        /// Frames handed to the sleeve.
        SleeveOut = "sleeve-out",
        /// Frames that came from the sleeve.
        SleeveIn = "sleeve-in",
        /// Frames copied to ports and peers.
        Flooded = "flooded",
        /// Upcalls made: frames that no flow says anything of.
        Upcalls = "upcalls",
        /// Heartbeats answered in the kernel.
        Heartbeats = "heartbeats",
        /// Answers to our heartbeats, given to user space.
        HeartbeatReplies = "heartbeat-replies",
    }
}

/// Entries of the counter map.
pub const COUNTERS: u32 = (DropReason::ALL.len() + Counter::ALL.len()) as u32;

impl DropReason {
    /// Its place in the counter map.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

impl Counter {
    /// Its place in the counter map.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        DropReason::ALL.len() as u32 + self as u32
    }
}
