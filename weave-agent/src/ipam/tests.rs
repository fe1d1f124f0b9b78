//! One thing at a time: a few replicas whose messages and stores are carried by hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::sim::name;
use super::{Answer, Config, Error, Init, Input, Ipam, Output, RingState, Snapshot, Status};
use crate::Time;
use crate::mesh::{PeerView, View};
use crate::peer::ShortId;

const RANGE: &str = "10.32.0.0/24";

/// Replicas that hear each other at once, unless they are in `away`.
struct Table {
    now: Time,
    replicas: Vec<Ipam>,
    away: Vec<usize>,
    /// Disks that do not answer.
    stuck: Vec<usize>,
    disks: Vec<Option<Arc<Snapshot>>>,
    answers: BTreeMap<u64, Result<Answer, Error>>,
    /// Bytes of messages so far.
    said: usize,
}

fn config(host: usize, ranges: &[&str], init: Init) -> Config {
    let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    let config = Config { name: name(host), nickname: format!("h{host}"), ranges, subnets: Vec::new(), init, trusted: true };
    config.checked().unwrap()
}

fn seeded(count: usize) -> Vec<Config> {
    (0..count).map(|host| config(host, &[RANGE], Init::Seed((0..count).map(name).collect()))).collect()
}

fn nets(list: &[&str]) -> Vec<IpNet> {
    list.iter().map(|net| net.parse().unwrap()).collect()
}

fn allocate(request: u64, subnets: &[&str]) -> Input {
    Input::Allocate { request, owner: format!("c{request}"), subnets: nets(subnets), deadline: Time::from_secs(10) }
}

fn claim(request: u64, address: &str) -> Input {
    Input::Claim { request, owner: format!("c{request}"), address: address.parse().unwrap(), deadline: Time::from_secs(10) }
}

impl Table {
    fn new(configs: Vec<Config>) -> Self {
        let count = configs.len();
        let replica = |(host, config): (usize, Config)| Ipam::new(config, None, [u8::try_from(host).unwrap(); 32]);
        let replicas = configs.into_iter().enumerate().map(replica).collect();
        let answers = BTreeMap::new();
        let mut table = Self { now: Time::ZERO, replicas, away: Vec::new(), stuck: Vec::new(), disks: vec![None; count], answers, said: 0 };
        table.look();
        table
    }

    /// Everybody is told who is there.
    fn look(&mut self) {
        for host in 0..self.replicas.len() {
            let view = self.view(host);
            self.input(host, Input::View(Arc::new(view)));
        }
    }

    fn view(&self, host: usize) -> View {
        let there = |other: &usize| *other != host && !self.away.contains(other) && !self.away.contains(&host);
        let peer = |other| {
            (name(other), PeerView { nickname: format!("h{other}"), next_hop: Some(name(other)), linked: true, ..PeerView::default() })
        };
        let peers = (0..self.replicas.len()).filter(there).map(peer).collect();
        View { name: name(host), short: ShortId::new(1).unwrap(), peers, hops: Vec::new() }
    }

    fn input(&mut self, host: usize, input: Input) {
        self.replicas[host].handle(self.now, input);
        self.drain(host);
    }

    fn drain(&mut self, host: usize) {
        while let Some(output) = self.replicas[host].poll_output() {
            match output {
                Output::Answer { request, result } => {
                    assert!(self.answers.insert(request, result).is_none(), "two answers to {request}");
                }
                Output::Store { number, snapshot } => {
                    if !self.stuck.contains(&host) {
                        self.disks[host] = Some(snapshot);
                        self.replicas[host].handle(self.now, Input::Stored(number));
                    }
                }
                Output::Unicast { to, payload } => self.deliver(host, usize::from(to.0[5]) - 1, payload),
                Output::Broadcast(payload) | Output::Gossip(payload) => {
                    (0..self.replicas.len()).for_each(|to| self.deliver(host, to, payload.clone()));
                }
            }
        }
    }

    fn deliver(&mut self, from: usize, to: usize, payload: bytes::Bytes) {
        if from != to && !self.away.contains(&from) && !self.away.contains(&to) {
            self.said += payload.len();
            self.input(to, Input::Delivered { from: name(from), payload });
        }
    }

    fn run(&mut self, seconds: u64) {
        let end = self.now + Time::from_secs(seconds);
        while let Some((due, host)) = (0..self.replicas.len()).filter_map(|host| Some((self.replicas[host].poll_timeout()?, host))).min() {
            if due > end {
                break;
            }
            self.now = self.now.max(due);
            self.replicas[host].handle_timeout(self.now);
            self.drain(host);
        }
        self.now = end;
    }

