//! Threads: one for each socket that the module's upcalls come to, and one for the sleeve's device.
//!
//! They share the plane under one lock, which each holds for a batch; whoever else wants it is let in between two batches.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::plane::Plane;
use super::socket::Socket;
use super::tap::{self, Device};
use crate::io::datapath::received::Received;

/// Datagrams of one socket that are taken in one go.
const BATCH: usize = 32;

/// The plane, and who wants it.
pub(super) struct Shared {
    plane: Mutex<Plane>,
    /// How many want the lock besides the threads.
    wanted: AtomicUsize,
}

impl Shared {
    pub(super) fn new(plane: Plane) -> Self {
        Self { plane: Mutex::new(plane), wanted: AtomicUsize::new(0) }
    }

    /// The lock, ahead of the threads.
    pub(super) fn lock(&self) -> MutexGuard<'_, Plane> {
        self.wanted.fetch_add(1, Ordering::AcqRel);
        // A panic elsewhere leaves tables of plain values.
        let guard = self.plane.lock().unwrap_or_else(PoisonError::into_inner);
        self.wanted.fetch_sub(1, Ordering::AcqRel);
        guard
    }

    fn lock_after_others(&self) -> MutexGuard<'_, Plane> {
        while self.wanted.load(Ordering::Acquire) > 0 {
            thread::yield_now();
        }
        self.plane.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that ends with this.
pub(super) struct Worker {
    end: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Takes what comes to a socket.
    pub(super) fn upcalls(shared: &Arc<Shared>, socket: Socket) -> Result<Self> {
        let shared = shared.clone();
        Self::start(move |end| {
            while is_ready(socket.as_fd(), end) {
                let mut plane = shared.lock_after_others();
                plane.tables.tick();
                for _ in 0..BATCH {
                    // Nothing more, or an overrun, which the module has counted.
                    if take(&socket, &mut plane).is_err() {
                        break;
                    }
                }
                plane.end();
            }
        })
    }

    /// Hears what others do with our datapath.
    pub(super) fn events(shared: &Arc<Shared>, socket: Socket) -> Result<Self> {
        let shared = shared.clone();
        Self::start(move |end| {
            while is_ready(socket.as_fd(), end) {
                let mut plane = shared.lock_after_others();
                // What was lost here is seen when the datapath is looked at next.
                let _ = socket.receive::<()>(|answer| {
                    plane.heard(answer);
                    None
                });
            }
        })
    }

    /// Takes what the sleeve brings.
    pub(super) fn sleeve(shared: &Arc<Shared>, device: Arc<Device>) -> Result<Self> {
        let shared = shared.clone();
        Self::start(move |end| {
            let mut received = Received::new();
            while is_ready(device.socket.as_fd(), end) {
                let mut plane = shared.lock_after_others();
                plane.tables.tick();
                tap::serve(&mut plane, &device, &mut received);
                plane.end();
            }
        })
    }

    fn start(work: impl FnOnce(&EventFd) + Send + 'static) -> Result<Self> {
        let end = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context("cannot make an eventfd")?;
        let end = Arc::new(end);
        let ending = end.clone();
        let thread = thread::Builder::new().name("odp".into()).spawn(move || work(&ending)).context("cannot start a thread")?;
        Ok(Self { end, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A full eventfd wakes as well.
        let _ = self.end.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread of the data plane had panicked");
        }
    }
}

fn take(socket: &Socket, plane: &mut Plane) -> io::Result<Option<()>> {
    socket.receive(|answer| {
        plane.take(answer);
        None
    })
}

/// Waits until there is something; `false`: it is the end.
fn is_ready(socket: BorrowedFd<'_>, end: &EventFd) -> bool {
    let mut both = [PollFd::new(socket, PollFlags::POLLIN), PollFd::new(end.as_fd(), PollFlags::POLLIN)];
    // A signal is another thread's business.
    while poll(&mut both, PollTimeout::NONE) == Err(Errno::EINTR) {}
    both[1].revents().is_none_or(|events| events.is_empty())
}
