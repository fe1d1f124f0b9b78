//! A few meshes on one table: pipes for TCP, a rule for tunnels, virtual time. The stories are in `scenarios`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use bytes::Bytes;

use super::{Config, Input, LinkId, Mesh, Neighbour, Output, Status, Target, View};
use crate::Time;
use crate::peer::{PeerName, PeerUid};

const LATENCY: Time = Time::from_millis(1);
/// What the switch takes to find that a tunnel works.
const TUNNEL_UP: Time = Time::from_millis(100);
/// What it takes to find that one does not.
const TUNNEL_DOWN: Time = Time::from_millis(1500);

/// More than this for each host, and it never ends.
const STEPS: usize = 200_000;

pub(super) struct World {
    pub(super) now: Time,
    pub(super) meshes: Vec<Mesh>,
    pub(super) queue: BTreeMap<(Time, u64), (usize, u64, Input)>,
    /// How often each host's agent was started: what was on its way to an earlier one is lost.
    pub(super) starts: Vec<u64>,
    sequence: u64,
    /// Both ends of a link; each knows it by the number it is listed with.
    pub(super) pipes: BTreeMap<(usize, LinkId), (usize, LinkId)>,
    /// Pairs of hosts between which nothing passes, and nobody is told.
    pub(super) cut: BTreeSet<(usize, usize)>,
    /// Neighbours that each host's switch probes.
    probed: BTreeMap<usize, BTreeMap<PeerName, usize>>,
    pub(super) delivered: Vec<Vec<(PeerName, Bytes)>>,
    pub(super) dials: Vec<usize>,
    /// Bytes that each host has given to its links.
    pub(super) sent: Vec<usize>,
    pub(super) told: Vec<Vec<(PeerName, Bytes)>>,
    pub(super) neighbours: BTreeMap<(usize, PeerName), Neighbour>,
    /// Who said when that a link is up or down.
    pub(super) up_and_down: Vec<(usize, bool)>,
}

pub(super) fn name(host: usize) -> PeerName {
    let [high, low] = u16::try_from(host).unwrap().to_be_bytes();
    PeerName([2, 0, 0, 0, high, low])
}

pub(super) fn address(host: usize) -> SocketAddrV4 {
    let [high, low] = u16::try_from(host).unwrap().to_be_bytes();
    SocketAddrV4::new([10, 0, high, low].into(), 6783)
}

/// Whose address it is.
fn host_at(address: Ipv4Addr) -> usize {
    let [.., high, low] = address.octets();
    usize::from(u16::from_be_bytes([high, low]))
}

fn seed(host: usize) -> [u8; 32] {
    let [high, low] = u16::try_from(host).unwrap().to_be_bytes();
    let mut seed = [low; 32];
    seed[0] ^= high;
    seed
}

pub(super) fn target(host: usize) -> Target {
    Target { name: format!("host{host}"), addresses: vec![address(host)] }
}

pub(super) fn config(host: usize, targets: &[usize]) -> Config {
    Config {
        name: name(host),
        uid: PeerUid(1000 + host as u64),
        nickname: format!("host{host}"),
        short: None,
        port: 6783,
        tunnel_port: 6784,
        sleeve_port: 6783,
        aes: true,
        esp: false,
        big_tcp: false,
        passwords: Vec::new(),
        trusted_subnets: Vec::new(),
        discovery: true,
        connection_limit: 200,
        targets: targets.iter().copied().map(target).collect(),
    }
}

pub(super) const fn seconds(seconds: u64) -> Time {
    Time::from_secs(seconds)
}

pub(super) const fn millis(millis: u64) -> Time {
    Time::from_millis(millis)
}

/// When each host wants to be woken.
struct Timers {
    due: Vec<Option<Time>>,
    order: BTreeSet<(Time, usize)>,
}

impl Timers {
    fn of(meshes: &[Mesh]) -> Self {
        let mut timers = Self { due: vec![None; meshes.len()], order: BTreeSet::new() };
        meshes.iter().enumerate().for_each(|(host, mesh)| timers.set(host, mesh.poll_timeout()));
        timers
    }

    fn set(&mut self, host: usize, due: Option<Time>) {
        if let Some(due) = std::mem::replace(&mut self.due[host], due) {
            self.order.remove(&(due, host));
        }
        self.order.extend(due.map(|due| (due, host)));
    }

