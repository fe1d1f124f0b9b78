//! Frames that fit no datagram, and their reassembly.
//!
//! A fragment arrives once (the replay window sees to that), so a frame is whole when as many bytes came as it has. What is kept is
//! bounded in number, bytes and time, and the oldest goes first.

use std::collections::BTreeMap;

use super::codec::Fragment;
use super::prefix::Tag;
use crate::Time;
use crate::virtio::{OFFLOAD, Offload};

/// No frame is longer: an IP packet of 65,535 bytes, Ethernet header and two VLAN tags.
pub const LONGEST_FRAME: usize = 65_535 + 14 + 8;

/// How long parts wait for the others.
const PATIENCE: Time = Time::from_secs(1);
/// How many frames of a session may be waiting, of whatever size.
const MOST_FRAMES: usize = 64;
/// And how many bytes of them.
const MOST_BYTES: usize = 1 << 20;

/// The frames of one session that are not whole.
#[derive(Debug, Default)]
pub struct Reassembly {
    partial: BTreeMap<u32, Partial>,
    bytes: usize,
    lost: u64,
}

#[derive(Debug)]
struct Partial {
    since: Time,
    tag: Tag,
    bytes: Vec<u8>,
    came: usize,
    end: Option<usize>,
}

/// A frame that is whole again.
#[derive(Debug, PartialEq, Eq)]
pub struct Whole {
    /// Where it is in the network.
    pub tag: Tag,
    /// What is unfinished about it.
    pub offload: Offload,
    bytes: Vec<u8>,
}

impl Whole {
    /// The frame.
    pub fn frame(&self) -> &[u8] {
        &self.bytes[OFFLOAD..]
    }
}

impl Reassembly {
    /// Take a part; the frame, if it was the last one missing.
    pub fn push(&mut self, now: Time, fragment: &Fragment<'_>) -> Option<Whole> {
        let start = fragment.offset as usize;
        let end = start + fragment.bytes.len();
        if end > OFFLOAD + LONGEST_FRAME {
            self.lost += 1;
            return None;
        }
        self.forget_old(now);
        let partial = self.partial.entry(fragment.id).or_insert_with(|| Partial::new(now, fragment.tag));
        if partial.bytes.len() < end {
            self.bytes += end - partial.bytes.len();
            partial.bytes.resize(end, 0);
        }
        partial.bytes[start..end].copy_from_slice(fragment.bytes);
        partial.came += fragment.bytes.len();
        if fragment.is_last {
            partial.end = Some(end);
        }
        if partial.end.is_none_or(|end| partial.came < end) {
            self.forget_excess();
            return None;
        }
        let whole = self.remove(fragment.id)?.whole();
        self.lost += u64::from(whole.is_none());
        whole
    }

    /// How many frames were given up since this was last asked.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn remove(&mut self, id: u32) -> Option<Partial> {
        let partial = self.partial.remove(&id)?;
        self.bytes -= partial.bytes.len();
        Some(partial)
    }

    fn forget_old(&mut self, now: Time) {
        while let Some(id) = self.oldest(|partial| now.saturating_sub(partial.since) >= PATIENCE) {
            self.lost += u64::from(self.remove(id).is_some());
        }
    }

    fn forget_excess(&mut self) {
        while self.partial.len() > MOST_FRAMES || self.bytes > MOST_BYTES {
            let Some(id) = self.oldest(|_| true) else { return };
            self.lost += u64::from(self.remove(id).is_some());
        }
    }

    fn oldest(&self, which: impl Fn(&Partial) -> bool) -> Option<u32> {
        let which = self.partial.iter().filter(|(_, partial)| which(partial));
        which.min_by_key(|(_, partial)| partial.since).map(|(id, _)| *id)
    }
}

impl Partial {
    const fn new(since: Time, tag: Tag) -> Self {
        Self { since, tag, bytes: Vec::new(), came: 0, end: None }
    }

