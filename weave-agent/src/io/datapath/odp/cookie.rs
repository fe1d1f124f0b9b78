//! What a flow tells user space with a frame: eight bytes.

use weave_ebpf::stats::DropReason;

/// Why a frame is given to us, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cookie {
    /// A frame from a port is too big for the way to its peer.
    TooBig,
    /// To be counted, and forgotten.
    Drop(DropReason),
    /// The sleeve carries it.
    Sleeve {
        /// Whose slot.
        to: u16,
        /// The source half of its number.
        origin: u16,
        /// For its prefix.
        ttl: u8,
    },
    /// No container's frame.
    Heartbeat,
}

const TOO_BIG: u8 = 1;
const DROP: u8 = 2;
const SLEEVE: u8 = 3;
const HEARTBEAT: u8 = 4;

impl Cookie {
    pub(super) fn bytes(self) -> Vec<u8> {
        let (kind, ttl, to, origin) = match self {
            Self::TooBig => (TOO_BIG, 0, 0, 0),
            Self::Drop(reason) => (DROP, 0, reason.index() as u16, 0),
            Self::Sleeve { to, origin, ttl } => (SLEEVE, ttl, to, origin),
            Self::Heartbeat => (HEARTBEAT, 0, 0, 0),
        };
        let ([a, b], [c, d]) = (to.to_be_bytes(), origin.to_be_bytes());
        vec![kind, ttl, a, b, c, d, 0, 0]
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let [kind, ttl, a, b, c, d, ..] = *bytes.first_chunk::<8>()?;
        let (to, origin) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        match kind {
            TOO_BIG => Some(Self::TooBig),
            DROP => DropReason::from_index(to.into()).map(Self::Drop),
            SLEEVE => Some(Self::Sleeve { to, origin, ttl }),
            HEARTBEAT => Some(Self::Heartbeat),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_understood_and_what_others_said_is_not() {
        for cookie in
            [Cookie::TooBig, Cookie::Drop(DropReason::TooBig), Cookie::Sleeve { to: 4_000, origin: 7, ttl: 64 }, Cookie::Heartbeat]
        {
            assert_eq!(Cookie::read(&cookie.bytes()), Some(cookie));
        }
        for bytes in [&[][..], &[0; 8], &[3; 5], &[2, 0, 0xff, 0xff, 0, 0, 0, 0]] {
            assert_eq!(Cookie::read(bytes), None);
        }
    }
}
