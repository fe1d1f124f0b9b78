//! What replicas say to each other: a tag and a postcard body, decoded by hand-set bounds. Bodies may grow at the end and tags
//! may be added in later versions: what we do not know is skipped. The bytes are pinned by `golden/`.

use std::collections::BTreeSet;

use bytes::Bytes;
use ipnet::IpNet;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};

use super::block::Block;
use super::config::MAX_SEEDS;
use super::ring::{MAX_TOKENS, Ring, RingError, Token};
use super::votes::Vote;
use crate::bounded::list;
use crate::peer::PeerName;

/// Most bytes of a message: what the mesh carries.
pub(super) const MAX_MESSAGE: usize = 1 << 20;
/// Most families.
const MAX_RANGES: usize = 2;
/// Most addresses in use in the space of others; what is beyond is asked for one by one.
pub(super) const MAX_IN_USE: usize = 1 << 12;
/// Longest text, bytes.
const MAX_TEXT: usize = 255;

const STATE: u8 = 0;
const ASK: u8 = 1;

/// A message that no replica sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No bytes at all.
    #[error("an empty message")]
    Empty,
    /// More than the mesh carries.
    #[error("a message of {0} bytes")]
    Long(usize),
    /// Not what it should be.
    #[error("not a message of this kind: {0}")]
    Encoding(#[from] postcard::Error),
    /// A ring that cannot be.
    #[error("a ring that cannot be: {0}")]
    Ring(#[from] RingError),
    /// A token that names an owner beyond the list.
    #[error("a token whose owner is not named")]
    Owner,
    /// Not one ring for each range, or a network that is none.
    #[error("rings and ranges that do not belong together")]
    Ranges,
}

/// Everything on our channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// What a replica knows.
    State(Box<State>),
    /// Please give me space.
    Ask(Ask),
    /// Of a later version.
    Unknown(u8),
}

/// What a replica knows, and perhaps a question or an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    #[serde(deserialize_with = "list::<_, _, MAX_RANGES>")]
    pub(super) ranges: Vec<IpNet>,
    #[serde(deserialize_with = "list::<_, _, MAX_SEEDS>")]
    pub(super) seeds: Vec<PeerName>,
    /// Who owns something, and what they are called.
    #[serde(deserialize_with = "list::<_, _, MAX_SEEDS>")]
    pub(super) owners: Vec<Owner>,
    /// One per range, or none before there is a ring.
    #[serde(deserialize_with = "list::<_, _, MAX_RANGES>")]
    pub(super) rings: Vec<WireRing>,
    /// What was said in the vote; empty once there is a ring.
    #[serde(deserialize_with = "list::<_, _, MAX_SEEDS>")]
    pub(super) votes: Vec<(PeerName, Vote)>,
    /// Bits of the sender's number of free addresses, by range.
    #[serde(deserialize_with = "list::<_, _, MAX_RANGES>")]
    pub(super) levels: Vec<u8>,
    /// Addresses (range by index) in use at the sender that lie in the space of others: whose they are gives them to it. In
    /// answers above all: who comes out of quarantine must not hand them out.
    #[serde(deserialize_with = "list::<_, _, MAX_IN_USE>")]
    pub(super) in_use: Vec<(u8, u128)>,
    /// The sender has no vote.
    pub(super) observer: bool,
    /// The sender wants a ring: those who vote should begin.
    pub(super) wanting: bool,
    /// Please answer with your state and this number.
    pub(super) question: Option<u64>,
    /// The number from the question.
    pub(super) answer: Option<u64>,
    /// To an [`Ask`].
    pub(super) reply: Option<Reply>,
}

/// An owner in the rings of a [`State`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    pub(super) name: PeerName,
    #[serde(deserialize_with = "text")]
    pub(super) nickname: String,
}

/// A ring; a type of its own so that the bound is on each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireRing(#[serde(deserialize_with = "list::<_, _, MAX_TOKENS>")] pub(super) Vec<WireToken>);

/// A token: how far behind the one before it (the first: behind the start of the range).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireToken {
    ahead: u128,
    /// Index in [`State::owners`].
    owner: u16,
    version: u64,
}

/// Please give me space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ask {
    /// To be repeated in the reply.
    pub(super) id: u64,
    /// Ranges and seeds, hashed: who disagrees about them must not give.
    pub(super) digest: u64,
    /// Index of the range.
    pub(super) range: u8,
    /// From here.
    pub(super) start: u128,
    /// To just before here.
    pub(super) end: u128,
    /// All of it (an address that is claimed), not some of it.
    pub(super) all: bool,
}

/// The answer to an [`Ask`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) id: u64,
    pub(super) outcome: Outcome,
}

/// What became of an [`Ask`]. Later versions may only add to the end, together with a flag in the question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Outcome {
    /// This block is yours: see the ring beside.
    Granted(u128, u128),
    /// Nothing free there.
    Full,
    /// Not ours: see the ring beside.
    Elsewhere,
    /// In use, by this owner.
    Taken(#[serde(deserialize_with = "text")] String),
    /// Perhaps later.
    NotNow,
}

