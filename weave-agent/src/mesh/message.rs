//! What agents say to each other over a link.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Channel;
use super::topology::PeerRecord;
use crate::peer::{PeerName, PeerUid, ShortId};

/// Both ends begin with this, then their lowest and highest version.
pub(crate) const MAGIC: [u8; 4] = *b"WVAG";
/// Magic and two version bytes.
pub(crate) const HEADER_LEN: usize = 6;
/// The oldest version we speak.
pub(crate) const MIN_VERSION: u8 = 1;
/// The newest version we speak.
pub(crate) const MAX_VERSION: u8 = 1;
/// The longest frame, without its length.
pub(crate) const MAX_FRAME: usize = 4 << 20;
/// The longest frame before the handshake is done: strangers get less of our memory.
pub(crate) const MAX_HANDSHAKE_FRAME: usize = 4 << 10;
/// The longest nickname, in bytes.
pub(crate) const MAX_NICKNAME: usize = 255;
/// The longest channel name, in bytes.
pub(crate) const MAX_CHANNEL: usize = 64;
/// The longest reason of a [`Reject`], in bytes.
pub(crate) const MAX_REASON: usize = 1024;
/// The most connections of one peer, and the most peers (short ids are 12 bits).
pub(crate) const MAX_PEERS: usize = 1 << 12;

/// Why a link is closed although TCP works.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Garbage {
    #[error("not a weave-agent: the stream begins with {0:02x?}")]
    Magic([u8; 4]),
    #[error("no common version: it speaks {0} to {1}, we speak {MIN_VERSION} to {MAX_VERSION}")]
    Version(u8, u8),
    #[error("a frame of {0} bytes is too long")]
    FrameTooLong(usize),
    #[error("a frame without a tag")]
    EmptyFrame,
    #[error("a {0} message that does not decode")]
    Body(&'static str),
    #[error("a {0} message with a value out of range")]
    Range(&'static str),
    #[error("a {0} message before the handshake")]
    TooEarly(&'static str),
    #[error("a second hello")]
    SecondHello,
    #[error("more bytes than a link may keep waiting")]
    Flooded,
}

impl Garbage {
    /// For counters.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Magic(_) => "bad-magic",
            Self::Version(..) => "no-common-version",
            Self::FrameTooLong(_) => "frame-too-long",
            Self::EmptyFrame => "empty-frame",
            Self::Body(_) => "bad-body",
            Self::Range(_) => "out-of-range",
            Self::TooEarly(_) => "too-early",
            Self::SecondHello => "second-hello",
            Self::Flooded => "flooded",
        }
    }
}

/// Who we are; the first frame in each direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) name: PeerName,
    pub(crate) uid: PeerUid,
    pub(crate) nickname: String,
    pub(crate) short: ShortId,
    /// Random per connection; the XOR of both ends' names the connection.
    pub(crate) connection: u64,
    /// Where we accept links.
    pub(crate) port: u16,
    pub(crate) tunnel_port: u16,
}

/// Why the sender closes the link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reject {
    /// One of [`kind`]; later versions may have more.
    pub(crate) kind: u8,
    /// For people.
    pub(crate) reason: String,
}

/// Values of [`Reject::kind`].
pub(crate) mod kind {
    pub(crate) const COLLISION: u8 = 1;
    pub(crate) const OURSELVES: u8 = 2;
    pub(crate) const DUPLICATE: u8 = 3;
    pub(crate) const LIMIT: u8 = 4;
}

/// Something for every peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Broadcast {
    pub(crate) channel: Channel,
    pub(crate) origin: PeerName,
    /// Random; while trees differ a copy may come twice.
    pub(crate) id: u64,
    pub(crate) payload: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Hello(Hello),
    Reject(Reject),
    Heartbeat,
    Topology(Vec<PeerRecord>),
    Broadcast(Broadcast),
}

const HELLO: u8 = 0;
const REJECT: u8 = 1;
const HEARTBEAT: u8 = 2;
const TOPOLOGY: u8 = 3;
const BROADCAST: u8 = 4;

/// What opens a stream.
pub(crate) fn header() -> [u8; HEADER_LEN] {
    let [a, b, c, d] = MAGIC;
    [a, b, c, d, MIN_VERSION, MAX_VERSION]
}

