use proptest::prelude::*;

use super::*;

const TAG: Tag = Tag { vni: 0x00_1002, hop_limit: 64 };

/// A large frame as a TAP device gives it: lengths are those of the whole, the checksum is the pseudo header's sum.
#[derive(Clone, Copy, Debug)]
struct Large {
    v6: bool,
    udp: bool,
    tags: usize,
    options: usize,
    dont_fragment: bool,
    flags: u8,
    gso_size: u16,
    payload: usize,
}

const PLAIN: Large =
    Large { v6: false, udp: false, tags: 0, options: 12, dont_fragment: true, flags: 0x10, gso_size: 1398, payload: 65_000 };

fn payload(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i / 3) as u8).collect()
}

impl Large {
    fn headers(&self) -> Headers {
        Headers::of_large(&self.build().0, &self.build().1).unwrap()
    }

    fn build(&self) -> (Vec<u8>, Offload) {
        let own = if self.udp { UDP_HEADER } else { 20 + self.options };
        let mut frame = vec![2; ETHERTYPE];
        (0..self.tags).for_each(|_| frame.extend([0x81, 0, 0, 5]));
        let ip = frame.len() + 2;
        frame.extend(if self.v6 { IPV6 } else { IPV4 }.to_be_bytes());
        frame.extend(if self.v6 { self.ip_v6() } else { self.ip_v4() });
        let transport = frame.len();
        frame.extend(vec![1; own]);
        if !self.udp {
            frame[transport + SEQUENCE..][..4].copy_from_slice(&0xffff_8000_u32.to_be_bytes());
            frame[transport + DATA_OFFSET] = (own as u8 / 4) << 4;
            frame[transport + FLAGS] = self.flags;
        }
        let len = frame.len();
        frame.extend(payload(self.payload));
        let headers = Headers { ip, transport, len, v6: self.v6, udp: self.udp, gso_size: self.gso_size };
        headers.finish(&mut frame[..len], self.payload);
        let gso_type = headers.gso_type() | if !self.udp && self.flags & CWR != 0 { GSO_ECN } else { 0 };
        let checksum = Some((transport as u16, headers.checksum_at() as u16));
        (frame, Offload { gso_type, gso_size: self.gso_size, header_len: len as u16, checksum })
    }

    fn ip_v4(&self) -> Vec<u8> {
        let mut ip =
            vec![0x45, 0, 0, 0, 0xff, 0xf0, if self.dont_fragment { 0x40 } else { 0 }, 0, 64, TCP, 0, 0, 10, 32, 0, 1, 10, 32, 0, 2];
        ip[9] = if self.udp { UDP } else { TCP };
        ip
    }

    fn ip_v6(&self) -> Vec<u8> {
        let mut ip = vec![0x60, 1, 2, 3, 0, 0, if self.udp { UDP } else { TCP }, 64];
        ip.extend((0..32).map(|i| i as u8));
        ip
    }

    /// What its datagrams have inside, if each takes `room` bytes of headers and payload.
    fn parts(&self, room: usize) -> Vec<Vec<u8>> {
        let (frame, _) = self.build();
        let headers = self.headers();
        let part_len = headers.part_len(room).unwrap();
        let starts = (headers.len()..frame.len()).step_by(part_len);
        starts
            .map(|start| {
                let payload = &frame[start..frame.len().min(start + part_len)];
                let mut part = vec![0; headers.part_head_len()];
                headers.write_part_head(TAG, &frame, start - headers.len(), start + payload.len() == frame.len(), &mut part);
                part.extend(payload);
                part
            })
            .collect()
    }
}

fn segment(body: &[u8]) -> Segment<'_> {
    match super::super::codec::Body::decode(body) {
        Ok(super::super::codec::Body::Segment(segment)) => segment,
        other => panic!("{other:?}"),
    }
}

/// The frames that come of parts in this order, and what the kernel is told about each.
fn join(parts: &[Vec<u8>]) -> Vec<(Vec<u8>, Offload)> {
    let (mut frames, mut open): (Vec<_>, Option<(Joined, Vec<u8>)>) = (Vec::new(), None);
    let finish = |(mut joined, payload): (Joined, Vec<u8>)| {
        let (front, offload) = joined.finish();
        ([front, &payload].concat(), offload)
    };
    for part in parts {
        let part = segment(part);
        let follows = open.as_mut().is_some_and(|(joined, payload)| {
            let follows = joined.push(&part);
            payload.extend(if follows { part.payload } else { &[] });
            follows
        });
        if !follows {
            frames.extend(open.replace((Joined::start(&part).unwrap(), part.payload.to_vec())).map(finish));
        }
    }
    frames.extend(open.map(finish));
    frames
}

fn large() -> impl Strategy<Value = Large> {
    let tcp = (any::<bool>(), 0_usize..3, 0_usize..11, any::<bool>(), any::<u8>(), 536_u16..9000, 9001_usize..65_000);
    tcp.prop_flat_map(|(v6, tags, options, dont_fragment, flags, gso_size, payload)| {
        let tcp = Large { v6, udp: false, tags, options: options * 4, dont_fragment, flags, gso_size, payload };
        prop_oneof![2 => Just(tcp), 1 => Just(Large { udp: true, gso_size: gso_size / 8, ..tcp })]
    })
}

#[test]
fn the_last_part_alone_ends_or_pushes_and_the_first_alone_is_congested() {
    let large = Large { flags: 0x10 | FIN | PSH | CWR, payload: 5000, ..PLAIN };
    let parts = large.parts(1500);
    let flags: Vec<u8> = parts.iter().map(|part| segment(part).headers[34 + FLAGS]).collect();
    assert_eq!(flags, [0x10 | CWR, 0x10, 0x10, 0x10 | FIN | PSH]);
    let joined = join(&parts);
    assert_eq!(joined, [large.build()]);
    assert_eq!(joined[0].1.gso_type, GSO_TCPV4 | GSO_ECN);
}

