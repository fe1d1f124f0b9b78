//! Property 6: what is cached is what is.

use weave_agent::addr::Mac;
use weave_agent::datapath::{Action, FlowEntry, PortId};
use weave_ebpf::flow::{INGRESS_TUNNEL, short_ids, slot};
use weave_ebpf::stats::DropReason;

use crate::properties::{Violation, ensure};
use crate::run::Run;
use crate::settle::Group;
use crate::wire::HostId;

impl Run {
    /// Looks at every flow that can match.
    pub(crate) fn flows_tell_the_truth(&self, groups: &[Group]) -> Result<(), Violation> {
        for (host, entry) in self.world.hosts.iter().enumerate() {
            let group = groups.iter().find(|group| group.contains(&host));
            for flow in entry.kernel.matching() {
                let lie = group.and_then(|group| self.lie(host, group, &flow));
                ensure(6, lie.is_none(), || format!("h{host} has {flow:?}, but {}", lie.unwrap_or_default()))?;
            }
        }
        Ok(())
    }

    /// What is wrong with a flow.
    fn lie(&self, host: HostId, group: &Group, flow: &FlowEntry) -> Option<String> {
        let kernel = &self.world.hosts[host].kernel;
        let from_tunnel = flow.key.ingress == INGRESS_TUNNEL;
        if !from_tunnel && !kernel.ports.contains(&PortId(flow.key.ingress)) {
            return Some("the port it begins at is gone".to_owned());
        }
        match flow.action {
            Action::Port(port) if !kernel.ports.contains(&port) => return Some("the port it leads to is gone".to_owned()),
            Action::Peer(to) if kernel.peers.get(&u32::from(to.get())).is_none_or(|peer| peer.flags & slot::VALID == 0) => {
                return Some("nobody is there".to_owned());
            }
            _ => {}
        }
        let (src, dst) = (Mac(flow.key.src), Mac(flow.key.dst));
        if (src, dst) == (Mac::ZERO, Mac::ZERO) {
            return self.transit_lie(flow);
        }
        self.source_lie(host, group, flow, src).or_else(|| self.destination_lie(host, group, flow, dst))
    }

    /// Frames in transit go to the peer they are for.
    fn transit_lie(&self, flow: &FlowEntry) -> Option<String> {
        let (to, _) = short_ids(flow.key.vni);
        let known = self.world.hosts.iter().any(|host| host.kernel.config.short == to);
        let right = !matches!(flow.action, Action::Peer(peer) if u32::from(peer.get()) != to) && !matches!(flow.action, Action::Port(_));
        (known && !right).then(|| format!("it is in transit to {to}"))
    }

    /// A frame's source was learned where it is.
    fn source_lie(&self, host: HostId, group: &Group, flow: &FlowEntry, src: Mac) -> Option<String> {
        let (at, port) = self.model.with_mac(src).filter(|container| group.contains(&container.place.0))?.place;
        let here = if flow.key.ingress == INGRESS_TUNNEL {
            at != host && short_ids(flow.key.vni).1 == self.world.hosts[at].kernel.config.short
        } else {
            at == host && PortId(flow.key.ingress) == port
        };
        (!here).then(|| format!("its source is at {:?}", (at, port)))
    }

    fn destination_lie(&self, host: HostId, group: &Group, flow: &FlowEntry, dst: Mac) -> Option<String> {
        let (at, port) = self.model.with_mac(dst).filter(|container| group.contains(&container.place.0))?.place;
        let short = self.world.hosts[at].kernel.config.short;
        let right = match flow.action {
            // A twin's frames.
            Action::Drop(DropReason::Contested) => self.model.with_mac(Mac(flow.key.src)).is_none(),
            Action::Drop(_) => PortId(flow.key.ingress) == port || flow.key.ingress == INGRESS_TUNNEL && at != host,
            Action::Port(to) => at == host && to == port,
            Action::Peer(to) => at != host && u32::from(to.get()) == short,
            // Whoever sent it through the tunnel may know less than we do.
            Action::Flood(_) => flow.key.ingress == INGRESS_TUNNEL,
        };
        (!right).then(|| format!("its destination is at {:?}", (at, port)))
    }
}