    fn leave(&mut self, host: usize) {
        self.away.push(host);
        self.look();
    }

    fn addresses(&self, request: u64) -> String {
        match &self.answers[&request] {
            Ok(Answer::Addresses(addresses)) => super::config::list(addresses),
            other => panic!("{other:?}"),
        }
    }

    fn error(&self, request: u64) -> String {
        self.answers[&request].clone().unwrap_err().to_string()
    }

    fn status(&self, host: usize) -> Status {
        self.replicas[host].status(self.now)
    }

    fn restart(&mut self, host: usize, config: Config) {
        self.replicas[host] = Ipam::new(config, self.disks[host].as_deref().cloned(), [99; 32]);
        self.look();
    }
}

#[test]
fn three_hosts_agree_and_each_allocates_from_its_own() {
    let mut table = Table::new((0..3).map(|host| config(host, &[RANGE], Init::ConsensusOf(3))).collect());
    table.run(1);
    assert_eq!(table.status(0).ring, RingState::None);
    for host in 0..3 {
        table.input(host, allocate(host as u64, &[]));
    }
    table.run(5);
    assert_eq!([0, 1, 2].map(|n| table.addresses(n)), ["10.32.0.1/24", "10.32.0.128/24", "10.32.0.192/24"]);
    assert_eq!(table.status(2).ring, RingState::Ready);
}

#[test]
fn a_minority_does_not_share_out_the_range() {
    let mut table = Table::new((0..4).map(|host| config(host, &[RANGE], Init::ConsensusOf(4))).collect());
    table.away = vec![2, 3];
    table.look();
    table.input(0, allocate(1, &[]));
    assert_eq!(table.status(0).ring, RingState::Awaiting { votes: 2, wanted: 3 });
    table.run(11);
    assert!(table.error(1).contains("2 of 3 hosts that must take part"), "{}", table.error(1));
}

#[test]
fn an_observer_gets_addresses_and_has_no_vote() {
    let inits = [Init::ConsensusOf(2), Init::ConsensusOf(2), Init::Observer];
    let mut table = Table::new(inits.into_iter().enumerate().map(|(host, init)| config(host, &[RANGE], init)).collect());
    table.run(2);
    table.input(2, allocate(1, &[]));
    table.run(9);
    assert!(table.addresses(1).starts_with("10.32.0."));
    assert_eq!(table.status(0).seeds, [name(0), name(1)]);
}

#[test]
fn an_observer_alone_says_why_it_has_none() {
    let mut table = Table::new(vec![config(0, &[RANGE], Init::Observer)]);
    table.input(0, allocate(1, &[]));
    table.run(11);
    assert!(table.error(1).contains("--ipalloc-init observer"), "{}", table.error(1));
}

#[test]
fn both_families_at_once() {
    let range = &[RANGE, "fd00:10:32::/64"];
    let mut table = Table::new((0..2).map(|host| config(host, range, Init::Seed(vec![name(0), name(1)]))).collect());
    table.input(1, allocate(1, &[]));
    assert_eq!(table.addresses(1), "10.32.0.128/24,fd00:10:32:0:8000::/64");
    table.input(1, allocate(2, &["fd00:10:32:0:1::/80"]));
    // From the part of the other host, who gave a quarter of it.
    table.run(1);
    assert_eq!(table.addresses(2), "fd00:10:32:0:1:c000::/80");
}

#[test]
fn an_owner_gets_the_address_it_has() {
    let mut table = Table::new(seeded(1));
    table.input(0, allocate(1, &["10.32.0.64/26"]));
    let again = Input::Allocate { request: 2, owner: "c1".into(), subnets: nets(&["10.32.0.64/26"]), deadline: table.now };
    table.input(0, again);
    assert_eq!([table.addresses(1), table.addresses(2)], ["10.32.0.65/26", "10.32.0.65/26"]);
    table.input(0, Input::Free { owner: "c1".into() });
    assert_eq!(table.status(0).ranges[0].own.used, 0);
}

#[test]
fn claims_inside_and_outside_the_range() {
    let mut table = Table::new(seeded(2));
    table.run(1);
    table.input(0, claim(1, "10.32.0.7/24"));
    table.input(0, claim(2, "10.32.0.7/24"));
    table.input(0, claim(3, "192.168.1.1/24"));
    table.input(0, claim(4, "10.32.0.200/24"));
    table.input(1, claim(5, "10.32.0.7/24"));
    table.input(0, claim(6, "10.32.0.255/24"));
    table.run(2);
    assert_eq!([1, 3, 4].map(|n| table.addresses(n)), ["10.32.0.7/24", "192.168.1.1/24", "10.32.0.200/24"]);
    assert_eq!(table.error(2), "address 10.32.0.7 is already owned by c1");
    assert_eq!(table.error(5), "address 10.32.0.7 is in use by c1 on peer h0");
    assert!(table.error(6).contains("first or its last"));
    assert!(!table.status(0).owned.iter().any(|(owner, _)| owner == "c3"));
}

