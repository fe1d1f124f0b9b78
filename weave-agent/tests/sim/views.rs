//! Whether the agents of a group believe the same.

use std::collections::BTreeMap;

use crate::run::Run;
use crate::settle::Group;
use crate::wire::HostId;

/// What an agent believes of one peer: uid, version, short id, edges (to whom, whether link and tunnel work).
type Belief = (String, u64, u16, BTreeMap<String, bool>);

impl Run {
    /// Property 4: within a group all know the same of every member.
    pub(crate) fn views_agree(&self, group: &Group) -> Result<(), String> {
        let names: Vec<String> = group.iter().map(|host| self.world.hosts[*host].state.name.to_string()).collect();
        let mut first: Option<BTreeMap<String, Belief>> = None;
        for host in group {
            let view = self.beliefs(*host, &names)?;
            self.wires_are_edges(*host, group, &view)?;
            match &first {
                Some(first) if *first != view => {
                    return Err(format!("h{host} believes {view:?}, the first of the group {first:?}"));
                }
                Some(_) => {}
                None => first = Some(view),
            }
        }
        Ok(())
    }

    /// A wire that works and is no edge yet will be one, and change the trees once more.
    fn wires_are_edges(&self, host: HostId, group: &Group, view: &BTreeMap<String, Belief>) -> Result<(), String> {
        let name = |host: HostId| self.world.hosts[host].state.name.to_string();
        let edges = view.get(&name(host)).map(|belief| &belief.3);
        let missing = group.iter().find(|other| {
            **other != host && self.world.wires.joins(host, **other) && edges.is_none_or(|edges| edges.get(&name(**other)) != Some(&true))
        });
        missing.map_or(Ok(()), |other| Err(format!("h{host} has no link with a tunnel to h{other}")))
    }

    fn beliefs(&self, host: HostId, names: &[String]) -> Result<BTreeMap<String, Belief>, String> {
        let Some(agent) = &self.world.hosts[host].agent else {
            return Err(format!("h{host} has no agent"));
        };
        let peers = agent.router.status(self.world.clock(host)).mesh.peers;
        let view: BTreeMap<String, Belief> = peers
            .into_iter()
            .filter(|peer| names.contains(&peer.name))
            .map(|peer| {
                let edges = peer.connections.into_iter().map(|edge| (edge.name, edge.linked && edge.established)).collect();
                (peer.name, (peer.uid, peer.version, peer.short, edges))
            })
            .collect();
        if view.len() == names.len() { Ok(view) } else { Err(format!("h{host} knows {} of {} peers", view.len(), names.len())) }
    }
}
