use std::collections::BTreeSet;
use std::num::NonZeroU32;

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Tag};
use proptest::prelude::*;

use super::*;

const CIPHERS: [Cipher; 3] = [Cipher::Clear, Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm];

fn session(id: u32) -> SessionId {
    SessionId(NonZeroU32::new(id).unwrap())
}

fn pair(cipher: Cipher) -> (Sealer, Opener) {
    let key = Key(std::array::from_fn(|i| i as u8));
    (Sealer::new(session(0x0102_0304), cipher, &key).unwrap(), Opener::new(session(0x0102_0304), cipher, &key).unwrap())
}

fn sealed(sealer: &Sealer, lane: u8, body: &[u8]) -> Vec<u8> {
    let mut datagram = [&[0; HEAD], body, &vec![0; sealer.tag_len()]].concat();
    let number = sealer.numbers(lane, 1).unwrap().take().unwrap();
    assert!(sealer.seal(number, &mut datagram));
    datagram
}

#[test]
fn what_was_sealed_is_opened_once_and_on_any_lane() {
    for cipher in CIPHERS {
        let (sealer, opener) = pair(cipher);
        for lane in [0, 3, 255] {
            let datagram = sealed(&sealer, lane, b"some body");
            assert_eq!(session_of(&datagram), Some(0x0102_0304));
            assert_eq!(opener.open(&mut datagram.clone()).unwrap().body, b"some body");
            assert_eq!(opener.open(&mut datagram.clone()), Err(Refusal::Replayed));
        }
    }
}

#[test]
fn the_bytes_on_the_wire_are_these() {
    let (sealer, _) = pair(Cipher::Clear);
    assert!(sealer.numbers(0, 0x0506).is_some());
    assert_eq!(sealed(&sealer, 7, &[9, 9]), [1, 2, 3, 4, 7, 0, 0, 0, 0, 0, 5, 6, 9, 9]);
}

#[test]
fn another_implementation_of_chacha_opens_what_ours_sealed() {
    let (sealer, _) = pair(Cipher::ChaCha20Poly1305);
    for length in [0, 1, 63, 64, 65, 255, 1400, 9000] {
        let body: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
        let datagram = sealed(&sealer, 1, &body);
        let (head, rest) = datagram.split_at(HEAD);
        let (sealed, tag) = rest.split_at(rest.len() - TAG);
        let cipher = ChaCha20Poly1305::new(&std::array::from_fn::<u8, 32, _>(|i| i as u8).into());
        let mut opened = sealed.to_vec();
        cipher.decrypt_in_place_detached(head.into(), head, &mut opened, Tag::from_slice(tag)).unwrap();
        assert_eq!(opened, body);
    }
}

#[test]
fn aes_256_gcm_is_the_one_of_the_standard() {
    // Test case 13 of McGrew and Viega, "The Galois/Counter Mode of Operation": key and nonce zero, nothing sealed.
    let aead = aead(Cipher::Aes256Gcm, &Key([0; 32])).unwrap().unwrap();
    let tag = aead.seal_in_place_separate_tag(Nonce::assume_unique_for_key([0; 12]), Aad::empty(), &mut []).unwrap();
    assert_eq!(tag.as_ref(), [0x53, 0x0f, 0x8a, 0xfb, 0xc7, 0x45, 0x36, 0xb9, 0xa9, 0x63, 0xb4, 0xf1, 0xc4, 0xcb, 0x73, 0x8b]);
}

#[test]
fn a_forged_datagram_does_not_use_up_the_number_of_the_true_one() {
    let (sealer, opener) = pair(Cipher::Aes256Gcm);
    let datagram = sealed(&sealer, 0, b"true");
    let mut forged = datagram.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(opener.open(&mut forged), Err(Refusal::Forged));
    assert!(opener.open(&mut datagram.clone()).unwrap().is_latest);
}

#[test]
fn a_datagram_of_another_session_is_refused_whatever_the_cipher() {
    for cipher in CIPHERS {
        let (_, opener) = pair(cipher);
        let other = Sealer::new(session(9), cipher, &Key([1; 32])).unwrap();
        assert_eq!(opener.open(&mut sealed(&other, 0, b"body")), Err(Refusal::Forged));
    }
}

#[test]
fn only_what_is_later_than_all_before_is_the_latest() {
    let (sealer, opener) = pair(Cipher::Clear);
    let [mut first, mut second, mut third] = [0, 1, 0].map(|lane| sealed(&sealer, lane, b""));
    assert!(opener.open(&mut second).unwrap().is_latest);
    assert!(!opener.open(&mut first).unwrap().is_latest);
    assert!(opener.open(&mut third).unwrap().is_latest);
}

#[test]
fn a_session_wears_and_ends() {
    let (sealer, opener) = pair(Cipher::Clear);
    sealer.next.store(WORN, Ordering::Relaxed);
    assert!(!opener.is_newly_worn());
    opener.open(&mut sealed(&sealer, 0, b"")).unwrap();
    assert!(opener.is_newly_worn() && !opener.is_newly_worn());
    sealer.next.store(LAST - 1, Ordering::Relaxed);
    assert!(sealer.numbers(0, 2).is_none());
    assert!(sealer.numbers(0, 1).is_none());
}

#[test]
fn threads_never_share_a_number() {
    let (sealer, _) = pair(Cipher::Clear);
    let taken = std::thread::scope(|scope| {
        let sealer = &sealer;
        let take = |lane: u8| {
            move || -> Vec<u64> {
                let runs = (1..500).filter_map(|n| sealer.numbers(lane, n % 64));
                runs.flat_map(|mut run| std::iter::from_fn(move || run.take())).map(|number| number.0 & NUMBER).collect()
            }
        };
        let threads = [0, 1, 2, 3].map(|lane| scope.spawn(take(lane)));
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<u64>>()
    });
    assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), taken.len());
}

proptest! {
    #[test]
    fn no_bytes_make_opening_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        for cipher in CIPHERS {
            let (_, opener) = pair(cipher);
            prop_assert!(cipher == Cipher::Clear || opener.open(&mut bytes).is_err());
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed(body in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index, bit in 0..8) {
        for cipher in [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm] {
            let (sealer, opener) = pair(cipher);
            let mut datagram = sealed(&sealer, 2, &body);
            let at = at.index(datagram.len());
            datagram[at] ^= 1_u8 << bit;
            prop_assert!(opener.open(&mut datagram).is_err());
        }
    }
}
