//! Two ends of a link and whoever is between them.

use std::net::SocketAddrV4;

use bytes::Bytes;
use proptest::prelude::*;
use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::super::Psk;
use super::super::frame::{MAX_FRAME, Mode, ProtocolError, encode, preamble};
use super::super::link::{Event, Keys, Link, Phase};
use super::*;
use crate::Time;

const PREAMBLE: usize = 7;

fn psk(n: u8) -> Psk {
    Psk([n; 32])
}

fn address(last: u8) -> SocketAddrV4 {
    SocketAddrV4::new([10, 0, 0, last].into(), 6783)
}

/// One end, and what it has to say.
struct End {
    link: Link,
    out: Vec<u8>,
    greeted: bool,
    error: Option<ProtocolError>,
}

impl End {
    fn new(outbound: bool, psks: &[u8], seed: u8) -> Self {
        let keys = (!psks.is_empty()).then(|| Keys { psks: psks.iter().map(|n| psk(*n)).collect(), seed: [seed; 32] });
        let link = Link::new(Time::ZERO, (address(1), address(2)), outbound, 7, keys);
        Self { out: preamble(link.mode()).to_vec(), link, greeted: false, error: None }
    }

    fn dialler(psks: &[u8]) -> Self {
        Self::new(true, psks, 1)
    }

    fn listener(psks: &[u8]) -> Self {
        Self::new(false, psks, 2)
    }

    /// Takes bytes and acts as the mesh does, until there are keys.
    fn take(&mut self, bytes: &[u8]) {
        self.link.receive(Time::ZERO, bytes);
        while self.error.is_none() && !self.greeted {
            match self.link.next() {
                Ok(Some(Event::Say(bytes))) => self.out.extend(&bytes),
                Ok(Some(Event::Greet)) => self.greeted = true,
                Ok(Some(other)) => panic!("{other:?}"),
                Ok(None) => return,
                Err(error) => {
                    if error == ProtocolError::WrongPassword {
                        self.out.extend(&REFUSAL);
                    }
                    self.error = Some(error);
                }
            }
        }
    }

