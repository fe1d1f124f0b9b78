//! The gossip channel `dns`.
//!
//! A message is a kind, a count and so many entries, in postcard. It is decoded one entry after the other by hand-set bounds: whatever
//! arrives becomes a short list of well-formed entries or an error, and what follows the list is left to later versions.

use std::net::IpAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::entry::{Key, MAX_VERSION, OwnerError, Value};
use super::name::NameError;
use crate::peer::PeerName;

/// Longest message, bytes.
pub const MAX_MESSAGE: usize = 64 << 10;
/// Kind and count.
const HEADER: usize = 1 + 3;
/// The shortest entry there can be: bounds the count.
const MIN_ENTRY: usize = 6 + 3 + 5 + 2 + 1 + 1;

/// A message that no peer of ours sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not postcard.
    #[error("not a list of names: {0}")]
    Encoding(#[from] postcard::Error),
    /// More bytes than allowed.
    #[error("{0} bytes, where {MAX_MESSAGE} are allowed")]
    Long(usize),
    /// More entries than bytes.
    #[error("{0} entries do not fit a message")]
    Count(usize),
    /// A kind of message that we do not know.
    #[error("an unknown kind of message: {0}")]
    Kind(u8),
    /// A name that cannot be.
    #[error(transparent)]
    Name(#[from] NameError),
    /// An owner that cannot be.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// A version that nobody reaches.
    #[error("version {0} of a name")]
    Version(u64),
}

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Changes, told to everybody by their origin.
    Delta,
    /// State, told to some: what is new in it is passed on.
    State,
    /// Somebody has just started, and wants to be told everything. It has no entries.
    Question,
}

/// An entry in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) key: Key,
    pub(super) value: Value,
    /// Whole minutes since it died; 0 if it lives.
    pub(super) age: u8,
}

/// The bytes of an [`Item`].
#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    origin: PeerName,
    name: &'a str,
    address: IpAddr,
    owner: &'a str,
    version: u64,
    /// Minutes.
    dead: Option<u8>,
}

/// The messages that say all of `items`.
pub(super) fn encode(kind: Kind, items: impl IntoIterator<Item = Item>) -> Vec<Bytes> {
    let (mut messages, mut body, mut count) = (Vec::new(), Vec::new(), 0);
    for item in items {
        let Some(bytes) = entry(&item) else { continue };
        if HEADER + body.len() + bytes.len() > MAX_MESSAGE {
            messages.push(message(kind, count, &body));
            (body, count) = (Vec::new(), 0);
        }
        body.extend_from_slice(&bytes);
        count += 1;
    }
    if count > 0 || kind == Kind::Question {
        messages.push(message(kind, count, &body));
    }
    messages
}

fn entry(item: &Item) -> Option<Vec<u8>> {
    let wire = Wire {
        origin: item.key.origin,
        name: item.key.name.as_str(),
        address: item.key.address,
        owner: item.key.owner.as_str(),
        version: item.value.version,
        dead: item.value.dead.then_some(item.age),
    };
    postcard::to_stdvec(&wire).inspect_err(|error| tracing::error!(%error, "cannot encode a name")).ok()
}

fn message(kind: Kind, count: u32, body: &[u8]) -> Bytes {
    let tag = match kind {
        Kind::Delta => 0,
        Kind::State => 1,
        Kind::Question => 2,
    };
    // A number always has a varint.
    let count = postcard::to_stdvec(&count).unwrap_or_default();
    [&[tag], &*count, body].concat().into()
}

/// The entries in a message.
///
/// # Errors
/// Too long, or not a list of well-formed entries.
pub(super) fn decode(payload: &[u8]) -> Result<(Kind, Vec<Item>), DecodeError> {
    if payload.len() > MAX_MESSAGE {
        return Err(DecodeError::Long(payload.len()));
    }
    let (tag, rest) = postcard::take_from_bytes::<u8>(payload)?;
    let kind = match tag {
        0 => Kind::Delta,
        1 => Kind::State,
        2 => Kind::Question,
        other => return Err(DecodeError::Kind(other)),
    };
    let (count, mut rest) = postcard::take_from_bytes::<u32>(rest)?;
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    // The count is checked before anything of that size is made.
    if count > rest.len() / MIN_ENTRY {
        return Err(DecodeError::Count(count));
    }
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        let (wire, after) = postcard::take_from_bytes::<Wire<'_>>(rest)?;
        items.push(item(&wire)?);
        rest = after;
    }
    Ok((kind, items))
}

