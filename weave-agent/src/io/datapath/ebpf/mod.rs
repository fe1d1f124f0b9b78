//! The kernel fast path: loads or adopts the programs and maps, and keeps the maps as the switch says.

mod batch;
mod clock;
mod clsact;
mod contract;
mod hooks;
mod link;
mod load;
mod logs;
mod tables;
mod underlay;
mod upcalls;
mod xdp;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use weave_ebpf::flow::{
    self, Bucket, Config, EXECUTE_MARK, FloodPorts, FlowKey, HEARTBEAT_BUCKET, MAX_FANOUT, NEIGHBOUR_BUCKET, PeerSlot, SHORT_IDS, Source,
    Tree, vni,
};
use weave_ebpf::sleeve;
use weave_ebpf::stats::{Counter, DropReason};
use weave_ebpf::vxlan::{self, Path as TunnelPath};

use self::clock::KernelClock;
use self::hooks::Hook;
use self::load::{any_program, is_at_least, program};
pub use self::load::{loader, verify};
use self::tables::Tables;
use self::xdp::Filter;
use super::entry;
pub use super::{Datapath, NextHop, Upcalls};
use super::{UPCALL_BURST, UPCALL_RATE};
use crate::addr::Mac;
use crate::config::Xdp;
use crate::datapath::{self, Action, Egress, FlowEntry, Frame, Op, PeerRoute, PortId, TunnelKind};
use crate::io::net::{Heartbeats, RawSender};
use crate::peer::ShortId;
use crate::switch::{self, Adopted};

/// How to load.
#[derive(Clone, Debug)]
pub struct Options {
    /// A directory on a bpffs, for maps and links.
    pub pins: PathBuf,
    /// The collect-metadata vxlan device.
    pub vxlan_ifindex: u32,
    /// UDP port of the tunnel.
    pub tunnel_port: u16,
    /// TCX links or clsact filters; `None` takes what the kernel has.
    pub tcx: Option<bool>,
    /// Where strangers' packets end before the stack.
    pub xdp: Xdp,
}

/// Loaded programs and maps.
pub struct Ebpf {
    object: aya::Ebpf,
    tables: Tables,
    links: PathBuf,
    tcx: bool,
    filter: Filter,
    config: Config,
    ports: BTreeMap<PortId, bool>,
    routes: BTreeMap<ShortId, PeerRoute>,
    next_hops: BTreeMap<Ipv4Addr, NextHop>,
    /// The sleeve's TAP device; zero without one.
    sleeve: u32,
    crowded: Crowded,
    clock: KernelClock,
    frames: RawSender,
    heartbeats: Heartbeats,
}

/// What has more copies than the kernel makes: said once, not at every change.
#[derive(Debug, Default)]
struct Crowded {
    ports: bool,
    trees: BTreeSet<ShortId>,
}

