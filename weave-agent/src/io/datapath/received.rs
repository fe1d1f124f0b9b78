//! Frames and datagrams as they came in: a batch at a time, into buffers that are made once.

use std::io;
use std::mem::{offset_of, size_of, zeroed};
use std::os::fd::RawFd;
use std::ptr::null_mut;

use libc::{cmsghdr, iovec, mmsghdr};
use zerocopy::IntoBytes;

use crate::virtio::{Offload, VIRTIO_HEADER_LEN};

/// Frames in a batch.
pub(super) const BATCH: usize = 32;
/// The largest frame there is: a 64 kB packet with its Ethernet header and tags, and the sleeve's prefix.
const LONGEST: usize = (1 << 16) + 64;
/// Before each frame, for a VLAN tag that goes back into it.
const HEADROOM: usize = 8;
const SLOT: usize = HEADROOM + LONGEST;
/// Words of room for what the kernel says beside each.
const CONTROL: usize = 20;

/// `linux/if_packet.h`: an option, what it gives is a `struct tpacket_auxdata`, and a bit of its status.
pub(super) const PACKET_AUXDATA: i32 = 8;
const VLAN_VALID: u32 = 1 << 4;

/// Where a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Place {
    /// What follows its first bytes.
    pub(super) fn after(self, bytes: usize) -> Self {
        let bytes = bytes.min(self.len);
        Self { start: self.start + bytes, len: self.len - bytes }
    }

    /// Its first bytes.
    pub(super) fn first(self, bytes: usize) -> Self {
        Self { len: bytes.min(self.len), ..self }
    }
}

/// What a packet socket or the tunnel's socket said of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// It was longer than any should be.
    pub(super) truncated: bool,
    /// Somebody on this host sent it out of the interface.
    pub(super) outgoing: bool,
    pub(super) offload: Offload,
    /// Source and destination of a datagram.
    pub(super) from: [u8; 4],
    pub(super) from_port: u16,
    pub(super) to: [u8; 4],
    pub(super) ttl: u8,
    /// Bytes of each datagram of several that the kernel gathered; else 0.
    pub(super) each: u16,
    /// A VLAN tag that stands beside the frame.
    pub(super) vlan: Option<[u8; 4]>,
}

/// Buffers for one batch, and one more for a frame of the agent's own.
pub(super) struct Received {
    bytes: Vec<u8>,
    virtio: Vec<[u8; VIRTIO_HEADER_LEN]>,
    names: Vec<[u64; 4]>,
    control: Vec<[u64; CONTROL]>,
    parts: Vec<[iovec; 2]>,
    headers: Vec<mmsghdr>,
}

// SAFETY: the pointers in `parts` and `headers` are to the other fields' own memory, are written anew before each call
// that reads them, and are not used by anybody else.
unsafe impl Send for Received {}

impl Received {
    pub(super) fn new() -> Self {
        let part = iovec { iov_base: null_mut(), iov_len: 0 };
        // SAFETY: a plain C structure, for which zeros are a value.
        let header: mmsghdr = unsafe { zeroed() };
        Self {
            bytes: vec![0; SLOT * (BATCH + 1)],
            virtio: vec![[0; VIRTIO_HEADER_LEN]; BATCH],
            names: vec![[0; 4]; BATCH],
            control: vec![[0; CONTROL]; BATCH],
            parts: vec![[part; 2]; BATCH],
            headers: vec![header; BATCH],
        }
    }

