//! A host: a kernel that stays, an agent that comes and goes, and a state directory between its lives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use weave_agent::Time;
use weave_agent::datapath::{PeerRoute, Source, TunnelKind};
use weave_agent::peer::{PeerName, ShortId};
use weave_agent::router::Router;
use weave_agent::switch::{self, Adopted};
use weave_ebpf::flow::{self, PeerSlot};
use weave_ebpf::vxlan;

use crate::kernel::{Kernel, TUNNEL_PORT};
use crate::sleeve::Sleeve;

/// What survives the agent: its state directory.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) name: PeerName,
    pub(crate) short: ShortId,
    pub(crate) targets: Vec<String>,
    /// It has the password.
    pub(crate) secret: bool,
    /// It trusts no network.
    pub(crate) sealed: bool,
    /// Its kernel has IPsec.
    pub(crate) esp: bool,
}

/// A running agent.
pub(crate) struct Agent {
    pub(crate) router: Router,
    /// When it is woken next, in the world's time.
    pub(crate) wake: Option<Time>,
    /// Neighbours whose route MTU it was told.
    pub(crate) routes_told: BTreeSet<Ipv4Addr>,
    pub(crate) sleeve: Sleeve,
}

/// A host.
pub(crate) struct Host {
    pub(crate) state: State,
    pub(crate) kernel: Kernel,
    pub(crate) agent: Option<Agent>,
    /// Counts the agent's starts.
    pub(crate) incarnation: u64,
    /// Its clock is the world's plus this.
    pub(crate) offset: Time,
    /// Upcalls on their way to the agent.
    pub(crate) ring: usize,
    /// When the parent in the tree of an origin (by short id) last became another.
    pub(crate) parents_changed: BTreeMap<u32, Time>,
    /// Frames that matched no flow, ever.
    pub(crate) misses: u64,
}

impl Host {
    /// What a new agent finds in the pinned maps; `None` when they are new.
    pub(crate) fn adopted(&self) -> Option<Adopted> {
        let kernel = &self.kernel;
        if self.incarnation == 0 {
            return None;
        }
        let short = |short: u32| ShortId::new(u16::try_from(short).ok()?);
        Some(Adopted {
            short: short(kernel.config.short),
            slots: kernel.peers.iter().filter_map(|(id, slot)| Some((short(*id)?, route(slot)?))).collect(),
            sources: kernel
                .sources
                .iter()
                .filter_map(|(address, source)| {
                    let least = least(source.flags);
                    Some(((*address).into(), Source { short: short(source.short)?, local: source.local.into(), least }))
                })
                .collect(),
            trees: kernel
                .trees
                .iter()
                .filter_map(|(origin, tree)| {
                    let hops = tree.hops.iter().filter_map(|hop| short(*hop)).collect();
                    Some((short(*origin)?, tree.parent.map(Ipv4Addr::from), hops))
                })
                .collect(),
            flood_ports: kernel.flood_ports.clone(),
        })
    }
}

/// Who the switch is, with limits low enough to be met, yet above what a flood brings between two looks at the flows.
pub(crate) fn limits(state: &State) -> switch::Config {
    switch::Config {
        port_macs: 768,
        peer_macs: 1024,
        macs: 4096,
        source_flows: 1024,
        flows: 4096,
        ..switch::Config::new(state.name, state.short, TUNNEL_PORT)
    }
}

fn least(flags: u32) -> TunnelKind {
    match flags {
        0 => TunnelKind::Vxlan,
        flow::source::ESP => TunnelKind::Esp,
        _ => TunnelKind::Sleeve,
    }
}

fn route(slot: &PeerSlot) -> Option<PeerRoute> {
    let path = vxlan::path(slot)?;
    let kind = |bit, kind| (slot.flags & bit != 0).then_some(kind);
    let tunnel = kind(flow::slot::SLEEVE, TunnelKind::Sleeve).or(kind(flow::slot::ESP, TunnelKind::Esp)).unwrap_or(TunnelKind::Vxlan);
    let mtu = path.mtu.try_into().unwrap_or(u16::MAX);
    Some(PeerRoute { remote: path.remote.into(), local: path.local.into(), port: path.port, mtu, tunnel, big: path.big })
}
