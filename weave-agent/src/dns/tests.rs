use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::mesh::PeerView;
use crate::peer::ShortId;

const A: PeerName = PeerName([2, 0, 0, 0, 0, 0xa]);
const B: PeerName = PeerName([2, 0, 0, 0, 0, 0xb]);
const C: PeerName = PeerName([2, 0, 0, 0, 0, 0xc]);

fn seconds(seconds: u64) -> Time {
    Time::from_secs(seconds)
}

/// Replicas whose messages arrive at once, at everybody who is connected.
struct Mesh {
    now: Time,
    peers: Vec<Peer>,
}

struct Peer {
    name: PeerName,
    dns: Dns,
    connected: bool,
    zone: Arc<Zone>,
    zones: u32,
    kept: Option<Vec<Kept>>,
    sent: Vec<(Time, Output)>,
}

impl Peer {
    fn new(config: Config) -> Self {
        let name = config.name;
        let zone = Arc::default();
        Self { name, dns: Dns::new(config), connected: true, zone, zones: 0, kept: None, sent: Vec::new() }
    }
}

impl Mesh {
    fn new(names: &[PeerName]) -> Self {
        let peers = names.iter().map(|name| Peer::new(Config::new(*name))).collect();
        let mut mesh = Self { now: seconds(1000), peers };
        mesh.views();
        mesh
    }

    fn at(&mut self, name: PeerName) -> &mut Peer {
        self.peers.iter_mut().find(|peer| peer.name == name).unwrap()
    }

    fn handle(&mut self, name: PeerName, input: Input) {
        let now = self.now;
        self.at(name).dns.handle(now, input);
    }

    /// Tell everybody who is there; who is not connected is known and out of reach.
    fn views(&mut self) {
        let all: Vec<(PeerName, bool)> = self.peers.iter().map(|peer| (peer.name, peer.connected)).collect();
        for index in 0..all.len() {
            let (name, connected) = all[index];
            let others = all.iter().filter(|(other, _)| *other != name);
            let view = |other: PeerName, there: bool| PeerView {
                nickname: format!("host-{other}"),
                next_hop: (there && connected).then_some(other),
                ..PeerView::default()
            };
            let peers = others.map(|(other, there)| (*other, view(*other, *there))).collect();
            let view = View { name, short: ShortId::new(1).unwrap(), peers, hops: Vec::new() };
            self.handle(name, Input::View(Arc::new(view)));
        }
    }

    fn connect(&mut self, name: PeerName, connected: bool) {
        self.at(name).connected = connected;
        self.views();
    }

    fn restart(&mut self, config: Config) {
        let name = config.name;
        *self.at(name) = Peer::new(config);
        self.views();
    }

    fn run(&mut self, time: Time) {
        let end = self.now + time;
        loop {
            self.carry();
            let due = self.peers.iter().filter_map(|peer| peer.dns.poll_timeout()).min().filter(|due| *due <= end);
            let Some(due) = due else { break };
            self.now = self.now.max(due);
            for peer in &mut self.peers {
                peer.dns.handle_timeout(self.now);
            }
        }
        self.now = end;
    }

    fn carry(&mut self) {
        let mut messages = Vec::new();
        for peer in &mut self.peers {
            while let Some(output) = peer.dns.poll_output() {
                peer.sent.push((self.now, output.clone()));
                match output {
                    Output::Broadcast(payload) | Output::Gossip(payload) => messages.push((peer.name, None, payload)),
                    Output::Unicast { to, payload } => messages.push((peer.name, Some(to), payload)),
                    Output::Zone(zone) => {
                        peer.zone = zone;
                        peer.zones += 1;
                    }
                    Output::Keep(kept) => peer.kept = Some(kept),
                }
            }
        }
        for (from, to, payload) in messages {
            let sent = self.at(from).connected;
            for peer in self.peers.iter_mut().filter(|peer| sent && peer.connected && peer.name != from) {
                if to.is_none_or(|to| to == peer.name) {
                    peer.dns.handle(self.now, Input::Delivered { from, payload: payload.clone() });
                }
            }
        }
    }

    fn register(&mut self, name: PeerName, owner: &str, host: &str, address: u8) {
        let input = Input::Register { owner: owner.parse().unwrap(), name: full(host), addresses: vec![ip(address)] };
        self.handle(name, input);
    }

    fn died(&mut self, name: PeerName, owner: &str) {
        self.handle(name, Input::Unregister { owner: Some(owner.parse().unwrap()), name: None, address: None });
    }

    fn resolved(&mut self, at: PeerName, host: &str) -> Vec<IpAddr> {
        self.at(at).zone.addresses(&full(host))
    }

    fn entries(&mut self, at: PeerName) -> Vec<EntryStatus> {
        self.at(at).dns.status().entries
    }
}

