//! One TCP connection to another agent: handshake, liveness, and bytes to messages. It sends nothing by itself; the mesh
//! acts on its [`Event`]s and on [`Link::due`].
//!
//! Each end sends the preamble at once, its hello when it has the other's preamble (what is in a hello may depend on the
//! version), and a welcome when it finds nothing wrong with the other's hello. Who has sent and got a welcome is up.

use std::net::SocketAddrV4;

use super::frame::{Decoder, MAX_FIRST_FRAME, MAX_FRAME, ProtocolError};
use super::message::{Hello, Message};
use crate::Time;

/// The other end has as long to say hello.
pub(super) const HANDSHAKE: Time = Time::from_secs(10);
/// Idle links carry a heartbeat as often. Weave Net has 30 s and takes a link for dead after 60. That is too slow: as long
/// as a dead link counts, a restarted peer's new one is held for a probe, gossip goes nowhere, and nobody dials. What
/// the heartbeats cost is nothing: 10 bytes a second and neighbour.
pub(super) const HEARTBEAT: Time = Time::from_secs(3);
/// A link without a byte for so long is dead: three heartbeats lost.
pub(super) const SILENCE: Time = Time::from_secs(10);
/// A link that is asked whether it lives answers within this time.
pub(super) const PROBE: Time = Time::from_secs(3);

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
    decoder: Decoder,
}

/// How far the handshake is.
#[derive(Debug)]
pub(super) enum Phase {
    /// Waiting for magic and versions.
    Preamble,
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
    /// The preamble is fine: time to say hello.
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
    pub(super) fn new(now: Time, local: SocketAddrV4, remote: SocketAddrV4, outbound: bool, connection: u64) -> Self {
        let decoder = Decoder::default();
        Self { local, remote, outbound, connection, phase: Phase::Preamble, probe: None, opened: now, heard: now, said: now, decoder }
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
            Phase::Preamble | Phase::Hello => None,
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
        self.decoder.push(bytes);
    }

    /// Something was sent on it.
    pub(super) fn sent(&mut self, now: Time) {
        self.said = now;
    }

    /// What the bytes received so far mean; to be called until it has no more to say.
    pub(super) fn next(&mut self) -> Result<Option<Event>, ProtocolError> {
        match self.phase {
            Phase::Preamble => {
                let version = self.decoder.preamble()?;
                // There is one version so far; a second one goes into the phases that follow.
                Ok(version.map(|_| self.phase = Phase::Hello).map(|()| Event::Greet))
            }
            Phase::Hello => self.message(MAX_FIRST_FRAME)?.map(first).transpose(),
            Phase::Welcomed(_) => self.message(MAX_FIRST_FRAME)?.map(second).transpose(),
            Phase::Held(_) if self.decoder.buffered() > MAX_FIRST_FRAME => Err(ProtocolError::TooEarly(self.decoder.buffered())),
            Phase::Held(_) => Ok(None),
            Phase::Up(..) => self.message(MAX_FRAME)?.map(later).transpose(),
        }
    }

    fn message(&mut self, limit: usize) -> Result<Option<Event>, ProtocolError> {
        let Some((tag, body)) = self.decoder.frame(limit)? else { return Ok(None) };
        let received = Message::decode(tag, &body)?;
        let event = received.message.map_or(Event::Unknown, Event::Message);
        Ok(Some(if received.trailing { Event::Trailing(Box::new(event)) } else { event }))
    }

    /// What is due at `now`.
    pub(super) fn due(&self, now: Time) -> Option<Due> {
        match self.phase {
            Phase::Preamble | Phase::Hello | Phase::Welcomed(_) => {
                (now >= self.opened + HANDSHAKE).then_some(Due::Dead("no handshake within 10 s"))
            }
            Phase::Held(_) => None,
            Phase::Up(..) if self.probe.is_some_and(|probe| now >= probe) => Some(Due::Dead("restarted: the old link does not answer")),
            Phase::Up(..) if now >= self.heard + SILENCE => Some(Due::Dead("silent for 10 s")),
            Phase::Up(..) => (now >= self.said + HEARTBEAT).then_some(Due::Heartbeat),
        }
    }

    /// When something will be due.
    pub(super) fn deadline(&self) -> Option<Time> {
        match self.phase {
            Phase::Preamble | Phase::Hello | Phase::Welcomed(_) => Some(self.opened + HANDSHAKE),
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