impl Ebpf {
    /// Loads the programs, adopting maps that an earlier agent pinned, and puts them on the vxlan device.
    ///
    /// # Errors
    /// When the object was not built in, or the kernel refuses a program or map.
    pub fn load(object: &[u8], options: &Options) -> Result<(Self, Upcalls)> {
        if object.is_empty() {
            bail!("this weave-agent was built without its BPF programs: build it with `cargo xtask build-ebpf`");
        }
        let maps = maps_path(&options.pins);
        let links = links_path(&options.pins);
        for directory in [&maps, &links] {
            std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let mut object = loader().default_map_pin_directory(&maps).load(object).context("cannot load the BPF object")?;
        for hook in Hook::ALL {
            let program = any_program(&mut object, hook.program())?;
            verify(program).with_context(|| format!("the kernel refuses the program {}", hook.program()))?;
        }
        logs::start(&mut object)?;
        let ring = object.take_map("UPCALLS").context("the BPF object has no map UPCALLS")?;
        let upcalls = upcalls::open(ring.try_into()?)?;
        let tables = Tables::take(&mut object)?;
        let tcx = options.tcx.unwrap_or_else(hooks::has_tcx);
        let mut ebpf = Self {
            config: configuration(&tables.config.get(0)?, options),
            object,
            tables,
            filter: Filter::new(options.xdp, &links),
            links,
            tcx,
            ports: BTreeMap::new(),
            routes: BTreeMap::new(),
            next_hops: BTreeMap::new(),
            sleeve: 0,
            crowded: Crowded::default(),
            clock: KernelClock::new(),
            frames: RawSender::new().context("cannot open a packet socket")?,
            heartbeats: Heartbeats::new(),
        };
        ebpf.adopt_routes()?;
        ebpf.forget_addresses()?;
        ebpf.write_config()?;
        ebpf.attach(Hook::VxlanOut, options.vxlan_ifindex)?;
        ebpf.attach(Hook::VxlanIn, options.vxlan_ifindex)?;
        Ok((ebpf, upcalls))
    }

    /// The vxlan device has another index now: the programs are put on it.
    ///
    /// # Errors
    /// When the interface is gone or the kernel refuses.
    pub fn set_vxlan(&mut self, ifindex: u32) -> Result<()> {
        let before = std::mem::replace(&mut self.config.vxlan_ifindex, ifindex);
        for hook in [Hook::VxlanOut, Hook::VxlanIn] {
            if before != ifindex {
                // The old one took its programs along; what tells of them must go, for its index may be given anew.
                hooks::detach(hook, before, &self.links, self.tcx)?;
            }
            self.attach(hook, ifindex)?;
        }
        // Last: frames go there when it is ready for them.
        self.write_config()
    }

    /// The sleeve's TAP device: its program is put on it, and slots that an earlier agent's took frames for point there.
    ///
    /// # Errors
    /// When the interface is gone or the kernel refuses.
    pub fn set_sleeve(&mut self, ifindex: u32) -> Result<()> {
        hooks::keep_only(Hook::Sleeve, &[ifindex], &self.links, self.tcx)?;
        self.attach(Hook::Sleeve, ifindex)?;
        self.sleeve = ifindex;
        let routes: Vec<_> = self.routes().filter(|(_, route)| route.tunnel == TunnelKind::Sleeve).collect();
        routes.into_iter().try_for_each(|(short, route)| self.write_slot(short, &route))
    }

    /// Carries out an order.
    ///
    /// # Errors
    /// When the kernel refuses a write: above all a full flow table; or to send.
    pub fn apply(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::SetSelf(short) => self.set_self(*short),
            Op::Install(key, action) => self.install(key, *action),
            Op::Remove(key) => self.tables.flows.remove(key),
            Op::BumpEpoch => self.bump_epoch(),
            Op::SetPeer(short, route) => self.set_peer(*short, *route),
            Op::SetSource { remote, neighbour } => self.set_source(*remote, *neighbour),
            Op::SetTree { origin, parent, hops } => self.set_tree(*origin, *parent, hops),
            Op::SetFloodPorts(ports) => self.set_flood_ports(ports),
            Op::Execute(frame, ways) => self.execute(frame, ways),
            Op::Heartbeat { local, remote, port, datagram } => Ok(self.heartbeats.send(*local, *remote, *port, datagram)?),
        }
    }

    /// Puts `from_port` on a port. `redirect_peer`: its other end is in another namespace.
    ///
    /// # Errors
    /// When the interface is gone or the kernel refuses.
    pub fn attach_port(&mut self, port: PortId, redirect_peer: bool) -> Result<()> {
        self.add_bucket(port.0)?;
        self.attach(Hook::Port, port.0)?;
        self.ports.insert(port, redirect_peer);
        Ok(())
    }

    /// Takes it off again.
    ///
    /// # Errors
    /// When the kernel refuses; an interface that is gone is no error.
    pub fn detach_port(&mut self, port: PortId) -> Result<()> {
        self.ports.remove(&port);
        hooks::detach(Hook::Port, port.0, &self.links, self.tcx)?;
        self.tables.buckets.remove(&port.0)
    }

