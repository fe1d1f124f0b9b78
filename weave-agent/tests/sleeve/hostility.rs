//! What does not come from a neighbour, or came before, is refused and counted, and costs little.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use weave_agent::io::sleeve::Count;

use crate::bed::{Bed, MAKE, eventually, on_a_bed};

const RANDOM: usize = 1_000_000;

fn delivered(bed: &Bed) -> [u64; 2] {
    bed.hosts.each_ref().map(|host| host.count(Count::FramesIn))
}

/// Nothing but what the two kernels say of themselves now and then: they ask again for each other's MAC.
fn nothing_delivered_since(bed: &Bed, before: [u64; 2]) {
    let since = [0, 1].map(|side| delivered(bed)[side] - before[side]);
    assert!(since.iter().all(|frames| *frames <= 3), "{since:?}");
}

fn sum(bed: &Bed, counts: &[Count]) -> u64 {
    bed.hosts.iter().flat_map(|host| counts.iter().map(|count| host.count(*count))).sum()
}

/// Send to both sides, no faster than they look at it.
fn send_all<'a>(bed: &Bed, datagrams: impl Iterator<Item = (usize, &'a [u8])>, counts: &[Count]) -> u64 {
    let before = sum(bed, counts);
    let mut sent = 0;
    for (side, datagram) in datagrams {
        bed.wire.send(side, datagram);
        sent += 1;
        if sent % 1_000 == 0 {
            wait(|| sum(bed, counts) >= before + sent);
        }
    }
    wait(|| sum(bed, counts) >= before + sent);
    sum(bed, counts) - before
}

/// As `eventually`, but for what most often has happened before one could sleep.
fn wait(condition: impl Fn() -> bool) {
    for _ in 0..1_000 {
        if condition() {
            return;
        }
        std::thread::yield_now();
    }
    eventually("what was sent is looked at", condition);
}

#[test]
fn everything_that_was_captured_is_refused_when_it_comes_again() {
    on_a_bed(MAKE, |bed| {
        bed.carries_a_stream(5_000_000);
        assert!(bed.pings(""));
        let (record, before) = (bed.wire.record(), delivered(bed));
        let replayed = send_all(bed, record.iter().map(|(side, datagram)| (*side, &datagram[..])), &[Count::Replayed]);
        assert_eq!(replayed, record.len() as u64);
        nothing_delivered_since(bed, before);
        assert!(bed.pings(""));
    });
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    on_a_bed(MAKE, |bed| {
        bed.wire.cut(true);
        assert!(!bed.pings("-s 1000"));
        let mut rng = StdRng::seed_from_u64(1);
        let record = bed.wire.record();
        let flipped = record.iter().cycle().take(10_000).map(|(side, datagram)| {
            let mut datagram = datagram.clone();
            let at = rng.random_range(0..datagram.len());
            datagram[at] ^= 1_u8 << rng.random_range(0..8);
            (*side, datagram)
        });
        let flipped: Vec<_> = flipped.collect();
        let before = delivered(bed);
        // A flipped session is a stranger's.
        let refused = [Count::Forged, Count::Stranger, Count::Replayed];
        send_all(bed, flipped.iter().map(|(side, datagram)| (*side, &datagram[..])), &refused);
        nothing_delivered_since(bed, before);
        bed.wire.cut(false);
        eventually("the wire is mended", || bed.pings(""));
    });
}

#[test]
fn a_million_random_datagrams_are_refused_and_the_rest_goes_on() {
    on_a_bed(MAKE, |bed| {
        // No ping before: kernels that know each other ask each other again some seconds later.
        let mut rng = StdRng::seed_from_u64(2);
        let mut bytes = vec![0; 1_472];
        let (counts, mut refused) = ([Count::Short, Count::Stranger, Count::Forged, Count::Replayed], 0);
        for _ in 0..RANDOM / 1_000 {
            rng.fill_bytes(&mut bytes);
            let datagrams = (0..1_000).map(|i| {
                let start = rng.random_range(0..bytes.len());
                let mut datagram = bytes[start..rng.random_range(start..=bytes.len())].to_vec();
                // One in ten says that it is of a session that there is.
                if i % 10 == 0 && datagram.len() >= 4 {
                    datagram[..4].copy_from_slice(&[0, 0, 0, 1]);
                }
                datagram
            });
            let datagrams: Vec<_> = datagrams.collect();
            refused += send_all(bed, datagrams.iter().map(|datagram| (1, &datagram[..])), &counts);
        }
        assert_eq!((refused, delivered(bed)), (RANDOM as u64, [0, 0]));
        assert!(bed.pings(""));
    });
}
