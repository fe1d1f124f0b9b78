//! The data plane in user space, for hosts where BPF may not be loaded: the same fast path over plain tables, packet
//! sockets on the ports, and a UDP socket for the tunnel. It ends with the agent.
//!
//! One thread serves all sockets, a batch at a time. It holds the one lock meanwhile; whoever else wants it is let in
//! between two batches.

mod outbox;
mod plane;
pub mod shield;

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use self::plane::Plane;
use super::{Datapath, Upcalls};
use crate::datapath::{Egress, FlowEntry, Frame, Op, PortId};
use crate::io::net::{Heartbeats, RawSender};
use crate::switch::Adopted;

/// Batches of upcalls that may wait for the router.
const BATCHES: usize = 32;
/// Sockets that are looked at in one round.
const ROUND: usize = 16;
/// What epoll says of the tunnel's socket, and of the event that ends the thread; all else are ports.
const TUNNEL: u64 = 0;
const END: u64 = u64::MAX;

/// A data plane in user space.
pub struct Userspace {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    frames: RawSender,
    heartbeats: Heartbeats,
    /// The kernel has no such chains: said once.
    unshielded: bool,
}

struct Shared {
    plane: Mutex<Plane>,
    /// How many want the lock besides the thread.
    wanted: AtomicUsize,
    epoll: Epoll,
    ended: AtomicBool,
    end: EventFd,
}

impl Userspace {
    /// Opens the sockets in the calling thread's namespace and starts the thread.
    ///
    /// # Errors
    /// When the tunnel's UDP port is taken, or the kernel gives no packet sockets.
    pub fn open(tunnel_port: u16) -> Result<(Self, Upcalls)> {
        let (sender, upcalls) = Upcalls::channel(BATCHES);
        let plane = Plane::open(tunnel_port, sender)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll instance")?;
        let end = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("cannot make an eventfd")?;
        listen(&epoll, plane.tunnel(), TUNNEL)?;
        listen(&epoll, &end, END)?;
        let shared = Arc::new(Shared { plane: Mutex::new(plane), wanted: AtomicUsize::new(0), epoll, ended: AtomicBool::new(false), end });
        let frames = RawSender::new().context("cannot open a packet socket")?;
        let serving = shared.clone();
        let thread = thread::Builder::new().name("datapath".into()).spawn(move || serving.serve()).context("cannot start a thread")?;
        let opened = Self { shared, thread: Some(thread), frames, heartbeats: Heartbeats::new(), unshielded: false };
        Ok((opened, upcalls))
    }

    fn attach(&mut self, ifindex: u32, sleeve: bool) -> Result<()> {
        self.shield(ifindex);
        let mut plane = self.shared.lock();
        if let Some(socket) = plane.add_port(ifindex, sleeve)? {
            listen(&self.shared.epoll, socket, ifindex.into())?;
        }
        Ok(())
    }

    fn shield(&mut self, ifindex: u32) {
        if let Err(error) = shield::raise(ifindex)
            && !std::mem::replace(&mut self.unshielded, true)
        {
            tracing::warn!(
                %error,
                "the host's own stack hears what containers send, and may answer: it takes a kernel with nf_tables and its \
                 family netdev (CONFIG_NF_TABLES_NETDEV) to keep it from it"
            );
        }
    }

    /// By each of the ways, whatever becomes of the others.
    fn execute(&self, frame: &Frame, ways: &[Egress]) -> Result<()> {
        let sent = ways.iter().map(|way| match *way {
            Egress::Port(port) => Ok(self.frames.send(port.0, None, frame)?),
            Egress::Peer { to, origin } => self.shared.lock().execute(frame, to, origin),
        });
        sent.fold(Ok(()), Result::and)
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        // A full eventfd wakes as well.
        let _ = self.shared.end.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the data plane's thread had panicked");
        }
    }
}

impl Shared {
    /// The lock, ahead of the thread.
    fn lock(&self) -> MutexGuard<'_, Plane> {
        self.wanted.fetch_add(1, Ordering::AcqRel);
        // A panic elsewhere leaves tables of plain values.
        let guard = self.plane.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.fetch_sub(1, Ordering::AcqRel);
        guard
    }

    fn serve(&self) {
        let mut events = [EpollEvent::empty(); ROUND];
        while !self.ended.load(Ordering::Acquire) {
            // A signal is another thread's.
            let count = self.epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
            for event in events.iter().take(count) {
                while self.wanted.load(Ordering::Acquire) > 0 {
                    thread::yield_now();
                }
                let mut plane = self.plane.lock().unwrap_or_else(PoisonError::into_inner);
                match event.data() {
                    TUNNEL => plane.serve_tunnel(),
                    END => {}
                    ifindex => plane.serve_port(ifindex as u32),
                }
            }
        }
    }
}

fn listen(epoll: &Epoll, socket: impl AsFd, what: u64) -> Result<()> {
    epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, what)).context("cannot listen to a socket")
}

impl Datapath for Userspace {
    fn describe(&self) -> String {
        "userspace".to_owned()
    }

    /// Behind the sleeve's prefix a packet socket's frame is of no flow: with several queues a stream is reordered (0.3 Gbit/s).
    fn steers(&self) -> bool {
        false
    }

    /// What user space carries anyway the sleeve seals better.
    fn seals(&self) -> bool {
        false
    }

    fn outlives_agent(&self) -> bool {
        false
    }

    fn apply(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Execute(frame, ways) => self.execute(frame, ways),
            Op::Heartbeat { local, remote, port, datagram } => Ok(self.heartbeats.send(*local, *remote, *port, datagram)?),
            tables => self.shared.lock().tables().apply(tables),
        }
    }

    fn attach_port(&mut self, port: PortId, _: bool) -> Result<()> {
        self.attach(port.0, false)
    }

    fn detach_port(&mut self, port: PortId) -> Result<()> {
        self.shared.lock().remove_port(port.0);
        shield::lower(port.0);
        Ok(())
    }

    fn attach_underlay(&mut self, _: u32) -> Result<()> {
        Ok(())
    }

    fn detach_underlay(&mut self, _: u32) -> Result<()> {
        Ok(())
    }

    fn set_sleeve(&mut self, ifindex: u32) -> Result<()> {
        let mut plane = self.shared.lock();
        for before in plane.sleeves().into_iter().filter(|before| *before != ifindex) {
            plane.remove_port(before);
            shield::lower(before);
        }
        drop(plane);
        self.attach(ifindex, true)?;
        self.shared.lock().tables().set_sleeve(ifindex);
        Ok(())
    }

    fn address_gone(&mut self, address: Ipv4Addr) {
        self.heartbeats.address_gone(address);
    }

    fn adopted(&mut self) -> Result<Option<Adopted>> {
        Ok(None)
    }

    fn flows(&mut self) -> Result<Vec<FlowEntry>> {
        Ok(self.shared.lock().tables().flows())
    }

    fn counters(&mut self) -> Result<Vec<(&'static str, u64)>> {
        let mut plane = self.shared.lock();
        let mut counters = plane.tables().counters();
        counters.push(("overrun", plane.overrun()));
        Ok(counters)
    }
}
