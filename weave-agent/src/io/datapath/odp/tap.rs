//! The sleeve's TAP device. The module cannot put a prefix before a frame (it pushes an Ethernet header only onto what has
//! none), nor take one off: what the sleeve carries comes up, and goes down, through user space.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use socket2::Socket;
use weave_ebpf::fastpath;
use weave_ebpf::sleeve::{PREFIX, Prefix};
use weave_ebpf::stats::DropReason;

use super::plane::Plane;
use crate::io::datapath::received::Received;
use crate::io::datapath::sockets;
use crate::io::datapath::view::View;
use crate::io::net::sys;
use crate::virtio::VIRTIO_HEADER_LEN;

/// The device, and a packet socket on it.
pub(super) struct Device {
    pub(super) ifindex: u32,
    pub(super) socket: Socket,
    /// Its number in the module; zero, which is the datapath's own interface, for none.
    number: AtomicU32,
}

impl Device {
    pub(super) fn open(ifindex: u32) -> Result<Self> {
        Ok(Self { ifindex, socket: sockets::on_interface(ifindex)?, number: AtomicU32::new(0) })
    }

    pub(super) fn is_port(&self, number: u32) {
        self.number.store(number, Ordering::Relaxed);
    }

    pub(super) fn port(&self) -> Option<u32> {
        Some(self.number.load(Ordering::Relaxed)).filter(|number| *number != 0)
    }

    /// Gives the sleeve a frame that has nothing unfinished.
    pub(super) fn send(&self, prefix: &[u8; PREFIX], frame: &[u8]) -> io::Result<()> {
        self.socket.send_vectored(&[IoSlice::new(&[0; VIRTIO_HEADER_LEN]), IoSlice::new(prefix), IoSlice::new(frame)]).map(drop)
    }

    /// What came faster than it was taken.
    pub(super) fn overrun(&self) -> u64 {
        use std::os::fd::AsFd;
        sys::dropped(self.socket.as_fd())
    }
}

/// Carries a batch of what the sleeve brought.
pub(super) fn serve(plane: &mut Plane, device: &Device, received: &mut Received) {
    let Ok(count) = received.receive(device.socket.as_raw_fd(), true) else { return };
    for i in 0..count {
        let (place, said) = received.frame(i);
        if said.outgoing {
            continue;
        }
        let whole = View { bytes: received.get(place), offload: said.offload };
        let Some(prefix) = Prefix::parse(&whole).filter(|_| !said.truncated) else {
            plane.tables.drop(DropReason::Malformed);
            continue;
        };
        let verdict = fastpath::from_sleeve(&whole, &plane.tables, &plane.tables.config, &prefix);
        let frame = received.get(place.after(PREFIX));
        plane.take_sleeve(verdict, frame, said.offload.without(PREFIX as u16), &prefix);
    }
}