    fn said(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    fn next_frame(&mut self) -> Result<Option<(u8, Bytes)>, ProtocolError> {
        // What a frame means is another layer's matter.
        self.link.frame(MAX_FRAME)
    }
}

/// Lets both talk until neither has anything left to say; `meddle` sees each chunk: its number, whether the dialler said it.
fn talk(a: &mut End, b: &mut End, mut meddle: impl FnMut(usize, bool, &mut Vec<u8>)) {
    for number in 0..20 {
        let dialler = number % 2 == 0;
        let (from, to) = if dialler { (&mut *a, &mut *b) } else { (&mut *b, &mut *a) };
        let mut said = from.said();
        meddle(number, dialler, &mut said);
        to.take(&said);
    }
}

fn undisturbed(_: usize, _: bool, _: &mut Vec<u8>) {}

fn joined(dialler: &[u8], listener: &[u8]) -> (End, End) {
    let (mut a, mut b) = (End::dialler(dialler), End::listener(listener));
    talk(&mut a, &mut b, undisturbed);
    assert!(a.greeted && b.greeted, "{:?} {:?}", a.error, b.error);
    (a, b)
}

#[test]
fn ends_with_the_same_password_seal_what_they_say() {
    let (mut a, mut b) = joined(&[1], &[1]);
    for _ in 0..2 {
        let sealed = a.link.seal(encode(9, b"secret words")).unwrap();
        assert!(!sealed.windows(6).any(|bytes| bytes == b"secret"));
        b.link.receive(Time::ZERO, &sealed);
        assert_eq!(b.next_frame(), Ok(Some((9, Bytes::from_static(b"secret words")))));
        std::mem::swap(&mut a, &mut b);
    }
}

#[test]
fn without_passwords_everything_is_in_clear() {
    let (mut a, _) = joined(&[], &[]);
    assert!(!a.link.is_sealed());
    assert_eq!(a.link.seal(encode(9, b"words")), Ok(encode(9, b"words")));
}

#[test]
fn the_first_password_is_dialled_with_and_any_is_accepted() {
    let (a, b) = joined(&[3, 1], &[1, 2, 3]);
    assert!(a.link.is_of(&[psk(3)]) && b.link.is_of(&[psk(3)]) && !b.link.is_of(&[psk(1), psk(2)]));
    let (mut a, mut b) = (End::dialler(&[3, 1]), End::listener(&[1, 2]));
    talk(&mut a, &mut b, undisturbed);
    assert_eq!((a.error, b.error), (Some(ProtocolError::Refused), Some(ProtocolError::WrongPassword)));
}

#[test]
fn one_end_without_a_password_gets_no_link_and_both_know_why() {
    let ends = |a: &[u8], b: &[u8]| {
        let (mut a, mut b) = (End::dialler(a), End::listener(b));
        talk(&mut a, &mut b, undisturbed);
        (a.error.unwrap(), b.error.unwrap())
    };
    assert_eq!(ends(&[1], &[]), (ProtocolError::NoPasswordThere, ProtocolError::NoPasswordHere));
    assert_eq!(ends(&[], &[1]), (ProtocolError::NoPasswordHere, ProtocolError::NoPasswordThere));
}

#[test]
fn a_wrong_password_learns_nothing_but_no() {
    let (mut a, mut b) = (End::dialler(&[2]), End::listener(&[1]));
    b.take(&a.said());
    assert_eq!(b.said(), preamble(Mode::Noise));
    a.take(&preamble(Mode::Noise));
    b.take(&a.said());
    assert_eq!((b.error.clone(), b.said()), (Some(ProtocolError::WrongPassword), vec![0, 0]));
    a.take(&[0, 0]);
    assert_eq!(a.error, Some(ProtocolError::Refused));
}

#[test]
fn who_is_barred_is_told() {
    let mut a = End::dialler(&[1]);
    a.take(&preamble(Mode::Barred));
    assert_eq!(a.error, Some(ProtocolError::Barred));
}

/// Both ends' chunks of a handshake, in turn.
fn recorded() -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    talk(&mut End::dialler(&[1]), &mut End::listener(&[1]), |_, _, said| chunks.push(said.clone()));
    chunks
}

#[test]
fn no_flipped_bit_of_a_handshake_leads_to_a_link() {
    for (at, chunk) in recorded().iter().enumerate() {
        for (byte, bit) in (0..chunk.len()).flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
            let (mut a, mut b) = (End::dialler(&[1]), End::listener(&[1]));
            talk(&mut a, &mut b, |number, _, said| {
                if number == at {
                    said[byte] ^= 1 << bit;
                }
            });
            // The listener may believe in keys that nobody else has: it says hello, and nobody can read or answer it.
            let agreed = a.greeted && b.greeted && opens(&mut a, &mut b);
            assert!(!agreed, "bit {bit} of byte {byte} of chunk {at}");
            assert!(!a.greeted, "bit {bit} of byte {byte} of chunk {at}");
        }
    }
}

fn opens(from: &mut End, to: &mut End) -> bool {
    let sealed = from.link.seal(encode(9, b"x")).unwrap();
    to.link.receive(Time::ZERO, &sealed);
    to.next_frame().is_ok_and(|frame| frame.is_some())
}

#[test]
fn a_man_in_the_middle_cannot_make_both_talk_in_clear() {
    let (mut a, mut b) = (End::dialler(&[1]), End::listener(&[1]));
    let clear = |_, _, said: &mut Vec<u8>| {
        if said.starts_with(b"WVAG") {
            said[6] = Mode::Clear as u8;
        }
    };
    talk(&mut a, &mut b, clear);
    assert_eq!((a.error, b.error), (Some(ProtocolError::NoPasswordThere), Some(ProtocolError::NoPasswordThere)));
}

