//! Bytes of a link to frames and back: a preamble of magic, versions and whether what follows is in clear
//! or in records (see [`super::noise`]), then a u32 BE length, a tag byte, a body.
//!
//! Nothing here panics on what was received, and the buffer never holds more than one frame and what came with it,
//! unless its owner stops asking for frames (see [`Decoder::buffered`]).

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// First bytes of a link, both ways.
pub(super) const MAGIC: [u8; 4] = *b"WVAG";
/// Oldest protocol version that we speak.
pub(super) const MIN_VERSION: u8 = 1;
/// Newest protocol version that we speak.
pub(super) const MAX_VERSION: u8 = 1;
/// Longest frame (tag and body).
pub(super) const MAX_FRAME: usize = 4 << 20;
/// Longest frame before the handshake is done: anyone can open a link, so what it may make us hold is little.
pub(super) const MAX_FIRST_FRAME: usize = 16 << 10;

const PREAMBLE: usize = MAGIC.len() + 3;

/// How a link goes on after the preamble. Both ends must say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// In clear: there is no password.
    Clear = 0,
    /// With a Noise handshake, and then in its records.
    Noise = 1,
    /// Not at all: too many attempts from that address have failed.
    Barred = 2,
}

/// Why a link's bytes make no sense. The link is closed with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProtocolError {
    #[error("not a weave-agent: the stream does not begin with WVAG")]
    NotWeave,
    #[error("protocol versions {min}..{max} there and {MIN_VERSION}..{MAX_VERSION} here have none in common")]
    Version { min: u8, max: u8 },
    #[error("frame of {length} bytes; the limit is {limit}")]
    FrameLength { length: usize, limit: usize },
    #[error("malformed message with tag {tag}: {why}")]
    Malformed { tag: u8, why: String },
    #[error("{0} out of turn")]
    OutOfTurn(&'static str),
    #[error("{0} bytes before the handshake was done")]
    TooEarly(usize),
    #[error("the link's mode is {0} there; this version knows 0 (clear) and 1 (encrypted)")]
    Mode(u8),
    #[error("it has no password and this host has one: launch it with the network's --password or --password-file")]
    NoPasswordThere,
    #[error("its network has a password and this host has none: launch with --password or --password-file")]
    NoPasswordHere,
    #[error("it has another password: launch both with the network's --password, or give one of them both with `weave-agent passwords`")]
    WrongPassword,
    #[error(
        "it does not accept our password: launch both with the network's --password, or give one of them both with `weave-agent passwords`"
    )]
    Refused,
    #[error("too many attempts from our address had a wrong password: it listens again in 10 s")]
    Barred,
    #[error("what it sent is not sealed with this link's keys: somebody altered it on its way")]
    Altered,
    #[error("cannot seal: {0}")]
    Sealing(String),
}

impl ProtocolError {
    /// The two do not agree on a password.
    pub(super) fn concerns_password(&self) -> bool {
        matches!(self, Self::NoPasswordThere | Self::NoPasswordHere | Self::WrongPassword | Self::Refused | Self::Barred | Self::Altered)
    }
}

/// What we begin every link with.
pub(super) fn preamble(mode: Mode) -> Bytes {
    let [a, b, c, d] = MAGIC;
    Bytes::copy_from_slice(&[a, b, c, d, MIN_VERSION, MAX_VERSION, mode as u8])
}

/// The newest version that both speak.
fn negotiate(min: u8, max: u8) -> Result<u8, ProtocolError> {
    let chosen = max.min(MAX_VERSION);
    if min > max || chosen < min.max(MIN_VERSION) {
        return Err(ProtocolError::Version { min, max });
    }
    Ok(chosen)
}

/// One frame, ready to send.
pub(super) fn encode(tag: u8, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + body.len());
    // A body longer than MAX_FRAME is a bug of ours; the other end refuses it whatever the length says.
    frame.put_u32(u32::try_from(body.len() + 1).unwrap_or(u32::MAX));
    frame.put_u8(tag);
    frame.put_slice(body);
    frame.freeze()
}

