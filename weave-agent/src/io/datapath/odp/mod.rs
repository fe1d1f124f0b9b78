//! The openvswitch module's datapath, as Weave Net's fast one was: for kernels that have it.
//!
//! The module is told flows over generic netlink ([`wire`], [`kernel`]). What no flow matches comes up to one of several sockets,
//! is judged by the fast path's own code over the tables that user space's datapath has, carried on by the module, and made a
//! flow (`plane`, `flows`). One flow of the switch's may be several of the module's (`compile`).
//!
//! The datapath, its ports and flows outlive the agent; what the module cannot keep is in a file (`kept`).

mod attach;
mod cache;
mod carriage;
mod compile;
mod cookie;
mod flows;
mod kept;
pub mod kernel;
mod malformed;
mod mend;
mod pieces;
mod plane;
mod ports;
pub mod socket;
mod tap;
pub mod wire;
mod workers;

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

use self::kept::{Keeper, Told};
use self::kernel::{FEATURES, Kernel};
use self::malformed::Malformed;
use self::plane::Plane;
use self::ports::{CHANNELS, NO_PORT, Ports};
use self::socket::Socket;
use self::tap::Device;
use self::wire::{Datapath as Found, VportKind};
use self::workers::{Shared, Worker};
use super::{Datapath, Upcalls};
use crate::datapath::{FlowEntry, Op, PortId};
use crate::io::net::Heartbeats;
use crate::io::net::sys::ifname;
use crate::switch::Adopted;

/// Our datapath, and its own interface, which stays down.
pub const DATAPATH: &str = "weave-odp";
/// The sockets' port ids begin here: the same in every agent, so that what the module was told of them stays true. No process
/// has such a number, and the kernel's own choices are negative.
const FIRST_PID: u32 = 0x2f6f_6400;
/// A burst of several thousand small frames.
const BUFFER: usize = 8 << 20;
/// Batches of upcalls that may wait for the router.
const BATCHES: usize = 64;

/// How to open it.
#[derive(Clone, Debug)]
pub struct Options {
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// The collect-metadata vxlan device of that port, which becomes one of the datapath's.
    pub vxlan_ifindex: u32,
    /// Where to keep what the module cannot; without it the next agent begins with nothing but the flows it can make sense of.
    pub kept: Option<PathBuf>,
}

/// The module's datapath.
pub struct Odp {
    shared: Arc<Shared>,
    /// Those of the upcalls; they end with it.
    _workers: Vec<Worker>,
    sleeve: Option<(Arc<Device>, Worker)>,
    overrun: u64,
    malformed: Malformed,
    heartbeats: Heartbeats,
    told: Told,
    adopted: bool,
    keeper: Keeper,
}

impl Odp {
    /// Makes the datapath in the calling thread's namespace, or takes over what an earlier agent left.
    ///
    /// # Errors
    /// Without the module, or when it does not take the vxlan device.
    pub fn open(options: &Options) -> Result<(Self, Upcalls)> {
        let kernel = Kernel::open().map_err(explain)?;
        let (datapath, is_new) = datapath(&kernel)?;
        let sockets = sockets()?;
        let mut pids = [0; CHANNELS];
        for (pid, socket) in pids.iter_mut().zip(&sockets) {
            *pid = socket.pid()?;
        }
        let keeper = Keeper::new(options.kept.clone());
        let (told, adopted) = match keeper.read(datapath.ifindex).filter(|_| !is_new) {
            Some(told) => (told, true),
            None => (Told::new(datapath.ifindex), false),
        };
        let (sender, upcalls) = Upcalls::channel(BATCHES);
        // Opened before anything is looked at: nothing goes unheard between the two.
        let events = kernel.events().context("cannot hear what becomes of the datapath")?;
        if datapath.features != FEATURES {
            kernel.restore_features(DATAPATH)?;
        }
        let ports = adopt_ports(&kernel, datapath.ifindex, Ports::new(options.vxlan_ifindex, pids))?;
        let mut plane = Plane::new(kernel, datapath.ifindex, ports, options.tunnel_port, sender)?;
        for order in told.orders() {
            plane.tables.apply(&order)?;
        }
        plane.adopt()?;
        let shared = Arc::new(Shared::new(plane));
        let mut workers: Vec<_> = sockets.into_iter().map(|socket| Worker::upcalls(&shared, socket)).collect::<Result<_>>()?;
        workers.push(Worker::events(&shared, events)?);
        let odp = Self {
            shared,
            _workers: workers,
            sleeve: None,
            overrun: 0,
            malformed: Malformed::new(options.tunnel_port),
            heartbeats: Heartbeats::new(),
            told,
            adopted,
            keeper,
        };
        Ok((odp, upcalls))
    }
}

/// What is of ours, or a new one; true: it is new.
fn datapath(kernel: &Kernel) -> Result<(Found, bool)> {
    if let Some(found) = kernel.find_datapath(DATAPATH)? {
        return Ok((found, false));
    }
    let made = kernel.add_datapath(DATAPATH).with_context(|| format!("cannot make the datapath {DATAPATH}"))?;
    Ok((made, true))
}

fn explain(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::NotFound {
        return anyhow::anyhow!("the kernel has no openvswitch module (CONFIG_OPENVSWITCH)");
    }
    anyhow::Error::from(error).context("the openvswitch module cannot be used")
}

fn sockets() -> Result<Vec<Socket>> {
    let open = |number| {
        // Somebody else may have it: then what the module was told of an earlier agent's sockets is told anew.
        let socket = Socket::with_pid(Some(FIRST_PID + number)).or_else(|_| Socket::open())?;
        socket.widen(BUFFER)?;
        Ok(socket)
    };
    (0..CHANNELS as u32).map(open).collect::<io::Result<_>>().context("cannot open a netlink socket")
}

