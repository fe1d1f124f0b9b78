//! From the TAP device to the wire: read, cut or pack, seal, send.

use std::io;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::counters::{Count, Counters};
use super::landing::{Landing, Shape};
use super::table::{Table, Way};
use super::tap::Tap;
use super::wire::Wire;
use crate::sleeve::batch::{Batch, Full, MOST_BYTES};
use crate::sleeve::codec::{FRAGMENT, Fragment, ITEM, KIND, SEGMENT, item};
use crate::sleeve::fragment::LONGEST_FRAME;
use crate::sleeve::prefix::{self, Tag};
use crate::sleeve::seal::HEAD;
use crate::sleeve::segment::{Headers, Part};
use crate::virtio::OFFLOAD;

/// So many frames, or bytes of them, are taken before it is the other direction's turn: acknowledgements must not wait for a long queue.
const BUDGET: usize = 64;
const BUDGET_BYTES: usize = 256 << 10;
/// How long to wait for the kernel's queue before what does not fit is dropped; meanwhile frames wait before the device.
const PATIENCE_MS: u8 = 10;

/// What a thread sends with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outlet<'a> {
    pub(super) wire: &'a Wire,
    pub(super) counters: &'a Counters,
    pub(super) lane: u8,
}

/// One thread's way out.
#[derive(Debug, Default)]
pub(super) struct Departures {
    landing: Landing,
    batch: Batch,
    /// Whom the batch is for.
    to: Option<Way>,
    /// Of this thread alone: threads count from different starts.
    fragment: u32,
}

impl Departures {
    pub(super) fn new(lane: u8) -> Self {
        Self { fragment: u32::from(lane) << 24, ..Self::default() }
    }

    /// Ways may have changed.
    pub(super) fn forget_way(&mut self) {
        self.to = None;
    }

    /// Take what there is, up to a budget. `false` if no more is there.
    pub(super) fn run(&mut self, tap: &Tap, outlet: Outlet<'_>, table: &Table) -> bool {
        let (mut more, mut bytes) = (true, 0);
        for _ in 0..BUDGET {
            if self.landing.read(tap).is_err() {
                // Nothing there, most often. A device that is down says so, and will say when it is not.
                more = false;
                break;
            }
            self.depart(outlet, table);
            bytes += self.landing.len();
            if bytes >= BUDGET_BYTES {
                break;
            }
        }
        self.flush(outlet);
        more
    }

    fn depart(&mut self, outlet: Outlet<'_>, table: &Table) {
        let Some((neighbour, tag)) = prefix::read(self.landing.prefix()) else {
            return outlet.counters.one(Count::NoPrefix);
        };
        if self.landing.len() > LONGEST_FRAME {
            return outlet.counters.one(Count::TooLong);
        }
        if self.to.as_ref().is_none_or(|way| way.neighbour.address != neighbour) {
            self.flush(outlet);
            self.to = table.way(neighbour).cloned();
        }
        let Some(way) = &self.to else {
            return outlet.counters.one(Count::NoSession);
        };
        let (limit, tag_len) = (way.neighbour.datagram(), way.sealer.tag_len());
        outlet.counters.one(Count::FramesOut);
        outlet.counters.add(Count::BytesOut, self.landing.len());
        match self.landing.large() {
            Some(headers) => self.cut(outlet, headers, tag, limit, tag_len),
            None => self.pack(outlet, tag, limit, tag_len),
        }
    }

    fn cut(&mut self, outlet: Outlet<'_>, headers: Headers, tag: Tag, limit: usize, tag_len: usize) {
        let room = limit.saturating_sub(HEAD + KIND + SEGMENT + tag_len);
        let Some(part) = headers.part_len(room) else {
            return self.fragment(outlet, tag, limit, tag_len);
        };
        let shape = Shape { headers: headers.len(), part, tag: tag_len };
        if self.landing.expect(shape) {
            return self.send_landed(outlet, headers, tag, shape);
        }
        let payload = self.landing.len().saturating_sub(headers.len());
        for offset in (0..payload).step_by(part) {
            let length = part.min(payload - offset);
            let part = Part { offset, length, is_last: offset + length == payload };
            self.add_body(outlet, limit, tag_len, headers.part_head_len() + length, |landing, out| {
                headers.write_part_head(tag, landing.front(), part, out);
                landing.copy(headers.len() + offset, &mut out[headers.part_head_len()..]);
            });
        }
    }

    /// The segment lies where its datagrams are to be. A few that would need a system call of their own wait for the next one's.
    fn send_landed(&mut self, outlet: Outlet<'_>, headers: Headers, tag: Tag, shape: Shape) {
        let stride = shape.stride();
        if !self.batch.is_empty() || self.landing.held_stride() != stride {
            self.flush(outlet);
        }
        let Some(way) = &self.to else { return };
        let payload = self.landing.len().saturating_sub(shape.headers);
        let (front, bytes) = self.landing.datagrams();
        for (datagram, offset) in bytes.chunks_mut(stride).zip((0..).step_by(shape.part)) {
            let length = shape.part.min(payload - offset);
            let part = Part { offset, length, is_last: offset + length == payload };
            headers.write_part_head(tag, front, part, &mut datagram[HEAD..]);
        }
        let bytes = self.landing.datagrams_with_held();
        let most = outlet.most(stride) * stride;
        let (now, later) = bytes.split_at_mut(bytes.len() / most * most);
        let later = later.len();
        outlet.emit(way, now, stride);
        if later != 0 && !self.landing.hold(later) {
            let bytes = self.landing.last_datagrams(later);
            outlet.emit(way, bytes, stride);
        }
    }

