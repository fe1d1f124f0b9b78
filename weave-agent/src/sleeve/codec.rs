//! What a datagram has inside: one kind of thing, said by its first byte.
//!
//! | kind | then |
//! |---|---|
//! | 1, frames | small frames one behind the other, each with [`ITEM`] bytes before it; zeros to the end |
//! | 2, segment | [`SEGMENT`] bytes, the headers of a large segment, part of its payload, zeros to the end |
//! | 3, fragment | [`FRAGMENT`] bytes, part of an [`Offload`] and the frame that it belongs to |
//! | 4, request | length (2), a heartbeat, zeros to the end |
//! | 5, reply | the same, as it came |
//!
//! All numbers are big-endian. Reading never panics, whatever the bytes; what is not understood is an error.

use super::prefix::Tag;
use crate::virtio::Offload;

/// The kind's byte.
pub const KIND: usize = 1;
/// Before each frame: VNI (3), hop limit, length (2), where the unfinished checksum's span begins and where in it the checksum is.
pub const ITEM: usize = 8;
/// Hop limit, VNI (3), offset of the transport header, length of the headers, GSO type, GSO size (2), length of the payload (2).
pub const SEGMENT: usize = 11;
/// Hop limit, VNI (3), 1 if it is the last, id (4), offset (3).
pub const FRAGMENT: usize = 12;
/// What a heartbeat has before it, kind included.
pub const HEARTBEAT: usize = KIND + 2;

/// Kind bytes.
pub mod kind {
    /// Small frames.
    pub const FRAMES: u8 = 1;
    /// Part of a large segment.
    pub const SEGMENT: u8 = 2;
    /// Part of a frame.
    pub const FRAGMENT: u8 = 3;
    /// A heartbeat to be answered.
    pub const REQUEST: u8 = 4;
    /// The answer.
    pub const REPLY: u8 = 5;
}

/// Why a body is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It ends too early.
    #[error("cut short")]
    Short,
    /// A later version's, or nobody's.
    #[error("kind {0} is not known")]
    Kind(u8),
}

/// What a datagram has inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// Small frames.
    Frames(Frames<'a>),
    /// Part of a large segment.
    Segment(Segment<'a>),
    /// Part of a frame.
    Fragment(Fragment<'a>),
    /// A heartbeat to be answered.
    Request(&'a [u8]),
    /// The answer to one.
    Reply(&'a [u8]),
}

/// Small frames, to be taken one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames<'a>(&'a [u8]);

/// A whole frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// Where it is in the network.
    pub tag: Tag,
    /// What is unfinished about it: at most a checksum.
    pub checksum: Option<(u16, u16)>,
    /// The frame.
    pub frame: &'a [u8],
}

/// Part of a large segment, which can stand for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// Where it is in the network.
    pub tag: Tag,
    /// Where in `headers` the TCP or UDP header starts.
    pub transport: u8,
    /// [`crate::virtio`].
    pub gso_type: u8,
    /// Bytes per segment when it was one with its neighbours.
    pub gso_size: u16,
    /// From the Ethernet header to the TCP or UDP header; lengths and checksums are not filled in.
    pub headers: &'a [u8],
    /// What of the payload is here.
    pub payload: &'a [u8],
}

/// Part of an [`Offload`] followed by a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// Where the frame is in the network.
    pub tag: Tag,
    /// Nothing follows.
    pub is_last: bool,
    /// Which frame of this sender's.
    pub id: u32,
    /// Where this part begins.
    pub offset: u32,
    /// This part.
    pub bytes: &'a [u8],
}

impl<'a> Body<'a> {
    /// Read what was sealed.
    ///
    /// # Errors
    /// If it is not one of the kinds above, whole. [`Frames`] are looked at as they are taken.
    pub fn decode(body: &'a [u8]) -> Result<Self, Malformed> {
        let (kind, rest) = body.split_first().ok_or(Malformed::Short)?;
        match *kind {
            kind::FRAMES => Ok(Self::Frames(Frames(rest))),
            kind::SEGMENT => Segment::decode(rest).map(Self::Segment),
            kind::FRAGMENT => Fragment::decode(rest).map(Self::Fragment),
            kind::REQUEST => heartbeat(rest).map(Self::Request),
            kind::REPLY => heartbeat(rest).map(Self::Reply),
            other => Err(Malformed::Kind(other)),
        }
    }
}

fn heartbeat(rest: &[u8]) -> Result<&[u8], Malformed> {
    let (length, rest) = rest.split_first_chunk().ok_or(Malformed::Short)?;
    rest.get(..usize::from(u16::from_be_bytes(*length))).ok_or(Malformed::Short)
}

/// A heartbeat request, `length` bytes long, or as long as it must be; `None` if no datagram takes it.
pub fn request(heartbeat: &[u8], length: usize) -> Option<Vec<u8>> {
    beat(kind::REQUEST, heartbeat, length)
}

/// The answer to one, as [`request`].
pub fn reply(heartbeat: &[u8], length: usize) -> Option<Vec<u8>> {
    beat(kind::REPLY, heartbeat, length)
}

fn beat(kind: u8, heartbeat: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut body = vec![kind];
    body.extend(u16::try_from(heartbeat.len()).ok()?.to_be_bytes());
    body.extend(heartbeat);
    body.resize(length.max(body.len()), 0);
    Some(body)
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Item<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.0.split_first_chunk::<ITEM>()?;
        let [high, middle, low, hop_limit, len_high, len_low, start, offset] = *head;
        let length = usize::from(u16::from_be_bytes([len_high, len_low]));
        if length == 0 {
            self.0 = &[];
            return None;
        }
        let Some((frame, rest)) = rest.split_at_checked(length) else {
            self.0 = &[];
            return Some(Err(Malformed::Short));
        };
        self.0 = rest;
        let tag = Tag { vni: u32::from_be_bytes([0, high, middle, low]), hop_limit };
        let checksum = (start != 0).then_some((start.into(), offset.into()));
        Some(Ok(Item { tag, checksum, frame }))
    }
}

