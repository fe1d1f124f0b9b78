//! The world: hosts, wires and a queue of what happens next. Nothing in it is random but by its seed, or late but by its clock.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use bytes::Bytes;
use ipnet::Ipv4Net;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use weave_agent::datapath::{PortId, Upcall};
use weave_agent::mesh::Psk;
use weave_agent::peer::{PeerName, PeerUid, ShortId};
use weave_agent::router::{Config, Input, Router};
use weave_agent::{Time, mesh, switch};
use weave_ebpf::sleeve::Prefix;

use crate::carry::Effect;
use crate::case::Setting;
use crate::frame::{self, FrameId};
use crate::host::{self, Agent, Host, State};
use crate::ipsec::{self, Leaves};
use crate::kernel::{Break, Kernel, TUNNEL_PORT};
use crate::ledger::Ledger;
use crate::properties::Violation;
use crate::sleeve::{self, Received, SLEEVE_PORT};
use crate::stream::{Segment, StreamId, Streams};
use crate::trace::{self, Trace};
use crate::wire::{Fate, HostId, Wires};

/// TCP port of every agent.
pub(crate) const CONTROL_PORT: u16 = 6783;
/// How often an agent looks at its flows.
const FLOWS_EVERY: Time = Time::from_secs(5);
/// Parts that their list comes in.
const FLOWS_AT_ONCE: usize = 5;
/// Upcalls the ring holds.
const RING: usize = 4096;

/// More events than this at one instant are no progress.
const LIVELOCK: u32 = 200_000;

/// Something that is going to happen.
#[derive(Debug)]
pub(crate) enum Event {
    /// A packet arrives on an underlay interface.
    Packet { to: HostId, packet: Bytes },
    /// A segment arrives at an end of a stream.
    Segment { stream: StreamId, side: usize, segment: Segment },
    /// An attempt to connect arrives.
    Syn { from: HostId, incarnation: u64, to: HostId },
    /// A stream was cut for so long that it breaks now, unless the cut was mended.
    Break { stream: StreamId, since: Time },
    /// Something for one incarnation of an agent.
    Agent { host: HostId, incarnation: u64, input: Box<Input> },
    /// The agent reads an upcall off the ring.
    Upcall { host: HostId, incarnation: u64, upcall: Upcall },
    /// The agent looks at its flows.
    Flows { host: HostId, incarnation: u64 },
    /// The agent asked to be woken.
    Wake { host: HostId, incarnation: u64 },
}

/// Everything.
pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) hosts: Vec<Host>,
    pub(crate) wires: Wires,
    pub(crate) streams: Streams,
    pub(crate) ledger: Ledger,
    pub(crate) rng: StdRng,
    pub(crate) trace: Trace,
    /// When a kernel was last told another tree.
    pub(crate) trees_changed: Time,
    /// When an agent was last started.
    pub(crate) launched: Time,
    /// A frame whose way is printed.
    watch: Option<FrameId>,
    /// The first thing that went wrong.
    pub(crate) violation: Option<Violation>,
    events: BTreeMap<(Time, u64), Event>,
    sequence: u64,
}

impl World {
    /// Hosts without agents.
    pub(crate) fn new(setting: &Setting) -> Self {
        let mut rng = StdRng::seed_from_u64(setting.seed);
        let wires = Wires::new(setting.absent.clone(), setting.mtu, setting.latency, rng.next_u64());
        let hosts = (0..setting.hosts).map(|id| new_host(id, setting, &mut rng)).collect();
        Self {
            now: Time::from_secs(1),
            hosts,
            wires,
            streams: Streams::default(),
            ledger: Ledger::default(),
            rng,
            trace: Trace::default(),
            trees_changed: Time::ZERO,
            launched: Time::ZERO,
            watch: setting.watch,
            violation: None,
            events: BTreeMap::new(),
            sequence: 0,
        }
    }