/// The version both speak.
pub(crate) fn negotiate(header: [u8; HEADER_LEN]) -> Result<u8, Garbage> {
    let [a, b, c, d, min, max] = header;
    if [a, b, c, d] != MAGIC {
        return Err(Garbage::Magic([a, b, c, d]));
    }
    let chosen = max.min(MAX_VERSION);
    if chosen < min.max(MIN_VERSION) { Err(Garbage::Version(min, max)) } else { Ok(chosen) }
}

impl Message {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Reject(_) => "reject",
            Self::Heartbeat => "heartbeat",
            Self::Topology(_) => "topology",
            Self::Broadcast(_) => "broadcast",
        }
    }

    /// Length, tag, body; `None` if it is longer than a frame may be.
    pub(crate) fn frame(&self) -> Option<Bytes> {
        let tagged = |tag| vec![0, 0, 0, 0, tag];
        let mut frame = match self {
            Self::Hello(hello) => postcard::to_extend(hello, tagged(HELLO)),
            Self::Reject(reject) => postcard::to_extend(reject, tagged(REJECT)),
            Self::Heartbeat => Ok(tagged(HEARTBEAT)),
            Self::Topology(records) => postcard::to_extend(records, tagged(TOPOLOGY)),
            Self::Broadcast(broadcast) => postcard::to_extend(broadcast, tagged(BROADCAST)),
        }
        .ok()?;
        let length = frame.len() - 4;
        if length > MAX_FRAME {
            return None;
        }
        frame[..4].copy_from_slice(&u32::try_from(length).ok()?.to_be_bytes());
        Some(frame.into())
    }

    /// What follows the length; `None` for tags of later versions.
    pub(crate) fn parse(frame: &[u8]) -> Result<Option<Self>, Garbage> {
        let (tag, body) = frame.split_first().ok_or(Garbage::EmptyFrame)?;
        let message = match *tag {
            HELLO => Self::Hello(decode(body, "hello")?),
            REJECT => Self::Reject(decode(body, "reject")?),
            HEARTBEAT => Self::Heartbeat,
            TOPOLOGY => Self::Topology(decode(body, "topology")?),
            BROADCAST => Self::Broadcast(decode(body, "broadcast")?),
            _ => return Ok(None),
        };
        if message.in_range() { Ok(Some(message)) } else { Err(Garbage::Range(message.name())) }
    }

    fn in_range(&self) -> bool {
        match self {
            Self::Hello(hello) => in_range(Some(hello.short)) && hello.nickname.len() <= MAX_NICKNAME,
            Self::Reject(reject) => reject.reason.len() <= MAX_REASON,
            Self::Heartbeat => true,
            Self::Topology(records) => {
                records.len() <= MAX_PEERS
                    && records.iter().all(|record| {
                        in_range(record.short)
                            && record.nickname.len() <= MAX_NICKNAME
                            && record.connections.len() <= MAX_PEERS
                            && record.version < u64::MAX / 2
                    })
            }
            Self::Broadcast(broadcast) => broadcast.channel.0.len() <= MAX_CHANNEL,
        }
    }
}

fn in_range(short: Option<ShortId>) -> bool {
    short.is_none_or(|short| ShortId::new(short.get()).is_some())
}

fn decode<T: DeserializeOwned>(body: &[u8], name: &'static str) -> Result<T, Garbage> {
    postcard::take_from_bytes(body).map(|(value, _later)| value).map_err(|_| Garbage::Body(name))
}

/// Records in as many topology messages as it takes to stay well below the frame limit.
pub(crate) fn topology_frames(records: impl IntoIterator<Item = PeerRecord>) -> Vec<Bytes> {
    const EDGE: usize = 32;
    let mut frames = Vec::new();
    let mut batch: Vec<PeerRecord> = Vec::new();
    let mut size = 0;
    for record in records {
        let more = 2 * MAX_NICKNAME + record.connections.len() * EDGE;
        if size + more > MAX_FRAME / 4 && !batch.is_empty() {
            frames.extend(Message::Topology(std::mem::take(&mut batch)).frame());
            size = 0;
        }
        size += more;
        batch.push(record);
    }
    if !batch.is_empty() {
        frames.extend(Message::Topology(batch).frame());
    }
    frames
}

