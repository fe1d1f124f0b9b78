//! One TCP connection to another agent: handshake, liveness, and bytes to messages. It sends nothing by itself; the mesh
//! acts on its [`Event`]s and on [`Link::due`].
//!
//! Each end sends the preamble at once, with a password there is a Noise handshake then (see [`super::noise`]), its hello when it has the other's preamble (what is in a hello may depend on the
//! version), and a welcome when it finds nothing wrong with the other's hello. Who has sent and got a welcome is up.

use std::net::SocketAddrV4;

use bytes::Bytes;

use super::Psk;
use super::frame::{self, Decoder, MAX_FIRST_FRAME, MAX_FRAME, Mode, ProtocolError};
use super::message::{Hello, Message};
use super::noise::{self, HANDSHAKE_MESSAGE, Handshake, Transport};
use crate::Time;

/// The other end has as long to say hello.
pub(super) const HANDSHAKE: Time = Time::from_secs(10);
/// Idle links carry a heartbeat as often. Weave Net has 30 s and takes a link for dead after 60. That is too slow: as long
/// as a dead link counts, a restarted peer's new one is held for a probe, gossip goes nowhere, and nobody dials. What
/// the heartbeats cost is nothing: 10 bytes a second and neighbour.
pub(super) const HEARTBEAT: Time = Time::from_secs(3);
/// One that would be due so soon goes along with another link's: waking costs more than sending.
const ALONG: Time = Time::from_secs(1);
/// A link without a byte for so long is dead: three heartbeats lost.
pub(super) const SILENCE: Time = Time::from_secs(10);
/// A link that is asked whether it lives answers within this time.
pub(super) const PROBE: Time = Time::from_secs(3);

/// What a frame in a record has around it.
const FRAMING: usize = 4 + noise::TAG;

/// A link, in whatever state.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) local: SocketAddrV4,
    pub(super) remote: SocketAddrV4,
    /// We dialled.
    pub(super) outbound: bool,
    /// Our half of the connection's id.
    pub(super) connection: u64,
    pub(super) phase: Phase,
    /// When the answer to a question is overdue.
    pub(super) probe: Option<Time>,
    opened: Time,
    heard: Time,
    said: Time,
    /// As they came.
    raw: Decoder,
    /// There is a password: nothing but the handshake is ever said or taken in clear.
    secret: bool,
    /// With a password: what it takes to agree on keys, until there are some.
    keys: Option<Keys>,
    /// The password that this link's keys were made with.
    psk: Option<Psk>,
    /// With a password: seals what we say, and opens what was said, once there are keys.
    pub(super) transport: Option<Transport>,
    /// What was in the records.
    plain: Decoder,
}

/// What a link needs to agree on keys.
#[derive(Debug)]
pub(super) struct Keys {
    /// The first is what we dial with, all are accepted.
    pub(super) psks: Vec<Psk>,
    /// All the randomness of its handshake.
    pub(super) seed: [u8; 32],
}

/// How far the handshake is.
#[derive(Debug)]
pub(super) enum Phase {
    /// Waiting for magic and versions.
    Preamble,
    /// Waiting for the other end's handshake message; the dialler has sent its own.
    Keys(Vec<u8>, Option<Handshake>),
    /// There are keys: time to say hello.
    Keyed,
    /// Waiting for the hello.
    Hello,
    /// Waiting until we know whether an older link of the same name lives. What comes meanwhile is kept for later.
    Held(Hello),
    /// Waiting for the welcome; ours is sent.
    Welcomed(Hello),
    /// Done.
    Up(Hello, Time),
}

/// What a link's bytes mean.
#[derive(Debug)]
pub(super) enum Event {
    /// To be sent as it is: part of the agreement on keys.
    Say(Bytes),
    /// The preamble is fine, and there are keys if there must be: time to say hello.
    Greet,
    /// Who it is: time to judge.
    Hello(Hello),
    /// Both ends want the link.
    Welcome,
    /// Something on a link that is up, or a rejection on any.
    Message(Message),
    /// A tag of a later version.
    Unknown,
    /// A body of a later version; the message follows.
    Trailing(Box<Event>),
}

/// What time asks of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Heartbeat,
    /// Close it, for this reason.
    Dead(&'static str),
}

impl Link {
    pub(super) fn new(
        now: Time,
        (local, remote): (SocketAddrV4, SocketAddrV4),
        outbound: bool,
        connection: u64,
        keys: Option<Keys>,
    ) -> Self {
        Self {
            local,
            remote,
            outbound,
            connection,
            phase: Phase::Preamble,
            probe: None,
            opened: now,
            heard: now,
            said: now,
            raw: Decoder::default(),
            secret: keys.is_some(),
            // Known from the start at the end that dials.
            psk: keys.as_ref().filter(|_| outbound).and_then(|keys| keys.psks.first().cloned()),
            keys,
            transport: None,
            plain: Decoder::default(),
        }
    }

