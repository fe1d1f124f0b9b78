//! What peers say to each other. A message is a tag and a postcard body; bodies may grow at the end and tags may be
//! added in later versions, so what we do not know is skipped and counted. The bytes are pinned by `golden/`.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddrV4;

use bytes::Bytes;
use serde::de::{DeserializeOwned, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Channel;
use super::frame::{self, ProtocolError};
use crate::bounded::list;
use crate::peer::{PeerName, PeerUid, ShortId};

/// Most peers in a mesh, in a message and in a peer's edges: as many as there are short ids.
pub(super) const MAX_PEERS: usize = 1 << 12;
/// Longest nickname, bytes.
pub(super) const MAX_NICKNAME: usize = 255;
/// Longest payload on a channel, bytes.
pub(super) const MAX_PAYLOAD: usize = 1 << 20;
/// Longest channel name, bytes.
pub(super) const MAX_CHANNEL: usize = 64;
/// Longest text for people, bytes.
const MAX_TEXT: usize = 1024;
/// Longest payload for a neighbour, bytes.
pub(super) const MAX_TOLD: usize = 4 << 10;
/// Most features in a hello.
const MAX_FEATURES: usize = 64;

/// Everything that follows the preamble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Heartbeat(Heartbeat),
    Hello(Hello),
    Reject(Reject),
    Notice(Reject),
    Topology(Topology),
    Broadcast(Broadcast),
    Unicast(Unicast),
    Gossip(Gossip),
    Welcome(Welcome),
    Told(Told),
    Digest(Digest),
    Versions(Versions),
}

const HEARTBEAT: u8 = 0;
const HELLO: u8 = 1;
const REJECT: u8 = 2;
const NOTICE: u8 = 3;
const TOPOLOGY: u8 = 4;
const BROADCAST: u8 = 5;
const UNICAST: u8 = 6;
const GOSSIP: u8 = 7;
const WELCOME: u8 = 8;
const TOLD: u8 = 9;
const DIGEST: u8 = 10;
const VERSIONS: u8 = 11;

/// Keeps an idle link from being taken for dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Heartbeat {
    /// Still here.
    Idle,
    /// Are you? Answered at once.
    Question,
    /// Yes.
    Answer,
}

/// Who opens the link: the first message each way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) name: PeerName,
    pub(super) uid: PeerUid,
    /// Random, per link and end. The two XORed name the link at both ends.
    pub(super) connection: u64,
    #[serde(deserialize_with = "short_id")]
    pub(super) short: ShortId,
    /// TCP port it accepts links on.
    pub(super) port: u16,
    /// UDP port of its tunnels.
    pub(super) tunnel_port: u16,
    /// UDP port of its sleeve.
    pub(super) sleeve_port: u16,
    /// Its CPU has AES instructions.
    pub(super) aes: bool,
    /// It trusts the network between the two: our address, as it sees it, is in one of its trusted subnets.
    pub(super) trusts: bool,
    #[serde(deserialize_with = "text::<_, MAX_NICKNAME>")]
    pub(super) nickname: String,
    /// What it can do; both ends use what both have.
    #[serde(deserialize_with = "list::<_, _, MAX_FEATURES>")]
    pub(super) features: Vec<Feature>,
}

/// The hello was fine. The link is up at either end once it has said this and heard it, so that a link that one end does
/// not want never counts at the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Welcome {}

/// Something an agent can do beyond the protocol version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Feature(#[serde(deserialize_with = "text::<_, MAX_CHANNEL>")] pub(super) String);

/// Why a link is closed, so that both ends know; or, as a notice, what else is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reject {
    pub(super) reason: Reason,
    /// The incarnation that has the name, if it is a collision.
    pub(super) uid: Option<PeerUid>,
    /// For people: what happened and what to do.
    #[serde(deserialize_with = "text::<_, MAX_TEXT>")]
    pub(super) text: String,
}

/// What the other end does about a [`Reject`]. Later versions may only add reasons together with a protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reason {
    /// Both ends are the same agent.
    Myself,
    /// Another peer uses the same name.
    Collision,
    /// There is another link between the two.
    Duplicate,
    /// No room for more links.
    Limit,
    /// What was received made no sense.
    Protocol,
    /// The address belongs to someone else than was expected.
    Unexpected,
    /// The network's passwords have changed, and this link's is none of them any more: dial again.
    Password,
}

/// Records of peers: all that are known, or those that changed. Merged one by one, so it can be cut anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Topology {
    #[serde(deserialize_with = "list::<_, _, MAX_PEERS>")]
    pub(super) records: Vec<Record>,
}

