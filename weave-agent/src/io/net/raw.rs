//! Send frames as they were: large segments and unfinished checksums included.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use socket2::{Domain, Socket, Type};

use super::sys;
use crate::datapath::Frame;
use crate::frame::{ethertype, udp_segments, unfinished};

/// Packet sockets that say with each frame what is unfinished about it.
#[derive(Debug)]
pub struct RawSender {
    plain: Socket,
    /// Every kernel takes a mark from a socket option; a control message with one only does from 4.8 on, and costs as much.
    marked: Mutex<Marked>,
}

#[derive(Debug)]
struct Marked {
    socket: Socket,
    mark: u32,
}

impl RawSender {
    /// Opened in the calling thread's namespace.
    pub fn new() -> io::Result<Self> {
        Ok(Self { plain: open()?, marked: Mutex::new(Marked { socket: open()?, mark: 0 }) })
    }

    /// Send out of an interface, with a mark for the program there. Never blocks.
    pub fn send(&self, ifindex: u32, mark: Option<u32>, frame: &Frame) -> io::Result<()> {
        let Some(mark) = mark else {
            return send(&self.plain, ifindex, frame);
        };
        // A panic elsewhere leaves nothing half-done here.
        let mut marked = self.marked.lock().unwrap_or_else(PoisonError::into_inner);
        if marked.mark != mark {
            marked.socket.set_mark(mark)?;
            marked.mark = mark;
        }
        send(&marked.socket, ifindex, frame)
    }
}

/// Protocol 0: these sockets only send.
fn open() -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None)?;
    sys::set_option(socket.as_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    Ok(socket)
}

fn send(socket: &Socket, ifindex: u32, frame: &Frame) -> io::Result<()> {
    match send_whole(socket, ifindex, frame) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            // Large datagrams are taken from 6.2 on.
            let pieces = udp_segments(frame).ok_or(error)?;
            pieces.iter().try_for_each(|piece| send_whole(socket, ifindex, piece))
        }
        sent => sent,
    }
}

fn send_whole(socket: &Socket, ifindex: u32, frame: &Frame) -> io::Result<()> {
    let ethertype = ethertype(&frame.bytes).ok_or(io::ErrorKind::InvalidInput)?;
    let header = unfinished(&frame.bytes, frame.gso_size).to_virtio(0);
    let parts = [IoSlice::new(&header), IoSlice::new(&frame.bytes)];
    socket.send_to_vectored(&parts, &sys::link_address(ifindex, ethertype)?).map(drop)
}