#[test]
fn a_man_in_the_middle_cannot_have_an_older_version_spoken() {
    // Versions that both would take: only the prologue tells the difference.
    let psks = [psk(1)];
    let (_, first) = Handshake::begin(&psks[0], &prologue(b"WVAG\x01\x02\x01", b"WVAG\x01\x01\x01"), [1; 32]).unwrap();
    let other = prologue(b"WVAG\x01\x01\x01", b"WVAG\x01\x01\x01");
    assert_eq!(answer(&psks, &other, [2; 32], &first[2..]).unwrap_err(), ProtocolError::WrongPassword);
}

#[test]
fn a_recorded_handshake_sent_again_leads_nowhere() {
    let chunks = recorded();
    // To the listener, as the dialler: it answers with another key, and what was recorded does not open.
    let (mut a, mut b) = (End::dialler(&[1]), End::listener(&[1]));
    talk(&mut a, &mut b, undisturbed);
    let sealed = a.link.seal(encode(1, b"hello")).unwrap();
    let mut again = End::new(false, &[1], 77);
    chunks.iter().step_by(2).for_each(|chunk| again.take(chunk));
    assert!(again.greeted);
    again.link.receive(Time::ZERO, &sealed);
    assert_eq!(again.next_frame(), Err(ProtocolError::Altered));
    // To a dialler, as the listener.
    let mut again = End::new(true, &[1], 78);
    chunks.iter().skip(1).step_by(2).for_each(|chunk| again.take(chunk));
    assert_eq!((again.greeted, again.error), (false, Some(ProtocolError::Altered)));
}

#[test]
fn records_that_are_flipped_cut_swapped_or_sent_twice_do_not_open() {
    let sealed = || {
        let (mut a, b) = joined(&[1], &[1]);
        let records = [b"one", b"two"].map(|words| a.link.seal(encode(9, words)).unwrap());
        (b, records)
    };
    let (_, [one, _]) = sealed();
    for (byte, bit) in (0..one.len()).flat_map(|byte| (0..8).map(move |bit| (byte, bit))) {
        let (mut b, [one, _]) = sealed();
        let mut flipped = one.to_vec();
        flipped[byte] ^= 1 << bit;
        b.link.receive(Time::ZERO, &flipped);
        assert!(!b.next_frame().is_ok_and(|frame| frame.is_some()), "bit {bit} of byte {byte}");
    }
    let (mut b, [one, two]) = sealed();
    b.link.receive(Time::ZERO, &two);
    assert_eq!(b.next_frame(), Err(ProtocolError::Altered));
    let (mut b, _) = sealed();
    b.link.receive(Time::ZERO, &[&one[..], &one[..]].concat());
    assert_eq!(b.next_frame(), Ok(Some((9, Bytes::from_static(b"one")))));
    assert_eq!(b.next_frame(), Err(ProtocolError::Altered));
    let (mut b, _) = sealed();
    b.link.receive(Time::ZERO, &one[..one.len() - 1]);
    assert_eq!(b.next_frame(), Ok(None));
}

#[test]
fn the_longest_frame_is_cut_over_records_and_whole_again() {
    let (mut a, mut b) = joined(&[1], &[1]);
    let frame = encode(9, &vec![7; MAX_FRAME - 1]);
    let sealed = a.link.seal(frame.clone()).unwrap();
    assert_eq!(sealed.len() - frame.len(), frame.len().div_ceil(65_535 - TAG) * (2 + TAG));
    for chunk in sealed.chunks(60_000) {
        b.link.receive(Time::ZERO, chunk);
    }
    assert_eq!(b.next_frame(), Ok(Some((9, frame.slice(5..)))));
}

#[test]
fn keys_change_after_1024_records_of_a_direction_at_both_ends() {
    let (mut a, mut b) = joined(&[1], &[1]);
    for number in 0..3000_u32 {
        let frame = encode(9, &number.to_be_bytes());
        b.link.receive(Time::ZERO, &a.link.seal(frame).unwrap());
        assert_eq!(b.next_frame().unwrap().unwrap().1[..], number.to_be_bytes());
        if number.is_multiple_of(7) {
            a.link.receive(Time::ZERO, &b.link.seal(encode(8, b"")).unwrap());
            assert!(a.next_frame().unwrap().is_some());
        }
    }
    // The same nonce with the same words looks otherwise under another key.
    let (mut a, _) = joined(&[1], &[1]);
    let (mut never, _) = joined(&[1], &[1]);
    let both = |a: &mut End, b: &mut End| (a.link.seal(encode(9, b"x")).unwrap(), b.link.seal(encode(9, b"x")).unwrap());
    for _ in 0..1024 {
        let (one, other) = both(&mut a, &mut never);
        assert_eq!(one, other);
    }
    never.link.transport.as_mut().unwrap().0.rekey_outgoing();
    let (one, other) = both(&mut a, &mut never);
    assert_ne!(one, other);
}

