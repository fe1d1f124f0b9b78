//! Stories: what happens, in which order, and how they must end.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use rand::RngExt;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::super::block::{Block, Family};
use super::super::{Config, Init, Input, Ipam, Snapshot};
use super::host::{name, owners};
use super::world::{Tally, World};
use crate::Time;

struct Case {
    world: World,
    rng: StdRng,
    next: u64,
    ranges: Vec<IpNet>,
}

/// Tells the story of one seed.
pub(super) fn run(seed: u64) -> Tally {
    let mut case = Case::new(seed);
    let steps = case.rng.random_range(20..120);
    for _ in 0..steps {
        case.step();
        let pause = if case.rng.random_ratio(1, 10) { 5000 } else { 400 };
        let pause = Time::from_millis(case.rng.random_range(0..pause));
        case.world.run(pause);
    }
    case.mend();
    case.check();
    case.use_everything();
    case.world.tally
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
        let count = rng.random_range(2..=6);
        let v4 = ["10.32.0.0/27", "10.32.0.0/26", "10.32.0.0/24"][rng.random_range(0..3)];
        let mut ranges: Vec<IpNet> = vec![v4.parse().unwrap()];
        if rng.random_ratio(1, 4) {
            ranges.push("fd00::/122".parse().unwrap());
        }
        let seeded = rng.random_ratio(1, 2);
        let observer = rng.random_ratio(1, 5).then(|| rng.random_range(0..count)).filter(|_| !seeded && count > 2);
        let config = |host| Config {
            name: name(host),
            nickname: format!("h{host}"),
            ranges: ranges.clone(),
            subnets: Vec::new(),
            init: match seeded {
                true => Init::Seed((0..count).map(name).collect()),
                false if observer == Some(host) => Init::Observer,
                false => Init::ConsensusOf(count - usize::from(observer.is_some())),
            },
            trusted: true,
        };
        let configs = (0..count).map(|host| config(host).checked().unwrap()).collect();
        let mut world = World::new(seed, configs);
        world.loss = [0, 0, 5, 20][rng.random_range(0..4)];
        for host in 0..count {
            if rng.random_ratio(1, 3) {
                world.hosts[host].disk_time = Time::from_millis(rng.random_range(50..1500));
            }
            world.launch(host, None, true);
        }
        Self { world, rng, next: 0, ranges }
    }

    fn any_host(&mut self) -> usize {
        self.rng.random_range(0..self.world.hosts.len())
    }

    fn step(&mut self) {
        let host = self.any_host();
        match self.rng.random_range(0..100) {
            0..=44 => self.start(host),
            45..=49 => self.claim(host),
            50..=69 => self.stop(host),
            70..=75 => self.crash_or_launch(host),
            76..=78 => self.split(),
            79..=81 => self.heal(),
            82..=84 => self.die(host),
            85..=87 => self.boot(host),
            88..=91 => self.remove(host),
            92..=94 => self.restore(host),
            95..=96 => self.jump(host),
            97 => self.rush(host),
            98 => self.bequeath(host),
            _ => self.burst(host),
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn deadline(&mut self) -> Time {
        self.world.now + Time::from_millis(self.rng.random_range(100..15_000))
    }

    /// A new container wants an address.
    fn start(&mut self, host: usize) {
        if self.world.hosts[host].agent.is_none() {
            return;
        }
        let (request, deadline) = (self.number(), self.deadline());
        let owner = format!("c{request}");
        self.world.hosts[host].containers.entry(owner.clone()).or_default();
        let input = Input::Allocate { request, owner: owner.clone(), subnets: Vec::new(), deadline };
        self.world.request(host, request, Some(owner), deadline, input);
    }

    fn burst(&mut self, host: usize) {
        for _ in 0..self.rng.random_range(5..30) {
            self.start(host);
        }
    }

    /// Many want addresses, and hosts crash while they write that down.
    fn rush(&mut self, host: usize) {
        self.burst(host);
        self.world.run(Time::from_millis(self.rng.random_range(5..200)));
        let writing: Vec<usize> = (0..self.world.hosts.len()).filter(|host| self.world.hosts[*host].storing.is_some()).collect();
        for host in writing {
            self.world.crash(host);
            self.world.launch(host, None, true);
            self.burst(host);
        }
    }

    /// A host gives space to others, dies, and is removed by one who was away and heard nothing of that.
    fn bequeath(&mut self, remover: usize) {
        let victim = self.any_host();
        self.heal();
        self.world.run(Time::from_millis(500));
        if victim == remover || self.world.hosts[victim].agent.is_none() {
            return;
        }
        self.world.hosts[remover].group = 1;
        self.world.views();
        for host in (0..self.world.hosts.len()).filter(|host| ![victim, remover].contains(host)) {
            self.burst(host);
        }
        self.world.run(Time::from_millis(800));
        self.die(victim);
        self.world.run(Time::from_millis(400));
        self.remove(remover);
        self.burst(remover);
        self.burst(remover);
    }

    fn any_address(&mut self) -> IpNet {
        let range = self.ranges[self.rng.random_range(0..self.ranges.len())];
        let hosts = Block::hosts(range);
        let address = Family::of(range.addr()).address(self.rng.random_range(hosts.start..hosts.end));
        IpNet::new(address, range.prefix_len()).unwrap()
    }

    fn claim(&mut self, host: usize) {
        if self.world.hosts[host].agent.is_none() {
            return;
        }
        let (request, deadline, address) = (self.number(), self.deadline(), self.any_address());
        let owner = format!("c{request}");
        self.world.hosts[host].containers.entry(owner.clone()).or_default();
        self.world.tally.claimed += 1;
        let input = Input::Claim { request, owner: owner.clone(), address, deadline };
        self.world.request(host, request, Some(owner), deadline, input);
    }

    fn stop(&mut self, host: usize) {
        let owners: Vec<String> = self.world.hosts[host].containers.keys().cloned().collect();
        if owners.is_empty() {
            return;
        }
        let owner = owners[self.rng.random_range(0..owners.len())].clone();
        self.world.hosts[host].containers.remove(&owner);
        self.world.input(host, Input::Free { owner });
    }

    fn crash_or_launch(&mut self, host: usize) {
        let here = &self.world.hosts[host];
        if here.agent.is_some() {
            self.world.crash(host);
            if self.rng.random() {
                self.world.launch(host, None, true);
            }
        } else if !here.dead {
            self.world.launch(host, None, true);
        }
    }

    /// The clock jumps, as after a long sleep. What is late by that is answered at once.
    fn jump(&mut self, host: usize) {
        let by = Time::from_secs(self.rng.random_range(1..200));
        self.world.note(|| format!("jump {host} {by:?}"));
        let now = self.world.now;
        let here = &mut self.world.hosts[host];
        here.ahead += by;
        here.requests.values_mut().for_each(|request| request.deadline = request.deadline.max(now + here.ahead));
    }

    fn split(&mut self) {
        for host in 0..self.world.hosts.len() {
            self.world.hosts[host].group = self.rng.random_range(0..3);
        }
        self.world.note(|| "split".into());
        self.world.views();
    }

    fn heal(&mut self) {
        self.world.hosts.iter_mut().for_each(|host| host.group = 0);
        self.world.note(|| "heal".into());
        self.world.views();
    }

    /// The machine goes off, and all containers with it.
    fn die(&mut self, host: usize) {
        if self.world.hosts[host].agent.is_some() {
            self.world.crash(host);
        }
        self.world.note(|| format!("die {host}"));
        self.world.hosts[host].containers.clear();
        self.world.hosts[host].dead = true;
    }

    fn boot(&mut self, host: usize) {
        if self.world.hosts[host].dead {
            self.world.tally.booted += 1;
            self.world.launch(host, None, false);
        }
    }

    /// `rmpeer` of a dead host, where that can be known to be right: see the module.
    fn remove(&mut self, host: usize) {
        let hosts = &self.world.hosts;
        let dead = (0..hosts.len()).find(|other| hosts[*other].dead && !hosts[*other].removed && !hosts[*other].remover);
        let Some(victim) = dead.filter(|_| hosts[host].agent.is_some()) else { return };
        let known = hosts[host].owners();
        let all_known = (0..hosts.len()).all(|other| hosts[other].removed || known.contains(&name(other)));
        let knows = hosts[victim].disk.as_ref().is_some_and(|disk| owners(disk).contains(&name(host)));
        if !all_known || !knows {
            return;
        }
        self.world.note(|| format!("rmpeer {victim} on {host}"));
        self.world.hosts[victim].removed = true;
        self.world.hosts[host].remover = true;
        self.world.tally.removed += 1;
        let (request, deadline) = (self.number(), self.deadline());
        let input = Input::Remove { request, peer: name(victim).to_string(), deadline };
        self.world.request(host, request, None, deadline, input);
    }

    /// An agent starts from an old state, its containers still there.
    fn restore(&mut self, host: usize) {
        let everybody: BTreeSet<_> = (0..self.world.hosts.len()).map(name).collect();
        let here = &self.world.hosts[host];
        let complete: Vec<Snapshot> = here.history.iter().filter(|snapshot| owners(snapshot) == everybody).cloned().collect();
        if complete.is_empty() || here.removed || here.remover {
            return;
        }
        let old = complete[self.rng.random_range(0..complete.len())].clone();
        if here.agent.is_some() {
            self.world.crash(host);
        }
        self.world.tally.restored += 1;
        // Time for what is on its way to arrive, or to be lost.
        self.world.run(Time::from_secs(2));
        self.world.launch(host, Some(old), false);
    }

    /// Everything is up and connected, and there is time.
    fn mend(&mut self) {
        self.world.loss = 0;
        for host in 0..self.world.hosts.len() {
            self.world.hosts[host].disk_time = Time::from_millis(10);
            if self.world.hosts[host].dead {
                self.boot(host);
            } else if self.world.hosts[host].agent.is_none() {
                self.world.launch(host, None, true);
            }
        }
        self.heal();
        self.world.run(Time::from_secs(120));
    }

    fn agents(&self) -> Vec<&Ipam> {
        self.world.hosts.iter().map(|host| host.agent.as_ref().unwrap()).collect()
    }

    fn check(&mut self) {
        self.check_rings();
        for (host, here) in self.world.hosts.iter().enumerate() {
            assert!(here.requests.is_empty(), "requests of host {host} wait for ever: {:?}", here.requests);
            let agent = here.agent.as_ref().unwrap();
            let status = agent.status(self.world.now + here.ahead);
            assert!(!agent.quarantined, "host {host} waits for {:?}", status.quarantined_for);
            assert_eq!((status.conflicts, status.displaced, status.foreign), (vec![], vec![], vec![]), "host {host}");
        }
        // A request that failed only because its time was up may have left its address with the owner; now all end.
        for host in 0..self.world.hosts.len() {
            let present = self.world.hosts[host].present().into_iter().filter(|(_, held)| !held.is_empty()).collect();
            self.world.input(host, Input::Reconcile { present });
            let here = &self.world.hosts[host];
            let used: BTreeSet<IpAddr> = here.agent.as_ref().unwrap().users.keys().copied().collect();
            let held: BTreeSet<IpAddr> = here.containers.values().flat_map(|held| held.keys().copied()).collect();
            assert_eq!(used, held, "host {host}");
        }
    }

    fn check_rings(&self) {
        let agents = self.agents();
        for (host, agent) in agents.iter().enumerate() {
            assert!(agent.rings().eq(agents[0].rings()), "hosts {host} and 0 disagree: {:?} {:?}", agent.spaces, agents[0].spaces);
            let pieces: usize = agent.rings().map(|ring| ring.tokens().len()).sum();
            assert!(pieces <= 300, "{pieces} pieces");
        }
    }

    /// Frees all, and allocates the whole range, each host what it can get.
    fn use_everything(&mut self) {
        for host in 0..self.world.hosts.len() {
            self.world.hosts[host].containers.clear();
            self.world.input(host, Input::Reconcile { present: Default::default() });
        }
        self.world.run(Time::from_secs(40));
        let usable = u64::try_from(Block::hosts(self.ranges[0]).size()).unwrap();
        let first = self.any_host();
        let order: Vec<usize> = (0..self.world.hosts.len()).map(|n| (first + n) % self.world.hosts.len()).collect();
        let before = self.world.tally.allocated;
        for host in order {
            self.fill(host);
        }
        assert_eq!(self.world.tally.allocated - before, usable, "not all of the range could be allocated");
        let grants: u64 = self.agents().iter().map(|agent| agent.counters.grants).sum();
        self.world.tally.granted += grants;
        self.check_rings_soon();
    }

    fn check_rings_soon(&mut self) {
        self.world.run(Time::from_secs(40));
        self.check_rings();
    }

    /// Allocates on one host until it gets no more.
    fn fill(&mut self, host: usize) {
        loop {
            let before = self.world.tally.allocated;
            let request = self.number();
            let (owner, deadline) = (format!("c{request}"), self.world.now + Time::from_secs(20));
            self.world.hosts[host].containers.entry(owner.clone()).or_default();
            let subnets = vec![self.ranges[0]];
            let input = Input::Allocate { request, owner: owner.clone(), subnets, deadline };
            self.world.request(host, request, Some(owner), deadline, input);
            while self.world.hosts[host].requests.contains_key(&request) {
                self.world.run(Time::from_millis(20));
            }
            if self.world.tally.allocated == before {
                return;
            }
        }
    }
}