/// Counted by name.
pub(crate) type Counts = BTreeMap<&'static str, u64>;

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::super::topology::Edge;
    use super::*;

    fn record() -> PeerRecord {
        let edge = Edge { address: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 6783), outbound: true, established: false, linked: true };
        PeerRecord {
            name: PeerName([2, 0, 0, 0, 0, 1]),
            nickname: "one".to_owned(),
            uid: PeerUid(300),
            version: 7,
            short: ShortId::new(4095),
            connections: BTreeMap::from([(PeerName([2, 0, 0, 0, 0, 2]), edge)]),
        }
    }

    fn samples() -> Vec<(Message, &'static str)> {
        let hello = Hello {
            name: PeerName([2, 0, 0, 0, 0, 1]),
            uid: PeerUid(1),
            nickname: "one".to_owned(),
            short: ShortId::new(5).unwrap(),
            connection: 0x1234,
            port: 6783,
            tunnel_port: 6784,
        };
        let broadcast =
            Broadcast { channel: Channel("macs".to_owned()), origin: PeerName([2, 0, 0, 0, 0, 1]), id: 9, payload: b"\x01\x02".to_vec() };
        vec![
            (Message::Hello(hello), "000000130002000000000101036f6e6505b424ff348035"),
            (Message::Reject(Reject { kind: kind::COLLISION, reason: "no".to_owned() }), "000000050101026e6f"),
            (Message::Heartbeat, "0000000102"),
            (Message::Topology(vec![record()]), "000000220301020000000001036f6e65ac020701ff1f010200000000020a000002ff34010001"),
            (Message::Broadcast(broadcast), "0000001004046d61637302000000000109020102"),
        ]
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_bytes_of_version_one_stay_as_they_are() {
        assert_eq!(hex(&header()), "575641470101");
        for (message, golden) in samples() {
            assert_eq!(hex(&message.frame().unwrap()), golden, "{}", message.name());
        }
    }

    #[test]
    fn every_message_comes_back_whatever_a_later_version_appends() {
        for (message, _) in samples() {
            let mut frame = message.frame().unwrap()[4..].to_vec();
            assert_eq!(Message::parse(&frame).unwrap(), Some(message.clone()));
            frame.extend(b"more");
            assert_eq!(Message::parse(&frame).unwrap(), Some(message));
        }
        assert_eq!(Message::parse(b"\x63whatever"), Ok(None));
    }

    #[test]
    fn the_highest_common_version_is_taken_and_none_is_an_error() {
        assert_eq!(negotiate(*b"WVAG\x01\x07"), Ok(1));
        assert_eq!(negotiate(*b"WVAG\x02\x07"), Err(Garbage::Version(2, 7)));
        assert_eq!(negotiate(*b"WVAG\x00\x00"), Err(Garbage::Version(0, 0)));
        assert_eq!(negotiate(*b"weave\x01"), Err(Garbage::Magic(*b"weav")));
    }

    #[test]
    fn short_ids_of_more_than_twelve_bits_are_out_of_range() {
        // 4095 is ff 1f as a varint, 4096 is 80 20.
        let mut frame = Message::Topology(vec![record()]).frame().unwrap()[4..].to_vec();
        let at = frame.windows(2).position(|pair| pair == b"\xff\x1f").unwrap();
        frame[at..at + 2].copy_from_slice(b"\x80\x20");
        assert_eq!(Message::parse(&frame), Err(Garbage::Range("topology")));
    }

    #[test]
    fn much_topology_goes_into_several_frames_below_the_limit() {
        let edge = record().connections.values().next().copied().unwrap();
        let names = (0..=u8::MAX).flat_map(|a| (0..8).map(move |b| PeerName([2, 0, 0, 0, b, a])));
        let full = PeerRecord { connections: names.map(|name| (name, edge)).collect(), ..record() };
        let frames = topology_frames((0..200).map(|_| full.clone()));
        assert!(frames.len() > 5 && frames.iter().all(|frame| frame.len() < MAX_FRAME));
        let records: usize = frames
            .iter()
            .map(|frame| match Message::parse(&frame[4..]).unwrap() {
                Some(Message::Topology(records)) => records.len(),
                _ => 0,
            })
            .sum();
        assert_eq!(records, 200);
    }
}
