//! A host: an agent that may be down, a disk, and containers that do not care.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::{Config, Ipam, Snapshot};
use crate::Time;
use crate::peer::PeerName;

pub(super) struct Host {
    pub(super) config: Config,
    pub(super) agent: Option<Ipam>,
    /// Counts starts: what was on its way to an earlier agent is lost.
    pub(super) start: u64,
    pub(super) disk: Option<Snapshot>,
    /// What was on disk at some time.
    pub(super) history: Vec<Snapshot>,
    /// Handed out to be stored, not yet said to be.
    pub(super) storing: Option<Snapshot>,
    /// Live containers and the addresses they hold.
    pub(super) containers: BTreeMap<String, BTreeMap<IpAddr, IpNet>>,
    pub(super) requests: BTreeMap<u64, Request>,
    /// Hosts that can reach each other have the same.
    pub(super) group: u8,
    /// Its clock is so far ahead of the world's.
    pub(super) ahead: Time,
    /// The machine is off: no containers, and the next boot is another one.
    pub(super) dead: bool,
    /// Somebody ran `rmpeer` for it since it died.
    pub(super) removed: bool,
    /// It ran `rmpeer` itself.
    pub(super) remover: bool,
    /// What is on disk is not trusted, and nothing was written since: nor is it at the next start.
    pub(super) suspect: bool,
    /// Writes take this long at most.
    pub(super) disk_time: Time,
}

#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) owner: Option<String>,
    pub(super) deadline: Time,
}

pub(in super::super) fn name(host: usize) -> PeerName {
    PeerName([2, 0, 0, 0, 0, u8::try_from(host + 1).unwrap()])
}

impl Host {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            agent: None,
            start: 0,
            disk: None,
            history: Vec::new(),
            storing: None,
            containers: BTreeMap::new(),
            requests: BTreeMap::new(),
            group: 0,
            ahead: Time::ZERO,
            dead: false,
            removed: false,
            remover: false,
            suspect: false,
            disk_time: Time::from_millis(10),
        }
    }

    pub(super) fn write(&mut self, snapshot: Snapshot) {
        self.suspect = false;
        self.disk = Some(snapshot.clone());
        self.history.push(snapshot);
    }

    /// What `Reconcile` says: containers with addresses.
    pub(super) fn present(&self) -> BTreeMap<String, Vec<IpNet>> {
        self.containers.iter().map(|(owner, held)| (owner.clone(), held.values().copied().collect())).collect()
    }

    pub(super) fn holds(&self, address: IpAddr) -> Option<&String> {
        self.containers.iter().find(|(_, held)| held.contains_key(&address)).map(|(owner, _)| owner)
    }

    /// Who owns something, according to its agent.
    pub(super) fn owners(&self) -> BTreeSet<PeerName> {
        self.agent.as_ref().map(Ipam::owners).unwrap_or_default()
    }
}

/// Who owns something, according to a snapshot.
pub(super) fn owners(snapshot: &Snapshot) -> BTreeSet<PeerName> {
    snapshot.rings.iter().flatten().map(|token| token.owner).collect()
}
