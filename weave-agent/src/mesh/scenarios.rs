//! What happens to meshes, told end to end.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;

use bytes::Bytes;
use proptest::prelude::*;

use super::harness::{World, address, config, millis, name, seconds, target};
use super::message::{Broadcast, Heartbeat, Message, Welcome};
use super::{Channel, Config, ConnectionState, Input, LinkId, Mesh, Output, Psk};
use crate::peer::{PeerUid, ShortId};

#[test]
fn two_to_six_peers_converge_within_two_seconds() {
    for count in 2..=6 {
        let mut world = World::full(count);
        world.run(seconds(2));
        world.assert_full();
        assert_eq!(world.links(0), count - 1);
    }
}

#[test]
fn peers_find_each_other_through_one() {
    let mut world = World::new(vec![config(0, &[]), config(1, &[0]), config(2, &[0]), config(3, &[0])]);
    world.run(seconds(3));
    world.assert_full();
}

#[test]
fn a_mesh_that_forms_at_once_does_so_without_a_storm_of_dials() {
    let mut world = World::new((0..20).map(|host| config(host, &[0][..host.min(1)])).collect());
    world.run(seconds(2));
    world.assert_full();
    assert_eq!(world.dials.iter().sum::<usize>(), 20 * 19 / 2);
    assert_eq!(world.status(0).counters.terminations, 0);
}

#[test]
fn a_stranger_at_a_discovered_address_is_not_let_in() {
    let mut world = World::new(vec![config(0, &[1]), config(1, &[]), config(2, &[1])]);
    world.cut(0, 2);
    world.run(seconds(5));
    assert_eq!((world.links(0), world.next_hop(0, 2)), (1, Some(name(1))));
    // Host 2 is known by host 1 only, and now somebody else has its address.
    world.restart(2, Config { name: name(9), discovery: false, ..config(2, &[]) }, false);
    world.cut(1, 2);
    world.heal(0, 2);
    world.run(millis(1));
    world.input(0, Input::Connect { targets: Vec::new(), replace: true });
    world.run(seconds(40));
    assert_eq!(world.links(2), 0);
}

#[test]
fn without_discovery_frames_go_along_the_line() {
    let mut world = World::line(5);
    world.run(seconds(3));
    world.assert_agreed();
    assert_eq!(world.next_hop(0, 4), Some(name(1)));
    assert_eq!(world.next_hop(4, 0), Some(name(3)));
    assert_eq!(world.view(2).peers[&name(0)].hops, [name(3)]);
    assert_eq!(world.view(2).peers[&name(0)].parent, Some(name(1)));
}

#[test]
fn nothing_more_happens_in_a_mesh_at_rest_than_heartbeats_and_digests() {
    let mut world = World::full(4);
    world.run(seconds(60));
    let before: Vec<_> = (0..4).map(|host| world.status(host).record_version).collect();
    world.run(seconds(600));
    assert_eq!((0..4).map(|host| world.status(host).record_version).collect::<Vec<_>>(), before);
    assert_eq!(world.status(0).counters.terminations, 0);
}

#[test]
fn both_sides_dialling_end_up_with_one_link() {
    let mut world = World::new(vec![config(0, &[1]), config(1, &[0])]);
    world.run(seconds(10));
    world.assert_full();
    assert_eq!((world.links(0), world.links(1)), (1, 1));
    assert_eq!(world.dials, [1, 1]);
    assert_eq!(world.pipes.len(), 2);
    assert_eq!(world.status(0).connections.len(), 1);
}

#[test]
fn of_two_links_the_one_with_the_lower_id_survives() {
    for seed in 0..20 {
        let mut world = World::new(vec![config(0, &[1]), config(1, &[0])]);
        world.meshes[0] = Mesh::new(config(0, &[1]), [100 + seed; 32]);
        let mut ids = BTreeSet::new();
        for _ in 0..30 {
            world.run(millis(1));
            let half = |(host, link): (usize, LinkId)| Some(world.meshes[host].links.get(&link)?.connection);
            ids.extend(world.pipes.iter().filter_map(|(a, b)| Some(half(*a)? ^ half(*b)?)));
        }
        let left: Vec<_> = world.meshes[0].links.values().map(|link| link.id(link.peer().unwrap())).collect();
        assert_eq!((ids.len(), left), (2, vec![*ids.first().unwrap()]));
    }
}

