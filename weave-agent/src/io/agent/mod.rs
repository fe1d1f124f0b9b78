//! The loop: the one task that owns the router. What happens goes in, what it wants is done.
//!
//! Nothing here waits: whatever takes time is a task that comes back with an [`Event`].

mod calls;
mod underlay;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::config::Config;
use crate::datapath::{Action, FlowEntry, Op, PortId, Source, TunnelKind, Upcall};
use crate::io::api::Call;
use crate::io::asks::{Ask, Asks, Told};
use crate::io::carrier::Carrier;
use crate::io::clock::Clock;
use crate::io::connect;
use crate::io::datapath::Upcalls;
use crate::io::esp::Esp;
use crate::io::event::{Done, Event, OwnDevice, Stream};
use crate::io::hands::Hands;
use crate::io::links::Links;
use crate::io::logging;
use crate::io::names::Names;
use crate::io::naming::named_as;
use crate::io::net::{EXPOSE_PORT, Port, PortKind, Underlay, UnderlayEvent};
use crate::io::notices::Notices;
use crate::io::signals::{Signal, Signals};
use crate::io::sleeve::Sleeve;
use crate::io::store::{self, State};
use crate::io::troubles::Troubles;
use crate::mesh::{self, Target};
use crate::router::{Input, Output, Router};
use crate::{Time, dns, esp, ipam, sleeve, switch};

/// How often flows are read for their age.
const FLOWS: Duration = Duration::from_secs(2);
/// How many of them are looked at in one go: a new pair of containers waits no longer than for so many.
const FLOWS_AT_ONCE: usize = 256;
/// When nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// What an agent is made of.
pub struct Parts {
    /// Its settings.
    pub config: Config,
    /// Its clock.
    pub clock: Clock,
    /// Who decides.
    pub router: Router,
    /// Who carries frames.
    pub carrier: Carrier,
    /// Who carries what the kernel's tunnel cannot, if that could be started.
    pub sleeve: Option<Sleeve>,
    /// Who seals the kernel's tunnel, if that can be done.
    pub esp: Option<Esp>,
    /// Why it is not the one that would be better.
    pub chosen: Option<String>,
    /// Who changes the host's network.
    pub hands: Hands,
    /// Who knows the ways to neighbours.
    pub underlay: Underlay,
    /// Where the neighbours' addresses are told.
    pub neighbours: watch::Sender<BTreeMap<Ipv4Addr, Source>>,
    /// What is kept.
    pub state: watch::Sender<State>,
    /// Where the addresses' snapshots go; [`Event::Stored`] comes back.
    pub snapshots: watch::Sender<store::Snapshot>,
    /// What names are answered.
    pub zone: watch::Sender<Arc<dns::Zone>>,
    /// Where names given by hand are kept.
    pub by_hand: watch::Sender<Vec<dns::Kept>>,
    /// What somebody should look at.
    pub notices: Notices,
}

/// What the loop waits for.
pub struct Inbox {
    /// From tasks.
    pub events: mpsc::Receiver<Event>,
    /// From the control API.
    pub calls: mpsc::Receiver<Call>,
    /// From the kernel's programs.
    pub upcalls: Upcalls,
    /// From the kernel's routes, neighbours and addresses.
    pub changes: mpsc::Receiver<UnderlayEvent>,
    /// From the sleeve's threads.
    pub heard: mpsc::Receiver<sleeve::Heard>,
    /// From whoever wants an end.
    pub signals: Signals,
}

/// A running agent.
pub struct Agent {
    parts: Parts,
    links: Links,
    /// Neighbours' outer addresses, and ours towards them.
    ways: BTreeMap<Ipv4Addr, Source>,
    /// Underlay interfaces that have our program.
    interfaces: BTreeSet<u32>,
    /// Ports, and the names they were made with, which own their addresses.
    ports: BTreeMap<PortId, String>,
    asks: Asks,
    /// Flows that were read and not looked at yet.
    listed: std::vec::IntoIter<FlowEntry>,
    /// Devices that the datapath would not take: it is asked again.
    refused: BTreeMap<OwnDevice, u32>,
    /// What is out of order, for `status`.
    troubles: Troubles,
    ending: bool,
}

impl Agent {
    /// With nothing attached yet.
    pub fn new(parts: Parts) -> Self {
        let links = Links::new(parts.hands.events.clone());
        let (ways, interfaces, ports, asks, refused, troubles) = Default::default();
        Self { parts, links, ways, interfaces, ports, asks, listed: Vec::new().into_iter(), refused, troubles, ending: false }
    }

