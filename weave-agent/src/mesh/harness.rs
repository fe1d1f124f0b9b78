//! Several machines over pipes in memory, on one simulated clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Channel, Config, Input, LinkId, Mesh, Output, Target, View};
use crate::Time;
use crate::peer::{PeerName, PeerUid, ShortId};

pub(crate) const PORT: u16 = 6783;
const LATENCY: Duration = Duration::from_millis(1);
const TUNNEL: Duration = Duration::from_millis(50);

pub(crate) fn name(number: u8) -> PeerName {
    PeerName([2, 0, 0, 0, 0, number])
}

pub(crate) fn address(host: u8) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, host), PORT)
}

pub(crate) fn target(host: u8) -> Target {
    Target { name: format!("10.0.0.{host}"), addresses: vec![address(host)] }
}

pub(crate) fn config(number: u8, targets: &[u8]) -> Config {
    Config {
        name: name(number),
        uid: PeerUid(1000 + u64::from(number)),
        nickname: format!("host{number}"),
        short: ShortId::new(u16::from(number)),
        port: PORT,
        tunnel_port: 6784,
        discovery: true,
        connection_limit: 0,
        targets: targets.iter().map(|host| target(*host)).collect(),
    }
}

pub(crate) struct Host {
    pub(crate) mesh: Mesh,
    pub(crate) view: Option<Arc<View>>,
    pub(crate) views: Vec<(Time, Arc<View>)>,
    pub(crate) ups: Vec<PeerName>,
    pub(crate) downs: Vec<PeerName>,
    pub(crate) delivered: Vec<(Channel, PeerName, Bytes)>,
    pub(crate) dials: Vec<(Time, SocketAddrV4)>,
    pub(crate) shorts: Vec<ShortId>,
}

#[derive(Default)]
pub(crate) struct Net {
    pub(crate) now: Time,
    pub(crate) hosts: BTreeMap<u8, Host>,
    /// Each end of a pipe: whose it is, and the other end.
    pipes: BTreeMap<LinkId, (u8, LinkId)>,
    events: BTreeMap<(Time, u64), (u8, Input)>,
    /// Pairs that cannot open connections; low number first.
    pub(crate) blocked: BTreeSet<(u8, u8)>,
    next: u64,
}

impl Net {
    pub(crate) fn start(&mut self, host: u8, config: Config) {
        self.next += 1;
        let mut seed = [host; 32];
        seed[..8].copy_from_slice(&self.next.to_be_bytes());
        let machine = Host {
            mesh: Mesh::new(config, seed),
            view: None,
            views: Vec::new(),
            ups: Vec::new(),
            downs: Vec::new(),
            delivered: Vec::new(),
            dials: Vec::new(),
            shorts: Vec::new(),
        };
        self.hosts.insert(host, machine);
        self.drain(host);
    }

    /// Hosts 1 to `count`, each told about the first.
    pub(crate) fn star(count: u8) -> Self {
        let mut net = Self::default();
        for host in 1..=count {
            net.start(host, config(host, if host == 1 { &[] } else { &[1] }));
        }
        net
    }

    /// Hosts 1 to `count`, each told about the one before; nobody discovers more.
    pub(crate) fn line(count: u8) -> Self {
        let mut net = Self::default();
        for host in 1..=count {
            let mut config = config(host, if host == 1 { &[] } else { std::slice::from_ref(&SMALLER[usize::from(host)]) });
            config.discovery = false;
            net.start(host, config);
        }
        net
    }

    pub(crate) fn later(&mut self, after: Duration, host: u8, input: Input) {
        self.next += 1;
        self.events.insert((self.now + after, self.next), (host, input));
    }

    pub(crate) fn tell(&mut self, host: u8, input: Input) {
        self.hosts.get_mut(&host).unwrap().mesh.handle(self.now, input);
        self.drain(host);
    }

