//! The ports of our datapath: interface indexes and the module's numbers.

use std::collections::{BTreeMap, BTreeSet};

/// Sockets that misses of ports are told to. A port has one of them.
pub(super) const PORT_CHANNELS: usize = 3;
/// Sockets: those, one for the tunnel, one for heartbeats.
pub(super) const CHANNELS: usize = PORT_CHANNELS + 2;
const TUNNEL: usize = PORT_CHANNELS;
const HEARTBEATS: usize = PORT_CHANNELS + 1;

/// No port has this number: the kernel gives the lowest that is free, and takes this one in an action (`DP_MAX_PORTS - 1`).
pub(super) const NO_PORT: u32 = 65_534;

/// Which is which.
#[derive(Clone, Debug)]
pub(super) struct Ports {
    wanted: BTreeSet<u32>,
    numbers: BTreeMap<u32, u32>,
    tunnel: u32,
    vxlan: u32,
    pids: [u32; CHANNELS],
}

impl Ports {
    /// None yet. `tunnel`: interface index of the vxlan device.
    pub(super) fn new(tunnel: u32, pids: [u32; CHANNELS]) -> Self {
        Self { wanted: BTreeSet::new(), numbers: BTreeMap::new(), tunnel, vxlan: NO_PORT, pids }
    }

    /// It is to be a port; `false` if it is one.
    pub(super) fn want(&mut self, ifindex: u32) -> bool {
        self.wanted.insert(ifindex);
        !self.numbers.contains_key(&ifindex)
    }

    /// Those that are to be, and are not.
    pub(super) fn missing(&self) -> Vec<u32> {
        self.wanted.iter().filter(|ifindex| !self.numbers.contains_key(ifindex)).copied().collect()
    }

    /// Interfaces and numbers.
    pub(super) fn all(&self) -> Vec<(u32, u32)> {
        self.numbers.iter().map(|(ifindex, number)| (*ifindex, *number)).collect()
    }

    /// Returns who had the number before: a port that has died.
    pub(super) fn insert(&mut self, ifindex: u32, number: u32) -> Option<u32> {
        let before = self.ifindex(number).filter(|before| *before != ifindex);
        before.and_then(|before| self.numbers.remove(&before));
        self.numbers.insert(ifindex, number);
        before
    }

    pub(super) fn remove(&mut self, ifindex: u32) -> Option<u32> {
        self.wanted.remove(&ifindex);
        self.lose(ifindex)
    }

    /// It has its number no longer.
    pub(super) fn lose(&mut self, ifindex: u32) -> Option<u32> {
        self.numbers.remove(&ifindex)
    }

    pub(super) fn number(&self, ifindex: u32) -> Option<u32> {
        self.numbers.get(&ifindex).copied()
    }

    pub(super) fn ifindex(&self, number: u32) -> Option<u32> {
        self.numbers.iter().find(|(_, known)| **known == number).map(|(ifindex, _)| *ifindex)
    }

    /// None has a number any more.
    pub(super) fn clear(&mut self) {
        self.numbers.clear();
        self.vxlan = NO_PORT;
    }

    /// The vxlan device is another one now.
    pub(super) fn set_tunnel(&mut self, ifindex: u32) {
        self.tunnel = ifindex;
    }

    /// Interface index of the vxlan device.
    pub(super) fn tunnel(&self) -> u32 {
        self.tunnel
    }

    pub(super) fn set_vxlan(&mut self, number: u32) {
        self.vxlan = number;
    }

    /// Number of the tunnel's port; [`NO_PORT`] while there is none.
    pub(super) fn vxlan(&self) -> u32 {
        self.vxlan
    }

    /// The socket that is told of a port's frames: one port's flood fills no other's but a third of them.
    pub(super) fn pid_of(&self, number: u32) -> u32 {
        let channel = if number == self.vxlan { TUNNEL } else { number as usize % PORT_CHANNELS };
        self.pid(channel)
    }

    /// The same of the tunnel's port, which may have no number yet.
    pub(super) fn tunnel_pid(&self) -> u32 {
        self.pid(TUNNEL)
    }

    pub(super) fn heartbeat_pid(&self) -> u32 {
        self.pid(HEARTBEATS)
    }

    fn pid(&self, channel: usize) -> u32 {
        self.pids.get(channel).copied().unwrap_or_default()
    }
}