/// What stands before a frame of `length` bytes; `None` if it cannot be said so: it must be sent as a fragment.
pub fn item(tag: Tag, length: usize, checksum: Option<(u16, u16)>) -> Option<[u8; ITEM]> {
    let [_, high, middle, low] = tag.vni.to_be_bytes();
    let [len_high, len_low] = u16::try_from(length).ok().filter(|length| *length != 0)?.to_be_bytes();
    let (start, offset) = match checksum {
        None => (0, 0),
        Some((start, offset)) => (u8::try_from(start).ok().filter(|start| *start != 0)?, u8::try_from(offset).ok()?),
    };
    Some([high, middle, low, tag.hop_limit, len_high, len_low, start, offset])
}

impl<'a> Segment<'a> {
    fn decode(rest: &'a [u8]) -> Result<Self, Malformed> {
        let (head, rest) = rest.split_first_chunk::<SEGMENT>().ok_or(Malformed::Short)?;
        let [hop_limit, high, middle, low, transport, header_len, gso_type, size_high, size_low, len_high, len_low] = *head;
        let (headers, rest) = rest.split_at_checked(header_len.into()).ok_or(Malformed::Short)?;
        let payload = rest.get(..usize::from(u16::from_be_bytes([len_high, len_low]))).ok_or(Malformed::Short)?;
        let tag = Tag { vni: u32::from_be_bytes([0, high, middle, low]), hop_limit };
        let gso_size = u16::from_be_bytes([size_high, size_low]);
        Ok(Self { tag, transport, gso_type, gso_size, headers, payload })
    }

    /// Kind and all that stands before the headers.
    pub fn head(&self) -> [u8; KIND + SEGMENT] {
        Self::head_of(self, self.payload.len())
    }

    /// The same for a payload of another length.
    pub fn head_of(&self, payload: usize) -> [u8; KIND + SEGMENT] {
        let [_, high, middle, low] = self.tag.vni.to_be_bytes();
        // No datagram takes more than 65,535.
        let [len_high, len_low] = (payload as u16).to_be_bytes();
        let [size_high, size_low] = self.gso_size.to_be_bytes();
        // Nobody makes one with more: `segment::Headers` refuses them.
        let header_len = self.headers.len() as u8;
        let Self { transport, gso_type, .. } = *self;
        [kind::SEGMENT, self.tag.hop_limit, high, middle, low, transport, header_len, gso_type, size_high, size_low, len_high, len_low]
    }
}

impl<'a> Fragment<'a> {
    fn decode(rest: &'a [u8]) -> Result<Self, Malformed> {
        let (head, bytes) = rest.split_first_chunk::<FRAGMENT>().ok_or(Malformed::Short)?;
        let [hop_limit, high, middle, low, last, a, b, c, d, x, y, z] = *head;
        let tag = Tag { vni: u32::from_be_bytes([0, high, middle, low]), hop_limit };
        let (id, offset) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([0, x, y, z]));
        Ok(Self { tag, is_last: last != 0, id, offset, bytes })
    }

    /// Kind and all that stands before the bytes.
    pub fn head(&self) -> [u8; KIND + FRAGMENT] {
        let [_, high, middle, low] = self.tag.vni.to_be_bytes();
        let ([a, b, c, d], [_, x, y, z]) = (self.id.to_be_bytes(), self.offset.to_be_bytes());
        [kind::FRAGMENT, self.tag.hop_limit, high, middle, low, self.is_last.into(), a, b, c, d, x, y, z]
    }
}

