//! The datapath as the loop sees it: tables in the kernel, and the sockets for what the tables cannot do.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anyhow::Context;
use weave_ebpf::flow::{EXECUTE_MARK, vni};

use super::datapath::ebpf::{Ebpf, NextHop, Options, Upcalls};
use super::net::{Heartbeats, RawSender};
use super::{net, object};
use crate::datapath::{Egress, FlowEntry, Frame, Op, PortId};
use crate::switch::Adopted;

/// Carries out the switch's orders.
pub struct Carrier {
    tables: Ebpf,
    frames: RawSender,
    heartbeats: Heartbeats,
    vxlan_ifindex: u32,
    failures: BTreeMap<&'static str, u64>,
}

impl Carrier {
    /// Load the programs or take them over.
    pub fn load(options: &Options) -> anyhow::Result<(Self, Upcalls)> {
        let (tables, upcalls) = Ebpf::load(object::programs()?, options)?;
        let frames = RawSender::new().context("cannot open a packet socket")?;
        let vxlan_ifindex = options.vxlan_ifindex;
        Ok((Self { tables, frames, heartbeats: Heartbeats::new(), vxlan_ifindex, failures: BTreeMap::new() }, upcalls))
    }

    /// Carry out one order. What fails is counted and logged: the switch goes on from what it is told next.
    pub fn apply(&mut self, op: &Op) {
        let (what, result) = match op {
            Op::Execute(frame, ways) => return self.execute(frame, ways),
            Op::Heartbeat { local, remote, port, datagram } => {
                ("heartbeat", self.heartbeats.send(*local, *remote, *port, datagram).map_err(anyhow::Error::from))
            }
            other => ("tables", self.tables.apply(other)),
        };
        if let Err(error) = result {
            self.failed(what, &format!("{error:#}"));
        }
    }

    /// An address of ours has gone.
    pub fn address_gone(&mut self, address: Ipv4Addr) {
        self.heartbeats.address_gone(address);
    }

    /// All flows; none if the kernel does not tell.
    pub fn flows(&mut self) -> Vec<FlowEntry> {
        self.tables.flows().unwrap_or_else(|error| {
            self.failed("flows", &format!("{error:#}"));
            Vec::new()
        })
    }

    /// Every counter of the kernel's, and the orders that failed.
    pub fn counters(&self) -> Vec<(String, u64)> {
        let kernel = self.tables.counters().unwrap_or_default();
        let failures = self.failures.iter().map(|(what, count)| (format!("failed-{what}"), *count));
        kernel.into_iter().map(|(name, count)| (name.to_owned(), count)).chain(failures).collect()
    }

    /// Put the program on a port.
    pub fn plug(&mut self, port: PortId, redirect_peer: bool) -> anyhow::Result<()> {
        self.tables.attach_port(port, redirect_peer)
    }

    /// Take it off; most often the interface is gone already.
    pub fn unplug(&mut self, port: PortId) {
        self.tried("detach", |tables| tables.detach_port(port));
    }

    /// Put the program on an underlay interface; `false` if that failed.
    pub fn join(&mut self, ifindex: u32) -> bool {
        self.tried("underlay", |tables| tables.attach_underlay(ifindex))
    }

    /// Take it off.
    pub fn leave(&mut self, ifindex: u32) {
        self.tried("underlay", |tables| tables.detach_underlay(ifindex));
    }

    /// The vxlan device is this one now.
    ///
    /// # Errors
    /// When the programs could not be put on it.
    pub fn set_vxlan(&mut self, ifindex: u32) -> anyhow::Result<()> {
        self.vxlan_ifindex = ifindex;
        self.tables.set_vxlan(ifindex)
    }

    /// The sleeve's device is this one.
    pub fn set_sleeve(&mut self, ifindex: u32) {
        self.tried("sleeve", |tables| tables.set_sleeve(ifindex));
    }

    /// The kernel's way to a neighbour has changed.
    pub fn set_next_hop(&mut self, remote: Ipv4Addr, next_hop: Option<NextHop>) {
        self.tried("next-hop", |tables| tables.set_next_hop(remote, next_hop));
    }

    /// What an earlier agent left in the tables, if they are not new.
    pub fn adopted(&mut self) -> Option<Adopted> {
        self.tables.adopted().unwrap_or_else(|error| {
            self.failed("adopt", &format!("{error:#}"));
            None
        })
    }

    /// What the hooks are: `tcx` or `clsact`.
    pub fn hooks(&self) -> &'static str {
        self.tables.hooks()
    }

    fn tried(&mut self, what: &'static str, work: impl FnOnce(&mut Ebpf) -> anyhow::Result<()>) -> bool {
        let result = work(&mut self.tables);
        if let Err(error) = &result {
            self.failed(what, &format!("{error:#}"));
        }
        result.is_ok()
    }

    fn execute(&mut self, frame: &Frame, ways: &[Egress]) {
        for way in ways {
            let sent = match *way {
                Egress::Port(port) => self.frames.send(port.0, None, frame),
                Egress::Peer { to, origin } => {
                    let mark = EXECUTE_MARK | vni(to.get().into(), origin.get().into());
                    self.frames.send(self.vxlan_ifindex, Some(mark), frame)
                }
            };
            if let Err(error) = sent {
                self.failed("execute", &error.to_string());
            }
        }
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