#[test]
fn subnets_that_cannot_work_are_refused() {
    let mut table = Table::new(seeded(1));
    table.input(0, allocate(1, &["10.99.0.0/24"]));
    table.input(0, allocate(2, &["10.32.0.1/24"]));
    assert_eq!(table.error(1), "10.99.0.0/24 lies outside the range 10.32.0.0/24");
    assert!(table.error(2).starts_with("10.32.0.1/24 will not do"));
    table.input(0, allocate(3, &["10.32.0.0/16"]));
    assert!(table.error(3).starts_with("net:10.32.0.0/16 is larger than the range 10.32.0.0/24"), "{}", table.error(3));
    // Unless it is the default: the rest of it is given by hand.
    let mut wide = config(0, &[RANGE], Init::Seed(vec![name(0)]));
    wide.subnets = nets(&["10.32.0.0/16"]);
    let mut table = Table::new(vec![wide]);
    table.input(0, allocate(4, &["10.32.0.0/16"]));
    assert_eq!(table.addresses(4), "10.32.0.1/16");
}

#[test]
fn whoever_has_none_left_says_who_has() {
    let mut table = Table::new(seeded(3));
    table.run(1);
    table.leave(2);
    table.leave(1);
    for request in 0..128 {
        table.input(0, allocate(request, &["10.32.0.0/24"]));
    }
    assert_eq!((table.addresses(126), table.answers.contains_key(&127)), ("10.32.0.127/24".to_owned(), false));
    // Nobody in reach can help: that need not be waited for.
    table.run(1);
    let expected = "no address free in 10.32.0.0/24: 2 peers that own 50 % are unreachable (h1, h2); if they are gone for good run `weave-agent rmpeer h1`";
    assert_eq!(table.error(127), expected);
    table.input(0, claim(200, "10.32.0.200/24"));
    table.run(1);
    assert!(table.error(200).contains("in the space of peer h2, which is unreachable"), "{}", table.error(200));
}

#[test]
fn whoever_comes_back_in_time_is_asked_and_whoever_is_full_is_not_waited_for() {
    let mut table = Table::new(seeded(3));
    table.run(1);
    table.leave(2);
    table.leave(1);
    for request in 0..128 {
        table.input(0, allocate(request, &["10.32.0.0/24"]));
    }
    // It comes back just before the last one is given up.
    table.now += Time::from_millis(600);
    table.away = vec![2];
    table.look();
    table.run(1);
    assert!(table.addresses(127).starts_with("10.32.0."));
    for request in 200..400 {
        let deadline = table.now + Time::from_secs(10);
        let input = Input::Allocate { request, owner: format!("c{request}"), subnets: nets(&["10.32.0.0/24"]), deadline };
        table.input(1, input);
        table.run(2);
        if let Err(error) = &table.answers[&request] {
            assert!(error.to_string().contains("1 peer that owns 25 % is unreachable (h2)"), "{error}");
            return;
        }
    }
    panic!("there is no end to the addresses");
}

#[test]
fn what_was_just_freed_is_not_what_the_next_one_gets() {
    let mut table = Table::new(seeded(1));
    for request in 0..3 {
        table.input(0, allocate(request, &[]));
        table.input(0, Input::Free { owner: format!("c{request}") });
    }
    assert_eq!([0, 1, 2].map(|n| table.addresses(n)), ["10.32.0.1/24", "10.32.0.2/24", "10.32.0.3/24"]);
    // 256 without the first and the last one, which nobody can have.
    assert_eq!(table.status(0).ranges[0].own.free, "254");
}

#[test]
fn when_all_are_in_use_the_answer_comes_at_once() {
    let mut table = Table::new(seeded(2));
    table.run(1);
    for request in 0..254 {
        table.input((request % 2) as usize, allocate(request, &["10.32.0.0/24"]));
        table.run(0);
    }
    let full = table.now;
    table.input(0, allocate(300, &["10.32.0.0/24"]));
    assert_eq!(
        (table.error(300).as_str(), table.now),
        ("no address free in 10.32.0.0/24: all of them are in use; free some, or use another subnet", full)
    );
}