    /// Takes what is there, `BATCH` at most. `frames`: from a packet socket, with a virtio header before each.
    pub(super) fn receive(&mut self, socket: RawFd, frames: bool) -> io::Result<usize> {
        for i in 0..BATCH {
            let start = SLOT * i + HEADROOM;
            let bytes = &mut self.bytes[start..start + LONGEST];
            let [virtio, frame] = &mut self.parts[i];
            *virtio = iovec { iov_base: self.virtio[i].as_mut_ptr().cast(), iov_len: VIRTIO_HEADER_LEN };
            *frame = iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_name = self.names[i].as_mut_ptr().cast();
            header.msg_namelen = size_of::<[u64; 4]>() as u32;
            header.msg_iov = if frames { virtio } else { frame };
            header.msg_iovlen = if frames { 2 } else { 1 };
            header.msg_control = self.control[i].as_mut_ptr().cast();
            header.msg_controllen = size_of::<[u64; CONTROL]>() as _;
        }
        // SAFETY: every pointer in the headers is to memory of ours of the size given beside it, which nobody else uses meanwhile.
        let count = unsafe { libc::recvmmsg(socket, self.headers.as_mut_ptr(), BATCH as u32, libc::MSG_DONTWAIT as _, null_mut()) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    /// One frame of a batch from a packet socket; a tag beside it is put back into it.
    pub(super) fn frame(&mut self, i: usize) -> (Place, Said) {
        let said = self.said(i);
        let len = (self.headers[i].msg_len as usize).saturating_sub(VIRTIO_HEADER_LEN);
        let place = Place { start: SLOT * i + HEADROOM, len };
        let said = Said {
            outgoing: self.names[i].as_bytes()[10] == libc::PACKET_OUTGOING,
            offload: Offload::from_virtio(&self.virtio[i], 0),
            ..said
        };
        match said.vlan {
            Some(tag) if len >= 12 => {
                self.bytes.copy_within(place.start..place.start + 12, place.start - tag.len());
                self.bytes[place.start + 8..place.start + 12].copy_from_slice(&tag);
                let place = Place { start: place.start - tag.len(), len: len + tag.len() };
                (place, Said { offload: said.offload.behind(4), ..said })
            }
            _ => (place, said),
        }
    }

    /// One message of a batch from the tunnel's socket.
    pub(super) fn datagram(&self, i: usize) -> (Place, Said) {
        let place = Place { start: SLOT * i + HEADROOM, len: self.headers[i].msg_len as usize };
        // `struct sockaddr_in`.
        let name = self.names[i].as_bytes();
        let (from_port, from) = (u16::from_be_bytes([name[2], name[3]]), [name[4], name[5], name[6], name[7]]);
        (place, Said { from, from_port, ..self.said(i) })
    }

    /// Puts a frame of the agent's own into the last buffer; `None` if it is too long.
    pub(super) fn put(&mut self, frame: &[u8]) -> Option<Place> {
        let place = Place { start: SLOT * BATCH + HEADROOM, len: frame.len() };
        self.bytes.get_mut(place.start..place.start + place.len)?.copy_from_slice(frame);
        Some(place)
    }

    pub(super) fn get(&self, place: Place) -> &[u8] {
        self.bytes.get(place.start..place.start + place.len).unwrap_or_default()
    }

    pub(super) fn get_mut(&mut self, place: Place) -> &mut [u8] {
        self.bytes.get_mut(place.start..place.start + place.len).unwrap_or_default()
    }

    fn said(&self, i: usize) -> Said {
        let header = &self.headers[i].msg_hdr;
        let mut said = Said { truncated: header.msg_flags & libc::MSG_TRUNC != 0, ..Said::default() };
        let control = self.control[i].as_bytes().get(..header.msg_controllen).unwrap_or_default();
        each_message(control, |level, kind, data| said.read(level, kind, data));
        said
    }
}

impl Said {
    fn read(&mut self, level: i32, kind: i32, data: &[u8]) {
        match (level, kind) {
            (libc::SOL_PACKET, PACKET_AUXDATA) => self.vlan = vlan(data),
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => self.to = word(data, offset_of!(libc::in_pktinfo, ipi_addr)).unwrap_or_default(),
            (libc::IPPROTO_IP, libc::IP_TTL) => self.ttl = word(data, 0).map_or(0, i32::from_ne_bytes) as u8,
            (libc::SOL_UDP, libc::UDP_GRO) => self.each = word(data, 0).map_or(0, i32::from_ne_bytes) as u16,
            _ => {}
        }
    }
}

/// `struct tpacket_auxdata`.
fn vlan(data: &[u8]) -> Option<[u8; 4]> {
    let status = u32::from_ne_bytes(word(data, 0)?);
    let [a, b, c, d] = word(data, offset_of!(libc::tpacket_auxdata, tp_vlan_tci))?;
    let ([x, y], [z, w]) = (u16::from_ne_bytes([c, d]).to_be_bytes(), u16::from_ne_bytes([a, b]).to_be_bytes());
    (status & VLAN_VALID != 0).then_some([x, y, z, w])
}

fn word(data: &[u8], at: usize) -> Option<[u8; 4]> {
    data.get(at..)?.first_chunk().copied()
}

/// Walks over control messages: `struct cmsghdr`, data, padding.
fn each_message(mut control: &[u8], mut found: impl FnMut(i32, i32, &[u8])) {
    const WORD: usize = size_of::<usize>();
    while let Some(header) = control.get(..size_of::<cmsghdr>()) {
        let len = header.first_chunk::<WORD>().map_or(0, |bytes| usize::from_ne_bytes(*bytes));
        let number = |at| word(header, at).map_or(0, i32::from_ne_bytes);
        let Some(data) = control.get(size_of::<cmsghdr>()..len) else { return };
        found(number(offset_of!(cmsghdr, cmsg_level)), number(offset_of!(cmsghdr, cmsg_type)), data);
        control = control.get(len.next_multiple_of(WORD)..).unwrap_or_default();
    }
}