impl State {
    /// Puts rings into it.
    pub(super) fn with_rings<'a>(mut self, rings: impl Iterator<Item = &'a Ring> + Clone, nickname: impl Fn(PeerName) -> String) -> Self {
        let owners: BTreeSet<PeerName> = rings.clone().flat_map(|ring| ring.owners()).collect();
        let index: std::collections::BTreeMap<PeerName, u16> = owners.iter().copied().zip(0..).collect();
        self.owners = owners.into_iter().map(|name| Owner { name, nickname: nickname(name) }).collect();
        self.rings = rings
            .map(|ring| {
                let mut last = ring.range().start;
                let token = |token: &Token| {
                    let ahead = token.at - std::mem::replace(&mut last, token.at);
                    WireToken { ahead, owner: index.get(&token.owner).copied().unwrap_or(u16::MAX), version: token.version }
                };
                WireRing(ring.tokens().iter().map(token).collect())
            })
            .collect();
        self
    }

    /// The rings in it.
    ///
    /// # Errors
    /// A ring that cannot be, or not one for each range.
    pub(super) fn read_rings(&self) -> Result<Vec<Ring>, DecodeError> {
        if !self.rings.is_empty() && self.rings.len() != self.ranges.len() {
            return Err(DecodeError::Ranges);
        }
        self.rings.iter().zip(&self.ranges).map(|(ring, range)| self.read_ring(Block::of(*range), &ring.0)).collect()
    }

    fn read_ring(&self, range: Block, tokens: &[WireToken]) -> Result<Ring, DecodeError> {
        let mut at = range.start;
        let mut read = Vec::with_capacity(tokens.len());
        for token in tokens {
            at = at.saturating_add(token.ahead);
            let owner = self.owners.get(usize::from(token.owner)).ok_or(DecodeError::Owner)?.name;
            read.push(Token { at, owner, version: token.version });
        }
        Ok(Ring::from_tokens(range, read)?)
    }
}

impl Message {
    /// The bytes to send; `None` (and a word in the log) if the mesh would not carry them.
    pub(super) fn encode(&self) -> Option<Bytes> {
        let bytes = match self {
            Self::State(body) => tagged(STATE, body),
            Self::Ask(body) => tagged(ASK, body),
            Self::Unknown(_) => None,
        };
        let bytes = bytes.filter(|bytes| bytes.len() <= MAX_MESSAGE);
        if bytes.is_none() {
            tracing::error!("the state of the address ranges does not fit into a message");
        }
        bytes
    }

    /// A payload to what it means.
    ///
    /// # Errors
    /// Whatever no replica sends; see [`DecodeError`].
    pub(super) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        if payload.len() > MAX_MESSAGE {
            return Err(DecodeError::Long(payload.len()));
        }
        let (tag, body) = payload.split_first().ok_or(DecodeError::Empty)?;
        match *tag {
            STATE => read(body).map(|state| Self::State(Box::new(state))),
            ASK => read(body).map(Self::Ask),
            tag => Ok(Self::Unknown(tag)),
        }
    }
}

