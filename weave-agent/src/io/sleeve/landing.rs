//! Where a frame from the device lands: scattered so that, if it is a large segment like the last one, each part of its payload lies where
//! its datagram will be, with room before and behind for what sealing adds. Nothing is copied then.

use std::io::{self, IoSliceMut};

use super::tap::Tap;
use crate::sleeve::codec::{KIND, SEGMENT};
use crate::sleeve::fragment::LONGEST_FRAME;
use crate::sleeve::prefix::PREFIX;
use crate::sleeve::seal::HEAD;
use crate::sleeve::segment::{Headers, LONGEST_HEADERS};
use crate::virtio::{Offload, VIRTIO_HEADER_LEN};

/// Kernel header, prefix and the frame's headers.
const FRONT: usize = VIRTIO_HEADER_LEN + PREFIX + LONGEST_HEADERS;
/// Room before what lands for datagrams of the frame before it.
const LEAD: usize = 18 << 10;
/// A frame in datagrams of the smallest size, heads and tags included.
const SPACE: usize = 2 * LONGEST_FRAME;
/// After so many frames that are no large segments none is expected: reading into one place costs less.
const SMALL_IN_A_ROW: u32 = 16;
/// One for the front and one for each part.
const MOST_PARTS: usize = 160;

/// How the next frame is expected to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Length of the frame's headers.
    pub(super) headers: usize,
    /// Payload of each part.
    pub(super) part: usize,
    /// What stands behind each part in its datagram.
    pub(super) tag: usize,
}

impl Shape {
    /// Everything in one piece.
    const WHOLE: Self = Self { headers: LONGEST_HEADERS, part: LONGEST_FRAME, tag: 0 };

    /// What stands before each part in its datagram.
    const fn gap(&self) -> usize {
        HEAD + KIND + SEGMENT + self.headers
    }

    /// Length of a datagram.
    pub(super) const fn stride(&self) -> usize {
        self.gap() + self.part + self.tag
    }

    fn fits(&self) -> bool {
        let parts = LONGEST_FRAME.div_ceil(self.part);
        parts < MOST_PARTS && parts * self.stride() <= SPACE && self.headers <= LONGEST_HEADERS
    }
}

/// The frame that was read last.
#[derive(Debug)]
pub(super) struct Landing {
    front: [u8; FRONT],
    space: Box<[u8]>,
    shape: Shape,
    next: Shape,
    len: usize,
    /// Datagrams that wait for those of the next frame, right before where it lands; and where the last of them ends, if it is shorter.
    held: usize,
    missing: usize,
    held_stride: usize,
    /// Frames in a row that were no large segments.
    small: u32,
}

impl Default for Landing {
    fn default() -> Self {
        Self {
            front: [0; FRONT],
            space: vec![0; LEAD + SPACE].into(),
            shape: Shape::WHOLE,
            next: Shape::WHOLE,
            len: 0,
            held: 0,
            missing: 0,
            held_stride: 1,
            small: 0,
        }
    }
}

impl Landing {
    /// Read the next frame.
    pub(super) fn read(&mut self, tap: &Tap) -> io::Result<()> {
        self.shape = self.next;
        let Shape { headers, part, tag } = self.shape;
        let gap = self.shape.gap();
        let (front, _) = self.front.split_at_mut(VIRTIO_HEADER_LEN + PREFIX + headers);
        let count = LONGEST_FRAME.div_ceil(part);
        let chunks = self.space[LEAD..].chunks_mut(gap + part + tag).filter_map(|chunk| chunk.get_mut(gap..gap + part));
        let mut places = std::iter::once(front).chain(chunks.take(count));
        let read = if count == 1 {
            tap.read(&mut places_of::<2>(&mut places))?
        } else {
            tap.read(&mut places_of::<MOST_PARTS>(&mut places)[..=count])?
        };
        self.len = read.saturating_sub(VIRTIO_HEADER_LEN + PREFIX);
        Ok(())
    }