#[test]
fn a_stream_goes_on_from_one_large_frame_into_the_next() {
    let first = Large { payload: 10_000, ..PLAIN };
    let mut next = first.parts(1400);
    for part in &mut next {
        let at = KIND + SEGMENT + 34 + SEQUENCE;
        let sequence = u32_at(part, at).wrapping_add(10_000);
        part[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
    }
    let frames = join(&[first.parts(1400), next.clone()].concat());
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].0.len(), 66 + 20_000);
    // But not past a push, nor out of order, nor from another place.
    let pushed = Large { flags: 0x10 | PSH, ..first };
    assert_eq!(join(&[pushed.parts(1400), next.clone()].concat()).len(), 2);
    assert_eq!(join(&[next.clone(), first.parts(1400)].concat()).len(), 2);
    next.iter_mut().for_each(|part| part[4] ^= 1);
    assert_eq!(join(&[first.parts(1400), next].concat()).len(), 2);
}

#[test]
fn nothing_longer_than_an_ip_packet_is_made() {
    let large = Large { payload: 65_000, ..PLAIN };
    let mut all = large.parts(1400);
    for part in large.parts(1400) {
        let mut part = part;
        let at = KIND + SEGMENT + 34 + SEQUENCE;
        let sequence = u32_at(&part, at).wrapping_add(65_000);
        part[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
        all.push(part);
    }
    let frames = join(&all);
    assert_eq!(frames.len(), 2);
    assert!(frames.iter().all(|(frame, _)| frame.len() <= 14 + LONGEST_PACKET));
}

#[test]
fn what_cannot_be_cut_is_said_so() {
    let (frame, offload) = PLAIN.build();
    for wrong in [
        Offload { gso_type: 3, ..offload },
        Offload { gso_type: GSO_TCPV6, ..offload },
        Offload { gso_type: GSO_UDP_L4, ..offload },
        Offload { gso_size: 0, ..offload },
        Offload { checksum: None, ..offload },
        Offload { checksum: Some((35, 16)), ..offload },
        Offload { checksum: Some((34, 6)), ..offload },
        Offload { checksum: Some((65_535, 16)), ..offload },
        Offload::default(),
    ] {
        assert_eq!(Headers::of_large(&frame, &wrong), None, "{wrong:?}");
    }
    let datagrams = Large { udp: true, gso_size: 1400, ..PLAIN };
    assert_eq!(datagrams.headers().part_len(42 + 1399), None);
    assert_eq!(datagrams.headers().part_len(42 + 2801), Some(2800));
}

proptest! {
    #[test]
    fn what_is_cut_and_joined_is_what_it_was(large in large(), room in 600_usize..1500) {
        prop_assume!(large.headers().part_len(room).is_some());
        let mut large = large;
        // The kernel gives no large frame that resets or is urgent.
        large.flags &= FIN | PSH | CWR | 0x10;
        let joined = join(&large.parts(room));
        prop_assert_eq!(joined, [large.build()]);
    }

    #[test]
    fn a_lost_part_costs_nothing_but_itself(large in large(), room in 600_usize..1500, lost: prop::sample::Index) {
        prop_assume!(large.headers().part_len(room).is_some());
        let mut parts = large.parts(room);
        let lost = lost.index(parts.len());
        let gone = segment(&parts[lost]).payload.len();
        parts.remove(lost);
        let frames = join(&parts);
        prop_assert!(frames.len() <= 2);
        let (frame, headers) = (large.build().0, large.headers());
        let payload: Vec<u8> = frames.iter().flat_map(|(frame, _)| frame[headers.len()..].to_vec()).collect();
        let before = headers.len() + headers.part_len(room).unwrap() * lost;
        prop_assert_eq!(payload, [&frame[headers.len()..before], &frame[before + gone..]].concat());
        for (joined, offload) in frames {
            let start = &joined[..headers.len()];
            let (transport, _) = offload.checksum.unwrap();
            prop_assert_eq!(usize::from(transport), headers.transport);
            let mut expected = start.to_vec();
            headers.finish(&mut expected, joined.len() - headers.len());
            prop_assert_eq!(start, &expected[..]);
            prop_assert!(large.v6 || ones_complement_sum(&[&joined[headers.ip..headers.transport]]) == 0xffff);
            prop_assert_eq!(offload.is_large(), joined.len() - headers.len() > large.gso_size.into());
        }
    }

    #[test]
    fn no_bytes_make_it_panic(
        large in large(), at: prop::sample::Index, value: u8, cut: prop::sample::Index, transport: u8, gso_type in 0_u8..6, gso_size: u16,
    ) {
        let large = Large { payload: 300, gso_size: 100, ..large };
        let (mut frame, offload) = large.build();
        let front = frame.len().min(120);
        frame[at.index(front)] = value;
        frame.truncate(cut.index(frame.len()));
        if let Some(headers) = Headers::of_large(&frame, &offload) {
            let mut out = vec![0; headers.part_head_len()];
            headers.write_part_head(TAG, &frame, 99, false, &mut out);
        }
        let (headers, payload) = frame.split_at(frame.len().min(255));
        let segment = Segment { tag: TAG, transport, gso_type, gso_size, headers, payload };
        if let Some(mut joined) = Joined::start(&segment) {
            let _ = joined.push(&segment);
            joined.finish();
        }
    }
}
