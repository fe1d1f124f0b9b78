//! The contract, kept by the programs.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::Ebpf;
use crate::datapath::{FlowEntry, Op, PortId};
use crate::io::datapath::{Datapath, NextHop};
use crate::switch::Adopted;

impl Datapath for Ebpf {
    fn takes_big_segments(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!("ebpf ({})", self.hooks())
    }

    fn outlives_agent(&self) -> bool {
        true
    }

    fn apply(&mut self, op: &Op) -> Result<()> {
        Self::apply(self, op)
    }

    fn attach_port(&mut self, port: PortId, redirect_peer: bool) -> Result<()> {
        Self::attach_port(self, port, redirect_peer)
    }

    fn detach_port(&mut self, port: PortId) -> Result<()> {
        Self::detach_port(self, port)
    }

    fn attach_underlay(&mut self, ifindex: u32) -> Result<()> {
        Self::attach_underlay(self, ifindex)
    }

    fn detach_underlay(&mut self, ifindex: u32) -> Result<()> {
        Self::detach_underlay(self, ifindex)
    }

    fn underlays_are(&mut self, there: &[u32]) -> Result<()> {
        Self::underlays_are(self, there)
    }

    fn xdp(&self) -> Vec<String> {
        self.filter.lines()
    }

    fn set_next_hop(&mut self, remote: Ipv4Addr, next_hop: Option<NextHop>) -> Result<()> {
        Self::set_next_hop(self, remote, next_hop)
    }

    fn set_vxlan(&mut self, ifindex: u32) -> Result<()> {
        Self::set_vxlan(self, ifindex)
    }

    fn set_sleeve(&mut self, ifindex: u32) -> Result<()> {
        Self::set_sleeve(self, ifindex)
    }

    fn address_added(&mut self, address: Ipv4Addr) -> Result<()> {
        Self::address_added(self, address)
    }

    fn address_gone(&mut self, address: Ipv4Addr) {
        Self::address_gone(self, address);
    }

    fn adopted(&mut self) -> Result<Option<Adopted>> {
        Self::adopted(self)
    }

    fn flows(&mut self) -> Result<Vec<FlowEntry>> {
        Self::flows(self)
    }

    fn counters(&mut self) -> Result<Vec<(&'static str, u64)>> {
        Self::counters(self)
    }
}