#[test]
fn traffic_goes_round_a_cut_within_three_seconds_and_back_after_it() {
    let mut world = World::full(3);
    world.run(seconds(5));
    world.cut(1, 2);
    world.run(seconds(3));
    assert_eq!(world.next_hop(1, 2), Some(name(0)));
    assert_eq!(world.next_hop(2, 1), Some(name(0)));
    assert_eq!(world.view(0).peers[&name(1)].hops, [name(2)]);
    world.run(seconds(60));
    world.assert_agreed();
    world.heal(1, 2);
    world.run(seconds(46));
    world.assert_full();
}

#[test]
fn a_peer_that_is_cut_off_is_forgotten_and_comes_back() {
    let mut world = World::full(3);
    world.run(seconds(5));
    world.cut(0, 2);
    world.cut(1, 2);
    world.run(seconds(15));
    assert!(!world.view(0).peers.contains_key(&name(2)));
    assert!(world.view(2).peers.is_empty());
    world.run(seconds(300));
    world.heal(0, 2);
    world.heal(1, 2);
    world.run(seconds(46));
    world.assert_full();
}

#[test]
fn a_restarted_agent_costs_nobody_a_route() {
    let mut world = World::full(4);
    world.run(seconds(90));
    world.restart(2, Config { uid: PeerUid(77), ..config(2, &[0, 1]) }, false);
    for _ in 0..400 {
        world.run(millis(20));
        for (from, to) in [(0, 1), (0, 2), (1, 2), (3, 2), (2, 3)] {
            assert!(from == 2 || world.next_hop(from, to) == Some(name(to)), "from {from} to {to} at {:?}", world.now);
        }
    }
    world.assert_full();
    assert!(world.status(0).collisions.is_empty() && world.status(2).collisions.is_empty());
    assert_eq!(world.status(0).peers[2].uid, "77");
}

#[test]
fn an_agent_that_is_down_keeps_its_edges_as_long_as_its_tunnels_work() {
    let mut world = World::full(3);
    world.run(seconds(90));
    for link in world.meshes[2].neighbours() {
        world.close(2, link.0);
    }
    world.queue.retain(|_, (host, _, _)| *host != 2);
    world.starts[2] += 1;
    world.meshes[2] = Mesh::new(Config { discovery: false, ..config(9, &[]) }, [9; 32]);
    world.cut.extend([(0, 2), (1, 2)]);
    world.run(seconds(40));
    assert_eq!(world.next_hop(0, 2), Some(name(2)));
    assert_eq!(world.status(0).connections.iter().filter(|c| c.state == ConnectionState::Retrying).count(), 1);
}

#[test]
fn a_host_that_lost_power_is_let_in_again_once_its_old_link_does_not_answer() {
    let mut world = World::full(2);
    world.run(seconds(90));
    world.restart(1, Config { uid: PeerUid(77), ..config(1, &[0]) }, true);
    world.run(seconds(2));
    assert_eq!(world.status(0).connections.len(), 2);
    world.run(millis(1500));
    world.assert_full();
    assert_eq!(world.status(0).peers[1].uid, "77");
    assert!(world.status(0).collisions.is_empty());
}

#[test]
fn our_own_address_is_found_out_and_not_dialled_again() {
    let mut world = World::new(vec![config(0, &[0, 1]), config(1, &[])]);
    world.run(seconds(300));
    assert_eq!((world.links(0), world.links(1), world.dials[0]), (1, 1, 2));
    let status = world.status(0);
    let own = status.connections.iter().find(|connection| connection.address == address(0)).unwrap();
    assert_eq!((own.state, own.info.as_str(), own.retry_in), (ConnectionState::Failed, "this is our own address", None));
    assert_eq!(status.counters.terminations, 0);
}

#[test]
fn a_neighbour_is_told_things_and_nobody_else_is() {
    let mut world = World::line(3);
    world.run(seconds(5));
    let payload = Bytes::from(vec![7; 4096]);
    world.input(0, Input::Tell { peer: name(1), payload: payload.clone() });
    world.input(0, Input::Tell { peer: name(2), payload: payload.clone() });
    world.input(0, Input::Tell { peer: name(1), payload: vec![7; 4097].into() });
    world.run(seconds(1));
    assert_eq!(world.told, [vec![], vec![(name(0), payload)], vec![]]);
    assert_eq!(world.status(0).counters.undeliverable, 2);
}

