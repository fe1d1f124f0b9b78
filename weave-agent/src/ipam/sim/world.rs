//! The network, the disks, the clock, and what must hold at any time.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::{Answer, Config, Error, Input, Ipam, Output, Snapshot};
use super::host::{Host, Request, name};
use crate::Time;
use crate::mesh::{PeerView, View};

/// What happened in a story, or in all.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) allocated: u64,
    pub(super) claimed: u64,
    pub(super) refused: BTreeMap<&'static str, u64>,
    pub(super) granted: u64,
    pub(super) removed: u64,
    pub(super) restored: u64,
    pub(super) booted: u64,
    pub(super) crashed: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.allocated += other.allocated;
        self.claimed += other.claimed;
        self.granted += other.granted;
        self.removed += other.removed;
        self.restored += other.restored;
        self.booted += other.booted;
        self.crashed += other.crashed;
        for (why, count) in &other.refused {
            *self.refused.entry(why).or_default() += count;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { allocated, claimed, refused, granted, removed, restored, booted, crashed } = self;
        write!(f, "allocated {allocated}, claimed {claimed}, granted {granted}, removed {removed}, restored {restored}, ")?;
        write!(f, "booted {booted}, crashed {crashed}, refused {refused:?}")
    }
}

enum Event {
    Delivered { from: usize, payload: Bytes },
    Stored { number: u64, snapshot: Arc<Snapshot> },
    View,
}

pub(super) struct World {
    pub(super) now: Time,
    pub(super) rng: StdRng,
    pub(super) hosts: Vec<Host>,
    queue: BTreeMap<(Time, u64), (usize, u64, Event)>,
    sequence: u64,
    pub(super) tally: Tally,
    /// Of 100 messages so many are lost.
    pub(super) loss: u32,
    log: bool,
}

impl World {
    pub(super) fn new(seed: u64, configs: Vec<Config>) -> Self {
        Self {
            now: Time::from_secs(1000),
            rng: StdRng::seed_from_u64(seed),
            hosts: configs.into_iter().map(Host::new).collect(),
            queue: BTreeMap::new(),
            sequence: 0,
            tally: Tally::default(),
            loss: 0,
            log: std::env::var_os("IPAM_SIM_SEED").is_some(),
        }
    }

    pub(super) fn note(&self, text: impl FnOnce() -> String) {
        if self.log {
            println!("{:9.3} {}", self.now.as_secs_f64(), text());
        }
    }

    fn clock(&self, host: usize) -> Time {
        self.now + self.hosts[host].ahead
    }

    fn connected(&self, a: usize, b: usize) -> bool {
        let up = |host: usize| self.hosts[host].agent.is_some();
        a != b && up(a) && up(b) && self.hosts[a].group == self.hosts[b].group
    }

    fn later(&mut self, most: Time, host: usize, event: Event) {
        self.sequence += 1;
        let wait = Time::from_millis(self.rng.random_range(1..=u64::try_from(most.as_millis()).unwrap().max(1)));
        self.queue.insert((self.now + wait, self.sequence), (host, self.hosts[host].start, event));
    }

    /// Starts an agent; `from`: what its disk holds is replaced before.
    pub(super) fn launch(&mut self, host: usize, from: Option<Snapshot>, trusted: bool) {
        self.note(|| format!("launch {host} trusted {trusted} old {}", from.is_some()));
        let seed = self.rng.random();
        let here = &mut self.hosts[host];
        assert!(here.agent.is_none());
        if from.is_some() {
            here.disk = from;
        }
        here.suspect |= !trusted;
        let trusted = !here.suspect;
        (here.dead, here.removed) = (false, false);
        here.start += 1;
        let config = Config { trusted, ..here.config.clone() };
        here.agent = Some(Ipam::new(config, here.disk.clone(), seed));
        let mut present = here.present();
        if trusted {
            // What was answered may not be configured yet; the state must know it all the same.
            for addresses in present.values_mut() {
                addresses.retain(|_| self.rng.random());
            }
        }
        self.input(host, Input::Reconcile { present });
        self.views();
    }