#[test]
fn dead_hosts_are_removed_one_after_the_other() {
    let mut table = Table::new(seeded(3));
    table.run(1);
    let remove = |request, peer: &str, now: Time| Input::Remove { request, peer: peer.into(), deadline: now + Time::from_secs(2) };
    table.input(0, remove(1, "h2", table.now));
    assert_eq!(table.error(1), "peer h2 is reachable: run `weave-agent reset` there instead");
    table.leave(2);
    table.leave(1);
    table.input(0, remove(2, "h2", table.now));
    table.run(3);
    assert!(table.error(2).contains("h2 can be taken over only after h1 told"), "{}", table.error(2));
    table.input(0, remove(3, "h1", table.now));
    assert_eq!(table.answers[&3], Ok(Answer::Count(64)));
    table.input(0, remove(4, &name(2).to_string(), table.now));
    assert_eq!(table.answers[&4], Ok(Answer::Count(64)));
    table.input(0, remove(5, "h9", table.now));
    assert_eq!(table.error(5), "no peer \"h9\" owns addresses; those that do: h0");
    table.input(0, remove(6, "h0", table.now));
    assert!(table.error(6).contains("this host"));
    assert_eq!(table.status(0).ranges[0].owners[0].pieces, 1);
}

#[test]
fn a_host_that_leaves_hands_everything_on() {
    let mut table = Table::new(seeded(2));
    table.run(1);
    table.input(0, allocate(1, &[]));
    table.input(0, Input::Leave { request: 2, deadline: table.now + Time::from_secs(1) });
    assert_eq!(table.answers[&2], Ok(Answer::Count(128)));
    let owners = table.status(1).ranges[0].owners.clone();
    assert_eq!((owners.len(), owners[0].name, owners[0].pieces), (1, name(1), 1));
    table.input(0, allocate(3, &[]));
    assert_eq!(table.answers[&3], Err(Error::Left));
}

#[test]
fn nobody_to_hand_on_to_is_said() {
    let mut table = Table::new(seeded(2));
    table.leave(1);
    table.input(0, Input::Leave { request: 1, deadline: table.now });
    assert!(table.error(1).contains("rmpeer 02:00:00:00:00:01"));
}

#[test]
fn replicas_of_other_ranges_or_seeds_are_named_and_ignored() {
    let other = config(1, &["10.40.0.0/16"], Init::Seed(vec![name(1)]));
    let apart = config(2, &[RANGE], Init::Seed(vec![name(2)]));
    let mut table = Table::new(vec![config(0, &[RANGE], Init::Seed(vec![name(0)])), other, apart]);
    table.run(5);
    let said: Vec<String> = table.status(0).foreign.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 2);
    assert!(said[0].starts_with("peer h1 (02:00:00:00:00:02) has the range 10.40.0.0/16, this host 10.32.0.0/24"), "{}", said[0]);
    assert!(said[1].contains("shares out the range among 02:00:00:00:00:03, this host among 02:00:00:00:00:01"), "{}", said[1]);
    table.input(0, allocate(1, &[]));
    assert_eq!(table.addresses(1), "10.32.0.1/24");
    assert!(table.status(0).counters.foreign > 0);
}

#[test]
fn whoever_waits_for_hosts_of_another_range_is_told_both() {
    let range = |host, range| config(host, &[range], Init::ConsensusOf(2));
    let mut table = Table::new(vec![range(0, RANGE), range(1, "10.40.0.0/16")]);
    table.run(1);
    table.input(0, allocate(1, &[]));
    table.run(11);
    assert!(
        table.error(1).contains("peer h1 (02:00:00:00:00:02) has the range 10.40.0.0/16, this host 10.32.0.0/24"),
        "{}",
        table.error(1)
    );
}

#[test]
fn nothing_is_said_before_it_is_on_disk() {
    let mut table = Table::new(seeded(2));
    table.run(2);
    table.stuck = vec![0];
    let (before, rings) = (table.said, table.status(1).ranges);
    table.input(0, allocate(1, &[]));
    table.input(1, claim(2, "10.32.0.9/24"));
    assert!(!table.answers.contains_key(&1) && table.status(1).ranges == rings);
    assert!(table.said - before < 60, "the question, and no answer");
    table.run(11);
    assert!(table.error(1).contains("could not be written to disk"));
    assert!(table.error(2).contains("did not hand it over in time"));
}