    /// The kernel's way to a neighbour changed: rewrites the slots that go there. Without a next hop their frames go
    /// through the vxlan device, and the kernel finds the way; where programs cannot write headers, all do.
    ///
    /// # Errors
    /// When the kernel refuses a write.
    pub fn set_next_hop(&mut self, remote: Ipv4Addr, next_hop: Option<NextHop>) -> Result<()> {
        match next_hop.filter(|_| writes_headers()) {
            Some(hop) => self.next_hops.insert(remote, hop),
            None => self.next_hops.remove(&remote),
        };
        let routes: Vec<_> =
            self.routes.iter().filter(|(_, route)| route.remote == remote).map(|(&short, &route)| (short, route)).collect();
        routes.into_iter().try_for_each(|(short, route)| self.write_slot(short, &route))
    }

    /// The slots as they are: after a restart, those that an earlier agent left.
    pub fn routes(&self) -> impl Iterator<Item = (ShortId, PeerRoute)> + '_ {
        self.routes.iter().map(|(&short, &route)| (short, route))
    }

    /// What an earlier agent left in the tables, but for the flows; `None` if there was none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn adopted(&self) -> Result<Option<Adopted>> {
        let sources = self.tables.sources.entries()?;
        if sources.is_empty() && self.routes.is_empty() {
            return Ok(None);
        }
        let short = |id: u32| ShortId::new(u16::try_from(id).ok()?);
        let source = |(remote, source): ([u8; 4], Source)| {
            let least = entry::least(source.flags);
            Some((remote.into(), datapath::Source { short: short(source.short)?, local: source.local.into(), least }))
        };
        let flood_ports = self.tables.flood_ports.get(0)?;
        Ok(Some(Adopted {
            short: short(self.config.short),
            slots: self.routes().collect(),
            sources: sources.into_iter().filter_map(source).collect(),
            trees: self.trees()?,
            flood_ports: flood_ports.ports.iter().take(flood_ports.len as usize).map(|&port| PortId(port)).collect(),
        }))
    }

    fn trees(&self) -> Result<Vec<switch::Tree>> {
        let mut trees = Vec::new();
        for index in 0..SHORT_IDS {
            let tree = self.tables.trees.get(index)?;
            let Some(origin) = ShortId::new(index as u16).filter(|_| tree.len != 0 || tree.parent != [0; 4]) else {
                continue;
            };
            let parent = (tree.parent != [0; 4]).then(|| tree.parent.into());
            trees.push((origin, parent, tree.hops.iter().take(tree.len as usize).filter_map(|&hop| ShortId::new(hop)).collect()));
        }
        Ok(trees)
    }

    /// All flows of this epoch. Those of an older one are swept out on the way.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn flows(&mut self) -> Result<Vec<FlowEntry>> {
        let now = self.clock.now();
        let (current, stale): (Vec<_>, Vec<_>) =
            self.tables.flows.entries()?.into_iter().partition(|(_, flow)| flow.epoch == self.config.epoch);
        for (key, _) in stale {
            self.tables.flows.remove(&key)?;
        }
        Ok(current.into_iter().filter_map(|(key, flow)| entry::entry(key, &flow, now)).collect())
    }

    /// Every counter with its name, drop reasons first.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>> {
        let drops = DropReason::ALL.iter().map(|reason| (reason.name(), reason.index()));
        let others = Counter::ALL.iter().map(|counter| (counter.name(), counter.index()));
        drops.chain(others).map(|(name, index)| Ok((name, self.tables.count(index)?))).collect()
    }

    /// What the hooks are: `tcx` or `clsact`.
    pub fn hooks(&self) -> &'static str {
        if self.tcx { "tcx" } else { "clsact" }
    }

    /// By each of the ways, whatever becomes of the others.
    fn execute(&self, frame: &Frame, ways: &[Egress]) -> Result<()> {
        let sent = ways.iter().map(|way| match *way {
            Egress::Port(port) => self.frames.send(port.0, None, frame),
            Egress::Peer { to, origin } => {
                let mark = EXECUTE_MARK | vni(to.get().into(), origin.get().into());
                self.frames.send(self.config.vxlan_ifindex, Some(mark), frame)
            }
        });
        Ok(sent.fold(Ok(()), Result::and)?)
    }

    fn attach(&mut self, hook: Hook, ifindex: u32) -> Result<()> {
        hooks::attach(program(&mut self.object, hook)?, hook, ifindex, &self.links, self.tcx)
    }

    fn write_config(&mut self) -> Result<()> {
        self.tables.config.set(0, &self.config)
    }

    fn set_self(&mut self, short: ShortId) -> Result<()> {
        self.config.short = short.get().into();
        self.write_config()
    }

    fn bump_epoch(&mut self) -> Result<()> {
        self.config.epoch = self.config.epoch.wrapping_add(1);
        self.write_config()
    }

    fn install(&mut self, key: &FlowKey, action: Action) -> Result<()> {
        let flow = entry::flow(self.config.epoch, action, |port| self.port_flags(port));
        self.tables.flows.insert(key, &flow)
    }

    fn port_flags(&self, port: PortId) -> u32 {
        if self.ports.get(&port) == Some(&true) { flow::port::REDIRECT_PEER } else { 0 }
    }

    fn set_peer(&mut self, short: ShortId, route: Option<PeerRoute>) -> Result<()> {
        match route {
            Some(route) => {
                self.routes.insert(short, route);
                self.write_slot(short, &route)
            }
            None => {
                self.routes.remove(&short);
                self.tables.peers.set(short.get().into(), &PeerSlot::default())
            }
        }
    }

    fn write_slot(&mut self, short: ShortId, route: &PeerRoute) -> Result<()> {
        if route.tunnel == TunnelKind::Sleeve {
            let slot = sleeve::slot(self.sleeve, route.remote.octets(), route.local.octets());
            return self.tables.peers.set(short.get().into(), &slot);
        }
        let next_hop = self.next_hops.get(&route.remote).map(|hop| (hop.ifindex, hop.source.0, hop.next_hop.0));
        let (local, remote, esp) = (route.local.octets(), route.remote.octets(), route.tunnel == TunnelKind::Esp);
        let path = TunnelPath { local, remote, port: route.port, mtu: route.mtu.into(), next_hop, esp, big: route.big };
        self.tables.peers.set(short.get().into(), &vxlan::slot(&path))
    }

    fn set_source(&mut self, remote: Ipv4Addr, neighbour: Option<datapath::Source>) -> Result<()> {
        let Some(datapath::Source { short, local, least }) = neighbour else {
            return self.tables.sources.remove(&remote.octets());
        };
        self.add_bucket(NEIGHBOUR_BUCKET | u32::from(short.get()))?;
        self.add_bucket(HEARTBEAT_BUCKET | u32::from(short.get()))?;
        self.tables
            .sources
            .insert(&remote.octets(), &Source { local: local.octets(), short: short.get().into(), flags: entry::source_flags(least) })
    }

    fn add_bucket(&mut self, key: u32) -> Result<()> {
        self.tables.buckets.insert(&key, &Bucket { refilled_ns: 0, tokens: UPCALL_BURST.into() })
    }

    fn set_tree(&mut self, origin: ShortId, parent: Option<Ipv4Addr>, hops: &[ShortId]) -> Result<()> {
        let mut tree = Tree { parent: parent.map_or([0; 4], |parent| parent.octets()), len: 0, hops: [0; MAX_FANOUT] };
        for (slot, hop) in tree.hops.iter_mut().zip(hops) {
            *slot = hop.get();
            tree.len += 1;
        }
        let first = self.crowded.trees.is_empty();
        if hops.len() <= MAX_FANOUT {
            self.crowded.trees.remove(&origin);
        } else if self.crowded.trees.insert(origin) && first {
            tracing::warn!(%origin, neighbours = hops.len(), limit = MAX_FANOUT, "too many neighbours for the kernel: floods go through user space");
        }
        self.tables.trees.set(origin.get().into(), &tree)
    }

    fn set_flood_ports(&mut self, ports: &[PortId]) -> Result<()> {
        let mut list = FloodPorts { len: 0, ports: [0; MAX_FANOUT] };
        for (slot, port) in list.ports.iter_mut().zip(ports) {
            *slot = port.0;
            list.len += 1;
        }
        let before = std::mem::replace(&mut self.crowded.ports, ports.len() > MAX_FANOUT);
        if self.crowded.ports && !before {
            tracing::warn!(ports = ports.len(), limit = MAX_FANOUT, "too many ports for the kernel: floods go through user space");
        }
        self.tables.flood_ports.set(0, &list)
    }

    /// Learns what slots an earlier agent left, so that a next hop that changes finds them.
    fn adopt_routes(&mut self) -> Result<()> {
        for index in 0..SHORT_IDS {
            let slot = self.tables.peers.get(index)?;
            let (Some(path), Some(short)) = (vxlan::path(&slot), ShortId::new(index as u16)) else {
                continue;
            };
            let tunnel = entry::tunnel(slot.flags);
            let (remote, local) = (path.remote.into(), path.local.into());
            let route = PeerRoute { remote, local, port: path.port, mtu: path.mtu as u16, tunnel, big: path.big };
            self.routes.insert(short, route);
            if let Some((ifindex, source, next_hop)) = path.next_hop {
                self.next_hops.insert(route.remote, NextHop { ifindex, source: Mac(source), next_hop: Mac(next_hop) });
            }
        }
        Ok(())
    }
}

