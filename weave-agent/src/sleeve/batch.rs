//! Datagrams that leave in one system call: small frames are packed, and all datagrams but the last have the same length, for UDP
//! segmentation offload. What is here is not sealed yet.

use super::codec::{KIND, kind};
use super::seal::HEAD;

/// As many datagrams, and bytes of them, as the kernel takes at once (`UDP_MAX_SEGMENTS` before Linux 6.9; an IPv4 packet without headers).
pub const MOST_DATAGRAMS: usize = 64;
/// Bytes.
pub const MOST_BYTES: usize = 65_507;

/// A datagram may be filled up with an eighth of zeros to be as long as those before it.
const SLACK: usize = 8;

/// Datagrams to one neighbour, under one session.
#[derive(Debug)]
pub struct Batch {
    buffer: Box<[u8]>,
    /// Length of the datagrams that are done.
    done: usize,
    /// Length of each of them but the last.
    stride: usize,
    count: usize,
    /// Length of the datagram after them that frames are added to.
    open: usize,
    /// The last one is shorter: no more can follow.
    is_closed: bool,
}

/// It does not fit: send what there is and try again; if there is nothing, it never will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Default for Batch {
    fn default() -> Self {
        Self { buffer: vec![0; MOST_BYTES].into(), done: 0, stride: 0, count: 0, open: 0, is_closed: false }
    }
}

impl Batch {
    /// Nothing to send.
    pub const fn is_empty(&self) -> bool {
        self.done == 0 && self.open == 0
    }

    /// Add `length` bytes to the frames of a datagram, which `write` fills in. No datagram gets longer than `limit` with its `tag`.
    ///
    /// # Errors
    /// If there is no room.
    pub fn add_item(&mut self, limit: usize, tag: usize, length: usize, write: impl FnOnce(&mut [u8])) -> Result<(), Full> {
        if self.open != 0 && self.open + length + tag > self.limit(limit) {
            self.finish_open(tag);
        }
        if self.open == 0 {
            self.begin(limit, HEAD + KIND + length + tag)?;
            self.buffer[self.done + HEAD] = kind::FRAMES;
            self.open = HEAD + KIND;
        }
        let start = self.done + self.open;
        write(&mut self.buffer[start..start + length]);
        self.open += length;
        Ok(())
    }

    /// Add a datagram with a body of `length` bytes, which `write` fills in.
    ///
    /// # Errors
    /// If there is no room.
    pub fn add_body(&mut self, limit: usize, tag: usize, length: usize, write: impl FnOnce(&mut [u8])) -> Result<(), Full> {
        self.finish_open(tag);
        let whole = HEAD + length + tag;
        self.begin(limit, whole)?;
        write(&mut self.buffer[self.done + HEAD..][..length]);
        self.finish(whole);
        Ok(())
    }

    /// All of it, and the length of every datagram but the last; it is empty then.
    pub fn take(&mut self, tag: usize) -> (&mut [u8], usize) {
        self.finish_open(tag);
        let (done, stride) = (self.done, self.stride.max(1));
        (self.done, self.stride, self.count, self.is_closed) = (0, 0, 0, false);
        (&mut self.buffer[..done], stride)
    }

    /// Those after the first are no longer than it is.
    fn limit(&self, limit: usize) -> usize {
        let limit = if self.count == 0 { limit } else { self.stride.min(limit) };
        limit.min(MOST_BYTES - self.done)
    }

    fn begin(&self, limit: usize, needed: usize) -> Result<(), Full> {
        let fits = !self.is_closed && self.count < MOST_DATAGRAMS && needed <= self.limit(limit);
        fits.then_some(()).ok_or(Full)
    }

    fn finish_open(&mut self, tag: usize) {
        let length = self.open + tag;
        if self.open == 0 {
            return;
        }
        self.open = 0;
        let padded = if self.count > 0 && length + self.stride / SLACK >= self.stride { self.stride } else { length };
        let padded = if self.done + padded <= MOST_BYTES { padded } else { length };
        // Zeros, where the last datagram in this place left something.
        self.buffer[self.done + length - tag..self.done + padded].fill(0);
        self.finish(padded);
    }