    /// Lets time pass, unless something goes wrong.
    pub(crate) fn run_for(&mut self, time: Time) -> Result<(), Violation> {
        let end = self.now + time;
        let mut at_once = 0;
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            at_once = if at > self.now { 0 } else { at_once + 1 };
            if at_once > LIVELOCK {
                return Err(Violation::new(15, format!("the same instant goes on for ever: {event:?}")));
            }
            self.now = self.now.max(at);
            self.happen(event);
            self.judge()?;
        }
        self.now = end;
        self.judge()
    }

    /// The first violation so far.
    fn judge(&mut self) -> Result<(), Violation> {
        if let Some(error) = trace::take_error() {
            return Err(Violation::new(11, format!("an agent logged an error: {error}")));
        }
        self.violation.take().map_or(Ok(()), Err)
    }

    /// Puts an event into the future.
    pub(crate) fn schedule(&mut self, delay: Time, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + delay, self.sequence), event);
    }

    /// The clock of a host.
    pub(crate) fn clock(&self, host: HostId) -> Time {
        self.now + self.hosts[host].offset
    }

    fn happen(&mut self, event: Event) {
        self.trace.note((self.now, std::mem::discriminant(&event)));
        match event {
            Event::Packet { to, packet } => self.packet(to, &packet),
            Event::Segment { stream, side, segment } => self.segment(stream, side, segment),
            Event::Syn { from, incarnation, to } => self.syn(from, incarnation, to),
            Event::Break { stream, since } => self.break_stream(stream, since),
            Event::Agent { host, incarnation, input } => self.input_to(host, incarnation, *input),
            Event::Upcall { host, incarnation, upcall } => self.upcall(host, incarnation, upcall),
            Event::Flows { host, incarnation } => self.list_flows(host, incarnation),
            Event::Wake { host, incarnation } => self.wake(host, incarnation),
        }
    }

    /// Prints what happens to the frame that is watched.
    fn follow(&self, id: Option<FrameId>, what: impl FnOnce() -> String) {
        if self.watch.is_some() && self.watch == id {
            eprintln!("{:?} {:?}: {}", self.now, self.watch, what());
        }
    }

    fn follow_drop(&self, host: HostId, id: Option<FrameId>) {
        if let Some(reason) = self.hosts[host].kernel.last_drop.take() {
            self.follow(id, || format!("h{host} drops a copy: {}", reason.name()));
        }
    }

    fn packet(&mut self, to: HostId, packet: &[u8]) {
        self.trace.note((to, packet));
        if sleeve::is_for(packet) {
            return self.datagram(to, packet);
        }
        self.hosts[to].kernel.now = self.clock(to);
        let effects = match ipsec::is_esp(packet) {
            true => self.hosts[to].kernel.ipsec.open(packet).map(|plain| self.hosts[to].kernel.opened(&plain)).unwrap_or_default(),
            false => self.hosts[to].kernel.packet(packet),
        };
        self.follow_drop(to, frame::id_inside(packet));
        self.effects(to, effects);
    }

    /// The sleeve's port belongs to the agent.
    fn datagram(&mut self, to: HostId, packet: &[u8]) {
        let local = self.hosts[to].kernel.address;
        let Some(agent) = &self.hosts[to].agent else { return };
        match agent.sleeve.receive(local, packet) {
            Received::Frame(prefix, frame) => {
                self.hosts[to].kernel.now = self.clock(to);
                let effects = self.hosts[to].kernel.sleeve_frame(&prefix, &frame);
                self.follow_drop(to, frame::id_of(&frame));
                self.effects(to, effects);
            }
            Received::Heard(heard) => {
                let incarnation = self.hosts[to].incarnation;
                let input = Box::new(Input::Sleeve(heard));
                self.schedule(Time::from_micros(50), Event::Agent { host: to, incarnation, input });
            }
            Received::Answer(_) if self.hosts[to].kernel.fault == Some(Break::MuteHeartbeats) => {}
            Received::Answer(packet) => self.transmit(to, packet),
            Received::Nothing => {}
        }
    }

    /// What the kernel hands to the sleeve leaves it sealed, if somebody is there to do it.
    fn seal_frame(&mut self, host: HostId, prefix: &Prefix, frame: &[u8]) {
        let local = self.hosts[host].kernel.address;
        let id = frame::id_of(frame);
        match self.hosts[host].agent.as_ref().and_then(|agent| agent.sleeve.carry(local, prefix, frame)) {
            Some(packet) => self.transmit_frame(host, packet, id),
            None => _ = id.map(|id| self.ledger.lost(id)),
        }
    }

    /// A container sends a frame.
    pub(crate) fn port_frame(&mut self, host: HostId, port: PortId, frame: &[u8]) {
        self.trace.note((host, port, frame));
        self.hosts[host].kernel.now = self.clock(host);
        let effects = self.hosts[host].kernel.port_frame(port, frame);
        self.follow_drop(host, frame::id_of(frame));
        self.effects(host, effects);
    }

    /// What left a kernel goes its way.
    pub(crate) fn effects(&mut self, host: HostId, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Deliver(port, frame) => self.delivered(host, port, &frame),
                Effect::Transmit(packet) => self.transmit(host, packet),
                Effect::Sleeve(prefix, frame) => self.seal_frame(host, &prefix, &frame),
                Effect::Upcall(upcall) => self.ring(host, upcall),
            }
        }
    }

    fn delivered(&mut self, host: HostId, port: PortId, frame: &[u8]) {
        self.trace.note((host, port, frame));
        let Some(id) = frame::id_of(frame) else {
            return;
        };
        self.follow(Some(id), || format!("comes out at h{host} {port:?}"));
        let group = frame.first().is_some_and(|first| first & 1 == 1);
        let excused = if group { self.parent_moved_since(host, id) } else { self.trees_moved_since(id) };
        if excused {
            self.ledger.duplicated(id);
        }
        if let Err(violation) = self.ledger.deliver(id, (host, port), self.now) {
            self.violation.get_or_insert(violation);
        }
    }

    /// Whether some host had another tree than its neighbours at some time since a frame was sent.
    fn trees_moved_since(&self, id: FrameId) -> bool {
        let Some(sent) = self.ledger.get(id).filter(|sent| !sent.duplicated && !sent.copies.is_empty()) else {
            return false;
        };
        self.trees_changed >= sent.at || !self.trees_agree()
    }

    /// Whether this host takes the frame's floods from another neighbour than when it was sent.
    fn parent_moved_since(&self, host: HostId, id: FrameId) -> bool {
        let sent = self.ledger.get(id).filter(|sent| !sent.duplicated && !sent.copies.is_empty());
        sent.and_then(|sent| Some((sent.at, self.hosts[sent.from?.0].kernel.config.short)))
            .is_some_and(|(at, origin)| self.hosts[host].parents_changed.get(&origin).is_some_and(|changed| *changed >= at))
    }

    /// Sends a packet (outer Ethernet header first) on the underlay. `from` may be a stranger: a number above all hosts'.
    pub(crate) fn transmit(&mut self, from: HostId, packet: Bytes) {
        let id = frame::id_inside(&packet);
        let Some(host) = self.hosts.get(from) else { return self.transmit_frame(from, packet, id) };
        match host.kernel.ipsec.leaves(&packet) {
            Leaves::Sealed(sealed) => self.transmit_frame(from, sealed, id),
            Leaves::Nowhere => _ = id.map(|id| self.ledger.lost(id)),
            Leaves::AsItIs => {
                if host.state.secret && host.state.sealed && ipsec::is_vxlan(&packet) {
                    self.violation.get_or_insert(Violation::new(16, format!("h{from} sends VXLAN in clear")));
                }
                self.transmit_frame(from, packet, id);
            }
        }
    }

    /// The same, where what is inside cannot be seen.
    fn transmit_frame(&mut self, from: HostId, packet: Bytes, id: Option<FrameId>) {
        let destination = packet.get(30..34).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(Ipv4Addr::from);
        let fate = match destination.and_then(|address| self.host_at(address)) {
            Some(to) if self.wires.blocks(from, to) && !sleeve::is_for(&packet) => (to, Fate::Lost),
            Some(to) => (to, self.wires.fate(from, to, packet.len() - 14)),
            None => (from, Fate::Lost),
        };
        self.follow(id, || format!("h{from} sends it to h{} (VNI {:02x?}): {:?}", fate.0, packet.get(46..49), fate.1));
        match fate {
            (_, Fate::Lost) => _ = id.map(|id| self.ledger.lost(id)),
            (to, Fate::Arrives(delay)) => self.schedule(delay, Event::Packet { to, packet }),
            (to, Fate::Twice(delay, second)) => {
                _ = id.map(|id| self.ledger.duplicated(id));
                self.schedule(delay, Event::Packet { to, packet: packet.clone() });
                self.schedule(second, Event::Packet { to, packet });
            }
        }
    }

    /// Whose address this is.
    pub(crate) fn host_at(&self, address: Ipv4Addr) -> Option<HostId> {
        self.hosts.iter().position(|host| host.kernel.address == address)
    }

    fn ring(&mut self, host: HostId, upcall: Upcall) {
        let delay = Time::from_micros(self.rng.random_range(20..200));
        if let Upcall::Miss { key, frame } = &upcall {
            self.follow(frame::id_of(&frame.bytes), || format!("h{host} has no flow for {key:?}"));
        }
        let entry = &mut self.hosts[host];
        entry.misses += u64::from(matches!(upcall, Upcall::Miss { .. }));
        if entry.agent.is_none() || entry.ring >= RING {
            return;
        }
        entry.ring += 1;
        let incarnation = entry.incarnation;
        self.schedule(delay, Event::Upcall { host, incarnation, upcall });
    }

    fn upcall(&mut self, host: HostId, incarnation: u64, upcall: Upcall) {
        if self.hosts[host].incarnation == incarnation {
            self.hosts[host].ring -= 1;
            self.input(host, Input::Switch(switch::Input::Upcall(upcall)));
        }
    }

    fn list_flows(&mut self, host: HostId, incarnation: u64) {
        self.hosts[host].kernel.now = self.clock(host);
        let flows = self.hosts[host].kernel.dump();
        for part in flows.chunks(FLOWS_AT_ONCE) {
            self.input_to(host, incarnation, Input::Switch(switch::Input::FlowsPart(part.to_vec())));
        }
        self.input_to(host, incarnation, Input::Switch(switch::Input::FlowsEnd));
        if self.runs(host, incarnation) {
            self.schedule(FLOWS_EVERY, Event::Flows { host, incarnation });
        }
    }

    fn wake(&mut self, host: HostId, incarnation: u64) {
        let clock = self.clock(host);
        let now = self.now;
        if !self.runs(host, incarnation) {
            return;
        }
        if let Some(agent) = self.hosts[host].agent.as_mut().filter(|agent| agent.wake.is_some_and(|at| at <= now)) {
            agent.wake = None;
            agent.router.handle_timeout(clock);
            self.drive(host);
        }
    }

    fn runs(&self, host: HostId, incarnation: u64) -> bool {
        self.hosts.get(host).is_some_and(|host| host.agent.is_some() && host.incarnation == incarnation)
    }

    /// Starts an agent on a host whose agent does not run; it finds what the last one left.
    pub(crate) fn launch(&mut self, host: HostId) {
        if self.hosts[host].agent.is_some() {
            return;
        }
        let adopted = self.hosts[host].adopted();
        let state = self.hosts[host].state.clone();
        let clock = self.clock(host);
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let router = Router::new(config(&state, host, self.rng.next_u64()), seed);
        self.launched = self.now;
        let entry = &mut self.hosts[host];
        entry.incarnation += 1;
        entry.ring = 0;
        entry.agent = Some(Agent { router, wake: None, routes_told: Default::default(), sleeve: Default::default() });
        let incarnation = entry.incarnation;
        entry.kernel.now = clock;
        let flows = entry.kernel.dump();
        let ports: Vec<PortId> = entry.kernel.ports.iter().copied().collect();
        if state.esp {
            let found = self.hosts[host].kernel.ipsec.found();
            self.input(host, Input::Esp(found));
        }
        if let Some(adopted) = adopted {
            self.input(host, Input::Switch(switch::Input::Adopted(adopted)));
            self.input(host, Input::Switch(switch::Input::Flows(flows)));
        }
        for port in ports {
            self.input(host, Input::Switch(switch::Input::PortAdded(port)));
        }
        self.drive(host);
        self.schedule(FLOWS_EVERY, Event::Flows { host, incarnation });
    }

    /// `weave-agent connect`.
    pub(crate) fn connect(&mut self, host: HostId, names: &[String]) {
        let targets = names.iter().map(|name| target(name)).collect();
        self.input(host, Input::Mesh(mesh::Input::Connect { targets, replace: false }));
    }

    /// Kills the agent; the kernel closes its connections and keeps everything else.
    pub(crate) fn crash(&mut self, host: HostId) {
        if self.hosts[host].agent.take().is_some() {
            for (stream, side) in self.streams.of_host(host) {
                self.close_stream(stream, side);
            }
        }
    }

    /// Tells the agent something, if it runs, and does what it then wants.
    pub(crate) fn input(&mut self, host: HostId, input: Input) {
        let clock = self.clock(host);
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.router.handle(clock, input);
            self.drive(host);
        }
    }

    /// As [`Self::input`], unless another incarnation was meant.
    pub(crate) fn input_to(&mut self, host: HostId, incarnation: u64, input: Input) {
        if self.runs(host, incarnation) {
            self.input(host, input);
        }
    }
}

