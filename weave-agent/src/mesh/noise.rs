//! Links in secret: Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s (Noise Protocol Framework, revision 34, 9.2 and 10), the key of
//! which is the network's password. Every Noise message is a record: u16 BE length, then so many bytes.
//!
//! What this gives: whoever does not know the password learns nothing but lengths and times, and changes nothing unseen; who
//! learns it later cannot read what was recorded (both ends' ephemeral keys go into it). What it cannot: a first message
//! can be used to try passwords offline, so each try is made expensive before (see [`super::Psk`]); and all who know the
//! password are one.
//!
//! A first message sent again is answered like the first time, and whoever sent it cannot read the answer, let alone go on:
//! only a record that opens says that the other end is alive and knows the password.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState, TransportState};

use super::Psk;
use super::frame::ProtocolError;

const PROTOCOL: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// Before both ends' preambles in the prologue.
const PURPOSE: &[u8] = b"weave-agent link";
/// Of every sealed message.
pub(super) const TAG: usize = 16;
/// Longest Noise message (3).
const MAX_MESSAGE: usize = 65_535;
/// An ephemeral key, and the tag of nothing.
pub(super) const HANDSHAKE_MESSAGE: usize = 32 + TAG;
/// Both ends take the next key (Noise 4.2, 11.3) after as many records of a direction. An idle link has one in three seconds, so that a
/// key lasts 51 minutes at most, or 64 MiB.
const REKEY: u64 = 1024;
/// What a listener says to who has another password: a record without anything, not even a seal.
pub(super) const REFUSAL: Bytes = Bytes::from_static(&[0, 0]);

/// What is mixed into the keys: a handshake whose ends saw different preambles fails.
pub(super) fn prologue(dialler: &[u8], listener: &[u8]) -> Vec<u8> {
    [PURPOSE, dialler, listener].concat()
}

/// The first message is sent, the second awaited.
pub(super) struct Handshake(Box<HandshakeState>);

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handshake")
    }
}

impl Handshake {
    /// The dialler's first record.
    pub(super) fn begin(psk: &Psk, prologue: &[u8], seed: [u8; 32]) -> Result<(Self, Bytes), ProtocolError> {
        let mut state = builder(psk, prologue, seed).and_then(Builder::build_initiator).map_err(sealing)?;
        let record = message(&mut state)?;
        Ok((Self(Box::new(state)), record))
    }

    /// The listener's answer.
    pub(super) fn finish(mut self, answer: &[u8]) -> Result<Transport, ProtocolError> {
        self.0.read_message(answer, &mut [0; HANDSHAKE_MESSAGE]).map_err(|_| ProtocolError::Altered)?;
        self.0.into_transport_mode().map(Transport::new).map_err(sealing)
    }
}

/// What the listener does with the dialler's first message: finds the password that it was made with, and answers.
pub(super) fn answer(psks: &[Psk], prologue: &[u8], seed: [u8; 32], first: &[u8]) -> Result<(Psk, Transport, Bytes), ProtocolError> {
    for psk in psks {
        let mut state = builder(psk, prologue, seed).and_then(Builder::build_responder).map_err(sealing)?;
        if state.read_message(first, &mut [0; HANDSHAKE_MESSAGE]).is_ok() {
            let record = message(&mut state)?;
            return Ok((psk.clone(), state.into_transport_mode().map(Transport::new).map_err(sealing)?, record));
        }
    }
    Err(ProtocolError::WrongPassword)
}

fn builder<'a>(psk: &'a Psk, prologue: &'a [u8], seed: [u8; 32]) -> Result<Builder<'a>, snow::Error> {
    Builder::with_resolver(PROTOCOL.parse()?, Box::new(Seeded(seed))).psk(0, &psk.0)?.prologue(prologue)
}

fn message(state: &mut HandshakeState) -> Result<Bytes, ProtocolError> {
    let mut message = [0; HANDSHAKE_MESSAGE];
    let length = state.write_message(&[], &mut message).map_err(sealing)?;
    Ok(record(&message[..length]))
}

fn record(message: &[u8]) -> Bytes {
    let mut record = BytesMut::with_capacity(2 + message.len());
    // Noise messages are no longer than that.
    record.put_u16(u16::try_from(message.len()).unwrap_or(u16::MAX));
    record.put_slice(message);
    record.freeze()
}

/// No outside input leads here: it is a bug, and the link ends.
fn sealing(error: snow::Error) -> ProtocolError {
    ProtocolError::Sealing(format!("{error:?}"))
}

/// A link's two ciphers.
pub(super) struct Transport(Box<TransportState>);

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transport")
    }
}

impl Transport {
    fn new(state: TransportState) -> Self {
        Self(Box::new(state))
    }

    /// Bytes of the stream, as one record or several.
    pub(super) fn seal(&mut self, bytes: &[u8]) -> Result<Bytes, ProtocolError> {
        let parts = bytes.chunks(MAX_MESSAGE - TAG);
        let mut records = BytesMut::with_capacity(bytes.len() + parts.len() * (2 + TAG));
        for part in parts {
            let from = records.len() + 2;
            // A part and its tag are no longer than a Noise message.
            records.put_u16(u16::try_from(part.len() + TAG).unwrap_or(u16::MAX));
            records.put_bytes(0, part.len() + TAG);
            self.0.write_message(part, &mut records[from..]).map_err(sealing)?;
            if self.0.sending_nonce().is_multiple_of(REKEY) {
                self.0.rekey_outgoing();
            }
        }
        Ok(records.freeze())
    }

    /// The bytes in a record.
    pub(super) fn open(&mut self, record: &[u8]) -> Result<Vec<u8>, ProtocolError> {
        let mut bytes = vec![0; record.len().saturating_sub(TAG)];
        self.0.read_message(record, &mut bytes).map_err(|_| ProtocolError::Altered)?;
        if self.0.receiving_nonce().is_multiple_of(REKEY) {
            self.0.rekey_incoming();
        }
        Ok(bytes)
    }
}

/// Snow's algorithms, with randomness from the mesh's seed: a run of the simulator is the same each time.
struct Seeded([u8; 32]);

impl CryptoResolver for Seeded {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Seed(StdRng::from_seed(self.0))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

struct Seed(StdRng);

impl Random for Seed {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), snow::Error> {
        self.0.fill_bytes(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
