//! The host's network, as verbs: what is attached, exposed and reached, over rtnetlink and namespaces.
//!
//! A [`Netlink`] is a socket in one namespace; no netlink message type is seen above it. Verbs take the socket of the host's
//! namespace and undo themselves when they fail; teardown does all it can and reports every failure.

pub mod address;
pub mod announce;
pub mod attach;
pub mod detach;
pub mod device_watch;
pub mod docker;
pub mod driver;
pub mod expose;
pub mod heartbeat;
pub mod known;
pub mod link;
pub mod mtu;
pub mod nameserver;
pub mod nat;
pub mod netns;
pub mod nft;
pub mod ports;
pub mod range;
pub mod raw;
pub mod routes;
pub mod socket;
pub mod sysctl;
pub mod underlay;
pub mod vxlan;
pub mod xfrm;

pub(super) mod sys;

mod big_tcp;
mod checks;
mod follow;
mod forwarding;
mod notify;
mod undo;

pub use announce::announce;
pub use attach::{AttachError, AttachSpec, Attached, attach, new_port_name, port_of};
pub use attach::{AttachError as ExposeError, Attached as Exposed};
pub use big_tcp::{follow_big_tcp, leave_big_tcp};
pub use detach::Detached as Hidden;
pub use detach::{DetachError, Detached, detach};
pub use device_watch::{Device, DeviceWatch, Vxlan};
pub use driver::driver_of;
pub use expose::{expose, expose_knowing, hide};
pub use follow::follow_mtu;
pub use heartbeat::Heartbeats;
pub use known::Known;
pub use link::Link;
pub use mtu::mtu_for;
pub use nameserver::{NAMESERVER, NAMESERVER_6, Nameserver, lead_to_nameserver, nameserver_mac};
pub use netns::{Netns, NetnsId, Target, TargetError};
pub use ports::{Port, PortKind, PortWatch};
pub use range::{RangeError, is_inhabited, unused_range};
pub use raw::RawSender;
pub use socket::{Error, Netlink};
pub(crate) use sys::set_option;
pub use underlay::{NextHop, Underlay, UnderlayEvent};
pub use vxlan::{VxlanDevice, ensure_vxlan, our_vxlans, remove_vxlans};

/// The interface inside a container, unless asked otherwise.
pub const CONTAINER_IFNAME: &str = "ethwe";
/// What the host side of a container's veth pair begins with.
pub const PORT_PREFIX: &str = "vethwepl";
/// The host's own interface on the network, made by [`expose()`].
pub const EXPOSE_IFNAME: &str = "weave";
/// The port that [`EXPOSE_IFNAME`] is the other end of.
pub const EXPOSE_PORT: &str = "vethwe-host";
/// What the name of the vxlan device begins with; the UDP port follows.
pub const VXLAN_PREFIX: &str = "vxlan-";
/// Outer headers of an encapsulated packet, inner Ethernet header included: 20 + 8 + 8 + 14.
pub const VXLAN_OVERHEAD: u32 = 50;

/// Is it one of the interfaces that weave-agent makes?
pub fn is_ours(ifname: &str) -> bool {
    ifname == EXPOSE_IFNAME || ifname.starts_with("vethwe") || is_vxlan_name(ifname)
}

fn is_vxlan_name(ifname: &str) -> bool {
    ifname.strip_prefix(VXLAN_PREFIX).is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}