    /// Take over what an earlier agent left. `sealed`: of IPsec.
    pub fn adopt(&mut self, sealed: Option<esp::Input>, ports: &[Port]) {
        // First: what is not known to be sealed is not used where it must be.
        if let Some(sealed) = sealed {
            self.input(Input::Esp(sealed));
        }
        if let Some(adopted) = self.parts.carrier.adopted() {
            // The switch orders only what differs: these ways would never be watched otherwise.
            for &(remote, source) in &adopted.sources {
                self.set_way(remote, Some(source));
            }
            self.input(Input::Switch(switch::Input::Adopted(adopted)));
        }
        for port in ports {
            if let Err(error) = self.plug(port.id, port.made_as.clone(), port.kind != PortKind::Host) {
                tracing::error!(port = %port.host_ifname, "cannot adopt a port: {error:#}");
            }
        }
        self.adopt_flows();
        self.reconcile(ports);
        let is_there = |name: &String| ports.iter().any(|port| port.made_as == *name);
        self.parts.state.send_modify(|state| {
            state.attached.retain(|name, _| is_there(name));
            state.names.retain(|name, _| is_there(name) || name == EXPOSE_PORT);
        });
        self.plug_nameserver();
    }

    /// What went to a port that died meanwhile, the last agent's name server above all, would be lost until the flow aged.
    fn adopt_flows(&mut self) {
        let is_dead = |action: &Action| matches!(action, Action::Port(port) if !self.ports.contains_key(port));
        let (dead, flows): (Vec<_>, Vec<_>) = self.parts.carrier.flows().into_iter().partition(|flow| is_dead(&flow.action));
        for flow in dead {
            self.parts.carrier.apply(&Op::Remove(flow.key));
        }
        if !flows.is_empty() {
            self.input(Input::Switch(switch::Input::Flows(flows)));
        }
    }

    /// Containers reach the name server like each other.
    fn plug_nameserver(&mut self) {
        let Some(port) = self.parts.hands.names.as_ref().and_then(Names::port).cloned() else { return };
        if let Err(error) = self.plug(port.id, port.made_as, true) {
            tracing::error!("containers cannot reach the name server: {error:#}");
        }
    }

    /// Addresses belong to the ports there are, with those of the host itself, which are given to it again later.
    fn reconcile(&mut self, ports: &[Port]) {
        let mut present: BTreeMap<String, Vec<IpNet>> = ports.iter().map(|port| (port.made_as.clone(), port.addrs.clone())).collect();
        present.entry(EXPOSE_PORT.to_owned()).or_default().extend(&self.parts.state.borrow().exposed);
        self.input(Input::Ipam(ipam::Input::Reconcile { present }));
    }

    /// Run until somebody says stop.
    ///
    /// # Errors
    /// When the kernel's side is lost: a new agent will find it again.
    pub async fn run(&mut self, mut inbox: Inbox) -> anyhow::Result<()> {
        let mut flows = interval(FLOWS);
        flows.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tracing::info!(name = %self.parts.state.borrow().name, port = self.parts.config.port, "the agent is ready");
        while !self.ending {
            tokio::select! {
                Some(event) = inbox.events.recv() => self.event(event),
                Some(call) = inbox.calls.recv() => self.call(call),
                batch = inbox.upcalls.recv() => match batch {
                    Some(batch) => self.upcalls(batch),
                    None => bail!("all upcall rings have failed"),
                },
                Some(heard) = inbox.heard.recv() => self.input(Input::Sleeve(heard)),
                change = inbox.changes.recv() => match change {
                    Some(change) => self.changed(change),
                    None => bail!("the watch over routes and addresses has ended"),
                },
                () = sleep_until(self.parts.clock.instant(self.due())) => self.router_timeout(),
                _ = flows.tick() => {
                    self.look_after();
                    self.read_flows();
                }
                () = std::future::ready(()), if self.listed.len() > 0 => self.look_at_flows(),
                signal = inbox.signals.recv() => self.signal(signal),
            }
        }
        match self.carried_on() {
            true => tracing::info!("the agent ends; the data plane goes on"),
            false => tracing::info!("the agent ends, and the data plane with it: containers are cut off until the next"),
        }
        Ok(())
    }

    /// Nothing that containers send is carried by the agent itself.
    fn carried_on(&self) -> bool {
        let by_us = |peer: &switch::PeerStatus| peer.tunnel.as_ref().is_some_and(|tunnel| tunnel.by == Some(TunnelKind::Sleeve));
        self.parts.carrier.outlives_agent() && !self.parts.router.status(self.parts.clock.now()).switch.peers.iter().any(by_us)
    }

    fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Stop(signal) => {
                tracing::info!(signal, "told to stop");
                self.ending = true;
            }
            Signal::Reopen => {
                let reopened = logging::reopen();
                tracing::info!(reopened, "SIGHUP: a log file of our own begins anew, nothing else happens");
            }
        }
    }

    fn due(&self) -> Time {
        self.parts.router.poll_timeout().unwrap_or_else(|| self.parts.clock.now() + IDLE)
    }

    fn router_timeout(&mut self) {
        self.parts.router.handle_timeout(self.parts.clock.now());
        self.drain();
    }

    fn input(&mut self, input: Input) {
        self.parts.router.handle(self.parts.clock.now(), input);
        self.drain();
    }

    fn mesh(&mut self, input: mesh::Input) {
        self.input(Input::Mesh(input));
    }

    fn drain(&mut self) {
        while let Some(output) = self.parts.router.poll_output() {
            match output {
                Output::Mesh(output) => self.carry_out(output),
                Output::Datapath(op) => self.order(&op),
                Output::Answer { request, result } => self.asks.end(self.parts.clock.now(), request, result),
                Output::Store { number, snapshot } => self.store(number, &snapshot),
                Output::Zone(zone) => drop(self.parts.zone.send_replace(zone)),
                Output::Sleeve(op) => {
                    if let Some(sleeve) = &self.parts.sleeve {
                        sleeve.apply(&op);
                    }
                }
                Output::Esp(op) => {
                    if let Some(esp) = &self.parts.esp {
                        esp.apply(op);
                    }
                }
                Output::Keep(kept) => drop(self.parts.by_hand.send_replace(kept)),
            }
        }
    }

    fn carry_out(&mut self, output: mesh::Output) {
        match output {
            mesh::Output::Dial(remote) => {
                tokio::spawn(connect::dial(self.parts.config.host, remote, self.parts.hands.events.clone()));
            }
            mesh::Output::Send { link, bytes } => self.links.send(link, bytes),
            mesh::Output::Close { link } => self.links.close(link),
            mesh::Output::Targets(targets) => self.parts.state.send_modify(|state| state.targets = targets),
            mesh::Output::ShortId(short) => self.parts.state.send_modify(|state| state.short_id = Some(short.get())),
            // The router's other half has had these already, or nobody here wants them.
            mesh::Output::LinkUp(_) | mesh::Output::LinkDown { .. } | mesh::Output::View(_) => {}
            mesh::Output::Delivered { .. } | mesh::Output::Told { .. } => {}
        }
    }

    fn store(&mut self, number: u64, snapshot: &ipam::Snapshot) {
        match postcard::to_stdvec(snapshot) {
            Ok(bytes) => drop(self.parts.snapshots.send_replace(store::Snapshot { number, bytes: bytes.into() })),
            Err(error) => tracing::error!(%error, "cannot encode the state of addresses: none is given out"),
        }
    }

    fn order(&mut self, op: &Op) {
        if let Op::SetSource { remote, neighbour } = op {
            self.set_way(*remote, *neighbour);
        }
        self.parts.carrier.apply(op);
    }

    fn upcalls(&mut self, batch: Vec<Upcall>) {
        for upcall in batch {
            self.input(Input::Switch(switch::Input::Upcall(upcall)));
        }
    }

    /// What others did to the datapath, and devices that it would not take.
    fn look_after(&mut self) {
        match self.parts.carrier.mend() {
            Ok(false) => self.troubles.well(OwnDevice::Datapath),
            Ok(true) => self.troubles.device(OwnDevice::Datapath, Ok(())),
            Err(error) => self.troubles.device(OwnDevice::Datapath, Err(format!("{error:#}"))),
        }
        for (device, ifindex) in std::mem::take(&mut self.refused) {
            self.device(device, Ok(ifindex));
        }
    }

    fn read_flows(&mut self) {
        // Those of the last time first.
        if self.listed.len() == 0 {
            self.listed = self.parts.carrier.flows().into_iter();
        }
    }

    fn look_at_flows(&mut self) {
        let some = self.listed.by_ref().take(FLOWS_AT_ONCE).collect();
        self.input(Input::Switch(switch::Input::FlowsPart(some)));
        if self.listed.len() == 0 {
            self.input(Input::Switch(switch::Input::FlowsEnd));
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Accepted(stream) => {
                let (link, local, remote) = self.link(stream);
                self.mesh(mesh::Input::Accepted { link, local, remote });
            }
            Event::Dialled(stream) => {
                let (link, local, remote) = self.link(stream);
                self.mesh(mesh::Input::Dialled { link, local, remote });
            }
            Event::DialFailed { remote, error } => self.mesh(mesh::Input::DialFailed { remote, error }),
            Event::Received { link, bytes } => self.mesh(mesh::Input::Received { link, bytes }),
            Event::Closed { link, error } => {
                tracing::debug!(?link, error, "a link has ended");
                self.links.ended(link);
                self.mesh(mesh::Input::Closed { link, error });
            }
            Event::Connect { targets, replace, done } => self.connect(targets, replace, done),
            Event::Passwords { psks, done } => {
                self.mesh(mesh::Input::Passwords(psks));
                drop(done.send(Ok(())));
            }
            Event::Resolved(target) => self.mesh(mesh::Input::Resolved(target)),
            // Nobody may wait for the answer any more: what was asked is done all the same.
            Event::Plug { port, name, redirect_peer, done } => drop(done.send(self.plug(port, name, redirect_peer))),
            Event::Ipam { ask, told } => self.ask(ask, told),
            Event::Register { owner, name, addresses } => self.names(dns::Input::Register { owner, name, addresses }),
            Event::Registered => self.names(dns::Input::Settled),
            Event::Release { owner, addresses } => self.release(&owner, addresses),
            Event::Stored(number) => self.input(Input::Ipam(ipam::Input::Stored(number))),
            Event::Device(device, became) => self.device(device, became),
            Event::Esp(input) => self.input(Input::Esp(input)),
            Event::Mtu(failures) => self.troubles.mtu(failures),
            Event::BigTcp(obstacle) => self.troubles.big_tcp(obstacle),
            Event::End => self.ending = true,
            Event::Unplug(port) => self.unplug(port),
            Event::Ports(there) => self.only(&there),
        }
    }

    fn device(&mut self, device: OwnDevice, became: Result<u32, String>) {
        self.refused.remove(&device);
        let mended = became.and_then(|ifindex| {
            let told = match device {
                OwnDevice::Vxlan => self.parts.carrier.set_vxlan(ifindex),
                OwnDevice::Sleeve => self.parts.carrier.set_sleeve(ifindex),
                // Looked after by itself.
                OwnDevice::Datapath => Ok(()),
            };
            told.map_err(|error| {
                self.refused.insert(device, ifindex);
                format!("{error:#}")
            })
        });
        self.troubles.device(device, mended);
    }

    fn link(&mut self, stream: Stream) -> (mesh::LinkId, SocketAddrV4, SocketAddrV4) {
        (self.links.add(stream.stream), stream.local, stream.remote)
    }

    fn connect(&mut self, targets: Vec<Target>, replace: bool, done: Done) {
        self.mesh(mesh::Input::Connect { targets, replace });
        drop(done.send(Ok(())));
    }

    fn names(&mut self, input: dns::Input) {
        self.input(Input::Dns(input));
    }

    fn ask(&mut self, ask: Ask, told: Told) {
        if !self.parts.config.allocates() {
            return drop(told.send(by_hand(ask)));
        }
        let input = self.asks.begin(self.parts.clock.now(), ask, told);
        self.input(Input::Ipam(input));
    }

    fn release(&mut self, owner: &str, addresses: Vec<IpAddr>) {
        for address in addresses {
            self.input(Input::Ipam(ipam::Input::FreeAddress { owner: owner.to_owned(), address }));
            self.names(dns::Input::Unregister { owner: named_as(owner), name: None, address: Some(address) });
        }
    }

    fn plug(&mut self, port: PortId, name: String, redirect_peer: bool) -> anyhow::Result<()> {
        self.parts.carrier.plug(port, redirect_peer)?;
        self.ports.insert(port, name);
        if self.parts.hands.big_tcp {
            self.parts.hands.look_at_mtu.notify_one();
        }
        self.input(Input::Switch(switch::Input::PortAdded(port)));
        Ok(())
    }

    fn unplug(&mut self, port: PortId) {
        if let Some(owner) = self.ports.remove(&port) {
            self.input(Input::Switch(switch::Input::PortRemoved(port)));
            self.parts.carrier.unplug(port);
            self.names(dns::Input::Unregister { owner: named_as(&owner), name: None, address: None });
            self.troubles.gone(port);
            self.parts.hands.known.set(port, &[]);
            self.input(Input::Ipam(ipam::Input::Free { owner }));
        }
    }

    fn only(&mut self, there: &[PortId]) {
        let gone: Vec<PortId> = self.ports.keys().filter(|port| !there.contains(port)).copied().collect();
        gone.into_iter().for_each(|port| self.unplug(port));
    }
}

/// Without a range every address is somebody's own choice.
fn by_hand(ask: Ask) -> Result<ipam::Answer, ipam::Error> {
    match ask {
        Ask::Claim { address, .. } => Ok(ipam::Answer::Addresses(vec![address])),
        _ => Err(ipam::Error::Disabled),
    }
}