#[test]
fn a_restart_keeps_everything() {
    let mut table = Table::new(seeded(2));
    table.run(1);
    table.input(0, allocate(1, &[]));
    table.input(0, claim(2, "10.32.0.200/24"));
    table.run(1);
    let before = table.status(0);
    table.restart(0, seeded(2).swap_remove(0));
    let after = table.status(0);
    let ring = |status: &Status| status.ranges[0].owners.iter().map(|owner| (owner.size.clone(), owner.version)).collect::<Vec<_>>();
    assert_eq!((ring(&before), &before.ranges[0].own, &before.owned), (ring(&after), &after.ranges[0].own, &after.owned));
    let present = BTreeMap::from([("c2".to_owned(), nets(&["10.32.0.200/24"]))]);
    table.input(0, Input::Reconcile { present });
    assert_eq!(table.status(0).owned.len(), 1);
}

#[test]
fn a_state_of_another_name_or_range_is_not_used() {
    let mut table = Table::new(seeded(1));
    table.run(1);
    table.restart(0, config(0, &["10.50.0.0/24"], Init::Seed(vec![name(0)])));
    assert_eq!(table.status(0).discarded.as_deref(), Some("it is of the range 10.32.0.0/24"));
    table.input(0, allocate(1, &[]));
    assert_eq!(table.addresses(1), "10.50.0.1/24");
}

#[test]
fn an_old_state_is_not_believed_until_all_have_spoken() {
    let mut table = Table::new(seeded(3));
    table.run(1);
    let old = table.disks[0].clone();
    table.input(1, claim(1, "10.32.0.1/24"));
    table.run(1);
    table.disks[0] = old;
    table.leave(2);
    table.leave(1);
    table.restart(0, Config { trusted: false, ..seeded(3).swap_remove(0) });
    table.input(0, allocate(2, &[]));
    table.run(11);
    assert!(table.error(2).contains("own addresses are used again only after h1, h2 told"), "{}", table.error(2));
    table.away.clear();
    table.look();
    table.run(2);
    let input = Input::Allocate { request: 3, owner: "x".into(), subnets: Vec::new(), deadline: table.now + Time::from_secs(5) };
    table.input(0, input);
    assert_eq!(table.addresses(3), "10.32.0.2/24");
    assert!(table.status(0).quarantined_for.is_empty());
}

#[test]
fn addresses_found_in_use_in_the_space_of_others_are_asked_for_and_conflicts_shown() {
    let mut table = Table::new(seeded(2));
    table.run(1);
    table.input(1, claim(1, "10.32.0.200/24"));
    let present = BTreeMap::from([("a".to_owned(), nets(&["10.32.0.200/24"])), ("b".to_owned(), nets(&["10.32.0.201/24"]))]);
    table.input(0, Input::Reconcile { present });
    table.run(2);
    let status = table.status(0);
    assert_eq!(status.displaced, ["10.32.0.200".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!((status.conflicts[0].owner.as_str(), status.conflicts[0].user.as_deref()), ("a", Some("c1")));
    table.input(1, Input::Free { owner: "c1".into() });
    table.run(40);
    let status = table.status(0);
    assert!(status.displaced.is_empty() && status.conflicts.is_empty());
}

#[test]
fn at_rest_there_is_next_to_no_traffic() {
    let mut table = Table::new(seeded(5));
    table.run(60);
    let before = table.said;
    table.run(300);
    let each = (table.said - before) / (5 * 4 * 10);
    assert!(each < 250, "{each} bytes from each to each in 30 s");
}

#[test]
fn the_status_can_be_shown_as_json() {
    let mut table = Table::new(seeded(2));
    table.run(1);
    table.input(0, allocate(1, &[]));
    let json: serde_json::Value = serde_json::to_value(table.status(0)).unwrap();
    assert_eq!(json["ranges"][0]["owners"][1]["name"], "02:00:00:00:00:02");
    assert_eq!((&json["ring"]["state"], &json["ranges"][0]["own"]["used"]), (&"ready".into(), &1.into()));
}

#[test]
fn a_snapshot_survives_json_and_postcard() {
    let mut table = Table::new((0..2).map(|host| config(host, &[RANGE, "fd00::/64"], Init::ConsensusOf(2))).collect());
    table.run(1);
    table.input(0, allocate(1, &[]));
    table.run(5);
    let snapshot = table.disks[0].clone().unwrap();
    let json = serde_json::to_vec(&*snapshot).unwrap();
    assert_eq!(serde_json::from_slice::<Snapshot>(&json).unwrap(), *snapshot);
    let bytes = postcard::to_stdvec(&*snapshot).unwrap();
    assert_eq!(postcard::from_bytes::<Snapshot>(&bytes).unwrap(), *snapshot);
}