fn full(host: &str) -> Name {
    Domain::default().qualify(host).unwrap()
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 32, 0, last).into()
}

#[test]
fn a_name_is_known_everywhere_within_a_moment_and_only_while_its_container_lives() {
    let mut mesh = Mesh::new(&[A, B, C]);
    mesh.register(A, "one", "web", 1);
    mesh.register(B, "two", "web", 2);
    mesh.run(Time::from_millis(100));
    for peer in [A, B, C] {
        assert_eq!(mesh.resolved(peer, "web"), [ip(1), ip(2)]);
        assert_eq!(mesh.at(peer).zone.names(ip(1)).len(), 1);
    }
    mesh.died(A, "one");
    mesh.run(Time::from_millis(100));
    for peer in [A, B, C] {
        assert_eq!(mesh.resolved(peer, "web"), [ip(2)]);
    }
    mesh.register(A, "one", "web", 1);
    mesh.run(Time::from_millis(100));
    assert_eq!(mesh.resolved(C, "web"), [ip(1), ip(2)]);
}

#[test]
fn changes_close_together_go_in_one_message_and_one_zone() {
    let mut mesh = Mesh::new(&[A, B]);
    mesh.run(seconds(1));
    let (sent, zones) = (mesh.at(A).sent.len(), mesh.at(A).zones);
    for n in 0..50 {
        mesh.register(A, "many", &format!("c{n}"), n);
    }
    mesh.run(seconds(1));
    assert_eq!(mesh.at(A).zones - zones, 1);
    let messages = mesh.at(A).sent[sent..].iter().filter(|(_, output)| !matches!(output, Output::Zone(_))).count();
    assert_eq!(messages, 1);
}

#[test]
fn only_what_matches_is_unregistered_and_only_ours() {
    let mut mesh = Mesh::new(&[A, B]);
    for (owner, host, address) in [("one", "web", 1), ("one", "www", 1), ("two", "web", 2), ("two", "web", 3)] {
        mesh.register(A, owner, host, address);
    }
    mesh.register(B, "one", "web", 9);
    mesh.run(seconds(1));
    mesh.handle(A, Input::Unregister { owner: None, name: Some(full("WEB")), address: Some(ip(2)) });
    mesh.run(seconds(1));
    assert_eq!(mesh.resolved(B, "web"), [ip(1), ip(3), ip(9)]);
    mesh.handle(A, Input::Unregister { owner: Some("one".parse().unwrap()), name: None, address: None });
    mesh.run(seconds(1));
    assert_eq!(mesh.resolved(B, "web"), [ip(3), ip(9)]);
    assert!(mesh.resolved(B, "www").is_empty());
    mesh.handle(A, Input::Unregister { owner: None, name: None, address: None });
    mesh.run(seconds(1));
    assert_eq!(mesh.resolved(A, "web"), [ip(9)]);
}

#[test]
fn a_tombstone_ends_everywhere_half_an_hour_after_the_death_and_is_not_taught_again() {
    let mut mesh = Mesh::new(&[A, B, C]);
    mesh.register(A, "one", "web", 1);
    mesh.run(seconds(5));
    mesh.connect(C, false);
    mesh.died(A, "one");
    mesh.run(seconds(14 * 60));
    assert_eq!(mesh.resolved(C, "web"), [ip(1)]);
    // Late, but in time to be told.
    mesh.connect(C, true);
    mesh.run(seconds(60));
    assert!(mesh.resolved(C, "web").is_empty());
    assert!(mesh.entries(C)[0].dead);
    mesh.run(seconds(14 * 60));
    for peer in [A, B, C] {
        assert_eq!(mesh.entries(peer).len(), 1, "29 minutes");
    }
    mesh.run(seconds(4 * 60));
    for peer in [A, B, C] {
        assert!(mesh.entries(peer).is_empty(), "33 minutes");
    }
    mesh.run(seconds(3600));
    assert!(mesh.entries(B).is_empty());
}

#[test]
fn who_missed_a_death_for_hours_is_corrected_by_the_origin() {
    let mut mesh = Mesh::new(&[A, B, C]);
    mesh.register(A, "one", "web", 1);
    mesh.run(seconds(5));
    mesh.connect(C, false);
    mesh.died(A, "one");
    mesh.run(seconds(3 * 3600));
    assert!(mesh.entries(A).is_empty());
    mesh.connect(C, true);
    mesh.run(seconds(1));
    for peer in [A, B, C] {
        assert!(mesh.resolved(peer, "web").is_empty());
        assert!(mesh.entries(peer).iter().all(|entry| entry.dead));
    }
}

