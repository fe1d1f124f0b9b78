//! Whether the agents of a group believe the same.

use std::collections::BTreeMap;

use weave_agent::mesh::PeerStatus;

use crate::run::Run;
use crate::settle::Group;

impl Run {
    /// Property 4: within a group all know the same of every member.
    pub(crate) fn views_agree(&self, group: &Group) -> Result<(), String> {
        let names: Vec<String> = group.iter().map(|host| self.world.hosts[*host].state.name.to_string()).collect();
        let mut first: Option<BTreeMap<String, PeerStatus>> = None;
        for host in group {
            let Some(agent) = &self.world.hosts[*host].agent else {
                return Err(format!("h{host} has no agent"));
            };
            let peers = agent.router.status(self.world.clock(*host)).mesh.peers;
            let view: BTreeMap<String, PeerStatus> =
                peers.into_iter().filter(|peer| names.contains(&peer.name)).map(|peer| (peer.name.clone(), peer)).collect();
            if view.len() != names.len() {
                return Err(format!("h{host} knows {} of {} peers", view.len(), names.len()));
            }
            match &first {
                Some(first) if *first != view => return Err(format!("h{host} has another view than the first: {view:?} and {first:?}")),
                Some(_) => {}
                None => first = Some(view),
            }
        }
        Ok(())
    }
}
