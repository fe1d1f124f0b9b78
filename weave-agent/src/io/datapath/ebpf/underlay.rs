//! The interfaces that carry tunnels, and the host's addresses on them.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::Ebpf;
use super::hooks::{self, Hook};

impl Ebpf {
    /// Puts `from_underlay` on an interface that carries tunnels; and before it, where that is wanted and can be had, what ends
    /// strangers' packets. That it cannot is no error: [`Datapath::xdp`](super::Datapath::xdp) says why.
    ///
    /// # Errors
    /// When the interface is gone or the kernel refuses.
    pub fn attach_underlay(&mut self, ifindex: u32) -> Result<()> {
        self.attach(Hook::Underlay, ifindex)?;
        self.filter.put(&mut self.object, ifindex)
    }

    /// Takes both off again.
    ///
    /// # Errors
    /// When the kernel refuses; an interface that is gone is no error.
    pub fn detach_underlay(&mut self, ifindex: u32) -> Result<()> {
        hooks::detach(Hook::Underlay, ifindex, &self.links, self.tcx).and(self.filter.take(ifindex))
    }

    /// Takes both off all other interfaces: an earlier agent may have left them there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn underlays_are(&mut self, there: &[u32]) -> Result<()> {
        hooks::keep_only(Hook::Underlay, there, &self.links, self.tcx).and(self.filter.keep_only(there))
    }

    /// An address of the host's own: strangers' packets to it end early.
    ///
    /// # Errors
    /// When the kernel refuses a write: above all a full table.
    pub fn address_added(&mut self, address: Ipv4Addr) -> Result<()> {
        self.tables.locals.insert(&address.octets(), &[0; 4])
    }

    /// No longer; what goes there is somebody else's now.
    pub fn address_gone(&mut self, address: Ipv4Addr) {
        self.heartbeats.address_gone(address);
        if let Err(error) = self.tables.locals.remove(&address.octets()) {
            tracing::warn!(%address, error = format!("{error:#}"), "the kernel does not forget an address of ours that is gone");
        }
    }

    /// Addresses that an earlier agent had and that nobody will say are gone. Until those there are have been told, strangers' packets
    /// go the long way.
    pub(super) fn forget_addresses(&mut self) -> Result<()> {
        let known = self.tables.locals.entries()?;
        known.iter().try_for_each(|(address, _)| self.tables.locals.remove(address))
    }
}
