//! The ports of our datapath: interface indexes and the module's numbers.

use std::collections::BTreeMap;

/// Sockets that misses of ports are told to. A port has one of them.
pub(super) const PORT_CHANNELS: usize = 3;
/// Sockets: those, one for the tunnel, one for heartbeats.
pub(super) const CHANNELS: usize = PORT_CHANNELS + 2;
const TUNNEL: usize = PORT_CHANNELS;
const HEARTBEATS: usize = PORT_CHANNELS + 1;

/// Which is which.
#[derive(Clone, Debug)]
pub(super) struct Ports {
    numbers: BTreeMap<u32, u32>,
    vxlan: u32,
    pids: [u32; CHANNELS],
}

impl Ports {
    pub(super) fn new(vxlan: u32, pids: [u32; CHANNELS]) -> Self {
        Self { numbers: BTreeMap::new(), vxlan, pids }
    }

    /// Returns who had the number before: a port that has died.
    pub(super) fn insert(&mut self, ifindex: u32, number: u32) -> Option<u32> {
        let before = self.ifindex(number).filter(|before| *before != ifindex);
        before.and_then(|before| self.numbers.remove(&before));
        self.numbers.insert(ifindex, number);
        before
    }

    pub(super) fn remove(&mut self, ifindex: u32) -> Option<u32> {
        self.numbers.remove(&ifindex)
    }

    pub(super) fn number(&self, ifindex: u32) -> Option<u32> {
        self.numbers.get(&ifindex).copied()
    }

    pub(super) fn ifindex(&self, number: u32) -> Option<u32> {
        self.numbers.iter().find(|(_, known)| **known == number).map(|(ifindex, _)| *ifindex)
    }

    /// The interfaces, none of which has a number any more.
    pub(super) fn take(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.numbers).into_keys().collect()
    }

    pub(super) fn set_vxlan(&mut self, number: u32) {
        self.vxlan = number;
    }

    /// Number of the tunnel's port.
    pub(super) fn vxlan(&self) -> u32 {
        self.vxlan
    }

    /// The socket that is told of a port's frames: one port's flood fills no other's but a third of them.
    pub(super) fn pid_of(&self, number: u32) -> u32 {
        let channel = if number == self.vxlan { TUNNEL } else { number as usize % PORT_CHANNELS };
        self.pids.get(channel).copied().unwrap_or_default()
    }

    pub(super) fn heartbeat_pid(&self) -> u32 {
        self.pids.get(HEARTBEATS).copied().unwrap_or_default()
    }
}