    fn finish(&mut self, length: usize) {
        if self.count == 0 {
            self.stride = length;
        }
        self.is_closed = length < self.stride;
        self.done += length;
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::codec::{Body, FRAGMENT, Fragment, ITEM, item};
    use super::super::prefix::Tag;
    use super::*;

    const TAG: Tag = Tag { vni: 1, hop_limit: 2 };

    fn add(batch: &mut Batch, limit: usize, frame: &[u8]) -> Result<(), Full> {
        batch.add_item(limit, 16, ITEM + frame.len(), |out| {
            out[..ITEM].copy_from_slice(&item(TAG, frame.len(), None).unwrap());
            out[ITEM..].copy_from_slice(frame);
        })
    }

    fn frames_in(datagram: &[u8]) -> Vec<Vec<u8>> {
        match Body::decode(&datagram[HEAD..datagram.len() - 16]).unwrap() {
            Body::Frames(frames) => frames.map(|item| item.unwrap().frame.to_vec()).collect(),
            Body::Fragment(fragment) => vec![fragment.bytes.to_vec()],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn small_frames_share_datagrams_of_one_length() {
        let mut batch = Batch::default();
        for i in 0..100 {
            add(&mut batch, 1200, &[i; 64]).unwrap();
        }
        let (bytes, stride) = batch.take(16);
        assert_eq!(stride, HEAD + KIND + 16 * (ITEM + 64) + 16);
        assert_eq!(bytes.chunks(stride).flat_map(frames_in).collect::<Vec<_>>(), (0..100).map(|i| vec![i; 64]).collect::<Vec<_>>());
        assert!(batch.is_empty());
    }

    #[test]
    fn a_frame_that_no_datagram_takes_is_refused_by_an_empty_batch_too() {
        let mut batch = Batch::default();
        let longest = 1200 - HEAD - KIND - ITEM - 16;
        assert_eq!(add(&mut batch, 1200, &vec![1; longest + 1]), Err(Full));
        assert!(batch.is_empty());
        assert_eq!(add(&mut batch, 1200, &vec![1; longest]), Ok(()));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Frame(usize),
        Body(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![4 => (1_usize..1500).prop_map(Step::Frame), 2 => (40_usize..90).prop_map(Step::Frame), 1 => (1_usize..1100).prop_map(Step::Body)]
    }

    proptest! {
        #[test]
        fn all_that_was_added_leaves_in_order_and_no_datagram_is_too_long(
            steps in prop::collection::vec(step(), 1..300), limit in 600_usize..1500,
        ) {
            let (mut batch, mut added, mut left) = (Batch::default(), Vec::new(), Vec::new());
            let mut flush = |batch: &mut Batch| {
                let (bytes, stride) = batch.take(16);
                assert!(bytes.len() <= MOST_BYTES && bytes.chunks(stride).count() <= MOST_DATAGRAMS);
                for datagram in bytes.chunks(stride) {
                    assert!(datagram.len() <= limit);
                    left.extend(frames_in(datagram));
                }
            };
            for (step, i) in steps.into_iter().zip(0_usize..) {
                let length = match step { Step::Frame(length) | Step::Body(length) => length };
                let bytes = vec![i as u8; length];
                let try_it = |batch: &mut Batch| match step {
                    Step::Frame(_) => add(batch, limit, &bytes),
                    Step::Body(_) => {
                        let fragment = Fragment { tag: TAG, is_last: true, id: 0, offset: 0, bytes: &bytes };
                        let head = fragment.head();
                        batch.add_body(limit, 16, head.len() + length, |out| {
                            out[..head.len()].copy_from_slice(&head);
                            out[head.len()..].copy_from_slice(&bytes);
                        })
                    }
                };
                if try_it(&mut batch).is_err() {
                    flush(&mut batch);
                    if try_it(&mut batch).is_err() {
                        prop_assert!(length + HEAD + KIND + ITEM.max(FRAGMENT) + 16 > limit);
                        continue;
                    }
                }
                added.push(bytes);
            }
            flush(&mut batch);
            prop_assert_eq!(left, added);
        }
    }
}
