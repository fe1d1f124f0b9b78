//! One TCP connection: its decoder and how far its handshake is.

use std::net::SocketAddrV4;
use std::time::Duration;

use bytes::{Buf, BytesMut};

use super::message::{self, Garbage, HEADER_LEN, Hello, MAX_FRAME, MAX_HANDSHAKE_FRAME, Message};
use crate::Time;

/// From the connection to the other's hello.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
/// Between our heartbeats.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(3);
/// A link on which nothing came for so long is dead.
pub(crate) const SILENCE: Duration = Duration::from_secs(10);

/// Cuts a stream into messages.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: BytesMut,
    version: Option<u8>,
    /// Whether long frames are allowed.
    trusted: bool,
}

impl Decoder {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    pub(crate) fn trust(&mut self) {
        self.trusted = true;
    }

    /// Bytes not decoded yet.
    pub(crate) fn waiting(&self) -> usize {
        self.buffer.len()
    }

    /// The next message, unless more bytes are needed. After an error the stream is of no more use.
    pub(crate) fn next(&mut self) -> Result<Option<Message>, Garbage> {
        if self.version.is_none() {
            let Some(header) = self.buffer.first_chunk::<HEADER_LEN>() else {
                let have = self.buffer.len().min(4);
                if self.buffer[..have] != message::MAGIC[..have] {
                    let mut magic = [0; 4];
                    magic[..have].copy_from_slice(&self.buffer[..have]);
                    return Err(Garbage::Magic(magic));
                }
                return Ok(None);
            };
            self.version = Some(message::negotiate(*header)?);
            self.buffer.advance(HEADER_LEN);
        }
        let limit = if self.trusted { MAX_FRAME } else { MAX_HANDSHAKE_FRAME };
        while let Some(length) = self.buffer.first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            if length > limit {
                return Err(Garbage::FrameTooLong(length));
            }
            if self.buffer.len() < 4 + length {
                break;
            }
            self.buffer.advance(4);
            let frame = self.buffer.split_to(length);
            if let Some(message) = Message::parse(&frame)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }
}

/// How far a link is.
#[derive(Debug)]
pub(crate) enum State {
    /// Waiting for the other's header and hello.
    Handshake,
    /// Its hello names a peer that has another link with another uid: a restart or a clone, time will tell.
    Parked { hello: Hello, since: Time },
    /// In use.
    Up { hello: Hello },
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) local: SocketAddrV4,
    pub(crate) remote: SocketAddrV4,
    pub(crate) outbound: bool,
    /// Our half of the connection id.
    pub(crate) connection: u64,
    pub(crate) decoder: Decoder,
    pub(crate) state: State,
    pub(crate) started: Time,
    /// When something last came.
    pub(crate) heard: Time,
    pub(crate) heartbeat: Time,
}

impl Link {
    pub(crate) fn new(now: Time, local: SocketAddrV4, remote: SocketAddrV4, outbound: bool, connection: u64) -> Self {
        Self {
            local,
            remote,
            outbound,
            connection,
            decoder: Decoder::default(),
            state: State::Handshake,
            started: now,
            heard: now,
            heartbeat: now + HEARTBEAT,
        }
    }

    /// The hello of a link in use.
    pub(crate) fn up(&self) -> Option<&Hello> {
        if let State::Up { hello } = &self.state { Some(hello) } else { None }
    }

    pub(crate) fn id_with(&self, hello: &Hello) -> u64 {
        self.connection ^ hello.connection
    }

    /// When the link is given up if nothing comes.
    pub(crate) fn deadline(&self) -> Time {
        match self.state {
            State::Handshake => self.started + HANDSHAKE,
            State::Parked { since, .. } => since + super::PARKED,
            State::Up { .. } => self.heard + SILENCE,
        }
    }

    /// Where others can dial the peer, as far as we can see.
    pub(crate) fn listens_at(&self, hello: &Hello) -> SocketAddrV4 {
        if self.outbound { self.remote } else { SocketAddrV4::new(*self.remote.ip(), hello.port) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(decoder: &mut Decoder) -> Result<usize, Garbage> {
        let mut messages = 0;
        while decoder.next()?.is_some() {
            messages += 1;
        }
        Ok(messages)
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic_or_hoard(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..16),
            begin_well in any::<bool>(),
            trusted in any::<bool>(),
        ) {
            let mut decoder = Decoder::default();
            if trusted {
                decoder.trust();
            }
            if begin_well {
                decoder.push(&message::header());
            }
            for chunk in chunks {
                decoder.push(&chunk);
                if all(&mut decoder).is_err() {
                    break;
                }
                let limit = if trusted { MAX_FRAME } else { MAX_HANDSHAKE_FRAME };
                prop_assert!(decoder.waiting() <= limit + 4);
            }
        }

        #[test]
        fn bodies_of_any_bytes_are_messages_or_named_errors(tag in 0_u8..7, body in prop::collection::vec(any::<u8>(), 0..200)) {
            let frame = [&[tag][..], &body].concat();
            if let Err(garbage) = Message::parse(&frame) {
                prop_assert!(!garbage.name().is_empty() && !garbage.to_string().is_empty());
            }
        }

        #[test]
        fn it_does_not_matter_how_the_stream_is_split(cuts in prop::collection::vec(1_usize..9, 1..50)) {
            let heartbeat = Message::Heartbeat.frame().unwrap();
            let stream = [&message::header()[..], &heartbeat, &heartbeat, &heartbeat].concat();
            let mut decoder = Decoder::default();
            let (mut rest, mut messages) = (&stream[..], 0);
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                decoder.push(now);
                messages += all(&mut decoder).unwrap();
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(messages, 3);
        }
    }

    #[test]
    fn a_wrong_magic_is_noticed_at_its_first_byte() {
        let mut decoder = Decoder::default();
        decoder.push(b"G");
        assert_eq!(decoder.next(), Err(Garbage::Magic([b'G', 0, 0, 0])));
    }
}