/// A stream's bytes on their way to frames.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes not yet taken.
    pub(super) fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// Takes the preamble, once it is there, and answers with it, the version to speak and the mode. A wrong first byte is seen at once.
    pub(super) fn preamble(&mut self) -> Result<Option<(Bytes, u8, Mode)>, ProtocolError> {
        if !MAGIC.iter().zip(&self.buffer).all(|(a, b)| a == b) {
            return Err(ProtocolError::NotWeave);
        }
        if self.buffer.len() < PREAMBLE {
            return Ok(None);
        }
        let preamble = self.buffer.split_to(PREAMBLE).freeze();
        let version = negotiate(preamble[4], preamble[5])?;
        let mode = [Mode::Clear, Mode::Noise, Mode::Barred].into_iter().find(|mode| *mode as u8 == preamble[6]);
        mode.map(|mode| Some((preamble.clone(), version, mode))).ok_or(ProtocolError::Mode(preamble[6]))
    }

    /// Takes the next record, once it is there: a Noise message of at most `limit` bytes.
    pub(super) fn record(&mut self, limit: usize) -> Result<Option<Bytes>, ProtocolError> {
        let Some(length) = self.buffer.first_chunk().map(|bytes| usize::from(u16::from_be_bytes(*bytes))) else { return Ok(None) };
        if length > limit {
            return Err(ProtocolError::FrameLength { length, limit });
        }
        if self.buffer.len() < 2 + length {
            return Ok(None);
        }
        self.buffer.advance(2);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// Takes the next frame, once it is there: its tag and its body. An empty one is skipped.
    pub(super) fn frame(&mut self, limit: usize) -> Result<Option<(u8, Bytes)>, ProtocolError> {
        while let Some(length) = self.buffer.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize) {
            if length > limit {
                return Err(ProtocolError::FrameLength { length, limit });
            }
            if self.buffer.len() < 4 + length {
                return Ok(None);
            }
            self.buffer.advance(4);
            let mut frame = self.buffer.split_to(length).freeze();
            if !frame.is_empty() {
                return Ok(Some((frame.get_u8(), frame)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_preamble_is_magic_two_versions_and_the_mode() {
        assert_eq!(preamble(Mode::Clear)[..], *b"WVAG\x01\x01\x00");
        assert_eq!(preamble(Mode::Noise)[..], *b"WVAG\x01\x01\x01");
        assert_eq!(preamble(Mode::Barred)[..], *b"WVAG\x01\x01\x02");
    }

    #[test]
    fn a_mode_of_a_later_version_is_an_error_that_names_it() {
        let mut decoder = Decoder::default();
        decoder.push(b"WVAG\x01\x01\x03");
        assert_eq!(decoder.preamble(), Err(ProtocolError::Mode(3)));
    }

    #[test]
    fn a_record_over_the_limit_is_refused_before_it_is_buffered() {
        let mut decoder = Decoder::default();
        decoder.push(&[0, 48, 7]);
        assert_eq!(decoder.record(48), Ok(None));
        assert_eq!(decoder.record(47), Err(ProtocolError::FrameLength { length: 48, limit: 47 }));
    }

    #[test]
    fn the_newest_common_version_is_spoken_and_no_common_one_is_an_error() {
        assert_eq!(negotiate(1, 9), Ok(1));
        assert_eq!(negotiate(2, 9), Err(ProtocolError::Version { min: 2, max: 9 }));
        assert_eq!(negotiate(0, 0), Err(ProtocolError::Version { min: 0, max: 0 }));
        assert_eq!(negotiate(5, 1), Err(ProtocolError::Version { min: 5, max: 1 }));
    }

    #[test]
    fn a_stranger_is_told_apart_by_the_first_byte() {
        let mut decoder = Decoder::default();
        decoder.push(b"W");
        assert_eq!(decoder.preamble(), Ok(None));
        decoder.push(b"G");
        assert_eq!(decoder.preamble(), Err(ProtocolError::NotWeave));
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_before_it_is_buffered() {
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0, 1, 1]);
        assert_eq!(decoder.frame(256), Err(ProtocolError::FrameLength { length: 257, limit: 256 }));
    }

    #[test]
    fn an_empty_frame_is_skipped() {
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0, 0, 0, 0, 0, 0, 2, 7, 8]);
        assert_eq!(decoder.frame(256), Ok(Some((7, Bytes::from_static(&[8])))));
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_stream_is_split(
            bodies in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..8),
            chunk in 1..50_usize,
        ) {
            let mut stream = preamble(Mode::Clear).to_vec();
            for (tag, body) in &bodies {
                stream.extend(encode(*tag, body));
            }
            let (mut decoder, mut started, mut seen) = (Decoder::default(), false, Vec::new());
            for bytes in stream.chunks(chunk) {
                decoder.push(bytes);
                started = started || decoder.preamble().unwrap().is_some();
                while started && let Some((tag, body)) = decoder.frame(MAX_FRAME).unwrap() {
                    seen.push((tag, body.to_vec()));
                }
            }
            prop_assert_eq!(seen, bodies);
            prop_assert_eq!(decoder.buffered(), 0);
        }

        #[test]
        fn random_bytes_never_panic_nor_pile_up(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut decoder = Decoder::default();
            for chunk in bytes.chunks(7) {
                decoder.push(chunk);
                loop {
                    match decoder.frame(64) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
                prop_assert!(decoder.buffered() <= 64 + 4 + 7);
            }
        }
    }
}