fn new_host(id: HostId, setting: &Setting, rng: &mut StdRng) -> Host {
    let name = PeerName::random(rng);
    let drawn = rng.random_range(0..setting.short_ids);
    let Some(short) = ShortId::new(setting.shorts.get(id).copied().unwrap_or(drawn)) else {
        unreachable!("short ids are 12 bits");
    };
    let targets = setting.targets.get(id).into_iter().flatten().map(|to| address(*to).to_string()).collect();
    Host {
        state: State { name, short, targets, secret: setting.secret, sealed: setting.sealed, esp: setting.esp.contains(&id) },
        kernel: Kernel::new(address(id), !setting.via_stack.contains(&id), id.is_multiple_of(2), setting.fault),
        agent: None,
        incarnation: 0,
        offset: Time::from_millis(rng.random_range(0..100_000_000)),
        ring: 0,
        parents_changed: BTreeMap::new(),
        misses: 0,
    }
}

/// The underlay address of a host.
pub(crate) fn address(id: HostId) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, u8::try_from(id + 1).unwrap_or(u8::MAX))
}

fn target(name: &str) -> mesh::Target {
    let addresses = name.parse().map(|ip| SocketAddrV4::new(ip, CONTROL_PORT)).into_iter().collect();
    mesh::Target { name: name.to_owned(), addresses }
}

fn config(state: &State, id: HostId, uid: u64) -> Config {
    let mesh = mesh::Config {
        name: state.name,
        uid: PeerUid(uid.max(1)),
        nickname: format!("h{id}"),
        short: Some(state.short),
        port: CONTROL_PORT,
        tunnel_port: TUNNEL_PORT,
        sleeve_port: SLEEVE_PORT,
        aes: true,
        esp: state.esp,
        big_tcp: false,
        passwords: state.secret.then_some(Psk([7; 32])).into_iter().collect(),
        trusted_subnets: Ipv4Net::new(address(0), 8).into_iter().filter(|_| !state.sealed).collect(),
        discovery: true,
        connection_limit: 0,
        targets: state.targets.iter().map(|name| target(name)).collect(),
    };
    Config { mesh, switch: host::limits(state), rekey: weave_agent::sleeve::LIFETIME, ipam: None, dns: None }
}