/// What a peer says of itself. Of two records of a peer the greater is the later one; the order is total whatever is
/// in them, so that merging commutes even for records that should not exist.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) name: PeerName,
    /// Goes up with every change.
    pub(super) version: u64,
    pub(super) uid: PeerUid,
    #[serde(deserialize_with = "short_id")]
    pub(super) short: ShortId,
    #[serde(deserialize_with = "text::<_, MAX_NICKNAME>")]
    pub(super) nickname: String,
    #[serde(deserialize_with = "map::<_, _, _, MAX_PEERS>")]
    pub(super) connections: BTreeMap<PeerName, Connection>,
}

/// An edge, as one end sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Connection {
    /// Where the neighbour accepts links: what was dialled, or the source address with the port it announced.
    pub(super) address: SocketAddrV4,
    /// This end dialled.
    pub(super) outbound: bool,
    /// The TCP link is up: gossip can go this way.
    pub(super) linked: bool,
    /// The tunnel is up: frames can go this way.
    pub(super) established: bool,
}

/// For every peer, along the tree of `origin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Broadcast {
    #[serde(deserialize_with = "channel")]
    pub(super) channel: Channel,
    pub(super) origin: PeerName,
    /// The origin's incarnation, whose numbers these are.
    pub(super) uid: PeerUid,
    /// Counts up from 1.
    pub(super) number: u64,
    #[serde(serialize_with = "as_bytes", deserialize_with = "payload::<_, MAX_PAYLOAD>")]
    pub(super) payload: Bytes,
}

/// For one peer, hop by hop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unicast {
    #[serde(deserialize_with = "channel")]
    pub(super) channel: Channel,
    pub(super) origin: PeerName,
    pub(super) to: PeerName,
    /// Relays it may still pass: views may disagree for moments, and then it could circle.
    pub(super) ttl: u8,
    #[serde(serialize_with = "as_bytes", deserialize_with = "payload::<_, MAX_PAYLOAD>")]
    pub(super) payload: Bytes,
}

/// State of a replica, all or a delta: for those who have one, and passed on by those who have not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gossip {
    #[serde(deserialize_with = "channel")]
    pub(super) channel: Channel,
    pub(super) origin: PeerName,
    #[serde(serialize_with = "as_bytes", deserialize_with = "payload::<_, MAX_PAYLOAD>")]
    pub(super) payload: Bytes,
}

/// For the neighbour at the other end, and never passed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    #[serde(serialize_with = "as_bytes", deserialize_with = "payload::<_, MAX_TOLD>")]
    pub(super) payload: Bytes,
}

/// Of all records that the sender knows, by name: half a SHA-256 of name, version and uid of each (big endian).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Digest(pub(super) [u8; 16]);

/// All records that the sender knows, but for what is in them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Versions {
    #[serde(deserialize_with = "map::<_, _, _, MAX_PEERS>")]
    pub(super) versions: BTreeMap<PeerName, Version>,
    /// The other end has told its own already: records follow, and no more of these.
    pub(super) answer: bool,
}

/// Which record of a peer, in the order of [`Record`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Version {
    pub(super) version: u64,
    pub(super) uid: PeerUid,
}

/// A message as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// `None` for a tag of a later version.
    pub(super) message: Option<Message>,
    /// Bytes after what we know of the body.
    pub(super) trailing: bool,
}

impl Hello {
    /// Whether it says that it can do this.
    pub(super) fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|has| has.0 == feature)
    }
}

impl Message {
    /// The frame to send.
    pub(super) fn encode(&self) -> Bytes {
        match self {
            Self::Heartbeat(body) => framed(HEARTBEAT, body),
            Self::Hello(body) => framed(HELLO, body),
            Self::Reject(body) => framed(REJECT, body),
            Self::Notice(body) => framed(NOTICE, body),
            Self::Topology(body) => framed(TOPOLOGY, body),
            Self::Broadcast(body) => framed(BROADCAST, body),
            Self::Unicast(body) => framed(UNICAST, body),
            Self::Gossip(body) => framed(GOSSIP, body),
            Self::Welcome(body) => framed(WELCOME, body),
            Self::Told(body) => framed(TOLD, body),
            Self::Digest(body) => framed(DIGEST, body),
            Self::Versions(body) => framed(VERSIONS, body),
        }
    }

