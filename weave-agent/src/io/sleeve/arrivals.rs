//! From the wire to the TAP device: receive, open, join, deliver.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;

use bytes::Bytes;
use quinn_udp::RecvMeta;
use tokio::sync::mpsc;

use super::counters::{Count, Counters};
use super::departures::Outlet;
use super::table::{Source, Table, lock};
use super::tap::Tap;
use crate::io::clock::Clock;
use crate::sleeve::Heard;
use crate::sleeve::codec::{self, Body, Item, Segment};
use crate::sleeve::prefix::{self, PREFIX, Tag};
use crate::sleeve::seal::{HEAD, Refusal, session_of};
use crate::sleeve::segment::Joined;
use crate::virtio::{Offload, VIRTIO_HEADER_LEN};

/// What one system call receives.
const MESSAGES: usize = 4;
/// The most that comes as one: an IPv4 packet.
const MESSAGE: usize = 65_536;
/// Parts that are joined at most; smaller ones make smaller frames.
const MOST_PARTS: usize = 128;

/// One thread's way in.
#[derive(Debug)]
pub(super) struct Arrivals {
    buffers: [Box<[u8]>; MESSAGES],
    metas: [RecvMeta; MESSAGES],
    heard: mpsc::Sender<Heard>,
    clock: Clock,
}

/// What a thread delivers with.
#[derive(Clone, Copy)]
pub(super) struct Inlet<'a> {
    pub(super) tap: &'a Tap,
    pub(super) outlet: Outlet<'a>,
    pub(super) table: &'a Table,
}

/// Parts of a large segment in the order they came, where they came.
struct Run<'a> {
    joined: Option<(Joined, &'a Arc<Source>)>,
    parts: [IoSlice<'a>; MOST_PARTS],
    count: usize,
}

impl Arrivals {
    pub(super) fn new(heard: mpsc::Sender<Heard>, clock: Clock) -> Self {
        let buffers = std::array::from_fn(|_| vec![0; MESSAGE].into());
        Self { buffers, metas: [RecvMeta::default(); MESSAGES], heard, clock }
    }

    /// Take what one system call receives. `false` if nothing was there.
    pub(super) fn run(&mut self, inlet: Inlet<'_>) -> bool {
        let Self { buffers, metas, heard, clock } = self;
        let mut room = buffers.each_mut().map(|buffer| IoSliceMut::new(buffer));
        // Errors are of datagrams sent before, or there is nothing.
        let Ok(count) = inlet.outlet.wire.receive(&mut room, metas) else { return false };
        let mut run = Run::new();
        let mut desk = Desk { inlet, heard, clock, last: None };
        for (buffer, meta) in buffers.iter_mut().zip(&metas[..count]) {
            let (Some(message), SocketAddr::V4(from)) = (buffer.get_mut(..meta.len), meta.addr) else { continue };
            if message.is_empty() {
                desk.counters().one(Count::Short);
            }
            for datagram in message.chunks_mut(meta.stride.max(1)) {
                desk.arrive(&mut run, from, datagram);
            }
        }
        desk.deliver(&mut run);
        if let Some(source) = desk.last
            && source.opener.is_newly_worn()
        {
            desk.say(Heard::Worn(source.opener.session()));
        }
        true
    }
}

/// What it takes to deal with one batch.
struct Desk<'a, 'b> {
    inlet: Inlet<'a>,
    heard: &'b mpsc::Sender<Heard>,
    clock: &'b Clock,
    /// Whose the last datagram was: most often it is whose the next one is.
    last: Option<&'a Arc<Source>>,
}

impl<'a> Desk<'a, '_> {
    fn counters(&self) -> &'a Counters {
        self.inlet.outlet.counters
    }

    fn arrive(&mut self, run: &mut Run<'a>, from: SocketAddrV4, datagram: &'a mut [u8]) {
        let length = datagram.len();
        let Some(source) = self.source_of(datagram) else { return };
        let opened = match source.opener.open(datagram) {
            Ok(opened) => opened,
            Err(refusal) => return self.counters().one(reason(refusal)),
        };
        self.counters().one(Count::DatagramsIn);
        if opened.is_latest && source.neighbour.heard_from(from, source.age) {
            self.say(Heard::Moved { neighbour: source.neighbour.address, remote: from });
        }
        let body: &'a [u8] = opened.body;
        match Body::decode(body) {
            Ok(Body::Segment(segment)) => self.join(run, source, &segment),
            Ok(Body::Frames(frames)) => frames.for_each(|item| match item {
                Ok(item) => self.pass_on(run, source, &item),
                Err(_) => self.counters().one(Count::Malformed),
            }),
            Ok(other) => {
                self.deliver(run);
                self.take(source, other, length);
            }
            Err(_) => self.counters().one(Count::Malformed),
        }
    }

    fn source_of(&mut self, datagram: &[u8]) -> Option<&'a Arc<Source>> {
        let Some(session) = session_of(datagram) else {
            self.counters().one(Count::Short);
            return None;
        };
        let known = self.last.filter(|source| source.opener.session().0.get() == session);
        let found = known.or_else(|| self.inlet.table.source(session));
        match found {
            Some(_) => self.last = found,
            None => self.counters().one(Count::Stranger),
        }
        found
    }

    fn join(&self, run: &mut Run<'a>, source: &'a Arc<Source>, segment: &Segment<'a>) {
        if !run.push(source, segment) {
            self.deliver(run);
            if !run.start(source, segment) {
                self.counters().one(Count::Malformed);
            }
        }
    }

    /// A whole frame: with others of its flow in one, if it can be.
    fn pass_on(&self, run: &mut Run<'a>, source: &'a Arc<Source>, item: &Item<'a>) {
        match Segment::of_datagram(item).filter(|_| self.inlet.tap.takes_datagrams()) {
            Some(segment) => self.join(run, source, &segment),
            None => {
                self.deliver(run);
                self.write_frame(source, item.tag, item.offload(), item.frame);
            }
        }
    }

    /// Whatever is neither frames nor part of one that is joined.
    fn take(&self, source: &Source, body: Body<'_>, length: usize) {
        match body {
            Body::Fragment(fragment) => {
                let mut fragments = lock(&source.fragments);
                let whole = fragments.push(self.clock.now(), &fragment);
                self.counters().add(Count::FragmentLost, fragments.take_lost() as usize);
                drop(fragments);
                if let Some(whole) = whole {
                    self.write_frame(source, whole.tag, whole.offload, whole.frame());
                }
            }
            Body::Request(heartbeat) => self.answer(source, heartbeat, length),
            Body::Reply(heartbeat) => {
                let (neighbour, heartbeat) = (source.neighbour.address, Bytes::copy_from_slice(heartbeat));
                self.say(Heard::Reply { neighbour, heartbeat, datagram: length as u16 });
            }
            Body::Segment(_) | Body::Frames(_) => {}
        }
    }

    /// At once, and as long as the request.
    fn answer(&self, source: &Source, heartbeat: &[u8], length: usize) {
        let Some(way) = self.inlet.table.way(source.neighbour.address) else {
            return self.counters().one(Count::NoSession);
        };
        let Some(body) = codec::reply(heartbeat, length.saturating_sub(HEAD + way.sealer.tag_len())) else {
            return self.counters().one(Count::Malformed);
        };
        self.counters().one(Count::Answered);
        self.inlet.outlet.emit_one(way, &body);
    }

    /// Deliver what was joined.
    fn deliver(&self, run: &mut Run<'a>) {
        let Some((mut joined, source)) = run.joined.take() else { return };
        let (tag, joined_len) = (joined.tag(), joined.payload_len());
        let (front, offload) = joined.finish();
        let before = before(source, tag, offload, front);
        let mut parts = [IoSlice::new(&[]); MOST_PARTS + 2];
        parts[..2].copy_from_slice(&[IoSlice::new(&before), IoSlice::new(front)]);
        parts[2..run.count + 2].copy_from_slice(&run.parts[..run.count]);
        self.write(&parts[..run.count + 2], front.len() + joined_len);
    }

    fn write_frame(&self, source: &Source, tag: Tag, offload: Offload, frame: &[u8]) {
        let before = before(source, tag, offload, frame);
        self.write(&[IoSlice::new(&before), IoSlice::new(frame)], frame.len());
    }

    fn write(&self, parts: &[IoSlice<'_>], length: usize) {
        if self.inlet.tap.write(parts).is_err() {
            return self.counters().one(Count::Undelivered);
        }
        self.counters().one(Count::FramesIn);
        self.counters().add(Count::BytesIn, length);
    }

    fn say(&self, heard: Heard) {
        if self.heard.try_send(heard).is_err() {
            self.counters().one(Count::Unheard);
        }
    }
}