#[test]
fn a_recorded_first_message_is_answered_as_it_always_was() {
    // Older agents dial with these bytes: password `Psk([1; 32])`, both preambles of version 1.
    let path = format!("{}/src/mesh/golden/noise-first.hex", env!("CARGO_MANIFEST_DIR"));
    let prologue = prologue(&preamble(Mode::Noise), &preamble(Mode::Noise));
    if std::env::var_os("WRITE_GOLDEN").is_some() {
        let (_, record) = Handshake::begin(&psk(1), &prologue, [1; 32]).unwrap();
        std::fs::write(&path, record.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n").unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    let golden = golden.trim();
    let first: Vec<u8> = (0..golden.len()).step_by(2).map(|at| u8::from_str_radix(&golden[at..at + 2], 16).unwrap()).collect();
    assert_eq!((first.len(), &first[..2]), (2 + HANDSHAKE_MESSAGE, &[0, 48][..]));
    assert!(answer(&[psk(1)], &prologue, [0; 32], &first[2..]).is_ok());
}

#[test]
fn a_link_without_keys_yet_says_nothing_else() {
    let mut a = End::dialler(&[1]);
    assert!(!a.link.can_speak());
    a.take(&preamble(Mode::Noise));
    assert!(matches!(a.link.phase, Phase::Keys(..)) && !a.link.can_speak());
}

proptest! {
    #[test]
    fn a_handshake_and_what_follows_survive_any_split_of_the_stream(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6),
        seed in any::<u64>(),
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut a, mut b) = (End::dialler(&[4]), End::listener(&[1, 4]));
        while !(a.greeted && b.greeted) {
            for said in [(a.said(), true), (b.said(), false)] {
                let (mut rest, from_a) = (&said.0[..], said.1);
                while !rest.is_empty() {
                    let (chunk, later) = rest.split_at(rng.random_range(1..=rest.len()));
                    if from_a { b.take(chunk) } else { a.take(chunk) }
                    rest = later;
                }
            }
        }
        let sealed: Vec<u8> = frames.iter().flat_map(|body| a.link.seal(encode(9, body)).unwrap()).collect();
        let (mut rest, mut seen) = (&sealed[..], Vec::new());
        while !rest.is_empty() {
            let (chunk, later) = rest.split_at(rng.random_range(1..=rest.len().min(200)));
            b.link.receive(Time::ZERO, chunk);
            while let Some((_, body)) = b.next_frame().unwrap() {
                seen.push(body.to_vec());
            }
            rest = later;
        }
        prop_assert_eq!(seen, frames);
    }

    #[test]
    fn a_handshake_cut_short_or_followed_by_garbage_is_no_link_and_no_panic(
        keep in 0..PREAMBLE + 2 + HANDSHAKE_MESSAGE,
        garbage in prop::collection::vec(any::<u8>(), 0..200),
        dialler in any::<bool>(),
    ) {
        let chunks = recorded();
        let side = usize::from(dialler);
        let stream: Vec<u8> = chunks.iter().skip(side).step_by(2).flatten().copied().collect();
        let mut end = if dialler { End::dialler(&[1]) } else { End::new(false, &[1], 9) };
        end.take(&stream[..keep]);
        prop_assert!(!end.greeted);
        end.take(&garbage);
        // All the bytes there should have been would be a replay, which a listener answers.
        let sent = [&stream[..keep], &garbage[..]].concat();
        prop_assert!(!end.greeted || sent.starts_with(&stream));
    }
}