    /// Length of the frame.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn prefix(&self) -> &[u8; PREFIX] {
        // Of arrays of constant length this takes what is there.
        self.front[VIRTIO_HEADER_LEN..].first_chunk().unwrap_or(&[0; PREFIX])
    }

    pub(super) fn offload(&self) -> Offload {
        Offload::from_virtio(self.front.first_chunk().unwrap_or(&[0; VIRTIO_HEADER_LEN]), PREFIX as u16)
    }

    /// The headers of a large segment, if it is one that can be cut.
    pub(super) fn large(&mut self) -> Option<Headers> {
        let offload = self.offload();
        if !offload.is_large() {
            self.small += 1;
            if self.small == SMALL_IN_A_ROW {
                (self.small, self.next) = (0, Shape::WHOLE);
            }
            return None;
        }
        self.small = 0;
        let missing = self.shape.headers..LONGEST_HEADERS.min(self.len);
        if !missing.is_empty() {
            let mut rest = [0; LONGEST_HEADERS];
            let rest = &mut rest[..missing.len()];
            self.copy(missing.start, rest);
            self.front[VIRTIO_HEADER_LEN + PREFIX + missing.start..][..rest.len()].copy_from_slice(rest);
        }
        Headers::of_large(&self.front[VIRTIO_HEADER_LEN + PREFIX..][..self.len.min(LONGEST_HEADERS)], &offload)
    }

    /// The next large segment will be cut so. Did this one land so?
    pub(super) fn expect(&mut self, shape: Shape) -> bool {
        self.next = if shape.fits() { shape } else { Shape::WHOLE };
        self.shape == shape
    }

    /// The beginning of a large segment, and the datagrams that it landed in.
    pub(super) fn datagrams(&mut self) -> (&[u8], &mut [u8]) {
        let end = LEAD + self.landed();
        (&self.front[VIRTIO_HEADER_LEN + PREFIX..][..self.shape.headers], &mut self.space[LEAD..end])
    }

    /// Bytes of the datagrams that a large segment landed in.
    fn landed(&self) -> usize {
        let Shape { headers, part, tag } = self.shape;
        let payload = self.len.saturating_sub(headers);
        let (whole, rest) = (payload / part, payload % part);
        whole * self.shape.stride() + if rest == 0 { 0 } else { self.shape.gap() + rest + tag }
    }

    /// The same, and before them those that were held, which are no longer; the shorter one among these is filled up with zeros.
    pub(super) fn datagrams_with_held(&mut self) -> &mut [u8] {
        let tag = self.shape.tag;
        self.space[LEAD - self.missing - if self.missing == 0 { 0 } else { tag }..LEAD].fill(0);
        let start = LEAD - std::mem::take(&mut self.held);
        self.missing = 0;
        let end = LEAD + self.landed();
        &mut self.space[start..end]
    }

    /// Keep the last datagrams, so many bytes of them, for the next frame to join. `false` if there is no room.
    pub(super) fn hold(&mut self, from_end: usize) -> bool {
        let stride = self.shape.stride();
        let whole = from_end.next_multiple_of(stride);
        if whole > LEAD || from_end == 0 {
            return false;
        }
        let end = LEAD + self.landed();
        self.space.copy_within(end - from_end..end, LEAD - whole);
        (self.held, self.missing, self.held_stride) = (whole, whole - from_end, stride);
        true
    }

    /// Those that were held, and their length, for they have to leave alone.
    pub(super) fn take_held(&mut self) -> Option<(&mut [u8], usize)> {
        let start = LEAD - std::mem::take(&mut self.held);
        let end = LEAD - std::mem::take(&mut self.missing);
        (start < end).then(|| (&mut self.space[start..end], self.held_stride))
    }

    /// Length of the datagrams that are held: those that join them must have it, too.
    pub(super) const fn held_stride(&self) -> usize {
        self.held_stride
    }

    /// The last datagrams of a large segment, so many bytes of them.
    pub(super) fn last_datagrams(&mut self, length: usize) -> &mut [u8] {
        let end = LEAD + self.landed();
        &mut self.space[end - length..end]
    }

    /// The first bytes of the frame: its headers if it is a large segment.
    pub(super) fn front(&self) -> &[u8] {
        &self.front[VIRTIO_HEADER_LEN + PREFIX..]
    }

    /// Copy part of the frame, wherever it landed. What is beyond its end is left as it was.
    pub(super) fn copy(&self, from: usize, out: &mut [u8]) {
        let Shape { headers, part, .. } = self.shape;
        let (mut at, end) = (from, self.len.min(from + out.len()));
        while at < end {
            let source = if at < headers {
                &self.front[VIRTIO_HEADER_LEN + PREFIX..][at..headers]
            } else {
                let (index, within) = ((at - headers) / part, (at - headers) % part);
                &self.space[LEAD + index * self.shape.stride() + self.shape.gap()..][within..part]
            };
            let n = source.len().min(end - at);
            out[at - from..][..n].copy_from_slice(&source[..n]);
            at += n;
        }
    }
}

fn places_of<'a, const N: usize>(places: &mut impl Iterator<Item = &'a mut [u8]>) -> [IoSliceMut<'a>; N] {
    std::array::from_fn(|_| IoSliceMut::new(places.next().unwrap_or_default()))
}
