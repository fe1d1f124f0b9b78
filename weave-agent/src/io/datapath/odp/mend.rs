//! The datapath as it should be, whatever others did to it: looked at when something is heard of it, and every few seconds,
//! in case that was lost or could not be mended at once.

use anyhow::{Context, Result};

use super::DATAPATH;
use super::add_tunnel;
use super::plane::Plane;
use super::ports::NO_PORT;
use super::wire::Vport;
use crate::io::net::sys::ifname;

impl Plane {
    /// Puts the datapath, the tunnel, the ports and the sleeve's device in order; tells whether any was not.
    ///
    /// # Errors
    /// With the first that cannot be had; the others are.
    pub(super) fn mend(&mut self) -> Result<bool> {
        let is_new = self.mend_datapath()?;
        let there = self.flows.kernel.vports(self.flows.datapath)?;
        let results = [self.mend_tunnel(&there), self.mend_ports(&there), self.mend_sleeve(&there)];
        results.into_iter().try_fold(is_new, |all, one| Ok(all | one?))
    }

    /// Open vSwitch's daemon, when it starts, deletes all that it did not make. Flows come back with their frames.
    fn mend_datapath(&mut self) -> Result<bool> {
        let found = self.flows.kernel.find_datapath(DATAPATH)?;
        if found.as_ref().is_some_and(|found| found.ifindex == self.flows.datapath) {
            return Ok(false);
        }
        let made = match found {
            Some(found) => {
                self.flows.kernel.restore_features(DATAPATH)?;
                found
            }
            None => self.flows.kernel.add_datapath(DATAPATH).with_context(|| format!("cannot make the datapath {DATAPATH}"))?,
        };
        tracing::warn!("somebody deleted the openvswitch datapath {DATAPATH}: it was made anew");
        self.flows.start_over(&self.tables, made.ifindex);
        self.ports.clear();
        Ok(true)
    }

    /// Without its device it comes back when that does.
    fn mend_tunnel(&mut self, there: &[Vport]) -> Result<bool> {
        let (before, device) = (self.ports.vxlan(), self.ports.tunnel());
        let number = there.iter().find(|port| port.ifindex == Some(device)).map_or(NO_PORT, |port| port.number);
        if number == before && number != NO_PORT {
            return Ok(false);
        }
        // What it does with frames must not be said of a port that is another's by now.
        self.ports.set_vxlan(NO_PORT);
        if before != NO_PORT {
            self.forget_switched()?;
        }
        if ifname(device).is_err() {
            return Ok(false);
        }
        let number = if number == NO_PORT { add_tunnel(&self.flows.kernel, self.flows.datapath, &self.ports)? } else { number };
        tracing::warn!("somebody took the vxlan device from the datapath, or deleted it: it is back");
        self.ports.set_vxlan(number);
        self.flows.kernel.set_upcall_pids(self.flows.datapath, number, &[self.ports.tunnel_pid()])?;
        self.listen_to_heartbeats()?;
        Ok(true)
    }

    fn mend_ports(&mut self, there: &[Vport]) -> Result<bool> {
        for (ifindex, number) in self.ports.all() {
            if !is_at(there, ifindex, number) {
                self.ports.lose(ifindex);
                self.forget_port(ifindex)?;
            }
        }
        let (mut mended, mut failed) = (false, Ok(()));
        for ifindex in self.ports.missing() {
            // What is gone is no port any more: its end is told, too, and it is detached.
            let Ok(name) = ifname(ifindex) else { continue };
            let put = self.plug(ifindex);
            if put.is_ok() {
                tracing::warn!("somebody took {name} from the datapath: it is back");
                mended = true;
            }
            failed = failed.and(put);
        }
        failed.map(|()| mended)
    }

    fn mend_sleeve(&mut self, there: &[Vport]) -> Result<bool> {
        let Some(device) = self.sleeve.clone() else { return Ok(false) };
        let number = device.port();
        let is_right = number.is_some_and(|number| is_at(there, device.ifindex, number));
        if is_right || ifname(device.ifindex).is_err() {
            return Ok(false);
        }
        if let Some(number) = number {
            // Its flow alone: the number may be another's now.
            self.forget_silence(number)?;
        }
        self.plug_sleeve(&device)?;
        Ok(true)
    }
}

/// Kernels before 4.19 do not tell the index.
fn is_at(there: &[Vport], ifindex: u32, number: u32) -> bool {
    there.iter().any(|port| port.number == number && port.ifindex.is_none_or(|index| index == ifindex))
}