#[test]
fn a_neighbour_says_what_its_tunnels_can_and_its_frames_are_clear_only_where_both_ends_trust_the_network() {
    let secret = |host: usize, subnet: &str, aes| Config {
        passwords: vec![Psk([1; 32])],
        trusted_subnets: vec![subnet.parse().unwrap()],
        sleeve_port: 7000 + u16::try_from(host).unwrap(),
        aes,
        ..config(host, &(0..host).collect::<Vec<_>>())
    };
    let mut world = World::new(vec![secret(0, "10.0.0.0/30", true), secret(1, "10.0.0.0/30", true), secret(2, "10.9.0.0/16", false)]);
    world.run(seconds(5));
    let seen = |at, of| world.neighbours.get(&(at, name(of))).map(|n| (n.sleeve_port, n.aes, n.sealed)).unwrap();
    assert_eq!([seen(0, 1), seen(1, 0)], [(7001, true, false), (7000, true, false)]);
    assert_eq!([seen(0, 2), seen(2, 0)], [(7002, false, true), (7000, false, true)]);
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        assert_ne!(world.neighbours[&(a, name(b))].outbound, world.neighbours[&(b, name(a))].outbound, "{a} {b}");
    }
}

fn clone_of(host: usize, uid: u64, targets: &[usize]) -> Config {
    Config { uid: PeerUid(uid), nickname: "clone".into(), ..config(host, targets) }
}

#[test]
fn clones_that_meet_are_both_told_and_heal_once_one_is_reset() {
    let mut world = World::new(vec![config(0, &[]), clone_of(0, 5, &[0])]);
    world.run(seconds(100));
    for (host, other) in [(0, "\"clone\" (uid 5)"), (1, "\"host0\" (uid 1000)")] {
        let status = world.status(host);
        assert_eq!(status.collisions.len(), 1);
        assert!(status.collisions[0].text.contains(other) && status.collisions[0].text.contains("weave-agent reset"), "{status:?}");
    }
    let retrying = &world.status(1).connections[0];
    assert!(retrying.state == ConnectionState::Failed && retrying.retry_in.unwrap() <= 30.0, "{retrying:?}");
    // Its peer is not shown by what we call ourselves.
    assert_eq!(retrying.nickname.as_deref(), Some("host0"));
    assert!(world.dials[1] <= 5, "{:?}", world.dials);
    world.restart(1, config(1, &[0]), false);
    world.run(seconds(2));
    world.assert_full();
    assert!(world.status(0).collisions.is_empty(), "the warning outlives its cause");
    assert_eq!(world.status(0).connections.len(), 1);
}

#[test]
fn a_clone_at_a_third_peer_is_rejected_and_the_one_that_was_there_stays() {
    let mut world = World::new(vec![config(0, &[]), config(1, &[0]), clone_of(1, 5, &[])]);
    world.meshes[1].config.discovery = false;
    world.meshes[2].config.discovery = false;
    world.run(seconds(10));
    world.input(2, Input::Connect { targets: vec![target(0)], replace: false });
    world.run(seconds(100));
    assert_eq!((world.links(0), world.links(1), world.links(2)), (1, 1, 0));
    assert_eq!(world.next_hop(0, 1), Some(name(1)));
    assert_eq!([0, 1, 2].map(|host| world.status(host).collisions.len()), [1, 1, 1]);
    assert_eq!(world.status(0).peers[1].uid, "1001");
    assert!(world.status(2).collisions[0].text.contains("host1"));
}

#[test]
fn clones_far_apart_are_reported_and_do_not_keep_outbidding_each_other() {
    let mut world = World::line(5);
    world.meshes[4] = Mesh::new(Config { discovery: false, ..clone_of(0, 5, &[3]) }, [4; 32]);
    world.run(seconds(600));
    assert!(world.status(0).record_version < 100, "{}", world.status(0).record_version);
    assert_eq!((world.status(0).collisions.len(), world.status(4).collisions.len()), (1, 1));
    world.restart(4, Config { discovery: false, ..config(4, &[3]) }, false);
    world.run(seconds(120));
    world.assert_agreed();
    assert_eq!(world.next_hop(4, 0), Some(name(3)));
    assert!(world.status(0).collisions.is_empty());
}