#[test]
fn names_of_an_origin_out_of_reach_stay_unless_somebody_in_reach_has_them() {
    let mut mesh = Mesh::new(&[A, B, C]);
    mesh.register(A, "one", "web", 1);
    mesh.register(B, "two", "web", 2);
    mesh.register(B, "two", "db", 2);
    mesh.run(seconds(1));
    mesh.connect(B, false);
    mesh.run(seconds(1));
    assert_eq!(mesh.resolved(C, "web"), [ip(1)]);
    assert_eq!(mesh.resolved(C, "db"), [ip(2)]);
    assert!(!mesh.entries(C).iter().find(|entry| entry.origin == B).unwrap().reachable);
    mesh.connect(B, true);
    mesh.run(seconds(1));
    assert_eq!(mesh.resolved(C, "web"), [ip(1), ip(2)]);
}

#[test]
fn names_of_an_origin_that_left_the_mesh_are_gone_and_do_not_come_back() {
    let mut mesh = Mesh::new(&[A, B, C]);
    mesh.register(B, "two", "db", 2);
    mesh.run(seconds(1));
    let everything = mesh.at(C).dns.status().entries.len();
    assert_eq!(everything, 1);
    mesh.peers.retain(|peer| peer.name != B);
    mesh.views();
    // A straggler of before.
    let key = super::entry::Key { origin: B, name: full("db"), address: ip(2), owner: "two".parse().unwrap() };
    let item = message::Item { key, value: entry::Value { version: 0, dead: false }, age: 0 };
    let payload = message::encode(message::Kind::State, [item]).remove(0);
    mesh.handle(A, Input::Delivered { from: C, payload });
    mesh.run(seconds(30));
    assert!(mesh.resolved(A, "db").is_empty() && mesh.resolved(C, "db").is_empty());
    mesh.run(seconds(150));
    assert!(mesh.entries(A).is_empty() && mesh.entries(C).is_empty());
}

#[test]
fn after_a_restart_what_runs_goes_on_and_what_does_not_is_dead_everywhere() {
    let mut mesh = Mesh::new(&[A, B]);
    mesh.register(A, "runs", "web", 1);
    mesh.register(A, "ended", "old", 2);
    mesh.run(seconds(1));
    mesh.died(A, "ended");
    mesh.register(A, "ended", "old", 2);
    mesh.run(seconds(1));
    mesh.restart(Config::new(A));
    mesh.run(seconds(1));
    assert_eq!(mesh.resolved(B, "old"), [ip(2)]);
    assert_eq!(mesh.resolved(A, "web"), [ip(1)]);
    mesh.register(A, "runs", "web", 1);
    mesh.handle(A, Input::Settled);
    mesh.run(seconds(1));
    for peer in [A, B] {
        assert_eq!(mesh.resolved(peer, "web"), [ip(1)]);
        assert!(mesh.resolved(peer, "old").is_empty());
    }
    // Without a word, the grace ends it.
    mesh.restart(Config::new(A));
    mesh.run(seconds(11));
    assert!(mesh.resolved(B, "web").is_empty());
}

#[test]
fn a_restored_state_with_lower_versions_wins_all_the_same() {
    let mut mesh = Mesh::new(&[A, B]);
    for _ in 0..5 {
        mesh.register(A, "one", "web", 1);
        mesh.died(A, "one");
    }
    mesh.run(seconds(1));
    mesh.restart(Config::new(A));
    mesh.connect(A, false);
    mesh.register(A, "one", "web", 1);
    mesh.handle(A, Input::Settled);
    mesh.run(seconds(60));
    mesh.connect(A, true);
    mesh.run(seconds(1));
    assert_eq!(mesh.resolved(B, "web"), [ip(1)]);
    assert_eq!(mesh.entries(B)[0].version, mesh.entries(A)[0].version);
}

#[test]
fn what_was_added_by_hand_survives_a_restart_even_under_another_domain() {
    let mut mesh = Mesh::new(&[A, B]);
    let external = |name: &str| Input::Register { owner: Owner::external(), name: full(name), addresses: vec![ip(7)] };
    mesh.handle(A, external("printer"));
    mesh.register(A, "one", "web", 1);
    mesh.run(seconds(1));
    let kept = mesh.at(A).kept.clone().unwrap();
    assert_eq!(kept, [Kept { name: "printer.weave.local.".into(), address: ip(7) }]);

    mesh.restart(Config { kept: kept.clone(), ..Config::new(A) });
    mesh.run(seconds(20));
    assert_eq!(mesh.at(A).kept, None, "it is on disk already");
    assert_eq!(mesh.resolved(B, "printer"), [ip(7)]);
    assert!(mesh.resolved(B, "web").is_empty());

    let domain: Domain = "example.internal".parse().unwrap();
    mesh.restart(Config { kept, domain: domain.clone(), ..Config::new(A) });
    mesh.run(seconds(1));
    let name = domain.qualify("scanner").unwrap();
    mesh.handle(A, Input::Register { owner: Owner::external(), name, addresses: vec![ip(8)] });
    mesh.run(seconds(1));
    assert_eq!(mesh.at(A).kept.as_ref().unwrap().len(), 2);
    mesh.handle(A, Input::Unregister { owner: None, name: None, address: Some(ip(8)) });
    mesh.run(seconds(1));
    assert_eq!(mesh.at(A).kept.as_ref().unwrap().len(), 1);
}

