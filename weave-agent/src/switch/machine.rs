//! The switch as one machine: dispatch, timers, output queue.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;

use weave_ebpf::flow::FlowKey;

use super::announce::Announcer;
use super::directory::Directory;
use super::fdb::Fdb;
use super::flows::{Facet, Flows};
use super::status::{Counters, Location};
use super::tables::Tables;
use super::tunnel::Tunnel;
use super::{Adopted, Config, Input, Output};
use crate::Time;
use crate::datapath::{FlowEntry, Frame, Op, PortId, Upcall};
use crate::mesh::View;
use crate::peer::{PeerName, ShortId};

/// Between sweeps of the fdb, in case nobody lists flows.
const SWEEP: Time = Time::from_secs(30);

/// The virtual switch. Pure: effects come out of [`poll_output`](Self::poll_output), time is an argument.
#[derive(Debug)]
pub struct Switch {
    pub(super) config: Config,
    pub(super) short: ShortId,
    pub(super) view: Option<Arc<View>>,
    pub(super) directory: Directory,
    pub(super) ports: BTreeSet<PortId>,
    pub(super) fdb: Fdb,
    pub(super) flows: Flows,
    /// When the list of flows began that is being heard.
    pub(super) listing: Option<Time>,
    /// Flows of an earlier agent that speak of ports or peers we do not know yet.
    pub(super) inheritance: Vec<FlowEntry>,
    /// More ports or peers are known than when those were last looked at.
    pub(super) acquainted: bool,
    pub(super) tunnels: BTreeMap<PeerName, Tunnel>,
    pub(super) route_mtus: BTreeMap<Ipv4Addr, u16>,
    /// Outer addresses that no VXLAN goes to or comes from in clear: the kernel's IPsec sees to it.
    pub(super) protected: BTreeSet<Ipv4Addr>,
    /// What the datapath's other tables hold.
    pub(super) told: Tables,
    /// What an earlier agent left in them, until the grace after the start is over.
    pub(super) kept: Tables,
    pub(super) announcer: Announcer,
    pub(super) counters: Counters,
    /// The grace after the start is over.
    pub(super) settled: bool,
    /// When that is, or was; `None` before the first input.
    settles: Option<Time>,
    sweep: Time,
    /// When to announce again what peers that were out of reach may have missed.
    pub(super) introduction: Option<Time>,
    pub(super) warned: Option<Time>,
    /// Frames larger than their path takes, as far as that is known.
    pub(super) oversize: Vec<(FlowKey, Frame)>,
    pub(super) out: VecDeque<Output>,
}

impl Switch {
    /// A switch that knows nobody yet. Its [`grace`](Config::grace) begins with the first input.
    pub fn new(config: Config) -> Self {
        Self {
            short: config.short,
            view: None,
            directory: Directory::default(),
            ports: BTreeSet::new(),
            fdb: Fdb::new(&config),
            flows: Flows::new(&config),
            listing: None,
            inheritance: Vec::new(),
            acquainted: false,
            tunnels: BTreeMap::new(),
            route_mtus: BTreeMap::new(),
            protected: BTreeSet::new(),
            told: Tables::default(),
            kept: Tables::default(),
            announcer: Announcer::new(config.announce_rate),
            counters: Counters::default(),
            settled: false,
            settles: None,
            sweep: Time::ZERO,
            introduction: None,
            warned: None,
            oversize: Vec::new(),
            out: [Output::Op(Op::SetSelf(config.short))].into(),
            config,
        }
    }