    /// Ends an agent. What it was writing is on disk, or is not.
    pub(super) fn crash(&mut self, host: usize) {
        self.note(|| format!("crash {host}"));
        let written = self.rng.random();
        let here = &mut self.hosts[host];
        here.agent = None;
        here.start += 1;
        here.requests.clear();
        if let Some(snapshot) = here.storing.take().filter(|_| written) {
            here.write(snapshot);
        }
        self.tally.crashed += 1;
        self.views();
    }

    /// Everybody will learn who is there.
    pub(super) fn views(&mut self) {
        for host in 0..self.hosts.len() {
            self.later(Time::from_millis(300), host, Event::View);
        }
    }

    fn view(&self, host: usize) -> View {
        let peers = (0..self.hosts.len()).filter(|other| self.connected(host, *other));
        let peer = |other: usize| {
            let nickname = format!("h{other}");
            (name(other), PeerView { nickname, next_hop: Some(name(other)), linked: true, ..PeerView::default() })
        };
        View { name: name(host), short: crate::peer::ShortId::new(1).unwrap(), peers: peers.map(peer).collect(), hops: Vec::new() }
    }

    pub(super) fn request(&mut self, host: usize, number: u64, owner: Option<String>, deadline: Time, input: Input) {
        let deadline_there = deadline + self.hosts[host].ahead;
        self.hosts[host].requests.insert(number, Request { owner, deadline: deadline_there });
        self.input(host, with_deadline(input, deadline_there));
    }

    pub(super) fn input(&mut self, host: usize, input: Input) {
        let clock = self.clock(host);
        if let Some(agent) = &mut self.hosts[host].agent {
            agent.handle(clock, input);
            self.drain(host);
        }
    }

    fn drain(&mut self, host: usize) {
        let mut outputs = VecDeque::new();
        while let Some(output) = self.hosts[host].agent.as_mut().and_then(Ipam::poll_output) {
            outputs.push_back(output);
        }
        for output in outputs {
            self.output(host, output);
        }
    }

    fn output(&mut self, host: usize, output: Output) {
        match output {
            Output::Answer { request, result } => self.answer(host, request, result),
            Output::Store { number, snapshot } => {
                self.hosts[host].storing = Some(Snapshot::clone(&snapshot));
                let most = self.hosts[host].disk_time;
                self.later(most, host, Event::Stored { number, snapshot });
            }
            Output::Broadcast(payload) | Output::Gossip(payload) => {
                (0..self.hosts.len()).for_each(|to| self.send(host, to, payload.clone()));
            }
            Output::Unicast { to, payload } => self.send(host, usize::from(to.0[5]) - 1, payload),
        }
    }

    fn send(&mut self, from: usize, to: usize, payload: Bytes) {
        if self.connected(from, to) && self.rng.random_range(0..100) >= self.loss {
            self.later(Time::from_millis(40), to, Event::Delivered { from, payload });
        }
    }

    fn answer(&mut self, host: usize, number: u64, result: Result<Answer, Error>) {
        self.note(|| {
            let agent = self.hosts[host].agent.as_ref().unwrap();
            let free: Vec<_> = agent.spaces.iter().map(|space| space.count_free(agent.config.name, space.block())).collect();
            format!("answer {host} {number} {result:?} free {free:?} quarantined {}", agent.quarantined)
        });
        let clock = self.clock(host);
        let request = self.hosts[host].requests.remove(&number).expect("one answer to each request");
        assert!(clock <= request.deadline, "host {host} answered request {number} too late");
        match (result, request.owner) {
            (Ok(Answer::Addresses(addresses)), Some(owner)) => {
                self.tally.allocated += 1;
                addresses.into_iter().for_each(|address| self.hold(host, &owner, address));
            }
            (Err(error), _) => *self.tally.refused.entry(kind(&error)).or_default() += 1,
            _ => {}
        }
    }