#[test]
fn a_broadcast_comes_to_everyone_once_whatever_the_channel() {
    for mut world in [World::full(6), World::line(6)] {
        world.run(seconds(5));
        for host in 0..6 {
            let payload = Bytes::from(vec![u8::try_from(host).unwrap()]);
            world.input(host, Input::Broadcast { channel: Channel("unheard of".into()), payload });
        }
        world.run(seconds(1));
        for host in 0..6 {
            world.delivered[host].sort();
            let expected: Vec<_> =
                (0..6).filter(|from| *from != host).map(|from| (name(from), Bytes::from(vec![name(from).0[5]]))).collect();
            assert_eq!(world.delivered[host], expected);
        }
        assert_eq!(world.status(0).counters.delivered["unheard of"], 5);
        assert_eq!(world.status(0).counters.duplicates, 0);
    }
}

#[test]
fn a_broadcast_that_comes_again_is_neither_delivered_nor_passed_on() {
    let mut world = World::line(3);
    world.run(seconds(5));
    let broadcast = Broadcast { channel: Channel("x".into()), origin: name(0), uid: PeerUid(1000), number: 7, payload: Bytes::new() };
    let (link, _) = world.meshes[1].neighbours()[0];
    for _ in 0..3 {
        world.input(1, Input::Received { link, bytes: Message::Broadcast(broadcast.clone()).encode() });
    }
    world.run(seconds(1));
    assert_eq!((world.delivered[1].len(), world.delivered[2].len()), (1, 1));
    assert_eq!((world.status(1).counters.duplicates, world.status(2).counters.duplicates), (2, 0));
}

#[test]
fn a_neighbour_is_told_from_the_first_moment_on() {
    let mut world = World::new(vec![config(0, &[]), config(1, &[0])]);
    while world.links(1) == 0 {
        world.run(millis(1));
    }
    world.input(1, Input::Broadcast { channel: Channel("x".into()), payload: Bytes::new() });
    world.run(millis(100));
    assert_eq!(world.delivered[0].len(), 1);
}

#[test]
fn what_is_said_right_after_a_link_broke_goes_another_way() {
    let mut world = World::full(3);
    world.run(seconds(5));
    let (link, _) = world.meshes[1].neighbours().into_iter().find(|(_, peer)| *peer == name(2)).unwrap();
    world.input(1, Input::Closed { link, error: "reset".into() });
    world.input(1, Input::Broadcast { channel: Channel("x".into()), payload: Bytes::new() });
    world.run(millis(100));
    assert_eq!((world.delivered[0].len(), world.delivered[2].len()), (1, 1));
}

#[test]
fn a_unicast_goes_hop_by_hop_and_gossip_comes_to_everyone_once() {
    let mut world = World::line(4);
    world.run(seconds(5));
    let channel = Channel("x".into());
    world.input(0, Input::Unicast { channel: channel.clone(), to: name(3), payload: Bytes::from_static(b"u") });
    world.input(0, Input::Unicast { channel: channel.clone(), to: name(9), payload: Bytes::from_static(b"lost") });
    world.input(3, Input::Gossip { channel, payload: Bytes::from_static(b"g") });
    world.run(seconds(1));
    assert_eq!(world.delivered[3], [(name(0), Bytes::from_static(b"u"))]);
    for host in 0..3 {
        assert_eq!(world.delivered[host], [(name(3), Bytes::from_static(b"g"))]);
    }
    assert_eq!(world.status(0).counters.undeliverable, 1);
}

#[test]
fn the_lower_name_keeps_a_contested_short_id() {
    let short = ShortId::new(5);
    let configs = (0..4).map(|host| Config { short, ..config(host, &(0..host).collect::<Vec<_>>()) });
    let mut world = World::new(configs.collect());
    world.run(seconds(3));
    world.assert_full();
    let shorts: BTreeSet<_> = world.status(0).peers.iter().map(|peer| peer.short).collect();
    assert_eq!((shorts.len(), world.view(0).short), (4, short.unwrap()));
    assert_eq!(world.view(1).peers[&name(0)].short, short);
}

