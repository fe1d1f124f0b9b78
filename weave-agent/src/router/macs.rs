//! The gossip channel `macs`: which addresses a peer just learned on its own ports.
//!
//! A message is a postcard sequence of addresses. It is decoded by hand-set bounds: whatever arrives becomes a short list of
//! unicast addresses or an error, and what follows the list is left to later versions.

use bytes::Bytes;

use crate::addr::Mac;
use crate::mesh::Channel;

/// Most addresses in one message.
pub const MAX_MACS: usize = 256;

/// Name of the channel.
const NAME: &str = "macs";

/// A message that no peer of ours sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not postcard.
    #[error("not a list of addresses: {0}")]
    Encoding(#[from] postcard::Error),
    /// None, or too many.
    #[error("{0} addresses, where 1 to {MAX_MACS} are allowed")]
    Count(usize),
    /// Zero, or a group: neither is ever a source.
    #[error("{0} cannot be the address of a container")]
    NotASource(Mac),
}

/// The channel itself.
pub(super) fn channel() -> Channel {
    Channel(NAME.to_owned())
}

/// Whether this is the channel.
pub(super) fn is_channel(channel: &Channel) -> bool {
    channel.0 == NAME
}

/// The messages that say all of `macs`.
pub(super) fn encode(macs: &[Mac]) -> impl Iterator<Item = Bytes> {
    macs.chunks(MAX_MACS).filter_map(|chunk| match postcard::to_stdvec(chunk) {
        Ok(bytes) => Some(bytes.into()),
        Err(error) => {
            tracing::error!(%error, "cannot encode a list of addresses");
            None
        }
    })
}

/// The addresses in a message.
///
/// # Errors
/// Anything but 1 to [`MAX_MACS`] unicast addresses.
pub(super) fn decode(payload: &[u8]) -> Result<Vec<Mac>, DecodeError> {
    // The count is checked before anything of that size is made.
    let (count, _) = postcard::take_from_bytes::<u32>(payload)?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if !(1..=MAX_MACS).contains(&count) {
        return Err(DecodeError::Count(count));
    }
    let (macs, _) = postcard::take_from_bytes::<Vec<Mac>>(payload)?;
    match macs.iter().find(|mac| mac.is_group() || **mac == Mac::ZERO) {
        Some(mac) => Err(DecodeError::NotASource(*mac)),
        None => Ok(macs),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mac(last: u16) -> Mac {
        let [high, low] = last.to_be_bytes();
        Mac([2, 0, 0, 0, high, low])
    }

    #[test]
    fn the_bytes_are_what_they_were() {
        let bytes: Vec<Bytes> = encode(&[mac(1), mac(0x0203)]).collect();
        assert_eq!(bytes, [Bytes::from_static(&[2, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 2, 3])]);
    }

    #[test]
    fn long_lists_go_in_several_messages() {
        let macs: Vec<Mac> = (1..=600).map(mac).collect();
        let back: Vec<Mac> = encode(&macs).flat_map(|bytes| decode(&bytes).unwrap()).collect();
        assert_eq!(back, macs);
    }

    #[test]
    fn what_no_peer_sends_is_refused() {
        assert_eq!(decode(&[0]), Err(DecodeError::Count(0)));
        assert_eq!(decode(&[0x81, 2]), Err(DecodeError::Count(257)));
        assert_eq!(decode(&[1, 1, 0, 0x5e, 0, 0, 1]), Err(DecodeError::NotASource(Mac([1, 0, 0x5e, 0, 0, 1]))));
        assert_eq!(decode(&[1, 0, 0, 0, 0, 0, 0]), Err(DecodeError::NotASource(Mac::ZERO)));
        assert!(matches!(decode(&[2, 2, 0, 0]), Err(DecodeError::Encoding(_))));
        assert!(matches!(decode(&[]), Err(DecodeError::Encoding(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_become_addresses_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            if let Ok(macs) = decode(&bytes) {
                prop_assert!((1..=MAX_MACS).contains(&macs.len()));
                prop_assert!(macs.iter().all(|mac| !mac.is_group() && *mac != Mac::ZERO));
            }
        }
    }
}
