//! What goes out, gathered until a batch is through: one system call for all that go by one socket.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::RawFd;
use std::ptr::null_mut;

use libc::{cmsghdr, iovec, mmsghdr, sockaddr_in};
use zerocopy::IntoBytes;

use crate::io::datapath::received::{Place, Received};

/// Copies that wait; with more of them the first go out earlier.
const MOST: usize = 128;
/// Most bytes before a frame: virtio header and the sleeve's prefix, or a VXLAN header.
const HEAD: usize = 24;
/// Segments made here.
const ARENA: usize = 1 << 18;
/// Words of room for what the kernel is told beside a datagram.
const CONTROL: usize = 12;

/// What follows the head.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    /// A frame as it came.
    Received(Place),
    /// Something made in [`Outbox::arena`].
    Made(Place),
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram {
    pub(super) remote: [u8; 4],
    pub(super) port: u16,
    pub(super) local: [u8; 4],
    pub(super) ttl: u8,
    /// The body is several of this many bytes; 0: it is one.
    pub(super) each: u16,
}

/// One copy.
#[derive(Clone, Copy, Debug)]
struct Copy {
    socket: RawFd,
    head: [u8; HEAD],
    head_len: usize,
    body: Body,
    to: Option<Datagram>,
}

/// Copies on their way out.
pub(super) struct Outbox {
    waiting: Vec<Copy>,
    /// Room for segments; emptied with the rest.
    pub(super) arena: Vec<u8>,
    names: Vec<sockaddr_in>,
    control: Vec<[u64; CONTROL]>,
    parts: Vec<[iovec; 2]>,
    headers: Vec<mmsghdr>,
}

// SAFETY: the pointers in `parts` and `headers` are written anew before each call that reads them, and not used after it.
unsafe impl Send for Outbox {}

impl Outbox {
    pub(super) fn new() -> Self {
        let part = iovec { iov_base: null_mut(), iov_len: 0 };
        // SAFETY: plain C structures, for which zeros are a value.
        let (header, name): (mmsghdr, sockaddr_in) = unsafe { (zeroed(), zeroed()) };
        Self {
            waiting: Vec::with_capacity(MOST),
            arena: Vec::with_capacity(ARENA),
            names: vec![name; MOST],
            control: vec![[0; CONTROL]; MOST],
            parts: vec![[part; 2]; MOST],
            headers: vec![header; MOST],
        }
    }

    /// There is room for another copy, with so many bytes in the arena.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.waiting.len() < MOST && self.arena.len() + bytes <= ARENA
    }

    /// Adds a copy; there must be room.
    pub(super) fn push(&mut self, socket: RawFd, head: &[u8], body: Body, to: Option<Datagram>) {
        let mut bytes = [0; HEAD];
        bytes[..head.len()].copy_from_slice(head);
        self.waiting.push(Copy { socket, head: bytes, head_len: head.len(), body, to });
    }

    /// Sends all. `failed` is told of each that the kernel refuses.
    pub(super) fn flush(&mut self, received: &Received, mut failed: impl FnMut(&io::Error, bool)) {
        let mut from = 0;
        while let Some(first) = self.waiting.get(from) {
            let socket = first.socket;
            let run = self.waiting[from..].iter().take_while(|copy| copy.socket == socket).count();
            self.prepare(from, run, received);
            from += run;
            self.send(socket, from - run, run, &mut failed);
        }
        self.waiting.clear();
        self.arena.clear();
    }

    fn send(&mut self, socket: RawFd, from: usize, run: usize, failed: &mut impl FnMut(&io::Error, bool)) {
        let mut done = 0;
        while done < run {
            let rest = &mut self.headers[done..run];
            // SAFETY: `prepare` has pointed these headers to memory that is there until `flush` is through.
            let sent = unsafe { libc::sendmmsg(socket, rest.as_mut_ptr(), rest.len() as u32, libc::MSG_DONTWAIT as _) };
            done += match usize::try_from(sent) {
                Ok(sent @ 1..) => sent,
                _ => {
                    let several = self.waiting[from + done].to.is_some_and(|to| to.each != 0);
                    failed(&io::Error::last_os_error(), several);
                    1
                }
            };
        }
    }

    /// Writes the headers for a run of copies.
    fn prepare(&mut self, from: usize, run: usize, received: &Received) {
        for (i, copy) in self.waiting[from..from + run].iter_mut().enumerate() {
            let body = match copy.body {
                Body::Received(place) => received.get(place),
                Body::Made(place) => self.arena.get(place.start..place.start + place.len).unwrap_or_default(),
            };
            // The kernel only reads where it sends from.
            self.parts[i] = [
                iovec { iov_base: copy.head.as_mut_ptr().cast(), iov_len: copy.head_len },
                iovec { iov_base: body.as_ptr().cast_mut().cast(), iov_len: body.len() },
            ];
            let header = &mut self.headers[i].msg_hdr;
            (header.msg_iov, header.msg_iovlen) = (self.parts[i].as_mut_ptr(), 2);
            (header.msg_name, header.msg_namelen) = (null_mut(), 0);
            (header.msg_control, header.msg_controllen) = (null_mut(), 0);
            if let Some(to) = copy.to {
                self.names[i] = address(to);
                let len = control(to, &mut self.control[i]);
                (header.msg_name, header.msg_namelen) = ((&raw mut self.names[i]).cast(), size_of::<sockaddr_in>() as u32);
                (header.msg_control, header.msg_controllen) = (self.control[i].as_mut_ptr().cast(), len as _);
            }
        }
    }
}