#[test]
fn links_beyond_the_limit_are_turned_away_with_a_reason() {
    let mut configs: Vec<_> = (0..4).map(|host| Config { discovery: false, ..config(host, &[0][..host.min(1)]) }).collect();
    configs[0].connection_limit = 2;
    let mut world = World::new(configs);
    world.run(seconds(20));
    assert_eq!(world.links(0), 2);
    assert_eq!(world.up_and_down.len(), 4, "nobody took the third link for one: {:?}", world.up_and_down);
    let turned_away = (1..4).map(|host| world.status(host)).find(|status| status.connections[0].state == ConnectionState::Retrying);
    assert!(turned_away.unwrap().connections[0].info.contains("as many links as it may"));
}

#[test]
fn a_forgotten_target_keeps_its_link_and_is_not_dialled_again() {
    let mut world = World::new(vec![config(0, &[]), config(1, &[0])]);
    world.run(seconds(5));
    world.input(1, Input::Forget { targets: vec!["host0".into()] });
    world.run(seconds(5));
    assert_eq!((world.links(1), world.status(1).targets.len()), (1, 0));
    world.cut(0, 1);
    world.run(seconds(20));
    world.heal(0, 1);
    world.run(seconds(60));
    assert_eq!(world.links(1), 0);
}

#[test]
fn a_target_that_is_not_there_is_tried_again_until_it_is() {
    let mut world = World::new(vec![config(0, &[1]), config(1, &[])]);
    world.cut(0, 1);
    world.run(seconds(600));
    let status = world.status(0);
    assert_eq!((status.connections[0].state, status.connections[0].info.as_str()), (ConnectionState::Retrying, "no answer"));
    world.heal(0, 1);
    world.run(seconds(46));
    world.assert_full();
}

#[test]
fn a_tunnel_that_was_found_to_work_before_the_link_counts_once_there_is_one() {
    let mut world = World::new(vec![config(0, &[]), config(1, &[0])]);
    for (host, peer) in [(0, 1), (1, 0)] {
        world.input(host, Input::Tunnel { peer: name(peer), up: true });
    }
    assert!(world.status(0).peers[0].connections.is_empty());
    world.run(millis(90));
    world.assert_full();
}

#[test]
fn links_bound_to_an_address_that_is_gone_end_at_once() {
    let mut world = World::full(2);
    world.run(seconds(5));
    world.input(0, Input::AddressGone(*address(0).ip()));
    assert_eq!(world.links(0), 0);
    assert_eq!(world.next_hop(0, 1), Some(name(1)), "the tunnel still works");
}

#[test]
fn strangers_cannot_open_more_than_a_few_unfinished_links() {
    let mut world = World::full(2);
    world.run(seconds(5));
    for link in 0..100_000 {
        let remote = SocketAddrV4::new([192, 0, 2, 1].into(), 1);
        world.input(0, Input::Accepted { link: LinkId(1 << 40 | link), local: address(0), remote });
    }
    assert_eq!((world.meshes[0].links.len(), world.status(0).counters.refused), (17, 100_000 - 16));
    world.run(seconds(11));
    assert_eq!(world.meshes[0].links.len(), 1);
}

#[test]
fn a_stranger_that_speaks_something_else_is_hung_up_on() {
    let mut world = World::full(2);
    world.run(seconds(5));
    let (link, remote) = (LinkId(1 << 40), SocketAddrV4::new([192, 0, 2, 1].into(), 1));
    world.input(0, Input::Accepted { link, local: address(0), remote });
    world.input(0, Input::Received { link, bytes: Bytes::from_static(b"GET / HTTP/1.1\r\n") });
    assert_eq!((world.meshes[0].links.len(), world.status(0).counters.bad_input), (1, 1));
    world.assert_full();
}