    /// `None` if parts overlapped or went beyond the last: its sender does not mean well.
    fn whole(self) -> Option<Whole> {
        let offload = Offload::decode(self.bytes.first_chunk()?);
        let honest = self.end == Some(self.bytes.len()) && self.came == self.bytes.len() && self.bytes.len() > OFFLOAD;
        honest.then_some(Whole { tag: self.tag, offload, bytes: self.bytes })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAG: Tag = Tag { vni: 5, hop_limit: 64 };

    fn parts(id: u32, bytes: &[u8], size: usize) -> Vec<Fragment<'_>> {
        let offsets = (0..).step_by(size);
        let part = |(bytes, offset): (_, usize)| Fragment { tag: TAG, is_last: false, id, offset: offset as u32, bytes };
        let mut parts: Vec<_> = bytes.chunks(size).zip(offsets).map(part).collect();
        parts.last_mut().unwrap().is_last = true;
        parts
    }

    fn bytes(length: usize) -> Vec<u8> {
        let offload = Offload { checksum: Some((34, 6)), ..Offload::default() };
        let frame = (0..length).map(|i| (i % 251) as u8);
        offload.encode().into_iter().chain(frame).collect()
    }

    #[test]
    fn a_frame_whose_part_is_lost_is_given_up_after_a_while_and_counted() {
        let (mut reassembly, bytes) = (Reassembly::default(), bytes(3000));
        let [first, second, third] = parts(1, &bytes, 1200)[..] else { panic!("three parts") };
        assert_eq!(reassembly.push(Time::ZERO, &first), None);
        assert_eq!(reassembly.push(Time::ZERO, &third), None);
        assert_eq!(reassembly.push(PATIENCE, &Fragment { id: 2, ..second }), None);
        assert_eq!(reassembly.take_lost(), 1);
        assert_eq!(reassembly.push(PATIENCE, &second), None);
        assert_eq!(reassembly.take_lost(), 0);
    }

    #[test]
    fn what_waits_is_bounded() {
        let (mut reassembly, bytes) = (Reassembly::default(), vec![0; 60_000]);
        for id in 0..10_000 {
            let part = Fragment { tag: TAG, is_last: false, id, offset: 0, bytes: &bytes[..if id % 2 == 0 { 60_000 } else { 10 }] };
            assert_eq!(reassembly.push(Time::from_micros(id.into()), &part), None);
            assert!(reassembly.partial.len() <= MOST_FRAMES && reassembly.bytes <= MOST_BYTES);
        }
        assert_eq!(reassembly.take_lost(), 10_000 - reassembly.partial.len() as u64);
    }

    proptest! {
        #[test]
        fn frames_come_together_in_any_order(
            lengths in prop::collection::vec(1_usize..9000, 1..6), size in 100_usize..1400, seed in prop::collection::vec(any::<u32>(), 600),
        ) {
            let frames: Vec<_> = lengths.into_iter().map(bytes).collect();
            let mut all: Vec<_> = frames.iter().zip(0..).flat_map(|(frame, id)| parts(id, frame, size)).zip(&seed).collect();
            all.sort_by_key(|(_, seed)| *seed);
            let mut reassembly = Reassembly::default();
            let whole: Vec<_> = all.iter().filter_map(|(part, _)| reassembly.push(Time::ZERO, part)).collect();
            prop_assert_eq!(whole.len(), frames.len());
            for frame in &frames {
                prop_assert!(whole.iter().any(|whole| whole.frame() == &frame[OFFLOAD..] && whole.offload.checksum == Some((34, 6))));
            }
            prop_assert_eq!(reassembly.take_lost(), 0);
            prop_assert_eq!(reassembly.bytes, 0);
        }

        #[test]
        fn nothing_makes_it_panic(parts in prop::collection::vec((0_u32..3, 0_u32..1 << 24, any::<bool>(), 0_usize..2000), 0..50)) {
            let (mut reassembly, bytes) = (Reassembly::default(), vec![7; 2000]);
            for (id, offset, is_last, length) in parts {
                reassembly.push(Time::ZERO, &Fragment { tag: TAG, is_last, id, offset, bytes: &bytes[..length] });
                prop_assert!(reassembly.bytes <= MOST_BYTES);
            }
        }
    }
}