    fn first(&self) -> Option<(Time, usize)> {
        self.order.first().copied()
    }
}

impl World {
    pub(super) fn new(configs: Vec<Config>) -> Self {
        let count = configs.len();
        let meshes = configs.into_iter().enumerate().map(|(host, config)| Mesh::new(config, seed(host)));
        Self {
            now: seconds(1000),
            meshes: meshes.collect(),
            queue: BTreeMap::new(),
            starts: vec![0; count],
            sequence: 0,
            pipes: BTreeMap::new(),
            cut: BTreeSet::new(),
            probed: BTreeMap::new(),
            delivered: vec![Vec::new(); count],
            told: vec![Vec::new(); count],
            neighbours: BTreeMap::new(),
            dials: vec![0; count],
            sent: vec![0; count],
            up_and_down: Vec::new(),
        }
    }

    /// Each host has all lower ones as targets.
    pub(super) fn full(count: usize) -> Self {
        Self::new((0..count).map(|host| config(host, &(0..host).collect::<Vec<_>>())).collect())
    }

    /// Each host has the one before it as target, and looks no further.
    pub(super) fn line(count: usize) -> Self {
        let one = |host: usize| Config { discovery: false, ..config(host, &host.checked_sub(1).into_iter().collect::<Vec<_>>()) };
        Self::new((0..count).map(one).collect())
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    fn later(&mut self, after: Time, host: usize, input: Input) {
        self.sequence += 1;
        self.queue.insert((self.now + after, self.sequence), (host, self.starts[host], input));
    }

    pub(super) fn input(&mut self, host: usize, input: Input) {
        self.meshes[host].handle(self.now, input);
        self.drain(host);
    }

    pub(super) fn run(&mut self, time: Time) {
        let end = self.now + time;
        let mut timers = Timers::of(&self.meshes);
        for step in 0.. {
            assert!(step < STEPS * self.meshes.len(), "the mesh does not come to rest");
            let timer = timers.first().map(|(due, host)| (due.max(self.now), host));
            let event = self.queue.first_key_value().map(|((at, _), _)| *at);
            let host = match (event, timer) {
                (Some(at), timer) if at <= end && timer.is_none_or(|(due, _)| at <= due) => self.event(at),
                (_, Some((due, host))) if due <= end => {
                    self.now = due;
                    self.meshes[host].handle_timeout(due);
                    self.drain(host);
                    host
                }
                _ => break,
            };
            timers.set(host, self.meshes[host].poll_timeout());
        }
        self.now = end;
    }

    /// Whose it was.
    fn event(&mut self, at: Time) -> usize {
        let (_, (host, start, input)) = self.queue.pop_first().unwrap();
        self.now = at;
        if start == self.starts[host] {
            self.input(host, input);
        }
        host
    }

    fn drain(&mut self, host: usize) {
        while let Some(output) = self.meshes[host].poll_output() {
            self.output(host, output);
        }
    }

    fn output(&mut self, host: usize, output: Output) {
        match output {
            Output::Dial(to) => self.dial(host, to),
            Output::Send { link, bytes } => self.send(host, link, bytes),
            Output::Close { link } => self.close(host, link),
            Output::LinkUp(neighbour) => {
                self.up_and_down.push((host, true));
                let there = host_at(neighbour.remote);
                self.neighbours.insert((host, neighbour.name), neighbour.clone());
                self.probed.entry(host).or_default().insert(neighbour.name, there);
                if !self.is_cut(host, there) {
                    self.later(TUNNEL_UP, host, Input::Tunnel { peer: neighbour.name, up: true });
                }
            }
            Output::LinkDown { .. } => self.up_and_down.push((host, false)),
            Output::Delivered { from, payload, .. } => self.delivered[host].push((from, payload)),
            Output::Told { peer, payload } => self.told[host].push((peer, payload)),
            Output::View(_) | Output::Targets(_) | Output::ShortId(_) => {}
        }
    }

    fn dial(&mut self, host: usize, remote: SocketAddrV4) {
        self.dials[host] += 1;
        let to = host_at(*remote.ip());
        if to >= self.meshes.len() || self.is_cut(host, to) || remote.port() != 6783 {
            return self.later(seconds(1), host, Input::DialFailed { remote, error: "no answer".into() });
        }
        self.sequence += 1;
        let (a, b) = (LinkId(2 * self.sequence), LinkId(2 * self.sequence + 1));
        self.pipes.insert((host, a), (to, b));
        self.pipes.insert((to, b), (host, a));
        let local = SocketAddrV4::new(*address(host).ip(), 40_000);
        self.later(2 * LATENCY, host, Input::Dialled { link: a, local, remote });
        self.later(LATENCY, to, Input::Accepted { link: b, local: remote, remote: local });
    }

    fn send(&mut self, host: usize, link: LinkId, bytes: Bytes) {
        let Some((to, link)) = self.pipes.get(&(host, link)).copied().filter(|(to, _)| !self.is_cut(host, *to)) else { return };
        self.sent[host] += bytes.len();
        // Split, as TCP may.
        for chunk in bytes.chunks(1000) {
            self.later(2 * LATENCY, to, Input::Received { link, bytes: Bytes::copy_from_slice(chunk) });
        }
    }

    pub(super) fn close(&mut self, host: usize, link: LinkId) {
        if let Some((to, other)) = self.pipes.remove(&(host, link)) {
            self.pipes.remove(&(to, other));
            if !self.is_cut(host, to) {
                self.later(2 * LATENCY, to, Input::Closed { link: other, error: "end of stream".into() });
            }
        }
    }

    pub(super) fn cut(&mut self, a: usize, b: usize) {
        self.cut.insert((a.min(b), a.max(b)));
        self.tunnels(a, b, false, TUNNEL_DOWN);
    }

    pub(super) fn heal(&mut self, a: usize, b: usize) {
        self.cut.remove(&(a.min(b), a.max(b)));
        // After what an earlier cut had in store.
        self.tunnels(a, b, true, TUNNEL_DOWN + TUNNEL_UP);
    }

    fn tunnels(&mut self, a: usize, b: usize, up: bool, after: Time) {
        for (host, there) in [(a, b), (b, a)] {
            let peers: Vec<_> = self.probed.get(&host).into_iter().flatten().filter(|(_, at)| **at == there).map(|(p, _)| *p).collect();
            for peer in peers {
                self.later(after, host, Input::Tunnel { peer, up });
            }
        }
    }

    /// The agent of `host` is replaced by one with another uid; tunnels go on. `silently`: as after a power cut.
    pub(super) fn restart(&mut self, host: usize, config: Config, silently: bool) {
        self.starts[host] += 1;
        let links: Vec<_> = self.pipes.keys().filter(|(at, _)| *at == host).map(|(_, link)| *link).collect();
        for link in links {
            if silently {
                self.pipes.remove(&(host, link)).and_then(|other| self.pipes.remove(&other));
            } else {
                self.close(host, link);
            }
        }
        self.probed.remove(&host);
        self.delivered[host].clear();
        let seed = [u8::try_from(self.starts[host]).unwrap() ^ 0x80; 32];
        self.meshes[host] = Mesh::new(config, seed);
    }

    pub(super) fn view(&self, host: usize) -> &View {
        self.meshes[host].view.as_ref().unwrap()
    }

    pub(super) fn status(&self, host: usize) -> Status {
        self.meshes[host].status(self.now)
    }

    /// Of what one host says of itself, as another knows it.
    pub(super) fn version(&self, host: usize, of: usize) -> Option<u64> {
        self.meshes[host].topology.get(name(of)).map(|record| record.version)
    }

    pub(super) fn next_hop(&self, from: usize, to: usize) -> Option<PeerName> {
        self.view(from).peers.get(&name(to)).and_then(|peer| peer.next_hop)
    }

    pub(super) fn links(&self, host: usize) -> usize {
        self.meshes[host].neighbours().len()
    }

    /// What every peer says of itself, as `host` knows it.
    pub(super) fn records(&self, host: usize) -> String {
        serde_json::to_string(&self.status(host).peers).unwrap()
    }

    pub(super) fn assert_agreed(&self) {
        for host in 1..self.meshes.len() {
            assert_eq!(self.records(host), self.records(0), "hosts {host} and 0 disagree");
        }
    }

    pub(super) fn assert_full(&self) {
        self.assert_agreed();
        for (from, to) in self.pairs() {
            assert_eq!(self.next_hop(from, to), Some(name(to)), "from {from} to {to}");
        }
    }

    pub(super) fn pairs(&self) -> Vec<(usize, usize)> {
        let count = self.meshes.len();
        (0..count * count).map(|n| (n % count, n / count)).filter(|(a, b)| a != b).collect()
    }
}