    fn pack(&mut self, outlet: Outlet<'_>, tag: Tag, limit: usize, tag_len: usize) {
        let offload = self.landing.offload();
        let length = self.landing.len();
        // A large segment that cannot be cut goes as it is.
        let Some(head) = item(tag, length, offload.checksum).filter(|_| !offload.is_large()) else {
            return self.fragment(outlet, tag, limit, tag_len);
        };
        self.flush_held(outlet);
        for _ in 0..2 {
            let landing = &self.landing;
            let added = self.batch.add_item(limit, tag_len, ITEM + length, |out| {
                out[..ITEM].copy_from_slice(&head);
                landing.copy(0, &mut out[ITEM..]);
            });
            match added {
                Ok(()) => return,
                Err(Full) if self.batch.is_empty() => break,
                Err(Full) => self.flush(outlet),
            }
        }
        self.fragment(outlet, tag, limit, tag_len);
    }

    fn fragment(&mut self, outlet: Outlet<'_>, tag: Tag, limit: usize, tag_len: usize) {
        let offload = self.landing.offload().encode();
        let whole = OFFLOAD + self.landing.len();
        let part = limit.saturating_sub(HEAD + KIND + FRAGMENT + tag_len).max(OFFLOAD);
        self.fragment = self.fragment.wrapping_add(1);
        for offset in (0..whole).step_by(part) {
            let length = part.min(whole - offset);
            let fragment = Fragment { tag, is_last: offset + length == whole, id: self.fragment, offset: offset as u32, bytes: &[] };
            self.add_body(outlet, limit, tag_len, KIND + FRAGMENT + length, |landing, out| {
                let (head, bytes) = out.split_at_mut(KIND + FRAGMENT);
                head.copy_from_slice(&fragment.head());
                let (before, frame) = bytes.split_at_mut(if offset == 0 { OFFLOAD } else { 0 });
                before.copy_from_slice(&offload[..before.len()]);
                landing.copy(offset.saturating_sub(OFFLOAD), frame);
            });
        }
    }

    /// Add a datagram; `write` may be called twice, once for a batch that turns out to be full.
    fn add_body(&mut self, outlet: Outlet<'_>, limit: usize, tag_len: usize, length: usize, write: impl Fn(&Landing, &mut [u8])) {
        self.flush_held(outlet);
        for _ in 0..2 {
            let landing = &self.landing;
            if self.batch.add_body(limit, tag_len, length, |out| write(landing, out)).is_ok() {
                return;
            }
            self.flush(outlet);
        }
    }

    fn flush(&mut self, outlet: Outlet<'_>) {
        self.flush_held(outlet);
        if let Some(way) = &self.to
            && !self.batch.is_empty()
        {
            let (bytes, stride) = self.batch.take(way.sealer.tag_len());
            outlet.emit(way, bytes, stride);
        }
    }

    /// Those are older than what is in the batch, which is empty as long as something is held.
    fn flush_held(&mut self, outlet: Outlet<'_>) {
        if let Some(way) = &self.to
            && let Some((bytes, stride)) = self.landing.take_held()
        {
            outlet.emit(way, bytes, stride);
        }
    }
}

impl Outlet<'_> {
    /// Datagrams of that length that leave in one system call.
    fn most(self, stride: usize) -> usize {
        self.wire.most().min(MOST_BYTES / stride).max(1)
    }

    /// Seal and send datagrams of `stride` bytes each but for the last.
    pub(super) fn emit(self, way: &Way, bytes: &mut [u8], stride: usize) {
        for group in bytes.chunks_mut(self.most(stride) * stride) {
            let count = group.len().div_ceil(stride);
            let Some(mut numbers) = way.sealer.numbers(self.lane, count) else {
                return self.counters.add(Count::Exhausted, count);
            };
            // One that is not sealed is in clear: then none of them leaves.
            if !group.chunks_mut(stride).all(|datagram| numbers.take().is_some_and(|number| way.sealer.seal(number, datagram))) {
                self.counters.add(Count::Unsealed, count);
                continue;
            }
            self.counters.one(Count::Sends);
            self.counters.add(self.send(way, group, stride).map_or_else(|error| reason(&error), |()| Count::DatagramsOut), count);
        }
    }

    /// A heartbeat.
    pub(super) fn emit_one(self, way: &Way, body: &[u8]) {
        let mut datagram = vec![0; HEAD + body.len() + way.sealer.tag_len()];
        datagram[HEAD..][..body.len()].copy_from_slice(body);
        let stride = datagram.len();
        self.emit(way, &mut datagram, stride);
    }

    fn send(self, way: &Way, bytes: &[u8], stride: usize) -> io::Result<()> {
        let remote = way.neighbour.remote();
        match self.wire.send(remote, bytes, stride) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut room = [PollFd::new(self.wire.as_fd(), PollFlags::POLLOUT)];
                poll(&mut room, PollTimeout::from(PATIENCE_MS))?;
                self.wire.send(remote, bytes, stride)
            }
            sent => sent,
        }
    }
}

fn reason(error: &io::Error) -> Count {
    match error.raw_os_error() {
        // What a kernel before 6.13 says of segments that are too long.
        Some(libc::EMSGSIZE | libc::EINVAL) => Count::TooBig,
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Count::Congested,
        _ => Count::Unsent,
    }
}