#[test]
fn everything_is_told_every_30_s_and_to_whoever_comes() {
    let mut mesh = Mesh::new(&[A, B]);
    mesh.register(A, "one", "web", 1);
    mesh.run(seconds(100));
    let gossip = mesh.at(A).sent.iter().filter(|(_, output)| matches!(output, Output::Gossip(_))).count();
    assert_eq!(gossip, 3);
    mesh.peers.push(Peer::new(Config::new(C)));
    mesh.views();
    mesh.run(Time::from_millis(100));
    assert_eq!(mesh.resolved(C, "web"), [ip(1)]);
    assert!(mesh.at(A).sent.iter().any(|(_, output)| matches!(output, Output::Unicast { to: C, .. })));
}

#[test]
fn nonsense_is_counted() {
    let mut mesh = Mesh::new(&[A, B]);
    mesh.handle(A, Input::Delivered { from: B, payload: Bytes::from_static(&[9, 9]) });
    assert_eq!(mesh.at(A).dns.status().counters.malformed, 1);
}

/// What a random history is made of.
#[derive(Clone, Debug)]
enum Step {
    Register(usize, u8, u8),
    Died(usize, u8),
    Connect(usize, bool),
    Restart(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize, 0..4_u8, 0..3_u8).prop_map(|(peer, owner, host)| Step::Register(peer, owner, host)),
        3 => (0..3_usize, 0..4_u8).prop_map(|(peer, owner)| Step::Died(peer, owner)),
        2 => (0..3_usize, any::<bool>()).prop_map(|(peer, there)| Step::Connect(peer, there)),
        1 => (0..3_usize).prop_map(Step::Restart),
        3 => prop_oneof![Just(10), Just(100), Just(5_000), Just(40_000), Just(1_000_000), Just(2_400_000)].prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever the history of partitions, restarts and long silences: a moment after all are together again, everybody answers with what
    /// runs, and with nothing else.
    #[test]
    fn after_a_heal_all_replicas_are_equal_and_right(steps in proptest::collection::vec(step(), 1..40)) {
        const NAMES: [PeerName; 3] = [A, B, C];
        let mut mesh = Mesh::new(&NAMES);
        let mut running = [const { std::collections::BTreeSet::new() }; 3];
        for step in steps {
            match step {
                Step::Register(peer, owner, host) => {
                    running[peer].insert((owner, host));
                    mesh.register(NAMES[peer], &format!("o{owner}"), &format!("n{host}"), peer as u8 * 16 + owner);
                }
                Step::Died(peer, owner) => {
                    running[peer].retain(|(other, _)| *other != owner);
                    mesh.died(NAMES[peer], &format!("o{owner}"));
                }
                Step::Connect(peer, there) => mesh.connect(NAMES[peer], there),
                Step::Restart(peer) => {
                    mesh.restart(Config::new(NAMES[peer]));
                    for (owner, host) in running[peer].clone() {
                        mesh.register(NAMES[peer], &format!("o{owner}"), &format!("n{host}"), peer as u8 * 16 + owner);
                    }
                    mesh.handle(NAMES[peer], Input::Settled);
                }
                Step::Wait(millis) => mesh.run(Time::from_millis(millis)),
            }
        }
        for peer in NAMES {
            mesh.connect(peer, true);
        }
        mesh.run(seconds(61));
        for host in 0..3 {
            let runs = |peer: usize| running[peer].iter().filter(move |(_, other)| *other == host).map(move |(owner, _)| ip(peer as u8 * 16 + owner));
            let expected: Vec<IpAddr> = (0..3).flat_map(runs).collect();
            for peer in NAMES {
                prop_assert_eq!(mesh.resolved(peer, &format!("n{host}")), expected.clone(), "n{} at {}", host, peer);
            }
        }
        let value = |entry: EntryStatus| (entry.origin, entry.owner, entry.name, entry.version, entry.dead);
        let live = |mesh: &mut Mesh, peer| mesh.entries(peer).into_iter().filter(|entry| !entry.dead).map(value).collect::<Vec<_>>();
        let first = live(&mut mesh, A);
        for peer in [B, C] {
            prop_assert_eq!(live(&mut mesh, peer), first.clone());
        }
    }
}