fn item(wire: &Wire<'_>) -> Result<Item, DecodeError> {
    if wire.version > MAX_VERSION {
        return Err(DecodeError::Version(wire.version));
    }
    let key = Key { origin: wire.origin, name: wire.name.parse()?, address: wire.address, owner: wire.owner.parse()? };
    let value = Value { version: wire.version, dead: wire.dead.is_some() };
    Ok(Item { key, value, age: wire.dead.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(number: u32, dead: bool) -> Item {
        let key = Key {
            origin: PeerName([2, 0, 0, 0, 0, 7]),
            name: format!("c{number}.weave.local.").parse().unwrap(),
            address: std::net::Ipv4Addr::from(0x0a20_0000 + number).into(),
            owner: "abc".parse().unwrap(),
        };
        Item { key, value: Value { version: 300, dead }, age: if dead { 5 } else { 0 } }
    }

    #[test]
    fn the_bytes_are_what_they_were() {
        let mut second = sample(2, true);
        second.key.address = "fd00::2".parse().unwrap();
        let bytes = encode(Kind::State, [sample(1, false), second]);
        let golden = b"\x01\x02\
            \x02\0\0\0\0\x07\x0fc1.weave.local.\x00\x0a\x20\0\x01\x03abc\xac\x02\x00\
            \x02\0\0\0\0\x07\x0fc2.weave.local.\x01\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02\x03abc\xac\x02\x01\x05";
        assert_eq!(bytes, [Bytes::from_static(golden)]);
        assert_eq!(encode(Kind::Delta, [sample(1, false)])[0][0], 0);
        assert_eq!(encode(Kind::Question, []), [Bytes::from_static(&[2, 0])]);
    }

    #[test]
    fn long_states_go_in_several_messages_of_64_kib() {
        let items: Vec<Item> = (0..5000).map(|n| sample(n, n % 3 == 0)).collect();
        let messages = encode(Kind::State, items.clone());
        assert!(messages.len() > 2 && messages.iter().all(|message| message.len() <= MAX_MESSAGE));
        let back: Vec<Item> = messages.iter().flat_map(|bytes| decode(bytes).unwrap().1).collect();
        assert_eq!(back, items);
        assert!(encode(Kind::Delta, []).is_empty());
    }

    #[test]
    fn what_no_peer_sends_is_refused() {
        let good = encode(Kind::Delta, [sample(1, false)]).remove(0).to_vec();
        assert!(decode(&[&*good, b"later"].concat()).is_ok());
        let mut bad = good.clone();
        bad[0] = 3;
        assert_eq!(decode(&bad), Err(DecodeError::Kind(3)));
        assert_eq!(decode(&[0, 255, 255, 3]), Err(DecodeError::Count(0xffff)));
        assert_eq!(decode(&vec![0; MAX_MESSAGE + 1]), Err(DecodeError::Long(MAX_MESSAGE + 1)));
        assert!(matches!(decode(&good[..20]), Err(DecodeError::Encoding(_))));
        let mut bad = good.clone();
        bad[9] = b' ';
        assert!(matches!(decode(&bad), Err(DecodeError::Name(_))), "{:?}", decode(&bad));
        let mut bad = good.clone();
        let owner = bad.len() - 5;
        bad[owner] = 7;
        assert!(matches!(decode(&bad), Err(DecodeError::Owner(_))), "{:?}", decode(&bad));
        let mut item = sample(1, false);
        item.value.version = MAX_VERSION + 1;
        assert_eq!(decode(&encode(Kind::Delta, [item])[0]), Err(DecodeError::Version(MAX_VERSION + 1)));
    }

    proptest! {
        #[test]
        fn any_bytes_become_entries_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode(&bytes);
            let _ = decode(&[&[1, 1], &*bytes].concat());
        }

        #[test]
        fn a_changed_byte_never_panics(at in 0_usize..80, byte: u8) {
            let mut bytes = encode(Kind::State, [sample(1, false), sample(2, true)]).remove(0).to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = decode(&bytes);
        }
    }
}
