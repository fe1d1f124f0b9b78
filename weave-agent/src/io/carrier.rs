//! The datapath as the loop sees it: what it refuses is counted and logged, and the loop goes on.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::datapath::{Datapath, NextHop};
use super::net;
use crate::datapath::{FlowEntry, Op, PortId};
use crate::switch::Adopted;

/// Carries out the switch's orders.
pub struct Carrier {
    datapath: Box<dyn Datapath>,
    failures: BTreeMap<&'static str, u64>,
}

impl Carrier {
    /// By this datapath.
    pub fn new(datapath: Box<dyn Datapath>) -> Self {
        Self { datapath, failures: BTreeMap::new() }
    }

    /// Carry out one order. What fails is counted and logged: the switch goes on from what it is told next.
    pub fn apply(&mut self, op: &Op) {
        let what = match op {
            Op::Execute(..) => "execute",
            Op::Heartbeat { .. } => "heartbeat",
            _ => "tables",
        };
        self.tried(what, |datapath| datapath.apply(op));
    }

    /// An address of ours has come.
    pub fn address_added(&mut self, address: Ipv4Addr) {
        self.tried("address", |datapath| datapath.address_added(address));
    }

    /// An address of ours has gone.
    pub fn address_gone(&mut self, address: Ipv4Addr) {
        self.datapath.address_gone(address);
    }

    /// All flows; none if the kernel does not tell.
    pub fn flows(&mut self) -> Vec<FlowEntry> {
        self.datapath.flows().unwrap_or_else(|error| {
            self.failed("flows", &format!("{error:#}"));
            Vec::new()
        })
    }

    /// Every counter of the datapath's, and the orders that failed.
    pub fn counters(&mut self) -> Vec<(String, u64)> {
        let counted = self.datapath.counters().unwrap_or_default();
        let failures = self.failures.iter().map(|(what, count)| (format!("failed-{what}"), *count));
        counted.into_iter().map(|(name, count)| (name.to_owned(), count)).chain(failures).collect()
    }

    /// Take frames from a port.
    pub fn plug(&mut self, port: PortId, redirect_peer: bool) -> anyhow::Result<()> {
        self.datapath.attach_port(port, redirect_peer)
    }

    /// No longer; most often the interface is gone already.
    pub fn unplug(&mut self, port: PortId) {
        self.tried("detach", |datapath| datapath.detach_port(port));
    }

    /// Tunnels may come in by an underlay interface; `false` if that failed.
    pub fn join(&mut self, ifindex: u32) -> bool {
        self.tried("underlay", |datapath| datapath.attach_underlay(ifindex))
    }

    /// No longer.
    pub fn leave(&mut self, ifindex: u32) {
        self.tried("underlay", |datapath| datapath.detach_underlay(ifindex));
    }

    /// These are all underlay interfaces.
    pub fn underlays_are(&mut self, there: &[u32]) {
        self.tried("underlay", |datapath| datapath.underlays_are(there));
    }

    /// See [`Datapath::mend`].
    ///
    /// # Errors
    /// With what cannot be had.
    pub fn mend(&mut self) -> anyhow::Result<bool> {
        self.datapath.mend()
    }

    /// The vxlan device is this one now.
    ///
    /// # Errors
    /// When the programs could not be put on it.
    pub fn set_vxlan(&mut self, ifindex: u32) -> anyhow::Result<()> {
        self.datapath.set_vxlan(ifindex)
    }

    /// The sleeve's device is this one.
    ///
    /// # Errors
    /// When the datapath cannot use it.
    pub fn set_sleeve(&mut self, ifindex: u32) -> anyhow::Result<()> {
        self.datapath.set_sleeve(ifindex)
    }

    /// The kernel's way to a neighbour has changed.
    pub fn set_next_hop(&mut self, remote: Ipv4Addr, next_hop: Option<NextHop>) {
        self.tried("next-hop", |datapath| datapath.set_next_hop(remote, next_hop));
    }

    /// What an earlier agent left in the tables, if they are not new.
    pub fn adopted(&mut self) -> Option<Adopted> {
        self.datapath.adopted().unwrap_or_else(|error| {
            self.failed("adopt", &format!("{error:#}"));
            None
        })
    }

    /// What the datapath is, for `status`.
    pub fn describe(&self) -> String {
        self.datapath.describe()
    }

    /// See [`Datapath::xdp`].
    pub fn xdp(&self) -> Vec<String> {
        self.datapath.xdp()
    }

    /// See [`Datapath::steers`].
    pub fn steers(&self) -> bool {
        self.datapath.steers()
    }

    /// See [`Datapath::seals`].
    pub fn seals(&self) -> bool {
        self.datapath.seals()
    }

    /// See [`Datapath::takes_big_segments`].
    pub fn takes_big_segments(&self) -> bool {
        self.datapath.takes_big_segments()
    }

    /// Frames flow on when the agent has ended.
    pub fn outlives_agent(&self) -> bool {
        self.datapath.outlives_agent()
    }

    fn tried(&mut self, what: &'static str, work: impl FnOnce(&mut dyn Datapath) -> anyhow::Result<()>) -> bool {
        let result = work(self.datapath.as_mut());
        if let Err(error) = &result {
            self.failed(what, &format!("{error:#}"));
        }
        result.is_ok()
    }

    /// The first of each kind, then every thousandth is logged: a full table fails often.
    fn failed(&mut self, what: &'static str, error: &str) {
        let count = self.failures.entry(what).or_default();
        if count.is_multiple_of(1000) {
            tracing::warn!(what, error, before = *count, "the datapath refuses an order");
        }
        *count += 1;
    }
}

/// What the kernel told of a way, as the tables take it; `None` until its MAC is known.
pub fn next_hop(way: &net::NextHop) -> Option<NextHop> {
    let next_hop = way.next_hop_mac?;
    Some(NextHop { ifindex: way.ifindex, source: way.source_mac, next_hop })
}
