//! For tests: a switch driven from outside, with a model of the datapath's tables and of its neighbours' kernels.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use weave_ebpf::flow::{FlowKey, vni};

use super::heartbeat::Heartbeat;
use super::status::Location;
use super::{Config, Input, Output, Switch};
use crate::Time;
use crate::addr::Mac;
use crate::datapath::{Action, Egress, FlowEntry, Frame, Op, PeerRoute, PortId, Source, Upcall};
use crate::mesh::{Neighbour, PeerView, View};
use crate::peer::{PeerName, ShortId};
use crate::sleeve;

pub(super) const US: u16 = 1;

pub(super) fn short(n: u16) -> ShortId {
    ShortId::new(n).unwrap()
}

/// The peer whose short id is `n`, usually.
pub(super) fn name(n: u16) -> PeerName {
    PeerName([2, 0, 0, 0, 0, n as u8])
}

pub(super) fn address(n: u16) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n as u8)
}

pub(super) fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 1, n])
}

pub(super) fn local(port: u32, src: Mac, dst: Mac) -> FlowKey {
    FlowKey { ingress: port, src: src.0, dst: dst.0, ..FlowKey::default() }
}

/// From neighbour `by`, sent by a container of `origin`.
pub(super) fn remote(by: u16, origin: u16, src: Mac, dst: Mac) -> FlowKey {
    let vni = vni(US.into(), origin.into());
    FlowKey { vni, outer_src: address(by).octets(), src: src.0, dst: dst.0, ..FlowKey::default() }
}

pub(super) fn transit(by: u16, origin: u16, to: u16) -> FlowKey {
    FlowKey { vni: vni(to.into(), origin.into()), outer_src: address(by).octets(), ..FlowKey::default() }
}

pub(super) fn neighbour(n: u16) -> Neighbour {
    Neighbour {
        name: name(n),
        short: short(n),
        connection: n.into(),
        local: address(US),
        remote: address(n),
        port: 6784,
        sleeve_port: 6783,
        aes: true,
        sealed: false,
        esp: false,
        big_tcp: false,
        outbound: true,
    }
}

pub(super) fn frame() -> Frame {
    Frame { bytes: Bytes::from_static(&[0; 60]), gso_size: 0 }
}

/// A full mesh of us and these peers; each one's floods come from itself.
pub(super) fn full_mesh(peers: &[u16]) -> View {
    let peer = |&n: &u16| {
        let view = PeerView { short: Some(short(n)), next_hop: Some(name(n)), parent: Some(name(n)), ..PeerView::default() };
        (name(n), view)
    };
    let hops = peers.iter().map(|&n| name(n)).collect();
    View { name: name(US), short: short(US), peers: peers.iter().map(peer).collect(), hops }
}

/// A switch, the clock, and what the datapath's tables are after its orders.
pub(super) struct Bench {
    pub(super) switch: Switch,
    pub(super) now: Time,
    pub(super) flows: BTreeMap<FlowKey, Action>,
    pub(super) slots: BTreeMap<ShortId, PeerRoute>,
    pub(super) trees: BTreeMap<ShortId, (Option<Ipv4Addr>, Vec<ShortId>)>,
    pub(super) sources: BTreeMap<Ipv4Addr, Source>,
    pub(super) flood_ports: Vec<PortId>,
    /// Neighbours that answer heartbeats of up to so many bytes.
    pub(super) answering: BTreeMap<Ipv4Addr, u16>,
    /// Neighbours whose sleeve answers datagrams of up to so many bytes.
    pub(super) sleeves: BTreeMap<Ipv4Addr, u16>,
    /// Everything that came out since last cleared.
    pub(super) outputs: Vec<Output>,
}

impl Bench {
    pub(super) fn new(config: impl FnOnce(&mut Config)) -> Self {
        let mut full = Config::new(name(US), short(US), 6784);
        config(&mut full);
        Self {
            switch: Switch::new(full),
            now: Time::from_secs(1000),
            flows: BTreeMap::new(),
            slots: BTreeMap::new(),
            trees: BTreeMap::new(),
            sources: BTreeMap::new(),
            flood_ports: Vec::new(),
            answering: BTreeMap::new(),
            sleeves: BTreeMap::new(),
            outputs: Vec::new(),
        }
    }

    /// Ports 11 and 12, neighbours 2 and 3 with working tunnels, the start long over.
    pub(super) fn settled() -> Self {
        let mut bench = Self::new(|_| {});
        bench.input(Input::PortAdded(PortId(11)));
        bench.input(Input::PortAdded(PortId(12)));
        for n in [2, 3] {
            bench.answering.insert(address(n), 1450);
            bench.input(Input::LinkUp(neighbour(n)));
        }
        bench.view(full_mesh(&[2, 3]));
        bench.pass(40_000);
        bench.outputs.clear();
        bench
    }