impl Item<'_> {
    /// What is unfinished about it.
    pub fn offload(&self) -> Offload {
        Offload { checksum: self.checksum, ..Offload::default() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAG: Tag = Tag { vni: 0x01_0203, hop_limit: 64 };

    #[test]
    fn the_bytes_on_the_wire_are_these() {
        assert_eq!(item(TAG, 300, Some((34, 16))), Some([1, 2, 3, 64, 1, 44, 34, 16]));
        let segment = Segment { tag: TAG, transport: 34, gso_type: 1, gso_size: 1398, headers: &[0; 54], payload: &[0; 258] };
        assert_eq!(segment.head(), [2, 64, 1, 2, 3, 34, 54, 1, 5, 118, 1, 2]);
        let fragment = Fragment { tag: TAG, is_last: true, id: 0x0405_0607, offset: 0x08_090a, bytes: &[] };
        assert_eq!(fragment.head(), [3, 64, 1, 2, 3, 1, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(request(&[8, 9], 8), Some(vec![4, 0, 2, 8, 9, 0, 0, 0]));
        assert_eq!(reply(&[8, 9], 8), Some(vec![5, 0, 2, 8, 9, 0, 0, 0]));
    }

    #[test]
    fn what_an_item_cannot_say_is_no_item() {
        assert_eq!(item(TAG, 0, None), None);
        assert_eq!(item(TAG, 65_536, None), None);
        assert_eq!(item(TAG, 300, Some((256, 16))), None);
        assert_eq!(item(TAG, 300, Some((34, 256))), None);
    }

    #[test]
    fn a_heartbeat_that_is_cut_short_is_refused() {
        let body = request(b"heartbeat", 100).unwrap();
        assert_eq!(Body::decode(&body), Ok(Body::Request(b"heartbeat")));
        assert_eq!(Body::decode(&body[..HEARTBEAT + 8]), Err(Malformed::Short));
        assert_eq!(Body::decode(&[]), Err(Malformed::Short));
        assert_eq!(Body::decode(&[9, 9]), Err(Malformed::Kind(9)));
        assert_eq!(request(&[0; 65_536], 0), None);
    }

    type Packed = (u32, u8, Option<(u16, u16)>, Vec<u8>);

    fn frames() -> impl Strategy<Value = Vec<Packed>> {
        let frame = prop::collection::vec(any::<u8>(), 1..200);
        prop::collection::vec((0_u32..1 << 24, any::<u8>(), prop::option::of((1_u16..256, 0_u16..256)), frame), 0..20)
    }

    proptest! {
        #[test]
        fn packed_frames_come_out_as_they_went_in(frames in frames(), padding in 0_usize..30) {
            let mut body = vec![kind::FRAMES];
            for (vni, hop_limit, checksum, frame) in &frames {
                body.extend(item(Tag { vni: *vni, hop_limit: *hop_limit }, frame.len(), *checksum).unwrap());
                body.extend(frame);
            }
            body.resize(body.len() + padding, 0);
            let Ok(Body::Frames(taken)) = Body::decode(&body) else { panic!("no frames") };
            let taken: Vec<_> = taken.map(|item| item.map(|i| (i.tag.vni, i.tag.hop_limit, i.checksum, i.frame.to_vec())).unwrap()).collect();
            prop_assert_eq!(taken, frames);
        }

        #[test]
        fn segments_and_fragments_come_out_as_they_went_in(
            vni in 0_u32..1 << 24, hop_limit: u8, a: u8, b: u8, size: u16, id: u32, offset in 0_u32..1 << 24, is_last: bool,
            headers in prop::collection::vec(any::<u8>(), 0..256), payload in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let tag = Tag { vni, hop_limit };
            let segment = Segment { tag, transport: a, gso_type: b, gso_size: size, headers: &headers, payload: &payload };
            let bytes = [&segment.head()[..], &headers, &payload, &[0; 9]].concat();
            prop_assert_eq!(Body::decode(&bytes), Ok(Body::Segment(segment)));
            let fragment = Fragment { tag, is_last, id, offset, bytes: &payload };
            let bytes = [&fragment.head()[..], &payload].concat();
            prop_assert_eq!(Body::decode(&bytes), Ok(Body::Fragment(fragment)));
        }

        #[test]
        fn no_bytes_make_it_panic(kind in 0_u8..8, rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let body = [&[kind][..], &rest].concat();
            if let Ok(Body::Frames(frames)) = Body::decode(&body) {
                prop_assert!(frames.count() <= rest.len());
            }
        }
    }
}