    /// What it begins with.
    pub(super) fn mode(&self) -> Mode {
        if self.secret { Mode::Noise } else { Mode::Clear }
    }

    /// Nobody but the two ends reads it.
    pub(super) fn is_sealed(&self) -> bool {
        self.transport.is_some()
    }

    /// Whether its password is one of these; in clear, whether there are none.
    pub(super) fn is_of(&self, psks: &[Psk]) -> bool {
        match &self.psk {
            Some(psk) => psks.contains(psk),
            // With a password: a listener that has not heard yet which one it will be.
            None => !self.secret && psks.is_empty(),
        }
    }

    /// Whether there is anything that the other end would understand.
    pub(super) fn can_speak(&self) -> bool {
        !matches!(self.phase, Phase::Preamble | Phase::Keys(..) | Phase::Keyed)
    }

    /// A frame as it is sent.
    pub(super) fn seal(&mut self, frame: Bytes) -> Result<Bytes, ProtocolError> {
        match &mut self.transport {
            Some(transport) => transport.seal(&frame),
            None if self.secret => Err(ProtocolError::Sealing("there are no keys yet".to_owned())),
            None => Ok(frame),
        }
    }

    /// Who is at the other end of a link that is up.
    pub(super) fn peer(&self) -> Option<&Hello> {
        match &self.phase {
            Phase::Up(hello, _) => Some(hello),
            _ => None,
        }
    }

    /// Who says to be at the other end.
    pub(super) fn claimed(&self) -> Option<&Hello> {
        match &self.phase {
            Phase::Up(hello, _) | Phase::Held(hello) | Phase::Welcomed(hello) => Some(hello),
            Phase::Preamble | Phase::Keys(..) | Phase::Keyed | Phase::Hello => None,
        }
    }

    /// Who is at the other end of a link that we want.
    pub(super) fn welcomed(&self) -> Option<&Hello> {
        self.claimed().filter(|_| !matches!(self.phase, Phase::Held(_)))
    }

    /// Its id, the same at both ends.
    pub(super) fn id(&self, hello: &Hello) -> u64 {
        self.connection ^ hello.connection
    }

    /// Where the other end accepts links.
    pub(super) fn listening(&self, hello: &Hello) -> SocketAddrV4 {
        if self.outbound { self.remote } else { SocketAddrV4::new(*self.remote.ip(), hello.port) }
    }

    /// How long it has been up.
    pub(super) fn lived(&self, now: Time) -> Option<Time> {
        match self.phase {
            Phase::Up(_, since) => Some(now.saturating_sub(since)),
            _ => None,
        }
    }

    pub(super) fn receive(&mut self, now: Time, bytes: &[u8]) {
        self.heard = now;
        self.raw.push(bytes);
    }

    /// Something was sent on it.
    pub(super) fn sent(&mut self, now: Time) {
        self.said = now;
    }

    /// What the bytes received so far mean; to be called until it has no more to say.
    pub(super) fn next(&mut self) -> Result<Option<Event>, ProtocolError> {
        match &mut self.phase {
            Phase::Preamble => self.preamble(),
            Phase::Keys(prologue, handshake) => {
                let (prologue, handshake) = (std::mem::take(prologue), handshake.take());
                self.agree(prologue, handshake)
            }
            Phase::Keyed => Ok(Some(self.greet())),
            Phase::Hello => self.message(MAX_FIRST_FRAME)?.map(first).transpose(),
            Phase::Welcomed(_) => self.message(MAX_FIRST_FRAME)?.map(second).transpose(),
            Phase::Held(_) => match self.raw.buffered() + self.plain.buffered() {
                early if early > MAX_FIRST_FRAME => Err(ProtocolError::TooEarly(early)),
                _ => Ok(None),
            },
            Phase::Up(..) => self.message(MAX_FRAME)?.map(later).transpose(),
        }
    }

    fn greet(&mut self) -> Event {
        self.phase = Phase::Hello;
        Event::Greet
    }

    fn preamble(&mut self) -> Result<Option<Event>, ProtocolError> {
        // There is one version so far; a second one goes into the phases that follow.
        let Some((theirs, _, mode)) = self.raw.preamble()? else { return Ok(None) };
        let ours = frame::preamble(self.mode());
        match (self.keys.take(), mode) {
            (_, Mode::Barred) => Err(ProtocolError::Barred),
            (None, Mode::Clear) => Ok(Some(self.greet())),
            (Some(_), Mode::Clear) => Err(ProtocolError::NoPasswordThere),
            (None, Mode::Noise) => Err(ProtocolError::NoPasswordHere),
            (keys @ Some(_), Mode::Noise) if !self.outbound => {
                self.keys = keys;
                self.phase = Phase::Keys(noise::prologue(&theirs, &ours), None);
                self.next()
            }
            (Some(keys), Mode::Noise) => {
                let prologue = noise::prologue(&ours, &theirs);
                let psk = keys.psks.first().ok_or(ProtocolError::NoPasswordHere)?;
                let (handshake, record) = Handshake::begin(psk, &prologue, keys.seed)?;
                self.phase = Phase::Keys(prologue, Some(handshake));
                Ok(Some(Event::Say(record)))
            }
        }
    }

