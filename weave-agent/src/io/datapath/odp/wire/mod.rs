//! What the openvswitch module says and is told: generic netlink messages as values, and back. No I/O.
//!
//! Numbers and layouts are those of `linux/netlink.h`, `linux/genetlink.h` and `linux/openvswitch.h`. What is not known is kept
//! as it came (`others`, [`Act::Other`]) or left out; what is malformed ends the list that it stands in. A datapath may be
//! shared with Open vSwitch, which uses much that we do not. Nothing here panics, whatever the bytes.

mod action;
mod attributes;
mod family;
mod fields;
mod message;
pub(super) mod object;

#[cfg(test)]
mod mutated;

pub use action::{Act, put_actions, read_actions};
pub use attributes::{Attributes, Build};
pub use family::Family;
pub use fields::{Fields, Tunnel, Vlan};
pub use message::{Answer, Answers, Kind, Request, Said, Unencodable};
pub use object::{Datapath, Flow, Packet, PacketCommand, Stats, Vport, VportKind};

/// Commands that all families but `ovs_packet` have.
pub mod command {
    /// Make one.
    pub const NEW: u8 = 1;
    /// Delete one.
    pub const DELETE: u8 = 2;
    /// Tell of one, or all.
    pub const GET: u8 = 3;
    /// Change one.
    pub const SET: u8 = 4;
}