    /// A frame's tag and body to what they mean.
    pub(super) fn decode(tag: u8, body: &[u8]) -> Result<Received, ProtocolError> {
        match tag {
            HEARTBEAT => parse(tag, body, Self::Heartbeat),
            HELLO => parse(tag, body, Self::Hello),
            REJECT => parse(tag, body, Self::Reject),
            NOTICE => parse(tag, body, Self::Notice),
            TOPOLOGY => parse(tag, body, Self::Topology),
            BROADCAST => parse(tag, body, Self::Broadcast),
            UNICAST => parse(tag, body, Self::Unicast),
            GOSSIP => parse(tag, body, Self::Gossip),
            WELCOME => parse(tag, body, Self::Welcome),
            TOLD => parse(tag, body, Self::Told),
            DIGEST => parse(tag, body, Self::Digest),
            VERSIONS => parse(tag, body, Self::Versions),
            _ => Ok(Received { message: None, trailing: false }),
        }
    }
}

fn framed(tag: u8, body: &impl Serialize) -> Bytes {
    // Serialising to a vector has no way to fail for bodies whose sequences know their length; an empty frame is skipped.
    postcard::to_stdvec(body).map(|body| frame::encode(tag, &body)).unwrap_or_default()
}

fn parse<T: DeserializeOwned>(tag: u8, body: &[u8], make: fn(T) -> Message) -> Result<Received, ProtocolError> {
    let malformed = |error: postcard::Error| ProtocolError::Malformed { tag, why: error.to_string() };
    let (body, rest) = postcard::take_from_bytes(body).map_err(malformed)?;
    Ok(Received { message: Some(make(body)), trailing: !rest.is_empty() })
}

fn short_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ShortId, D::Error> {
    ShortId::new(u16::deserialize(deserializer)?).ok_or_else(|| D::Error::custom("a short id of more than 12 bits"))
}

fn text<'de, D: Deserializer<'de>, const MAX: usize>(deserializer: D) -> Result<String, D::Error> {
    let text = <&str>::deserialize(deserializer)?;
    // It ends up in logs and on terminals.
    if text.len() > MAX || text.contains(char::is_control) {
        return Err(D::Error::custom("a text that is too long or has control characters"));
    }
    Ok(text.to_owned())
}

fn channel<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Channel, D::Error> {
    text::<_, MAX_CHANNEL>(deserializer).map(Channel)
}

fn as_bytes<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

fn payload<'de, D: Deserializer<'de>, const MAX: usize>(deserializer: D) -> Result<Bytes, D::Error> {
    let bytes = <&[u8]>::deserialize(deserializer)?;
    if bytes.len() > MAX {
        return Err(D::Error::custom("a payload that is too long"));
    }
    Ok(Bytes::copy_from_slice(bytes))
}

fn map<'de, D, K, V, const MAX: usize>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
{
    deserializer.deserialize_map(MapVisitor::<K, V, MAX>(PhantomData))
}

struct MapVisitor<K, V, const MAX: usize>(PhantomData<(K, V)>);

impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>, const MAX: usize> Visitor<'de> for MapVisitor<K, V, MAX> {
    type Value = BTreeMap<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX} entries")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((key, value)) = entries.next_entry()? {
            if map.len() == MAX {
                return Err(A::Error::custom("a map that is too long"));
            }
            map.insert(key, value);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(last: u8) -> PeerName {
        PeerName([2, 0, 0, 0, 0, last])
    }

    fn short(id: u16) -> ShortId {
        ShortId::new(id).unwrap()
    }

    fn record() -> Record {
        let address = "192.0.2.3:6783".parse().unwrap();
        let connection = Connection { address, outbound: true, linked: true, established: false };
        Record {
            name: name(2),
            version: 300,
            uid: PeerUid(7),
            short: short(0xabc),
            nickname: "two".into(),
            connections: BTreeMap::from([(name(3), connection)]),
        }
    }

    fn hello() -> Hello {
        Hello {
            name: name(1),
            uid: PeerUid(0x1122_3344_5566_7788),
            connection: u64::MAX,
            short: short(5),
            port: 6783,
            tunnel_port: 6784,
            sleeve_port: 6783,
            aes: true,
            trusts: false,
            nickname: "one".into(),
            features: vec![Feature("surrogate".into())],
        }
    }

    fn samples() -> Vec<(&'static str, Message)> {
        let (channel, payload) = (Channel("macs".into()), Bytes::from_static(b"\x00\xffpayload"));
        let version = Version { version: 300, uid: PeerUid(9) };
        let reject = Reject { reason: Reason::Collision, uid: Some(PeerUid(8)), text: "run `weave-agent reset`".into() };
        let broadcast = Broadcast { channel: channel.clone(), origin: name(1), uid: PeerUid(9), number: 300, payload: payload.clone() };
        let unicast = Unicast { channel: channel.clone(), origin: name(1), to: name(2), ttl: 8, payload: payload.clone() };
        vec![
            ("heartbeat-idle", Message::Heartbeat(Heartbeat::Idle)),
            ("heartbeat-question", Message::Heartbeat(Heartbeat::Question)),
            ("heartbeat-answer", Message::Heartbeat(Heartbeat::Answer)),
            ("hello", Message::Hello(hello())),
            ("reject", Message::Reject(reject.clone())),
            ("notice", Message::Notice(reject)),
            ("topology", Message::Topology(Topology { records: vec![record()] })),
            ("broadcast", Message::Broadcast(broadcast)),
            ("unicast", Message::Unicast(unicast)),
            ("told", Message::Told(Told { payload: payload.clone() })),
            ("gossip", Message::Gossip(Gossip { channel, origin: name(1), payload })),
            ("welcome", Message::Welcome(Welcome {})),
            ("digest", Message::Digest(Digest([7; 16]))),
            ("versions", Message::Versions(Versions { versions: BTreeMap::from([(name(1), version)]), answer: true })),
        ]
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.chunks(32).map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n").collect()
    }

    /// Write them anew with `WRITE_GOLDEN=1`, and then say why in the commit: older agents read these bytes.
    #[test]
    fn every_message_has_the_bytes_it_always_had() {
        for (file, message) in samples() {
            let path = format!("{}/src/mesh/golden/{file}.hex", env!("CARGO_MANIFEST_DIR"));
            let bytes = hex(&message.encode());
            if std::env::var_os("WRITE_GOLDEN").is_some() {
                std::fs::write(&path, &bytes).unwrap();
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), bytes, "{path}");
        }
    }

    #[test]
    fn every_message_is_read_back_and_trailing_bytes_are_only_noticed() {
        for (_, message) in samples() {
            let frame = message.encode();
            let (tag, body) = (frame[4], &frame[5..]);
            assert_eq!(Message::decode(tag, body), Ok(Received { message: Some(message.clone()), trailing: false }));
            let longer = [body, &[1, 2, 3]].concat();
            assert_eq!(Message::decode(tag, &longer), Ok(Received { message: Some(message), trailing: true }));
        }
    }

    #[test]
    fn every_shortened_message_is_an_error() {
        for (file, message) in samples() {
            let frame = message.encode();
            for end in 5..frame.len() {
                assert!(Message::decode(frame[4], &frame[5..end]).is_err(), "{file} cut at {end}");
            }
        }
    }

    #[test]
    fn a_tag_of_a_later_version_is_no_error() {
        assert_eq!(Message::decode(200, b"anything"), Ok(Received { message: None, trailing: false }));
    }

    #[test]
    fn a_short_id_of_13_bits_is_an_error() {
        let body = postcard::to_stdvec(&(name(1), 1_u64, 1_u64, 4096_u16, "x", 0_u8)).unwrap();
        assert!(Message::decode(TOPOLOGY, &[&[1][..], &body].concat()).is_err());
    }

    #[test]
    fn what_is_too_long_is_an_error() {
        let long = Hello { nickname: "x".repeat(MAX_NICKNAME + 1), ..hello() };
        let frame = Message::Hello(long).encode();
        assert!(Message::decode(HELLO, &frame[5..]).unwrap_err().to_string().contains("malformed message"));
        let many = Hello { features: vec![Feature(String::new()); MAX_FEATURES + 1], ..hello() };
        assert!(Message::decode(HELLO, &Message::Hello(many).encode()[5..]).is_err());
        let told = Message::Told(Told { payload: vec![0; MAX_TOLD + 1].into() }).encode();
        assert!(Message::decode(TOLD, &told[5..]).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(tag in 0..13_u8, body in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Message::decode(tag, &body);
        }

        #[test]
        fn a_mutated_message_never_panics_and_stays_small(
            which in 0..14_usize,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut frame = samples()[which].1.encode()[4..].to_vec();
            for (at, value) in changes {
                let at = at.index(frame.len());
                frame[at] = value;
            }
            if let Ok(Received { message: Some(message), .. }) = Message::decode(frame[0], &frame[1..]) {
                // Lengths were bounded by the input: what was read is no longer than what came, but for varints.
                prop_assert!(message.encode().len() <= frame.len() + 64);
            }
        }
    }
}