    pub(super) fn input(&mut self, input: Input) {
        self.switch.handle(self.now, input);
        self.drain();
    }

    pub(super) fn view(&mut self, view: View) {
        self.input(Input::View(Arc::new(view)));
    }

    /// A frame misses; returns where it went.
    pub(super) fn miss(&mut self, key: FlowKey) -> Vec<Egress> {
        let before = self.outputs.len();
        self.input(Input::Upcall(Upcall::Miss { key, frame: frame() }));
        let executed = |output: &Output| if let Output::Op(Op::Execute(_, ways)) = output { Some(ways.clone()) } else { None };
        self.outputs[before..].iter().find_map(executed).unwrap_or_default()
    }

    /// Lets so many milliseconds pass, timer by timer.
    pub(super) fn pass(&mut self, ms: u64) {
        let until = self.now + Time::from_millis(ms);
        let mut still = 0;
        while let Some(due) = self.switch.poll_timeout().filter(|due| *due <= until) {
            still = if due > self.now { 0 } else { still + 1 };
            assert!(still < 5, "a timer that does not move on");
            self.now = self.now.max(due);
            self.switch.handle_timeout(self.now);
            self.drain();
        }
        self.now = until;
    }

    fn drain(&mut self) {
        while let Some(output) = self.switch.poll_output() {
            match &output {
                Output::Op(op) => self.obey(op.clone()),
                Output::Sleeve(sleeve::Op::Probe { neighbour, heartbeat, datagram }) => {
                    self.answer_sleeve(*neighbour, heartbeat, *datagram);
                }
                _ => {}
            }
            self.outputs.push(output);
        }
    }

    fn obey(&mut self, op: Op) {
        match op {
            Op::Install(key, action) => drop(self.flows.insert(key, action)),
            Op::Remove(key) => drop(self.flows.remove(&key)),
            Op::BumpEpoch => self.flows.clear(),
            Op::SetPeer(short, Some(route)) => drop(self.slots.insert(short, route)),
            Op::SetPeer(short, None) => drop(self.slots.remove(&short)),
            Op::SetTree { origin, parent, hops } => drop(self.trees.insert(origin, (parent, hops))),
            Op::SetFloodPorts(ports) => self.flood_ports = ports,
            Op::SetSource { remote, neighbour: Some(source) } => drop(self.sources.insert(remote, source)),
            Op::SetSource { remote, neighbour: None } => drop(self.sources.remove(&remote)),
            Op::Heartbeat { remote, datagram, .. } => self.answer(remote, &datagram),
            Op::SetSelf(_) | Op::Execute(..) => {}
        }
    }

    /// The neighbour's sleeve, at once.
    fn answer_sleeve(&mut self, neighbour: Ipv4Addr, heartbeat: &Bytes, datagram: u16) {
        if self.sleeves.get(&neighbour).is_some_and(|path| datagram <= *path) {
            let heard = sleeve::Heard::Reply { neighbour, heartbeat: heartbeat.clone(), datagram };
            self.switch.handle(self.now, Input::Sleeve(heard));
        }
    }

    /// The neighbour's kernel, at once.
    fn answer(&mut self, from: Ipv4Addr, datagram: &Bytes) {
        let frame = datagram.slice(8..);
        let Ok(heartbeat) = Heartbeat::decode(&frame) else { panic!("nonsense sent") };
        if heartbeat.is_reply() || self.answering.get(&from).is_none_or(|mtu| heartbeat.size > *mtu) {
            return;
        }
        let n = u16::from(from.octets()[3]);
        let reply = heartbeat.reply().datagram(short(US), short(n)).slice(8..);
        let key = remote(n, n, Mac::ZERO, Mac::ZERO);
        self.switch.handle(self.now, Input::Upcall(Upcall::Heartbeat { key, frame: reply }));
    }

    /// The datapath's list, with the same idle time for all.
    pub(super) fn list(&self, idle: Option<Time>) -> Input {
        let entry = |(key, action): (&FlowKey, &Action)| FlowEntry { key: *key, action: *action, packets: 1, bytes: 60, idle };
        Input::Flows(self.flows.iter().map(entry).collect())
    }

    pub(super) fn at(&self, mac: Mac) -> Option<Location> {
        self.switch.fdb.find(mac)
    }

    pub(super) fn announced(&self) -> Vec<Mac> {
        let macs = |output: &Output| if let Output::Announce(macs) = output { macs.clone() } else { vec![] };
        self.outputs.iter().flat_map(macs).collect()
    }
}