fn address(to: Datagram) -> sockaddr_in {
    sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: to.port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.remote) },
        sin_zero: [0; 8],
    }
}

/// Source address, TTL and, for several datagrams in one, their size; says how long that is.
fn control(to: Datagram, room: &mut [u64; CONTROL]) -> usize {
    let mut writer = Writer { bytes: room.as_mut_bytes(), len: 0 };
    // `struct in_pktinfo`: interface (any), source, and a field that is for receiving.
    let [a, b, c, d] = to.local;
    writer.message(libc::IPPROTO_IP, libc::IP_PKTINFO, &[0, 0, 0, 0, a, b, c, d, 0, 0, 0, 0]);
    writer.message(libc::IPPROTO_IP, libc::IP_TTL, &i32::from(to.ttl).to_ne_bytes());
    if to.each != 0 {
        writer.message(libc::SOL_UDP, libc::UDP_SEGMENT, &to.each.to_ne_bytes());
    }
    writer.len
}

struct Writer<'a> {
    bytes: &'a mut [u8],
    len: usize,
}

impl Writer<'_> {
    fn message(&mut self, level: i32, kind: i32, data: &[u8]) {
        const WORD: usize = size_of::<usize>();
        const HEADER: usize = size_of::<cmsghdr>();
        let len = HEADER + data.len();
        let Some(room) = self.bytes.get_mut(self.len..self.len + len.next_multiple_of(WORD)) else { return };
        room.fill(0);
        room[..WORD].copy_from_slice(&len.to_ne_bytes());
        room[HEADER - 8..HEADER - 4].copy_from_slice(&level.to_ne_bytes());
        room[HEADER - 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
        room[HEADER..len].copy_from_slice(data);
        self.len += len.next_multiple_of(WORD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_is_told_beside_a_datagram_is_laid_out_as_it_wants() {
        let to = Datagram { remote: [10, 0, 0, 2], port: 6784, local: [10, 0, 0, 1], ttl: 56, each: 1_400 };
        let mut room = [u64::MAX; CONTROL];
        let len = control(to, &mut room);
        // SAFETY: a plain C structure, for which zeros are a value.
        let mut header: libc::msghdr = unsafe { zeroed() };
        (header.msg_control, header.msg_controllen) = (room.as_mut_ptr().cast(), len as _);
        let mut seen = Vec::new();
        // SAFETY: the header's control buffer is the one just written, of that length.
        unsafe {
            let mut message = libc::CMSG_FIRSTHDR(&raw const header);
            while !message.is_null() {
                seen.push(((*message).cmsg_level, (*message).cmsg_type, libc::CMSG_DATA(message).cast::<u16>().read_unaligned()));
                message = libc::CMSG_NXTHDR(&raw const header, message);
            }
        }
        let expected =
            [(libc::IPPROTO_IP, libc::IP_PKTINFO, 0), (libc::IPPROTO_IP, libc::IP_TTL, 56), (libc::SOL_UDP, libc::UDP_SEGMENT, 1_400)];
        assert_eq!(seen, expected);
    }
}
