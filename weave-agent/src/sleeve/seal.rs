//! Sealing and opening datagrams.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | session, its receiver's number |
//! | 4 | 1 | lane: which of the sender's threads, so that the receiver's threads can share the work and keep each lane's order |
//! | 5 | 7 | number, counting from zero in the session whatever the lane |
//! | 12 | | body, sealed |
//! | | 16 | tag; none with [`Cipher::Clear`] |
//!
//! The first twelve bytes are the nonce (a session's key is used by one sender only, and that gives no number twice) and are
//! authenticated with the body. RFC 8439 and NIST SP 800-38D, both by aws-lc-rs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::window::Window;
use super::{Cipher, Key, SessionId};

/// What stands before the body.
pub const HEAD: usize = NONCE_LEN;
/// What stands behind it, unless it is clear.
pub const TAG: usize = 16;

/// So many datagrams make a session worn: it should be followed by another. 6 TB, at 1,400 bytes each.
pub const WORN: u64 = 1 << 32;
/// So many are the last: it carries no more.
pub const LAST: u64 = 1 << 36;

const NUMBER: u64 = (1 << 56) - 1;

/// A key that cannot be used; none of 32 bytes is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the key was refused")]
pub struct KeyRefused;

/// Why a datagram is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is shorter than the shortest.
    #[error("too short")]
    Short,
    /// It was seen before, or is too old to know.
    #[error("seen before, or too old to know")]
    Replayed,
    /// It was not sealed with this session's key, or changed since.
    #[error("not sealed with this session's key")]
    Forged,
}

/// The session that a datagram says it is of.
pub fn session_of(datagram: &[u8]) -> Option<u32> {
    (datagram.len() >= HEAD).then(|| datagram.first_chunk().map(|id| u32::from_be_bytes(*id)))?
}

fn aead(cipher: Cipher, key: &Key) -> Result<Option<LessSafeKey>, KeyRefused> {
    let algorithm = match cipher {
        Cipher::Clear => return Ok(None),
        Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        Cipher::Aes256Gcm => &AES_256_GCM,
    };
    let key = UnboundKey::new(algorithm, &key.0).map_err(|_| KeyRefused)?;
    Ok(Some(LessSafeKey::new(key)))
}

/// One end of a session: the one that sends. Threads share it.
#[derive(Debug)]
pub struct Sealer {
    session: SessionId,
    aead: Option<LessSafeKey>,
    next: AtomicU64,
}

/// Numbers that nobody else has.
#[derive(Debug)]
pub struct Numbers {
    next: u64,
    end: u64,
}

/// A number that nobody else has. It is used up by sealing: there is no second datagram with it.
#[derive(Debug)]
pub struct Number(u64);

impl Numbers {
    /// The next one.
    pub fn take(&mut self) -> Option<Number> {
        let number = self.next;
        (number < self.end).then(|| {
            self.next += 1;
            Number(number)
        })
    }
}

impl Sealer {
    /// Of a session that has sealed nothing so far.
    ///
    /// # Errors
    /// If the library refuses the key.
    pub fn new(session: SessionId, cipher: Cipher, key: &Key) -> Result<Self, KeyRefused> {
        Ok(Self { session, aead: aead(cipher, key)?, next: AtomicU64::new(0) })
    }

    /// Which session.
    pub const fn session(&self) -> SessionId {
        self.session
    }

    /// What stands behind the body.
    pub const fn tag_len(&self) -> usize {
        if self.aead.is_some() { TAG } else { 0 }
    }

    /// The next numbers, for datagrams on `lane`; `None` when the session is used up.
    pub fn numbers(&self, lane: u8, count: usize) -> Option<Numbers> {
        let first = self.next.fetch_add(count as u64, Ordering::Relaxed);
        let end = first.checked_add(count as u64).filter(|end| *end <= LAST)?;
        let lane = u64::from(lane) << 56;
        Some(Numbers { next: lane | first, end: lane | end })
    }

    /// How many numbers were given out.
    pub fn sealed(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Seal what stands between [`HEAD`] and [`Sealer::tag_len`] of the datagram, and fill in both. `false` if it is too short for them.
    #[must_use]
    pub fn seal(&self, number: Number, datagram: &mut [u8]) -> bool {
        let Some((head, rest)) = datagram.split_first_chunk_mut::<HEAD>() else { return false };
        head[..4].copy_from_slice(&self.session.0.get().to_be_bytes());
        head[4..].copy_from_slice(&number.0.to_be_bytes());
        let Some(aead) = &self.aead else { return true };
        let Some((body, tag)) = rest.split_last_chunk_mut::<TAG>() else { return false };
        // Its only error is a body of 64 GiB.
        let sealed = aead.seal_in_place_separate_tag(Nonce::assume_unique_for_key(*head), Aad::from(*head), body);
        sealed.is_ok_and(|made| {
            tag.copy_from_slice(made.as_ref());
            true
        })
    }
}

/// The other end of a session: the one that receives. Threads share it.
#[derive(Debug)]
pub struct Opener {
    session: SessionId,
    aead: Option<LessSafeKey>,
    window: Window,
    /// One more than the highest number opened.
    beyond: AtomicU64,
    worn: AtomicBool,
}

/// What a datagram had inside.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// No later one has been opened before it.
    pub is_latest: bool,
    /// What was sealed.
    pub body: &'a mut [u8],
}

impl Opener {
    /// Of a session that has opened nothing so far.
    ///
    /// # Errors
    /// If the library refuses the key.
    pub fn new(session: SessionId, cipher: Cipher, key: &Key) -> Result<Self, KeyRefused> {
        let (window, beyond, worn) = (Window::default(), AtomicU64::new(0), AtomicBool::new(false));
        Ok(Self { session, aead: aead(cipher, key)?, window, beyond, worn })
    }

    /// Which session.
    pub const fn session(&self) -> SessionId {
        self.session
    }

    /// Open a datagram in place. Whether it is of this session is for the caller to know; if not, it is [`Refusal::Forged`].
    ///
    /// # Errors
    /// If it is anything but a datagram that this session's sender sealed and that was not opened before.
    pub fn open<'a>(&self, datagram: &'a mut [u8]) -> Result<Opened<'a>, Refusal> {
        let (head, sealed) = datagram.split_first_chunk_mut::<HEAD>().ok_or(Refusal::Short)?;
        let number = number_of(head);
        if !self.window.is_new(number) {
            return Err(Refusal::Replayed);
        }
        let body = match &self.aead {
            None if session_of(head) != Some(self.session.0.get()) => return Err(Refusal::Forged),
            None => sealed,
            Some(_) if sealed.len() < TAG => return Err(Refusal::Short),
            Some(aead) => {
                let opened = aead.open_in_place(Nonce::assume_unique_for_key(*head), Aad::from(*head), sealed);
                opened.map_err(|_| Refusal::Forged)?
            }
        };
        // Only now: what is forged must not use up numbers of what is not.
        if number >= LAST || !self.window.accept(number) {
            return Err(Refusal::Replayed);
        }
        let is_latest = self.beyond.fetch_max(number + 1, Ordering::Relaxed) <= number;
        Ok(Opened { is_latest, body })
    }

    /// Has it opened so much that another should follow it? Says so once.
    pub fn is_newly_worn(&self) -> bool {
        self.beyond.load(Ordering::Relaxed) > WORN && !self.worn.swap(true, Ordering::Relaxed)
    }
}

fn number_of(head: &[u8; HEAD]) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|i| head[4 + i])) & NUMBER
}

#[cfg(test)]
mod tests;