impl<'a> Run<'a> {
    fn new() -> Self {
        Self { joined: None, parts: [IoSlice::new(&[]); MOST_PARTS], count: 0 }
    }

    fn push(&mut self, source: &Arc<Source>, segment: &Segment<'a>) -> bool {
        let Some((joined, from)) = &mut self.joined else { return false };
        let follows = Arc::ptr_eq(from, source) && self.count < MOST_PARTS && joined.push(segment);
        if follows {
            self.parts[self.count] = IoSlice::new(segment.payload);
            self.count += 1;
        }
        follows
    }

    fn start(&mut self, source: &'a Arc<Source>, segment: &Segment<'a>) -> bool {
        self.joined = Joined::start(segment).map(|joined| (joined, source));
        self.parts[0] = IoSlice::new(segment.payload);
        self.count = 1;
        self.joined.is_some()
    }
}

/// What stands before a frame on its way to the device.
fn before(source: &Source, tag: Tag, offload: Offload, frame: &[u8]) -> [u8; VIRTIO_HEADER_LEN + PREFIX] {
    let mut before = [0; VIRTIO_HEADER_LEN + PREFIX];
    before[..VIRTIO_HEADER_LEN].copy_from_slice(&offload.to_virtio(PREFIX as u16));
    before[VIRTIO_HEADER_LEN..].copy_from_slice(&prefix::write(source.neighbour.address, tag, frame));
    before
}

const fn reason(refusal: Refusal) -> Count {
    match refusal {
        Refusal::Short => Count::Short,
        Refusal::Replayed => Count::Replayed,
        Refusal::Forged => Count::Forged,
    }
}