    /// Takes in what happened; what follows from it comes out of [`poll_output`](Self::poll_output).
    pub fn handle(&mut self, now: Time, input: Input) {
        self.start(now);
        match input {
            Input::Upcall(Upcall::Miss { key, frame }) => self.miss(now, &key, frame),
            Input::Upcall(Upcall::TooBig { key, frame }) => self.too_big(&key, &frame),
            Input::Upcall(Upcall::Heartbeat { key, frame }) => self.heartbeat(now, &key, &frame),
            Input::PortAdded(port) => self.port_added(port),
            Input::PortRemoved(port) => self.port_removed(port),
            Input::Adopted(adopted) => self.adopt(adopted),
            Input::Flows(flows) => {
                self.flows_listed(now, &flows);
                self.all_flows_listed(now);
            }
            Input::FlowsPart(flows) => self.flows_listed(now, &flows),
            Input::FlowsEnd => self.all_flows_listed(now),
            Input::View(view) => self.view_changed(now, view),
            Input::SealedButFor(trusted) => {
                self.config.sealed_but_for = trusted;
                self.reconcile();
            }
            Input::Protected { remote, protected } => self.protect(now, remote, protected),
            Input::LinkUp(neighbour) => self.link_up(now, neighbour),
            Input::LinkDown(name) => self.link_down(name),
            Input::RouteMtu { remote, mtu } => self.route_mtu(now, remote, mtu),
            Input::Sleeve(heard) => self.sleeve_heard(now, &heard),
            Input::Announced { peer, macs } => self.announced(now, peer, &macs),
        }
    }

    /// To be called when the time of [`poll_timeout`](Self::poll_timeout) has come; earlier or later does no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        self.start(now);
        if !self.settled && self.settles.is_some_and(|settles| settles <= now) {
            self.settled = true;
            self.inheritance = Vec::new();
            self.kept = Tables::default();
            self.reconcile();
        }
        self.reconsider(now);
        self.beat(now);
        self.notice_tunnels();
        self.release(now);
        self.introduce(now);
        self.announce(now);
        if self.sweep <= now {
            self.sweep = now + SWEEP;
            self.forget_unused(now);
        }
    }

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next; `None` before the first input.
    pub fn poll_timeout(&self) -> Option<Time> {
        let settles = self.settles?;
        let tunnels = self.tunnels.values().filter_map(Tunnel::due);
        let settles = (!self.settled).then_some(settles);
        tunnels.chain(settles).chain(self.fdb.next_release()).chain(self.announcer.due()).chain(self.introduction).chain([self.sweep]).min()
    }

    pub(super) fn order(&mut self, op: Op) {
        self.out.push_back(Output::Op(op));
    }

    fn start(&mut self, now: Time) {
        if self.settles.is_none() {
            self.settles = Some(now + self.config.grace);
            self.sweep = now + SWEEP;
        }
    }

    /// The datapath kept its tables over a restart: ours are differences to them.
    fn adopt(&mut self, adopted: Adopted) {
        if adopted.short.is_some_and(|short| short != self.short) {
            self.bump_epoch();
        }
        self.kept = Tables::from(adopted);
        self.told = self.kept.clone();
        self.reconcile();
    }

    fn port_added(&mut self, port: PortId) {
        self.ports.insert(port);
        self.acquainted = true;
        self.reconcile();
    }

    fn port_removed(&mut self, port: PortId) {
        if !self.ports.remove(&port) {
            return;
        }
        self.forget_location(Location::Port(port));
        self.remove_flows(Facet::Port(port));
        // Even in the grace after the start: it is known to be gone.
        self.kept.flood_ports.remove(&port);
        self.reconcile();
    }

    fn view_changed(&mut self, now: Time, view: Arc<View>) {
        let directory = Directory::new(&view);
        self.short_ids_changed(view.short, &directory);
        self.meet(now, &view);
        if let Some(old) = &self.view {
            let gone: Vec<PeerName> = old.peers.keys().filter(|name| !view.peers.contains_key(name)).copied().collect();
            for name in gone {
                self.forget_location(Location::Peer(name));
            }
        }
        self.forget_strangers(&view);
        self.directory = directory;
        self.view = Some(view);
        self.acquainted = true;
        self.reconcile();
    }

    /// Flows name peers by short id: those that speak of another peer than they did must go.
    fn short_ids_changed(&mut self, short: ShortId, directory: &Directory) {
        let reassigned = self.directory.reassigned(directory);
        if short != self.short {
            self.short = short;
            self.order(Op::SetSelf(short));
            self.bump_epoch();
        } else if !reassigned.is_empty() {
            self.bump_epoch();
        }
        for short in self.directory.gone(directory) {
            self.remove_flows(Facet::Peer(short));
        }
        self.kept = self.kept.without(&reassigned);
        let without = self.told.without(&reassigned);
        for op in self.told.become_like(without) {
            self.order(op);
        }
    }
}