/// What a mesh sends on a link that is opened with us, as far as it would without an answer but a preamble.
fn handshake(link: LinkId) -> Vec<u8> {
    let mut mesh = Mesh::new(config(7, &[]), [7; 32]);
    mesh.handle(seconds(0), Input::Accepted { link, local: address(7), remote: address(0) });
    mesh.handle(seconds(0), Input::Received { link, bytes: super::frame::preamble(super::frame::Mode::Clear) });
    let mut stream = Vec::new();
    while let Some(output) = mesh.poll_output() {
        if let Output::Send { bytes, .. } = output {
            stream.extend(bytes);
        }
    }
    stream.extend(Message::Welcome(Welcome {}).encode());
    stream.extend(Message::Heartbeat(Heartbeat::Question).encode());
    stream
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn garbage_on_a_link_that_is_up_costs_that_link_and_nothing_else(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 1..10),
        tag in 0..9_u8,
    ) {
        let mut world = World::full(3);
        world.run(seconds(5));
        let (link, _) = world.meshes[0].neighbours()[0];
        for chunk in chunks {
            // Framed, so that decoders see it, not only the length check.
            let frame = super::frame::encode(tag, &chunk);
            world.input(0, Input::Received { link, bytes: frame });
            world.input(0, Input::Received { link, bytes: Bytes::from(chunk) });
        }
        world.run(seconds(20));
        prop_assert!(world.links(1) >= 1);
        prop_assert_eq!(world.next_hop(1, 2), Some(name(2)));
    }

    #[test]
    fn a_damaged_handshake_costs_that_link_and_nothing_else(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        chunk in 1..300_usize,
    ) {
        let mut world = World::full(2);
        world.run(seconds(5));
        let (link, remote) = (LinkId(1 << 40), SocketAddrV4::new([192, 0, 2, 1].into(), 1));
        let mut stream = handshake(link);
        for (at, value) in changes {
            let at = at.index(stream.len());
            stream[at] = value;
        }
        world.input(0, Input::Accepted { link, local: address(0), remote });
        for bytes in stream.chunks(chunk) {
            world.input(0, Input::Received { link, bytes: Bytes::copy_from_slice(bytes) });
        }
        world.run(seconds(15));
        // Undamaged, it is up until it falls silent.
        prop_assert_eq!(world.links(0), 1);
        prop_assert_eq!(world.next_hop(0, 1), Some(name(1)));
    }

    #[test]
    fn in_any_graph_frames_and_broadcasts_go_wherever_there_is_a_way(
        count in 2..9_usize,
        edges in prop::collection::vec((0..9_usize, 0..9_usize), 0..16),
    ) {
        let targets = |host| edges.iter().filter(|(from, to)| from % count == host && to % count != host).map(|(_, to)| to % count).collect::<Vec<_>>();
        let mut world = World::new((0..count).map(|host| Config { discovery: false, ..config(host, &targets(host)) }).collect());
        world.run(seconds(10));
        let edges: Vec<_> = edges.iter().map(|(a, b)| (a % count, b % count)).collect();
        let reached = |from| {
            let mut set = BTreeSet::from([from]);
            for _ in 0..count {
                set.extend(edges.iter().filter(|(a, b)| set.contains(a) || set.contains(b)).flat_map(|(a, b)| [*a, *b]).collect::<Vec<_>>());
            }
            set
        };
        for host in 0..count {
            world.input(host, Input::Broadcast { channel: Channel("x".into()), payload: Bytes::new() });
        }
        world.run(seconds(1));
        for host in 0..count {
            let mut from: Vec<_> = world.delivered[host].iter().map(|(from, _)| *from).collect();
            from.sort();
            prop_assert_eq!(from, reached(host).into_iter().filter(|peer| *peer != host).map(name).collect::<Vec<_>>());
            prop_assert_eq!(world.status(host).counters.duplicates, 0);
        }
        for (from, to) in world.pairs() {
            prop_assert_eq!(world.next_hop(from, to).is_some(), reached(from).contains(&to));
        }
    }

    #[test]
    fn any_mesh_converges_after_any_cuts(
        count in 2..6_usize,
        cuts in prop::collection::vec((0..6_usize, 0..6_usize, 1..15_000_u64), 0..12),
        restarts in prop::collection::vec((0..6_usize, any::<bool>(), 1..5_000_u64), 0..4),
    ) {
        let mut world = World::full(count);
        for (a, b, pause) in cuts {
            if a % count != b % count {
                world.cut(a % count, b % count);
            }
            world.run(millis(pause));
        }
        for (number, (host, silently, pause)) in restarts.into_iter().enumerate() {
            let host = host % count;
            let uid = PeerUid(5000 + number as u64);
            world.restart(host, Config { uid, ..config(host, &(0..host).collect::<Vec<_>>()) }, silently);
            world.run(millis(pause));
        }
        for (a, b) in world.pairs() {
            world.heal(a, b);
        }
        world.run(seconds(120));
        world.assert_full();
        for host in 0..count {
            prop_assert!(world.status(host).collisions.is_empty(), "{:?}", world.status(host).collisions);
        }
    }
}
