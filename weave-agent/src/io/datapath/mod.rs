//! What carries frames: the contract of [`crate::datapath`] as the loop sees it, and those who keep it.

pub mod choice;
pub mod ebpf;
pub mod odp;
pub mod userspace;

mod cut;
mod entry;
mod received;
mod sockets;
mod tables;
mod view;

use std::net::Ipv4Addr;

use anyhow::Result;
use tokio::sync::mpsc;

use crate::addr::Mac;
use crate::datapath::{FlowEntry, Op, PortId, Upcall};
use crate::switch::Adopted;

/// Upcalls per second that one port may make, and how many at once; a neighbour may make those of
/// [`NEIGHBOUR_SHARES`](weave_ebpf::flow::NEIGHBOUR_SHARES) ports. An upcall costs the agent about ten
/// microseconds, so a port that floods takes 4 % of one core.
pub const UPCALL_RATE: u32 = 4_000;
/// See [`UPCALL_RATE`].
pub const UPCALL_BURST: u32 = 4_096;

/// One who carries frames. What the orders mean, and what is counted, is in [`crate::datapath`].
///
/// Making one that exists already under the same run directory takes over what that left, as far as it can.
pub trait Datapath: Send {
    /// A word or two for `status`, such as `ebpf (tcx)`.
    fn describe(&self) -> String;

    /// Frames flow on while no agent runs.
    fn outlives_agent(&self) -> bool;

    /// The kernel can tell the flows of what is given to the sleeve's device, and keeps each on one of its queues.
    fn steers(&self) -> bool {
        true
    }

    /// Its VXLAN goes through the kernel's stack where a slot asks for ESP: IPsec can seal it.
    fn seals(&self) -> bool {
        true
    }

    /// Segments longer than an IPv4 packet can be come out of its tunnel as they went in.
    fn takes_big_segments(&self) -> bool {
        false
    }

    /// Carries out an order.
    ///
    /// # Errors
    /// What the kernel refuses: above all a full flow table, or a frame that cannot be sent. Earlier orders stand.
    fn apply(&mut self, op: &Op) -> Result<()>;

    /// Takes frames from a port, and gives it frames. `redirect_peer`: its other end is in another namespace. Repeating
    /// it is no error.
    ///
    /// # Errors
    /// When the interface is gone or the kernel refuses.
    fn attach_port(&mut self, port: PortId, redirect_peer: bool) -> Result<()>;

    /// No longer.
    ///
    /// # Errors
    /// When the kernel refuses; an interface that is gone is no error.
    fn detach_port(&mut self, port: PortId) -> Result<()>;

    /// Tunnel packets may come in by this interface.
    ///
    /// # Errors
    /// When the interface is gone or the kernel refuses.
    fn attach_underlay(&mut self, ifindex: u32) -> Result<()>;

    /// No longer.
    ///
    /// # Errors
    /// When the kernel refuses; an interface that is gone is no error.
    fn detach_underlay(&mut self, ifindex: u32) -> Result<()>;

    /// These are all underlay interfaces: what an earlier agent left on others goes. Of no concern to who leaves nothing there.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn underlays_are(&mut self, _there: &[u32]) -> Result<()> {
        Ok(())
    }

    /// Lines for [`Summary::xdp`](crate::status::Summary::xdp).
    fn xdp(&self) -> Vec<String> {
        Vec::new()
    }

    /// The kernel's way to a neighbour has changed; `None`: it is not known. Of no concern to whose packets the kernel routes.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    fn set_next_hop(&mut self, _remote: Ipv4Addr, _next_hop: Option<NextHop>) -> Result<()> {
        Ok(())
    }

    /// Puts what others changed in order, and tells whether there was anything. Of no concern to who has nothing that others lay hands on.
    ///
    /// # Errors
    /// With what cannot be had: it is tried again.
    fn mend(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// The vxlan device has this index now; of no concern to who needs none.
    ///
    /// # Errors
    /// When it cannot be used.
    fn set_vxlan(&mut self, _ifindex: u32) -> Result<()> {
        Ok(())
    }

    /// The sleeve's TAP device has this index: peers whose [`PeerRoute`](crate::datapath::PeerRoute) says so are reached
    /// through it, each frame behind a [`weave_ebpf::sleeve::Prefix`], and frames come from it so.
    ///
    /// # Errors
    /// When it cannot be used.
    fn set_sleeve(&mut self, ifindex: u32) -> Result<()>;

    /// The host has this address. Of no concern to who asks the kernel.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    fn address_added(&mut self, _address: Ipv4Addr) -> Result<()> {
        Ok(())
    }

    /// An address of ours has gone.
    fn address_gone(&mut self, address: Ipv4Addr);

    /// What an earlier agent left, but for the flows; `None` if it left nothing.
    ///
    /// # Errors
    /// When the kernel does not tell.
    fn adopted(&mut self) -> Result<Option<Adopted>>;

    /// All flows of this epoch.
    ///
    /// # Errors
    /// When the kernel does not tell.
    fn flows(&mut self) -> Result<Vec<FlowEntry>>;

    /// Every counter with its name, drop reasons first.
    ///
    /// # Errors
    /// When the kernel does not tell.
    fn counters(&mut self) -> Result<Vec<(&'static str, u64)>>;
}

/// The kernel's next hop towards a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Interface to leave by.
    pub ifindex: u32,
    /// Its MAC.
    pub source: Mac,
    /// MAC of the neighbour or of the router towards it.
    pub next_hop: Mac,
}

/// Receives what a datapath asks, in batches.
#[derive(Debug)]
pub struct Upcalls(mpsc::Receiver<Vec<Upcall>>);

impl Upcalls {
    /// Room for so many batches; whoever finds none counts what is lost.
    fn channel(batches: usize) -> (mpsc::Sender<Vec<Upcall>>, Self) {
        let (sender, receiver) = mpsc::channel(batches);
        (sender, Self(receiver))
    }

    /// The next batch; `None` if no more can come.
    pub async fn recv(&mut self) -> Option<Vec<Upcall>> {
        self.0.recv().await
    }
}