    /// A pair of pipe ends between hosts.
    fn pipe(&mut self, from: u8, to: u8) -> (LinkId, LinkId) {
        self.next += 2;
        let (a, b) = (LinkId(self.next - 1), LinkId(self.next));
        self.pipes.insert(a, (from, b));
        self.pipes.insert(b, (to, a));
        (a, b)
    }

    pub(crate) fn dial(&mut self, from: u8, to: SocketAddrV4) {
        let host = to.ip().octets()[3];
        if !self.hosts.contains_key(&host) || self.blocked.contains(&(from.min(host), from.max(host))) {
            self.later(LATENCY, from, Input::DialFailed { remote: to, error: "no route".to_owned() });
            return;
        }
        let (ours, theirs) = self.pipe(from, host);
        let local = SocketAddrV4::new(*address(from).ip(), 40000 + u16::try_from(ours.0 % 10000).unwrap());
        self.later(LATENCY, host, Input::Accepted { link: theirs, local: to, remote: local });
        self.later(LATENCY, from, Input::Dialled { link: ours, local, remote: to });
    }

    /// A connection from somebody who is no mesh; what we say comes to nobody.
    pub(crate) fn stranger(&mut self, host: u8) -> LinkId {
        let (ours, _) = self.pipe(host, 0);
        let remote = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 200), 1);
        self.tell(host, Input::Accepted { link: ours, local: address(host), remote });
        ours
    }

    fn drain(&mut self, host: u8) {
        while let Some(output) = self.hosts.get_mut(&host).unwrap().mesh.poll_output() {
            let state = self.hosts.get_mut(&host).unwrap();
            match output {
                Output::Dial(to) => {
                    state.dials.push((self.now, to));
                    self.dial(host, to);
                }
                Output::Send { link, bytes } => {
                    if let Some((_, other)) = self.pipes.get(&link).copied()
                        && let Some((to, _)) = self.pipes.get(&other).copied()
                    {
                        // Split, as TCP may.
                        let (first, second) = bytes.split_at(bytes.len() / 2);
                        self.later(LATENCY, to, Input::Received { link: other, bytes: Bytes::copy_from_slice(first) });
                        self.later(LATENCY, to, Input::Received { link: other, bytes: Bytes::copy_from_slice(second) });
                    }
                }
                Output::Close { link } => self.hang_up(link),
                Output::LinkUp(neighbour) => {
                    state.ups.push(neighbour.name);
                    self.later(TUNNEL, host, Input::Tunnel { peer: neighbour.name, up: true });
                }
                Output::LinkDown { peer } => state.downs.push(peer),
                Output::View(view) => {
                    state.views.push((self.now, view.clone()));
                    state.view = Some(view);
                }
                Output::Delivered { channel, from, payload } => state.delivered.push((channel, from, payload)),
                Output::Targets(_) => {}
                Output::ShortId(short) => state.shorts.push(short),
            }
        }
    }

    fn hang_up(&mut self, link: LinkId) {
        if let Some((_, other)) = self.pipes.remove(&link)
            && let Some((to, _)) = self.pipes.get(&other).copied()
        {
            self.later(LATENCY, to, Input::Closed { link: other, error: "closed by the peer".to_owned() });
        }
    }

    /// The process ends; its kernel closes its connections.
    pub(crate) fn kill(&mut self, host: u8) {
        self.hosts.remove(&host);
        let links: Vec<LinkId> = self.pipes.iter().filter(|(_, (owner, _))| *owner == host).map(|(id, _)| *id).collect();
        for link in links {
            self.hang_up(link);
        }
        self.events.retain(|_, (to, _)| *to != host);
    }

    /// The machine loses power: nobody is told.
    pub(crate) fn crash(&mut self, host: u8) {
        self.hosts.remove(&host);
        self.pipes.retain(|_, (owner, _)| *owner != host);
        self.events.retain(|_, (to, _)| *to != host);
    }

    /// Between two hosts nothing gets through any more.
    pub(crate) fn cut(&mut self, a: u8, b: u8) {
        self.blocked.insert((a.min(b), a.max(b)));
        let between: Vec<LinkId> = self
            .pipes
            .iter()
            .filter(|(_, (owner, other))| *owner == a && self.pipes.get(other).is_some_and(|(owner, _)| *owner == b))
            .map(|(id, _)| *id)
            .collect();
        for link in between {
            if let Some((_, other)) = self.pipes.remove(&link) {
                self.pipes.remove(&other);
            }
        }
        self.later(Duration::from_secs(2), a, Input::Tunnel { peer: name(b), up: false });
        self.later(Duration::from_secs(2), b, Input::Tunnel { peer: name(a), up: false });
    }

    pub(crate) fn heal(&mut self, a: u8, b: u8) {
        self.blocked.remove(&(a.min(b), a.max(b)));
    }

    pub(crate) fn run(&mut self, seconds: f64) {
        let end = self.now + Duration::from_secs_f64(seconds);
        let mut spins = 0;
        loop {
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let timer = self.hosts.iter().filter_map(|(host, state)| Some((state.mesh.poll_timeout()?, *host))).min();
            let at = [event, timer.map(|(at, _)| at)].into_iter().flatten().min().filter(|at| *at <= end);
            let Some(at) = at else { break };
            spins = if at > self.now { 0 } else { spins + 1 };
            assert!(spins < 100_000, "time stands still at {at:?}");
            self.now = self.now.max(at);
            if event == Some(at) {
                let (_, (host, input)) = self.events.pop_first().unwrap();
                // A tunnel works when both ends believe in it.
                let futile = matches!(input, Input::Tunnel { peer, up: true } if !self.linked(host, peer));
                if self.hosts.contains_key(&host) && !futile {
                    self.tell(host, input);
                }
            } else if let Some((_, host)) = timer {
                self.hosts.get_mut(&host).unwrap().mesh.handle_timeout(self.now);
                self.drain(host);
            }
        }
        self.now = end;
    }

    fn linked(&self, host: u8, peer: PeerName) -> bool {
        let has = |host: u8, peer: PeerName| self.hosts.get(&host).is_some_and(|host| host.mesh.neighbours.contains_key(&peer));
        has(host, peer) && has(peer.0[5], name(host))
    }

    pub(crate) fn view(&self, host: u8) -> &View {
        self.hosts[&host].view.as_deref().unwrap()
    }

    /// Whom a host's data plane reaches.
    pub(crate) fn reaches(&self, host: u8) -> BTreeSet<PeerName> {
        self.view(host).peers.iter().filter(|(_, peer)| peer.next_hop.is_some()).map(|(name, _)| *name).collect()
    }

    pub(crate) fn assert_all_reach_all(&self) {
        for host in self.hosts.keys() {
            let others: BTreeSet<PeerName> = self.hosts.keys().filter(|other| *other != host).map(|other| name(*other)).collect();
            assert_eq!(self.reaches(*host), others, "host {host} at {:?}", self.now);
        }
    }

    /// Each origin's tree reaches every host exactly once, and parents and hops agree.
    pub(crate) fn assert_trees(&self) {
        for origin in self.hosts.keys() {
            let mut got = BTreeMap::from([(*origin, 1)]);
            let mut todo = vec![*origin];
            while let Some(at) = todo.pop() {
                let view = self.view(at);
                let hops = if at == *origin { &view.hops } else { &view.peers[&name(*origin)].hops };
                for hop in hops {
                    let to = hop.0[5];
                    assert_eq!(self.view(to).peers[&name(*origin)].parent, Some(name(at)));
                    *got.entry(to).or_insert(0) += 1;
                    assert!(got[&to] == 1, "{to} gets {origin}'s flood twice");
                    todo.push(to);
                }
            }
            assert_eq!(got.len(), self.hosts.len(), "the tree of {origin}");
        }
    }
}

const SMALLER: [u8; 8] = [0, 0, 1, 2, 3, 4, 5, 6];