/// Takes every program off and removes all links and maps in the bpffs `pins`, which stays. None there is no error.
///
/// # Errors
/// With what could not be removed.
pub fn leave(pins: &Path) -> Result<()> {
    let detached = detach_all(pins);
    let entries = std::fs::read_dir(pins).into_iter().flatten().flatten().map(|entry| entry.path());
    // The kernel puts files into a bpffs that cannot be removed.
    let removed = entries
        .filter(|entry| entry.is_dir())
        .map(|entry| std::fs::remove_dir_all(&entry).with_context(|| format!("cannot remove {}", entry.display())));
    removed.fold(detached, Result::and)
}

/// Takes every program off and removes all links and maps below `pins`, and `pins`.
///
/// # Errors
/// With all that could not be removed.
pub fn unload(pins: &Path) -> Result<()> {
    let detached = detach_all(pins);
    let removed = match std::fs::remove_dir_all(pins) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", pins.display()))
        }
        _ => Ok(()),
    };
    detached.and(removed)
}

/// Whatever becomes of the one, the other goes as well.
fn detach_all(pins: &Path) -> Result<()> {
    let links = links_path(pins);
    let hooks = hooks::detach_all(&links);
    hooks.and(xdp::detach_all(&links))
}

fn links_path(pins: &Path) -> PathBuf {
    pins.join("links")
}

fn maps_path(pins: &Path) -> PathBuf {
    pins.join(format!("maps-{:016x}", tables::layout()))
}

/// What an earlier agent configured, with what this one was told.
fn configuration(adopted: &Config, options: &Options) -> Config {
    Config {
        vxlan_ifindex: options.vxlan_ifindex,
        port: options.tunnel_port.into(),
        // Linux 6.3, commit d219df60a70e: DECAP_L3_IPV6 sets the protocol.
        features: if is_at_least(6, 3) { flow::feature::DECAP_IPV6 } else { 0 },
        upcall_rate: UPCALL_RATE,
        upcall_burst: UPCALL_BURST,
        ..*adopted
    }
}

/// Whether programs put outer headers before a frame (Linux 5.13, commit d01b59c9ae94: ENCAP_L2_ETH).
fn writes_headers() -> bool {
    is_at_least(5, 13)
}