fn tagged(tag: u8, body: &impl Serialize) -> Option<Bytes> {
    // Serialising to a vector has no way to fail for bodies whose sequences know their length.
    let body = postcard::to_stdvec(body).ok()?;
    Some([&[tag], body.as_slice()].concat().into())
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, DecodeError> {
    Ok(postcard::take_from_bytes(body)?.0)
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = <&str>::deserialize(deserializer)?;
    // It ends up in logs and on terminals.
    if text.len() > MAX_TEXT || text.contains(char::is_control) {
        return Err(D::Error::custom("a text that is too long or has control characters"));
    }
    Ok(text.to_owned())
}

/// Makes a text fit for a message.
pub(super) fn clean(text: &str) -> String {
    let mut text: String = text.chars().filter(|c| !c.is_control()).collect();
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::votes::{Accepted, Ballot};
    use super::*;

    fn peer(last: u8) -> PeerName {
        PeerName([2, 0, 0, 0, 0, last])
    }

    fn samples() -> Vec<(&'static str, Message)> {
        let ranges: Vec<IpNet> = vec!["10.32.0.0/12".parse().unwrap(), "fd00:10:32::/64".parse().unwrap()];
        let rings: Vec<Ring> = ranges.iter().map(|range| Ring::first(Block::of(*range), &[peer(1), peer(2)]).unwrap()).collect();
        let seeds = vec![peer(1), peer(2)];
        let ring = State { ranges: ranges.clone(), seeds: seeds.clone(), levels: vec![20, 63], ..State::default() };
        let ring = ring.with_rings(rings.iter(), |name| format!("h{}", name.0[5]));
        let ballot = Ballot { round: 3, proposer: peer(2) };
        let voted = Vote { promised: ballot, accepted: Some(Accepted { ballot, peers: seeds }) };
        let vote = State { ranges, votes: vec![(peer(1), voted)], observer: true, wanting: true, question: Some(77), ..State::default() };
        let reply = |id, outcome| State { answer: Some(9), reply: Some(Reply { id, outcome }), ..ring.clone() };
        let granted = reply(5, Outcome::Granted(0x0a28_0000, 0x0a2a_0000));
        let taken = State { in_use: vec![(0, 0x0a20_0007), (1, 5)], ..reply(6, Outcome::Taken("veth-c1".into())) };
        let ask = Ask { id: 5, digest: 0x1234_5678, range: 0, start: 0x0a20_0001, end: 0x0a2f_ffff, all: false };
        let state = |state| Message::State(Box::new(state));
        vec![
            ("state-ring", state(ring.clone())),
            ("state-vote", state(vote)),
            ("state-granted", state(granted)),
            ("state-taken", state(taken)),
            ("ask", Message::Ask(ask)),
        ]
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n"
    }

    #[test]
    fn every_message_has_the_bytes_it_always_had() {
        for (file, message) in samples() {
            let path = format!("{}/src/ipam/golden/{file}.hex", env!("CARGO_MANIFEST_DIR"));
            let bytes = hex(&message.encode().unwrap());
            if std::env::var_os("WRITE_GOLDEN").is_some() {
                std::fs::write(&path, &bytes).unwrap();
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), bytes, "{path}");
        }
    }

    #[test]
    fn every_message_is_read_back_and_trailing_bytes_are_skipped() {
        for (_, message) in samples() {
            let bytes = message.encode().unwrap();
            assert_eq!(Message::decode(&bytes), Ok(message.clone()));
            assert_eq!(Message::decode(&[&bytes, [1, 2, 3].as_slice()].concat()), Ok(message.clone()));
            assert!(Message::decode(&bytes[..bytes.len() - 1]).is_err());
            if let Message::State(state) = message {
                assert_eq!(state.read_rings().unwrap().len(), state.rings.len());
            }
        }
    }

    #[test]
    fn what_no_replica_sends_is_refused() {
        assert_eq!(Message::decode(&[]), Err(DecodeError::Empty));
        assert_eq!(Message::decode(&vec![0; MAX_MESSAGE + 1]), Err(DecodeError::Long(MAX_MESSAGE + 1)));
        assert_eq!(Message::decode(&[200, 1, 2]), Ok(Message::Unknown(200)));
        let state = State { ranges: vec!["10.32.0.0/12".parse().unwrap()], ..State::default() };
        let with = |tokens: &[WireToken]| State { rings: vec![WireRing(tokens.into())], ..state.clone() }.read_rings().unwrap_err();
        let token = WireToken { ahead: 0, owner: 0, version: 1 };
        assert_eq!(with(&[token]), DecodeError::Owner);
        assert_eq!(with(&[]), DecodeError::Ring(RingError::Count(0)));
        let two = State { rings: vec![WireRing::default(); 2], ..state };
        assert_eq!(two.read_rings(), Err(DecodeError::Ranges));
    }

    #[test]
    fn the_largest_ring_fits_into_a_message() {
        let range: IpNet = "10.0.0.0/8".parse().unwrap();
        let block = Block::of(range);
        let size = block.size() / MAX_TOKENS as u128;
        let token = |n: usize| Token {
            at: block.start + n as u128 * size,
            owner: peer(u8::try_from(n % 200).unwrap()),
            version: n as u64 + (1 << 33),
        };
        let ring = Ring::from_tokens(block, (0..MAX_TOKENS).map(token)).unwrap();
        let state = State { ranges: vec![range], ..State::default() }.with_rings(std::iter::once(&ring), |_| String::new());
        let bytes = Message::State(Box::new(state)).encode().unwrap();
        assert!(bytes.len() < MAX_MESSAGE / 2, "{}: two of them must fit", bytes.len());
    }

    proptest! {
        #[test]
        fn any_bytes_become_a_message_or_an_error(tag in 0_u8..3, bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            if let Ok(Message::State(state)) = Message::decode(&[&[tag], bytes.as_slice()].concat()) {
                let _ = state.read_rings();
                prop_assert!(state.ranges.len() <= MAX_RANGES && state.seeds.len() <= 2000);
            }
        }

        #[test]
        fn a_message_with_a_damaged_byte_becomes_a_message_or_an_error(which in 0_usize..5, at: prop::sample::Index, to: u8) {
            let (_, message) = samples().swap_remove(which);
            let mut bytes = message.encode().unwrap().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(Message::State(state)) = Message::decode(&bytes) {
                // Nothing larger than the bytes allow, and a ring that is read can be written.
                for ring in state.read_rings().unwrap_or_default() {
                    prop_assert!(ring.tokens().len() <= bytes.len());
                }
            }
        }
    }
}