    /// The other end's handshake message, once it is there.
    fn agree(&mut self, prologue: Vec<u8>, handshake: Option<Handshake>) -> Result<Option<Event>, ProtocolError> {
        let record = self.raw.record(HANDSHAKE_MESSAGE).map_err(|_| ProtocolError::Altered)?;
        match (record, handshake) {
            (None, handshake) => {
                self.phase = Phase::Keys(prologue, handshake);
                Ok(None)
            }
            (Some(record), Some(_)) if record.is_empty() => Err(ProtocolError::Refused),
            (Some(record), Some(handshake)) => {
                self.transport = Some(handshake.finish(&record)?);
                Ok(Some(self.greet()))
            }
            (Some(record), None) => {
                let keys = self.keys.take().ok_or(ProtocolError::NoPasswordHere)?;
                let (psk, transport, answer) = noise::answer(&keys.psks, &prologue, keys.seed, &record)?;
                (self.psk, self.transport) = (Some(psk), Some(transport));
                self.phase = Phase::Keyed;
                Ok(Some(Event::Say(answer)))
            }
        }
    }

    pub(super) fn frame(&mut self, limit: usize) -> Result<Option<(u8, Bytes)>, ProtocolError> {
        if !self.secret {
            return self.raw.frame(limit);
        }
        let transport = self.transport.as_mut().ok_or(ProtocolError::OutOfTurn("a frame before there were keys"))?;
        loop {
            if let Some(frame) = self.plain.frame(limit)? {
                return Ok(Some(frame));
            }
            let Some(record) = self.raw.record(limit.saturating_add(FRAMING))? else { return Ok(None) };
            self.plain.push(&transport.open(&record)?);
        }
    }

    fn message(&mut self, limit: usize) -> Result<Option<Event>, ProtocolError> {
        let Some((tag, body)) = self.frame(limit)? else { return Ok(None) };
        let received = Message::decode(tag, &body)?;
        let event = received.message.map_or(Event::Unknown, Event::Message);
        Ok(Some(if received.trailing { Event::Trailing(Box::new(event)) } else { event }))
    }

    /// What is due at `now`.
    pub(super) fn due(&self, now: Time) -> Option<Due> {
        match self.phase {
            Phase::Preamble | Phase::Keys(..) | Phase::Keyed | Phase::Hello | Phase::Welcomed(_) => {
                (now >= self.opened + HANDSHAKE).then_some(Due::Dead("no handshake within 10 s"))
            }
            Phase::Held(_) => None,
            Phase::Up(..) if self.probe.is_some_and(|probe| now >= probe) => Some(Due::Dead("restarted: the old link does not answer")),
            Phase::Up(..) if now >= self.heard + SILENCE => Some(Due::Dead("silent for 10 s")),
            Phase::Up(..) => (now + ALONG >= self.said + HEARTBEAT).then_some(Due::Heartbeat),
        }
    }

    /// When something will be due.
    pub(super) fn deadline(&self) -> Option<Time> {
        match self.phase {
            Phase::Preamble | Phase::Keys(..) | Phase::Keyed | Phase::Hello | Phase::Welcomed(_) => Some(self.opened + HANDSHAKE),
            Phase::Held(_) => None,
            Phase::Up(..) => [Some(self.heard + SILENCE), Some(self.said + HEARTBEAT), self.probe].into_iter().flatten().min(),
        }
    }
}

/// A hello, perhaps after things that later versions may say.
fn first(event: Event) -> Result<Event, ProtocolError> {
    match event {
        Event::Message(Message::Hello(hello)) => Ok(Event::Hello(hello)),
        event => early(event, first),
    }
}

/// A welcome, perhaps after things that later versions may say.
fn second(event: Event) -> Result<Event, ProtocolError> {
    match event {
        Event::Message(Message::Welcome(_)) => Ok(Event::Welcome),
        event => early(event, second),
    }
}

/// What may come before the handshake is done.
fn early(event: Event, inner: fn(Event) -> Result<Event, ProtocolError>) -> Result<Event, ProtocolError> {
    match event {
        Event::Trailing(event) => inner(*event).map(|event| Event::Trailing(Box::new(event))),
        Event::Message(Message::Reject(_) | Message::Heartbeat(_)) | Event::Unknown => Ok(event),
        _ => Err(ProtocolError::OutOfTurn("a message before the handshake was done")),
    }
}

fn later(event: Event) -> Result<Event, ProtocolError> {
    match event {
        Event::Message(Message::Hello(_)) => Err(ProtocolError::OutOfTurn("a hello")),
        Event::Message(Message::Welcome(_)) => Err(ProtocolError::OutOfTurn("a welcome")),
        Event::Trailing(event) => later(*event).map(|event| Event::Trailing(Box::new(event))),
        event => Ok(event),
    }
}
