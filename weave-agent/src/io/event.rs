//! What the tasks around the loop tell it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddrV4};

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::asks::{Ask, Told};
use crate::datapath::PortId;
use crate::mesh::{LinkId, Psk, Target};
use crate::{dns, esp};

/// Events that may wait for the loop; whoever has one more waits with it.
pub const WAITING: usize = 1024;

/// Something happened outside the loop.
#[derive(Debug)]
pub enum Event {
    /// Somebody dialled us.
    Accepted(Stream),
    /// A dial of ours succeeded.
    Dialled(Stream),
    /// A dial of ours failed.
    DialFailed {
        /// What was dialled.
        remote: SocketAddrV4,
        /// Why.
        error: String,
    },
    /// Bytes on a link.
    Received {
        /// Which link.
        link: LinkId,
        /// The bytes.
        bytes: Bytes,
    },
    /// A link has ended.
    Closed {
        /// Which link.
        link: LinkId,
        /// Why.
        error: String,
    },
    /// New targets, names resolved as far as they can be.
    Connect {
        /// The targets.
        targets: Vec<Target>,
        /// Forget all earlier ones first.
        replace: bool,
        /// Told when it is done.
        done: Done,
    },
    /// Other passwords of the network, stretched.
    Passwords {
        /// The first is what is dialled with, all are accepted.
        psks: Vec<Psk>,
        /// Told when it is done.
        done: Done,
    },
    /// A target's name was resolved again.
    Resolved(Target),
    /// A port is ready for its program.
    Plug {
        /// Which port.
        port: PortId,
        /// The name that its interface was made with.
        name: String,
        /// Its other end is in another namespace.
        redirect_peer: bool,
        /// Told when frames flow.
        done: Done,
    },
    /// Something is wanted of the keeper of addresses.
    Ipam {
        /// What.
        ask: Ask,
        /// Told what it came to.
        told: Told,
    },
    /// A port's container has a name.
    Register {
        /// The port's interface, or a word that begins with `weave:`.
        owner: dns::Owner,
        /// The name.
        name: dns::Name,
        /// What it has.
        addresses: Vec<IpAddr>,
    },
    /// All names of the containers that are there have been told.
    Registered,
    /// A port does not use these addresses any more.
    Release {
        /// The port's interface.
        owner: String,
        /// Its former addresses.
        addresses: Vec<IpAddr>,
    },
    /// The addresses' snapshot of this number, and all before it, are on disk.
    Stored(u64),
    /// A device of ours was mended and has this index, or cannot be, and why.
    Device(OwnDevice, Result<u32, String>),
    /// IPsec's state in the kernel changed.
    Esp(esp::Input),
    /// Why segments cannot be as long as is wanted, if so.
    BigTcp(Option<String>),
    /// Why some ports cannot follow the MTU.
    Mtu(BTreeMap<PortId, String>),
    /// All that had to be done before the end is done.
    End,
    /// A port is gone.
    Unplug(PortId),
    /// All the ports there are: any other that we know is gone.
    Ports(Vec<PortId>),
}

/// A TCP connection before it is a link.
#[derive(Debug)]
pub struct Stream {
    /// The connection.
    pub stream: TcpStream,
    /// Our end.
    pub local: SocketAddrV4,
    /// The other end; as dialled, if we did.
    pub remote: SocketAddrV4,
}

/// How the loop says that it is done.
pub type Done = oneshot::Sender<anyhow::Result<()>>;

/// The way to the loop.
#[derive(Clone, Debug)]
pub struct Events(mpsc::Sender<Event>);

/// The loop has ended; whoever wanted to tell it something may as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent is just ending")]
pub struct Ending;

/// A way to the loop, and its end there.
pub fn channel() -> (Events, mpsc::Receiver<Event>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Events(sender), receiver)
}

impl Events {
    /// Tell the loop; waits while it has too much to do.
    pub async fn send(&self, event: Event) -> Result<(), Ending> {
        self.0.send(event).await.map_err(|_| Ending)
    }

    /// Tell the loop and wait until it has done it.
    pub async fn carry_out(&self, event: impl FnOnce(Done) -> Event) -> anyhow::Result<()> {
        let (done, told) = oneshot::channel();
        self.send(event(done)).await?;
        told.await.map_err(|_| Ending)?
    }
}

/// A device that must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OwnDevice {
    /// The kernel's tunnel.
    Vxlan,
    /// The sleeve's way in and out.
    Sleeve,
    /// The openvswitch module's datapath, with its ports.
    Datapath,
}

impl OwnDevice {
    /// What it is and what needs it, for people.
    pub const fn means(self) -> (&'static str, &'static str) {
        match self {
            Self::Vxlan => ("vxlan", "broadcast, ARP and relays"),
            Self::Datapath => ("openvswitch datapath's", "some or all of what containers send"),
            Self::Sleeve => ("sleeve's TAP", "everything that goes encrypted"),
        }
    }
}
