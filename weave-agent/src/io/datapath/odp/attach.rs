//! Ports come and go: the module is told, and flows that have to do with them are looked at anew.

use std::sync::Arc;

use anyhow::{Context, Result};
use weave_ebpf::stats::DropReason;

use super::cache::{Of, Record};
use super::flows::all_of_port;
use super::plane::Plane;
use super::tap::Device;
use super::wire::{Vport, VportKind};
use crate::datapath::{Action, PortId};
use crate::io::net::sys::ifname;

impl Plane {
    /// Takes frames from an interface.
    pub(super) fn add_port(&mut self, ifindex: u32) -> Result<()> {
        self.tables.add_bucket(ifindex);
        if !self.ports.want(ifindex) {
            return Ok(());
        }
        let plugged = self.plug(ifindex);
        if plugged.is_err() {
            self.ports.remove(ifindex);
        }
        plugged
    }

    /// Makes it a port.
    pub(super) fn plug(&mut self, ifindex: u32) -> Result<()> {
        let number = self.make_port(ifindex)?;
        if let Some(dead) = self.ports.insert(ifindex, number) {
            self.forget_port(dead)?;
        }
        // What was said to go there before it came.
        let waiting =
            self.flows.cache.those(|record| matches!(record.action, Action::Flood(_)) || record.action == Action::Port(PortId(ifindex)));
        self.compile_again(&waiting)
    }

    fn make_port(&mut self, ifindex: u32) -> Result<u32> {
        let name = ifname(ifindex).with_context(|| format!("interface {ifindex} is gone"))?;
        let pid_of = |number| [self.ports.pid_of(number)];
        // Who asks for a number that the kernel will give is told the socket afterwards.
        let made = self.flows.kernel.add_vport(self.flows.datapath, VportKind::Netdev, &name, None, &pid_of(0));
        let port = made.with_context(|| format!("the openvswitch module does not take the interface {name}"))?;
        if self.ports.pid_of(port.number) != self.ports.pid_of(0) {
            self.flows.kernel.set_upcall_pids(self.flows.datapath, port.number, &pid_of(port.number))?;
        }
        Ok(port.number)
    }

    /// No longer. An interface that is gone took its port along.
    pub(super) fn remove_port(&mut self, ifindex: u32) -> Result<()> {
        self.tables.remove_bucket(ifindex);
        let Some(number) = self.ports.remove(ifindex) else { return Ok(()) };
        self.forget_port(ifindex)?;
        let ports = self.flows.kernel.vports(self.flows.datapath)?;
        // The number may be another's already.
        let is_it = |port: &Vport| port.number == number && port.ifindex.is_none_or(|index| index == ifindex);
        if ports.iter().any(is_it) {
            self.flows.kernel.delete_vport(self.flows.datapath, number)?;
        }
        Ok(())
    }

    pub(super) fn forget_port(&mut self, ifindex: u32) -> Result<()> {
        let (with, floods) = (PortId(ifindex), |record: &Record| matches!(record.action, Action::Flood(_)));
        let of_port = self.flows.cache.those(|record| match record.of {
            Of::Flow(key, _) => key.ingress == ifindex || record.action == Action::Port(with),
            _ => false,
        });
        self.forget(&of_port)?;
        let floods = self.flows.cache.those(floods);
        self.compile_again(&floods)
    }

    /// The vxlan device was put in order, and may be another one now.
    pub(super) fn set_vxlan(&mut self, ifindex: u32) -> Result<()> {
        self.ports.set_tunnel(ifindex);
        self.mend().map(drop)
    }

    /// The sleeve's frames are taken by a socket; the module keeps them from the host's stack.
    pub(super) fn set_sleeve(&mut self, device: Arc<Device>) -> Result<()> {
        self.leave_sleeve()?;
        self.plug_sleeve(&device)?;
        self.tables.set_sleeve(device.ifindex);
        self.sleeve = Some(device);
        Ok(())
    }

    pub(super) fn plug_sleeve(&mut self, device: &Device) -> Result<()> {
        let number = self.make_port(device.ifindex)?;
        device.is_port(number);
        let (key, mask) = all_of_port(number);
        self.flows.replace(&self.tables, Of::Silence(number), (key, mask), Vec::new(), DropReason::Switch)
    }

    fn leave_sleeve(&mut self) -> Result<()> {
        let Some(number) = self.sleeve.take().and_then(|device| device.port()) else { return Ok(()) };
        self.forget_silence(number)?;
        self.flows.kernel.delete_vport(self.flows.datapath, number)?;
        Ok(())
    }

    /// The flow that keeps the sleeve's frames from the host's stack.
    pub(super) fn forget_silence(&mut self, number: u32) -> Result<()> {
        let ufids: Vec<_> = self.flows.cache.find(&Of::Silence(number)).into_iter().collect();
        self.forget(&ufids)
    }
}
