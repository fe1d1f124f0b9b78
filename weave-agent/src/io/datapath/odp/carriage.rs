//! What the sleeve brings is carried on by user space: the module has no flows for it.

use bytes::Bytes;
use weave_ebpf::fastpath::Verdict;
use weave_ebpf::sleeve::Prefix;
use weave_ebpf::stats::{Counter, DropReason};
use weave_ebpf::vxlan;

use super::pieces::pieces;
use super::plane::Plane;
use crate::datapath::Frame;
use crate::virtio::Offload;

impl Plane {
    /// A frame that the sleeve brought, without its prefix. The module has no flows for these.
    pub(super) fn take_sleeve(&mut self, verdict: Verdict, frame: &[u8], offload: Offload, prefix: &Prefix) {
        let gso_size = if offload.is_large() { offload.gso_size } else { 0 };
        let upstream = prefix.neighbour;
        match verdict {
            Verdict::Drop(index) => self.tables.drop_index(index),
            Verdict::Port { ifindex, .. } => self.give_to_port(ifindex, frame, gso_size),
            Verdict::Upcall { kind, key } => self.ask(frame, gso_size, kind, key),
            Verdict::Peer { to, origin } => {
                let ttl = vxlan::relay_ttl(prefix.ttl).ok_or(DropReason::HopLimit);
                let sent = ttl.and_then(|ttl| self.send_to_peer(&pieces(frame, offload), (to, origin), upstream, ttl));
                sent.unwrap_or_else(|reason| self.tables.drop(reason));
            }
            Verdict::Flood { origin } => self.flood_from_sleeve(frame, offload, prefix, origin),
            Verdict::Pass | Verdict::Reply { .. } => {}
        }
    }

    fn flood_from_sleeve(&mut self, frame: &[u8], offload: Offload, prefix: &Prefix, origin: u32) {
        let gso_size = if offload.is_large() { offload.gso_size } else { 0 };
        self.tables.add(Counter::Flooded.index(), 1);
        for port in &self.tables.flood_ports {
            self.give_to_port(*port, frame, gso_size);
        }
        let hops = self.tables.hops(origin);
        let Some(ttl) = vxlan::relay_ttl(prefix.ttl) else {
            if !hops.is_empty() {
                self.tables.drop(DropReason::HopLimit);
            }
            return;
        };
        let pieces = if hops.is_empty() { Vec::new() } else { pieces(frame, offload) };
        for &hop in hops {
            let sent = self.send_to_peer(&pieces, (hop.into(), origin), prefix.neighbour, ttl);
            sent.unwrap_or_else(|reason| self.tables.drop(reason));
        }
    }

    fn give_to_port(&self, ifindex: u32, frame: &[u8], gso_size: u16) {
        let frame = Frame { bytes: Bytes::copy_from_slice(frame), gso_size };
        if self.frames.send(ifindex, None, &frame).is_err() {
            self.tables.drop(DropReason::Kernel);
        }
    }
}
