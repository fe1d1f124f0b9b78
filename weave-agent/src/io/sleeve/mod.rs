//! Carries sleeve's frames: threads between a TAP device, where the programs put them, and UDP.
//!
//! One thread per queue has a queue of the device and a socket of the port. Which queue a flow's frames come from is for the kernel to
//! say; the thread's number travels with each datagram as its lane, and a lane is received by one thread: flows stay in order.

mod arrivals;
mod counters;
mod departures;
mod keeper;
mod landing;
mod queue;
mod slice;
mod table;
mod tap;
mod wire;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc;

use self::arrivals::Arrivals;
pub use self::counters::Count;
use self::counters::Counters;
use self::departures::Outlet;
pub use self::keeper::Keeper;
use self::queue::Queue;
use self::table::Shared;
use self::wire::Wire;
use super::clock::Clock;
use super::net::Netlink;
use crate::sleeve::codec;
use crate::sleeve::seal::HEAD;
use crate::sleeve::{Heard, Op};

/// What the device is called.
pub const SLEEVE_IFNAME: &str = "weave-sleeve";

/// More threads than this do not help: the kernel has one flow's work done by one of them.
const MOST_QUEUES: usize = 4;
/// What waits for the switch. A reply comes per probe, the others are rare.
const HEARD: usize = 1024;

/// How to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to call the device.
    pub ifname: String,
    /// Where to listen and send from; port 0 is any.
    pub listen: SocketAddrV4,
    /// Threads; `None`: one per CPU, four at most.
    pub queues: Option<usize>,
}

impl Options {
    /// As usual, on a port.
    pub fn on_port(port: u16) -> Self {
        Self { ifname: SLEEVE_IFNAME.to_owned(), listen: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port), queues: None }
    }
}

/// Why it does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The device, most likely because there is no `/dev/net/tun`, or it is another agent's.
    #[error(transparent)]
    Device(#[from] super::net::Error),
    /// The port.
    #[error("UDP port {port}: {source}")]
    Port {
        /// Which one.
        port: u16,
        /// What the system says.
        source: io::Error,
    },
    /// A thread.
    #[error("starting a thread: {0}")]
    Thread(io::Error),
}

/// What it has done and knows.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// Everything that is counted, drops by reason.
    pub counters: Vec<(&'static str, u64)>,
    /// The neighbours.
    pub neighbours: Vec<NeighbourStatus>,
}

/// One neighbour.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NeighbourStatus {
    /// As the switch knows it.
    pub neighbour: Ipv4Addr,
    /// Where datagrams go.
    pub remote: SocketAddrV4,
    /// And how long they may be.
    pub datagram: usize,
}

/// The threads. Dropping it ends them, and with them the device.
#[derive(Debug)]
pub struct Sleeve {
    ifname: String,
    ifindex: u32,
    local: SocketAddrV4,
    shared: Arc<Shared>,
    /// Each thread's, and ours.
    counters: Arc<[Counters]>,
    probes: Wire,
    wakes: Vec<Arc<EventFd>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Sleeve {
    /// Make the device and start, in the calling thread's namespace.
    ///
    /// # Errors
    /// If the device or the port cannot be had.
    pub async fn start(options: &Options) -> Result<(Self, mpsc::Receiver<Heard>), StartError> {
        let cpus = || std::thread::available_parallelism().map_or(1, usize::from).min(MOST_QUEUES);
        let count = options.queues.unwrap_or_else(cpus).clamp(1, 64);
        let port = |source| StartError::Port { port: options.listen.port(), source };
        let wires = Wire::open(options.listen, count).map_err(port)?;
        let (probes, local) = wires.first().ok_or_else(|| port(io::ErrorKind::InvalidInput.into()))?.twin().map_err(port)?;
        let (ifindex, taps) = tap::make(&Netlink::here()?, &options.ifname, count).await?;
        let (heard, receiver) = mpsc::channel(HEARD);
        let (shared, stop, clock) = (Arc::default(), Arc::default(), Clock::new());
        let counters = (0..=count).map(|_| Counters::default()).collect();
        let ifname = options.ifname.clone();
        let mut sleeve = Self { ifname, ifindex, local, shared, counters, probes, wakes: Vec::new(), stop, threads: Vec::new() };
        for ((tap, wire), lane) in taps.into_iter().zip(wires).zip(0_u8..) {
            let arrivals = Arrivals::new(heard.clone(), clock);
            sleeve.spawn(tap, wire, lane, arrivals).map_err(StartError::Thread)?;
        }
        Ok((sleeve, receiver))
    }

    fn spawn(&mut self, tap: tap::Tap, wire: Wire, lane: u8, arrivals: Arrivals) -> io::Result<()> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        self.wakes.push(wake.clone());
        let (counters, shared, stop) = (self.counters.clone(), self.shared.clone(), self.stop.clone());
        let queue = Queue { tap, wire, lane, counters, shared, arrivals, wake, stop };
        let thread = std::thread::Builder::new().name(format!("sleeve-{lane}"));
        self.threads.push(thread.spawn(|| queue.run())?);
        Ok(())
    }

    /// The index the device began with: where the programs send frames, and where frames come from.
    pub const fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// What keeps the device in order.
    pub fn keeper(&self) -> Keeper {
        Keeper { name: self.ifname.clone(), ifindex: self.ifindex, shared: self.shared.clone(), wakes: self.wakes.clone() }
    }

    /// Where it listens.
    pub const fn local(&self) -> SocketAddrV4 {
        self.local
    }

    /// Carry out an order. Never blocks.
    pub fn apply(&self, op: &Op) {
        let done = match op {
            Op::Accept(inbound) => self.shared.accept(inbound),
            Op::Refuse(session) => {
                self.shared.refuse(session.0.get());
                Ok(())
            }
            Op::Send { neighbour, session } => self.shared.send(*neighbour, session.as_ref()),
            Op::Path { neighbour, datagram } => {
                self.shared.path(*neighbour, *datagram);
                Ok(())
            }
            Op::Probe { neighbour, heartbeat, datagram } => return self.probe(*neighbour, heartbeat, (*datagram).into()),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "sleeve does not take a session");
        }
        self.wake();
    }

    fn wake(&self) {
        for wake in &self.wakes {
            // It fails when it has been written 2^64 times without being read.
            let _ = wake.write(1);
        }
    }

    fn probe(&self, neighbour: Ipv4Addr, heartbeat: &[u8], datagram: usize) {
        let counters = &self.counters[self.wakes.len()];
        let table = self.shared.table();
        let Some(way) = table.way(neighbour) else {
            return counters.one(Count::NoSession);
        };
        let tag = way.sealer.tag_len();
        let Some(body) = codec::request(heartbeat, datagram.saturating_sub(HEAD + tag)) else {
            return counters.one(Count::TooLong);
        };
        Outlet { wire: &self.probes, counters, lane: 0 }.emit_one(way, &body);
    }

    /// What it has done and knows.
    pub fn status(&self) -> Status {
        let read = |count: &Count| (count.name(), self.counters.iter().map(|counters| counters.read(*count)).sum());
        let table = self.shared.table();
        let neighbours = table.neighbours().map(|known| NeighbourStatus {
            neighbour: known.address,
            remote: known.remote(),
            datagram: known.datagram(),
        });
        Status { counters: Count::ALL.iter().map(read).collect(), neighbours: neighbours.collect() }
    }
}

impl Drop for Sleeve {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake();
        for thread in self.threads.drain(..) {
            // What a panicking thread had to say it has said.
            let _ = thread.join();
        }
    }
}
