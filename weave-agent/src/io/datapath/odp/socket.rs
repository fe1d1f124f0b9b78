//! A generic netlink socket: requests and what is answered to them.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use neli::consts::socket::{Msg, NlFamily};
use neli::socket::NlSocket;
use neli::utils::Groups;
use nix::sys::socket::{setsockopt, sockopt};

use super::wire::{Answer, Answers, Attributes, Build, Family, Kind, Request, Said};
use crate::io::net::set_option;

/// The largest message: an upcall with a frame of 64 kB, or a flow with as many actions.
const LONGEST: usize = 1 << 17;
/// `linux/netlink.h`: what is too much for our buffer is told to who sends it, and the next is taken all the same.
const NETLINK_NO_ENOBUFS: i32 = 5;
const SOL_NETLINK: i32 = 270;
/// `linux/genetlink.h`.
const CONTROLLER: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_NAME: u16 = 2;
/// A request that names as many is answered before its answers fill our buffer.
const AT_ONCE: usize = 16;

/// A socket in the namespace that it was opened in.
pub struct Socket {
    socket: NlSocket,
    sequence: Cell<u32>,
    buffer: RefCell<Vec<u8>>,
}

impl Socket {
    /// One with any port id.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn open() -> io::Result<Self> {
        Self::with_pid(None)
    }

    /// One with this port id.
    ///
    /// # Errors
    /// When the kernel gives none, or somebody has the port id.
    pub fn with_pid(pid: Option<u32>) -> io::Result<Self> {
        let socket = NlSocket::connect(NlFamily::Generic, pid, Groups::empty())?;
        Ok(Self { socket, sequence: Cell::new(0), buffer: RefCell::new(vec![0; LONGEST]) })
    }

    /// Its port id: where upcalls are sent to.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn pid(&self) -> io::Result<u32> {
        self.socket.pid()
    }

    /// Room for so many bytes of upcalls; without the right to it, as many as others have.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn widen(&self, bytes: usize) -> io::Result<()> {
        set_option(self.as_fd(), SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)?;
        if setsockopt(&self.as_fd(), sockopt::RcvBufForce, &bytes).is_err() {
            self.socket.set_recv_buffer_size(bytes)?;
        }
        self.never_wait()
    }

    /// What is not there yet is an error, `WouldBlock`: for who holds a lock while it looks.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn never_wait(&self) -> io::Result<()> {
        self.socket.nonblock()
    }

    /// The family of this name. Asking for it loads its module, where that can be loaded.
    ///
    /// # Errors
    /// `NotFound` if the kernel has none.
    pub fn family(&self, name: &str) -> io::Result<Family> {
        let attributes = Build::default().put_text(FAMILY_NAME, name);
        let request = Request { family: CONTROLLER, command: GET_FAMILY, kind: Kind::Do { echo: false }, datapath: None, attributes };
        let mut family = None;
        self.request(request, |answer| family = answer.plain().and_then(Family::read).or(family.take()))?;
        family.ok_or_else(|| io::Error::other("the kernel's answer makes no sense"))
    }

    /// Sends a request and waits until it is done; `each` sees what is answered.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn request(&self, request: Request, mut each: impl FnMut(&Answer<'_>)) -> io::Result<()> {
        let sequence = self.next();
        self.send(&request.encode(sequence).map_err(io::Error::other)?)?;
        loop {
            let ended = self.receive(|answer| match answer.said {
                _ if answer.sequence != sequence => None,
                Said::Result(0) | Said::Done => Some(Ok(())),
                Said::Result(error) => Some(Err(io::Error::from_raw_os_error(error))),
                Said::Message { .. } => {
                    each(answer);
                    None
                }
            })?;
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    /// Sends many requests of [`Kind::Do`] and waits until all are done. `each` is told which one an answer is of, and what
    /// became of it.
    ///
    /// # Errors
    /// When the socket fails; what the kernel refuses is told to `each` alone.
    pub fn request_all(
        &self,
        requests: impl IntoIterator<Item = Request>,
        mut each: impl FnMut(usize, Result<&Answer<'_>, i32>),
    ) -> io::Result<()> {
        let mut requests = requests.into_iter().enumerate().peekable();
        while let Some((first, _)) = requests.peek() {
            let (first, start) = (*first, self.sequence.get().wrapping_add(1));
            let mut bytes = Vec::new();
            let mut waiting = 0;
            for (_, request) in requests.by_ref().take(AT_ONCE) {
                bytes.extend(request.encode(self.next()).map_err(io::Error::other)?);
                waiting += 1;
            }
            self.send(&bytes)?;
            while waiting > 0 {
                self.receive::<()>(|answer| {
                    let index = answer.sequence.wrapping_sub(start) as usize;
                    match answer.said {
                        _ if index >= AT_ONCE => {}
                        Said::Result(0) => waiting -= 1,
                        Said::Result(error) => {
                            waiting -= 1;
                            each(first + index, Err(error));
                        }
                        _ => each(first + index, Ok(answer)),
                    }
                    None
                })?;
            }
        }
        Ok(())
    }

    /// Sends a request of [`Kind::Quietly`]. What the kernel refuses is told by [`Socket::refused`].
    ///
    /// # Errors
    /// When it cannot be sent at all.
    pub fn tell(&self, request: Request) -> io::Result<()> {
        let bytes = request.encode(self.next()).map_err(io::Error::other)?;
        self.send(&bytes)
    }

    /// How many of those that were sent quietly the kernel has refused since this was asked last.
    pub fn refused(&self) -> u64 {
        let mut refused = 0;
        let mut buffer = self.buffer.borrow_mut();
        while let Ok((len, _)) = self.socket.recv(buffer.as_mut_slice(), Msg::DONTWAIT) {
            let answers = Answers(buffer.get(..len).unwrap_or_default());
            refused += answers.filter(|answer| matches!(answer.said, Said::Result(error) if error != 0)).count() as u64;
        }
        refused
    }

    /// Hears a multicast group.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(&self, group: u32) -> io::Result<()> {
        self.socket.add_mcast_membership(Groups::new_groups(&[group]))
    }

    /// One datagram's answers, until one of them is what was waited for.
    ///
    /// # Errors
    /// When the socket fails, or has nothing and does not wait.
    pub fn receive<T>(&self, mut each: impl FnMut(&Answer<'_>) -> Option<T>) -> io::Result<Option<T>> {
        let mut buffer = self.buffer.borrow_mut();
        let len = loop {
            match self.socket.recv(buffer.as_mut_slice(), Msg::empty()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?.0,
            }
        };
        let mut found = None;
        for answer in Answers(buffer.get(..len).unwrap_or_default()) {
            // All are seen: those after it are of other requests.
            let heard = each(&answer);
            found = found.or(heard);
        }
        Ok(found)
    }

    fn next(&self) -> u32 {
        self.sequence.set(self.sequence.get().wrapping_add(1));
        self.sequence.get()
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send(bytes, Msg::empty()).map(drop)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the socket's, which is open as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}

/// What a list of attributes says of a datapath's object, from each answer.
pub(super) fn collect<T>(answer: &Answer<'_>, read: impl Fn(u32, Attributes<'_>) -> Option<T>, into: &mut Vec<T>) {
    if let Some((_, datapath, attributes)) = answer.of_datapath() {
        into.extend(read(datapath, attributes));
    }
}