    fn hold(&mut self, host: usize, owner: &str, net: ipnet::IpNet) {
        for (other, there) in self.hosts.iter().enumerate() {
            if let Some(user) = there.holds(net.addr()) {
                assert!(other == host && user == owner, "{net} is held by {user} on {other} and by {owner} on {host}");
            }
        }
        let held = self.hosts[host].containers.get_mut(owner).expect("nothing for a container that is gone");
        held.insert(net.addr(), net);
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Time) {
        let end = self.now + time;
        for step in 0.. {
            assert!(step < 200_000, "the replicas do not come to rest");
            let timer = (0..self.hosts.len()).filter_map(|host| Some((self.due(host)?, host))).min();
            let event = self.queue.first_key_value().map(|((at, _), _)| *at);
            match (event, timer) {
                (Some(at), timer) if at <= end && timer.is_none_or(|(due, _)| at <= due) => self.event(at),
                (_, Some((due, host))) if due <= end => {
                    self.now = due;
                    let clock = self.clock(host);
                    if let Some(agent) = &mut self.hosts[host].agent {
                        agent.handle_timeout(clock);
                        assert!(agent.poll_timeout().is_none_or(|next| next > clock), "a timer of host {host} fires for ever");
                    }
                    self.drain(host);
                }
                _ => break,
            }
        }
        self.now = end;
        self.assert_punctual();
    }

    /// When a host's timer fires, on the world's clock.
    fn due(&self, host: usize) -> Option<Time> {
        let here = &self.hosts[host];
        Some(here.agent.as_ref()?.poll_timeout()?.saturating_sub(here.ahead).max(self.now))
    }

    fn event(&mut self, at: Time) {
        let (_, (host, start, event)) = self.queue.pop_first().unwrap();
        self.now = at;
        if start != self.hosts[host].start || self.hosts[host].agent.is_none() {
            return;
        }
        match event {
            Event::Delivered { from, payload } => {
                if self.connected(from, host) {
                    self.input(host, Input::Delivered { from: name(from), payload });
                }
            }
            Event::Stored { number, snapshot } => {
                self.hosts[host].storing = None;
                self.hosts[host].write(Snapshot::clone(&snapshot));
                self.input(host, Input::Stored(number));
            }
            Event::View => {
                let view = self.view(host);
                self.input(host, Input::View(Arc::new(view)));
            }
        }
    }

    fn assert_punctual(&self) {
        for (host, here) in self.hosts.iter().enumerate() {
            let late = here.requests.iter().find(|(_, request)| request.deadline < self.clock(host));
            assert!(late.is_none(), "host {host} did not answer {late:?}");
        }
    }
}

fn with_deadline(input: Input, to: Time) -> Input {
    match input {
        Input::Allocate { request, owner, subnets, .. } => Input::Allocate { request, owner, subnets, deadline: to },
        Input::Claim { request, owner, address, .. } => Input::Claim { request, owner, address, deadline: to },
        Input::Remove { request, peer, .. } => Input::Remove { request, peer, deadline: to },
        other => other,
    }
}

fn kind(error: &Error) -> &'static str {
    match error {
        Error::NoRing { .. } | Error::NothingToObserve { .. } => "no ring",
        Error::Full { .. } => "full",
        Error::Unreachable { .. } => "unreachable",
        Error::NotInTime { .. } => "not in time",
        Error::Quarantined { .. } => "quarantined",
        Error::Taken { .. } => "taken",
        Error::TakenElsewhere { .. } => "taken elsewhere",
        Error::HolderUnreachable { .. } => "holder unreachable",
        Error::HolderSilent { .. } => "holder silent",
        Error::RemovalWaits { .. } => "removal waits",
        Error::PeerReachable(_) | Error::PeerCarries(_) => "reachable",
        Error::NotStored => "not stored",
        Error::Cancelled => "cancelled",
        _ => "other",
    }
}