/// The ports that there are, and the tunnel's, found or made.
fn adopt_ports(kernel: &Kernel, datapath: u32, mut ports: Ports) -> Result<Ports> {
    let mut found = Vec::new();
    for port in kernel.vports(datapath)? {
        let ifindex = port.ifindex.or_else(|| if_nametoindex(port.name.as_str()).ok());
        match ifindex {
            // Of whichever kind: one that the module itself made is as good.
            Some(ifindex) if ifindex == ports.tunnel() => ports.set_vxlan(port.number),
            Some(ifindex) if port.kind == VportKind::Netdev => found.push((ifindex, port.number)),
            _ => continue,
        }
    }
    if ports.vxlan() == NO_PORT {
        ports.set_vxlan(add_tunnel(kernel, datapath, &ports)?);
    }
    for (ifindex, number) in found {
        ports.insert(ifindex, number);
        kernel.set_upcall_pids(datapath, number, &[ports.pid_of(number)])?;
    }
    kernel.set_upcall_pids(datapath, ports.vxlan(), &[ports.pid_of(ports.vxlan())])?;
    Ok(ports)
}

/// Makes the vxlan device a port; returns its number. The module's own vxlan ports are no more: Linux 7.3 has none.
fn add_tunnel(kernel: &Kernel, datapath: u32, ports: &Ports) -> Result<u32> {
    let name = ifname(ports.tunnel()).context("the vxlan device is gone")?;
    let made = kernel.add_vport(datapath, VportKind::Netdev, &name, None, &[ports.tunnel_pid()]);
    Ok(made.with_context(|| format!("the openvswitch module does not take the vxlan device {name}"))?.number)
}

/// Whether the kernel has the module, which it loads if it can.
///
/// # Errors
/// Why not.
pub fn probe() -> Result<()> {
    Kernel::open().map(drop).map_err(explain)
}

/// Whether our datapath is there: its own interface tells, without loading a module to ask.
pub fn is_there() -> bool {
    if_nametoindex(DATAPATH).is_ok()
}

/// Deletes our datapath with its ports and flows, and nothing of anybody else's; `false` if there was none.
///
/// # Errors
/// When the kernel refuses.
pub fn leave() -> io::Result<bool> {
    if !is_there() {
        return Ok(false);
    }
    match Kernel::open() {
        Ok(kernel) => kernel.delete_datapath(DATAPATH),
        // What cannot be asked for has nothing.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Datapath for Odp {
    fn describe(&self) -> String {
        format!("odp ({DATAPATH})")
    }

    fn outlives_agent(&self) -> bool {
        true
    }

    fn apply(&mut self, op: &Op) -> Result<()> {
        if let Op::Heartbeat { local, remote, port, datagram } = op {
            return Ok(self.heartbeats.send(*local, *remote, *port, datagram)?);
        }
        let datapath = self.shared.lock().flows.datapath;
        if self.told.hear(op) | self.told.moves_to(datapath) {
            self.keeper.write(&self.told).context("what the next agent needs cannot be kept")?;
        }
        self.shared.lock().apply(op)
    }

    fn attach_port(&mut self, port: PortId, _: bool) -> Result<()> {
        self.shared.lock().add_port(port.0)
    }

    fn detach_port(&mut self, port: PortId) -> Result<()> {
        self.shared.lock().remove_port(port.0)
    }

    fn attach_underlay(&mut self, ifindex: u32) -> Result<()> {
        self.malformed.watch(ifindex).with_context(|| format!("cannot open a packet socket on interface {ifindex}"))
    }

    fn detach_underlay(&mut self, ifindex: u32) -> Result<()> {
        self.malformed.leave(ifindex);
        Ok(())
    }

    fn mend(&mut self) -> Result<bool> {
        self.shared.lock().mend()
    }

    fn set_vxlan(&mut self, ifindex: u32) -> Result<()> {
        self.shared.lock().set_vxlan(ifindex)
    }

    fn set_sleeve(&mut self, ifindex: u32) -> Result<()> {
        if self.sleeve.as_ref().is_some_and(|(device, _)| device.ifindex == ifindex) {
            return Ok(());
        }
        // Not under the lock, which its thread may want.
        if let Some((device, worker)) = self.sleeve.take() {
            drop(worker);
            self.overrun += device.overrun();
        }
        let device = Arc::new(Device::open(ifindex)?);
        self.shared.lock().set_sleeve(device.clone())?;
        let worker = Worker::sleeve(&self.shared, device.clone())?;
        self.sleeve = Some((device, worker));
        Ok(())
    }

    fn address_gone(&mut self, address: Ipv4Addr) {
        self.heartbeats.address_gone(address);
    }

    fn adopted(&mut self) -> Result<Option<Adopted>> {
        Ok((self.adopted && !self.told.is_empty()).then(|| self.told.adopted()))
    }

    fn flows(&mut self) -> Result<Vec<FlowEntry>> {
        let mut plane = self.shared.lock();
        plane.tables.tick();
        Ok(plane.entries()?)
    }

    fn counters(&mut self) -> Result<Vec<(&'static str, u64)>> {
        let mut counters = self.shared.lock().counters()?;
        let malformed = weave_ebpf::stats::DropReason::Malformed.name();
        let more = self.malformed.count();
        counters.iter_mut().filter(|(name, _)| *name == malformed).for_each(|(_, count)| *count += more);
        counters.push(("overrun", self.overrun + self.sleeve.as_ref().map_or(0, |(device, _)| device.overrun())));
        Ok(counters)
    }
}
