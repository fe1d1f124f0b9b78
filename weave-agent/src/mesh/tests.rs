//! What several meshes do together.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::harness::{Net, address, config, name, target};
use super::message::{self, Message};
use super::status::ConnectionState;
use super::{Channel, Input, LinkId, Output};
use crate::peer::{PeerUid, ShortId};

#[test]
fn two_to_five_peers_find_each_other_and_agree_on_trees() {
    for count in 2..=5 {
        let mut net = Net::star(count);
        net.run(6.0);
        net.assert_all_reach_all();
        net.assert_trees();
        for host in net.hosts.keys() {
            let view = net.view(*host);
            assert!(view.peers.values().all(|peer| peer.short.is_some()));
            assert!(view.peers.iter().all(|(name, peer)| peer.next_hop == Some(*name)), "discovery makes a full mesh");
        }
    }
}

#[test]
fn a_line_without_discovery_relays_and_stays_a_line() {
    let mut net = Net::line(5);
    net.run(6.0);
    net.assert_all_reach_all();
    net.assert_trees();
    assert_eq!(net.view(1).peers[&name(5)].next_hop, Some(name(2)));
    assert_eq!(net.hosts[&1].ups, [name(2)]);
}

#[test]
fn a_cut_goes_round_the_gap_and_healing_takes_the_direct_way_again() {
    let mut net = Net::star(3);
    net.run(6.0);
    net.cut(1, 2);
    net.run(15.0);
    net.assert_all_reach_all();
    net.assert_trees();
    assert_eq!(net.view(1).peers[&name(2)].next_hop, Some(name(3)));
    net.heal(1, 2);
    net.run(60.0);
    assert_eq!(net.view(1).peers[&name(2)].next_hop, Some(name(2)));
    net.assert_trees();
}

#[test]
fn a_mesh_cut_in_two_forgets_the_other_half_and_finds_it_again() {
    let mut net = Net::star(4);
    net.run(6.0);
    let across = [(1, 3), (1, 4), (2, 3), (2, 4)];
    for (a, b) in across {
        net.cut(a, b);
    }
    net.run(20.0);
    assert_eq!(net.view(1).peers.keys().copied().collect::<Vec<_>>(), [name(2)]);
    assert_eq!(net.view(3).peers.keys().copied().collect::<Vec<_>>(), [name(4)]);
    for (a, b) in across {
        net.heal(a, b);
    }
    net.run(60.0);
    net.assert_all_reach_all();
    net.assert_trees();
}

#[test]
fn of_two_links_dialled_at_once_both_ends_keep_the_same() {
    for round in 0..8_u64 {
        let mut net = Net::default();
        for skip in 0..round {
            net.later(Duration::ZERO, 9, Input::AddressGone(std::net::Ipv4Addr::from(u32::try_from(skip).unwrap())));
        }
        net.start(1, config(1, &[2]));
        net.start(2, config(2, &[1]));
        net.run(10.0);
        net.assert_all_reach_all();
        for host in [1, 2] {
            let status = net.hosts[&host].mesh.status(net.now);
            assert_eq!(status.connections.len(), 1, "{:?}", status.connections);
            assert_eq!(status.connections[0].state, ConnectionState::Established);
        }
        let outbound = |host: u8| net.hosts[&host].mesh.status(net.now).connections[0].outbound;
        assert_ne!(outbound(1), outbound(2));
        let dials = net.hosts[&1].dials.len() + net.hosts[&2].dials.len();
        net.run(300.0);
        assert_eq!(net.hosts[&1].dials.len() + net.hosts[&2].dials.len(), dials, "the losing address is not dialled again");
    }
}

#[test]
fn clones_are_both_told_and_keep_trying_every_thirty_seconds() {
    let mut net = Net::default();
    net.start(1, config(1, &[]));
    let mut clone = config(1, &[1]);
    clone.uid = PeerUid(77);
    net.start(2, clone);
    net.run(95.0);
    for host in [1, 2] {
        let status = net.hosts[&host].mesh.status(net.now);
        assert_eq!(status.collisions.len(), 1);
        assert!(status.collisions[0].text.contains("weave-agent reset"), "{}", status.collisions[0].text);
        assert!(net.hosts[&host].ups.is_empty());
    }
    assert_eq!(net.hosts[&2].dials.len(), 4, "{:?}", net.hosts[&2].dials);
}

#[test]
fn a_third_peer_tells_clones_from_a_restart_by_whether_the_first_is_still_alive() {
    let mut net = Net::default();
    net.start(3, config(3, &[]));
    net.start(1, config(1, &[3]));
    net.run(5.0);
    let mut clone = config(1, &[3]);
    clone.uid = PeerUid(77);
    clone.discovery = false;
    net.start(2, clone);
    net.run(8.0);
    for host in [1, 2, 3] {
        let status = net.hosts[&host].mesh.status(net.now);
        assert!(!status.collisions.is_empty(), "host {host}");
        assert_eq!(status.collisions[0].name, name(1).to_string());
    }
}

#[test]
fn we_dial_ourselves_only_once() {
    let mut net = Net::default();
    net.start(1, config(1, &[1]));
    net.run(300.0);
    assert_eq!(net.hosts[&1].dials.len(), 1);
    let status = net.hosts[&1].mesh.status(net.now);
    assert_eq!(status.connections[0].state, ConnectionState::Failed);
    assert!(status.collisions.is_empty());
    net.tell(1, Input::Connect { targets: vec![target(1)], replace: false });
    net.run(5.0);
    assert_eq!(net.hosts[&1].dials.len(), 2, "unless we are told to");
}

fn hello(number: u8) -> Vec<u8> {
    let hello = message::Hello {
        name: name(number),
        uid: PeerUid(5),
        nickname: "stranger".to_owned(),
        short: ShortId::new(99).unwrap(),
        connection: 1,
        port: 6783,
        tunnel_port: 6784,
    };
    [&message::header()[..], &Message::Hello(hello).frame().unwrap()].concat()
}

#[test]
fn garbage_closes_its_link_alone_and_is_counted_by_name() {
    let mut net = Net::star(2);
    net.run(5.0);
    let after_hello = |more: &[u8]| [&hello(50)[..], more].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("bad-magic", b"GET / HTTP/1.1\r\n".to_vec()),
        ("no-common-version", b"WVAG\x09\x0a".to_vec()),
        ("frame-too-long", b"WVAG\x01\x01\x00\x00\x20\x00".to_vec()),
        ("frame-too-long", after_hello(b"\x00\x40\x00\x01")),
        ("empty-frame", after_hello(b"\x00\x00\x00\x00")),
        ("bad-body", after_hello(b"\x00\x00\x00\x02\x03\xff")),
        ("too-early", b"WVAG\x01\x01\x00\x00\x00\x01\x02".to_vec()),
        ("second-hello", after_hello(&hello(50)[message::HEADER_LEN..])),
    ];
    for (kind, bytes) in cases {
        let before = net.hosts[&1].mesh.status(net.now).counters.garbage.get(kind).copied().unwrap_or(0);
        let link = net.stranger(1);
        net.tell(1, Input::Received { link, bytes: bytes.into() });
        let status = net.hosts[&1].mesh.status(net.now);
        assert_eq!(status.counters.garbage.get(kind).copied().unwrap_or(0), before + 1, "{kind}: {:?}", status.counters);
        assert_eq!(status.connections.len(), 1, "{kind}: {:?}", status.connections);
        net.run(3.0);
        net.assert_all_reach_all();
    }
}

#[test]
fn later_tags_and_longer_bodies_are_ignored() {
    let mut net = Net::star(1);
    let link = net.stranger(1);
    let bytes = [&hello(50)[..], b"\x00\x00\x00\x03\x63xy", b"\x00\x00\x00\x04\x02xyz"].concat();
    net.tell(1, Input::Received { link, bytes: bytes.into() });
    let status = net.hosts[&1].mesh.status(net.now);
    assert!(status.counters.garbage.is_empty());
    assert_eq!(status.connections[0].peer, Some(name(50).to_string()));
}

#[test]
fn handshakes_are_few_and_short_and_silence_is_noticed() {
    let mut net = Net::star(1);
    let links: Vec<LinkId> = (0..100).map(|_| net.stranger(1)).collect();
    assert_eq!(net.hosts[&1].mesh.status(net.now).connections.len(), 64);
    net.tell(1, Input::Received { link: links[0], bytes: hello(50).into() });
    net.run(9.5);
    assert_eq!(net.hosts[&1].mesh.status(net.now).connections.len(), 64);
    net.run(1.0);
    let status = net.hosts[&1].mesh.status(net.now);
    assert!(status.connections.is_empty(), "{:?}", status.connections);
    assert_eq!((status.counters.slow_handshakes, status.counters.silent, status.counters.too_many_handshakes), (63, 1, 36));
    assert_eq!(net.hosts[&1].downs, [name(50)]);
}

#[test]
fn a_restarted_agent_loses_no_routes_anywhere() {
    let mut net = Net::line(4);
    net.run(6.0);
    net.assert_all_reach_all();
    let from = net.now;
    net.kill(2);
    net.run(1.5);
    let mut again = config(2, &[1]);
    again.uid = PeerUid(1);
    again.discovery = false;
    net.start(2, again);
    net.run(60.0);
    net.assert_all_reach_all();
    net.assert_trees();
    for host in [1, 3, 4] {
        for (at, view) in net.hosts[&host].views.iter().filter(|(at, _)| *at >= from) {
            let reached = view.peers.values().filter(|peer| peer.next_hop.is_some()).count();
            assert_eq!(reached, 3, "host {host} lost a route at {at:?}");
        }
    }
}

#[test]
fn a_peer_that_crashed_and_came_back_takes_the_place_of_its_dead_link() {
    let mut net = Net::star(2);
    net.run(6.0);
    net.crash(2);
    net.run(0.5);
    let mut again = config(2, &[1]);
    again.uid = PeerUid(1);
    net.start(2, again);
    net.run(7.0);
    net.assert_all_reach_all();
    let status = net.hosts[&1].mesh.status(net.now);
    assert!(status.collisions.is_empty());
    assert_eq!(status.peers[1].uid, "0000000000000001");
}

#[test]
fn a_peer_that_is_gone_for_good_is_forgotten_when_its_tunnel_is() {
    let mut net = Net::star(3);
    net.run(6.0);
    net.kill(3);
    net.run(3.0);
    assert!(net.reaches(1).contains(&name(3)), "the tunnel still works");
    for host in [1, 2] {
        net.tell(host, Input::Tunnel { peer: name(3), up: false });
    }
    net.run(1.5);
    for host in [1, 2] {
        assert!(!net.view(host).peers.contains_key(&name(3)));
    }
}

#[test]
fn a_broadcast_comes_to_every_peer_once() {
    for mut net in [Net::star(5), Net::line(6)] {
        net.run(8.0);
        for host in net.hosts.keys().copied().collect::<Vec<_>>() {
            let payload = Bytes::from(vec![host]);
            net.tell(host, Input::Broadcast { channel: Channel("test".to_owned()), payload });
        }
        net.run(1.0);
        let hosts: BTreeSet<u8> = net.hosts.keys().copied().collect();
        for (host, state) in &net.hosts {
            let mut from: Vec<u8> = state.delivered.iter().map(|(_, _, payload)| payload[0]).collect();
            from.sort_unstable();
            assert_eq!(from, hosts.iter().copied().filter(|other| other != host).collect::<Vec<_>>());
        }
    }
}

#[test]
fn of_two_peers_with_one_short_id_the_higher_name_chooses_another() {
    let mut net = Net::default();
    net.start(1, config(1, &[]));
    let mut other = config(2, &[1]);
    other.short = ShortId::new(1);
    net.start(2, other);
    net.run(5.0);
    assert!(net.hosts[&1].shorts.is_empty());
    let chosen = *net.hosts[&2].shorts.last().unwrap();
    assert_eq!(net.view(2).short, chosen);
    assert_eq!(net.view(1).peers[&name(2)].short, Some(chosen));
    assert_eq!(net.view(2).peers[&name(1)].short, ShortId::new(1));
}

#[test]
fn the_connection_limit_holds_on_both_sides() {
    let mut net = Net::default();
    let mut hub = config(1, &[]);
    hub.connection_limit = 2;
    hub.discovery = false;
    net.start(1, hub);
    for host in 2..=4 {
        let mut config = config(host, &[1]);
        config.discovery = false;
        net.start(host, config);
    }
    net.run(40.0);
    let status = net.hosts[&1].mesh.status(net.now);
    assert_eq!(status.connections.len(), 2);
    assert!(status.counters.over_limit > 0);
    let refused: Vec<_> =
        net.hosts.values().flat_map(|host| host.mesh.status(net.now).connections).filter(|c| !c.info.is_empty()).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].info.contains("connection limit reached (2)"), "{}", refused[0].info);
}

#[test]
fn dials_that_fail_are_repeated_ever_more_slowly_up_to_thirty_seconds() {
    let mut net = Net::default();
    net.start(1, config(1, &[9]));
    net.run(600.0);
    let dials: Vec<_> = net.hosts[&1].dials.iter().map(|(at, _)| *at).collect();
    let gaps: Vec<f64> = dials.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    assert!(gaps[0] < 3.1 && gaps.iter().all(|gap| *gap < 45.1), "{gaps:?}");
    assert!(gaps[8..].iter().all(|gap| *gap > 14.9), "{gaps:?}");
    let status = net.hosts[&1].mesh.status(net.now);
    assert_eq!(status.connections[0].info, "no route");
    net.tell(1, Input::Forget { targets: vec!["10.0.0.9".to_owned()] });
    assert!(net.hosts[&1].mesh.status(net.now).connections.is_empty());
}

#[test]
fn links_bound_to_an_address_that_is_gone_are_closed() {
    let mut net = Net::star(2);
    net.run(5.0);
    net.tell(2, Input::AddressGone(*address(2).ip()));
    assert_eq!(net.hosts[&2].downs, [name(1)]);
    assert!(net.reaches(2).contains(&name(1)), "the tunnel is not ours to end");
    net.run(10.0);
    assert_eq!(net.hosts[&2].ups, [name(1), name(1)]);
}

#[test]
fn what_does_not_change_is_not_said() {
    let mut net = Net::star(4);
    net.run(10.0);
    let views: Vec<usize> = net.hosts.values().map(|host| host.views.len()).collect();
    net.run(200.0);
    assert_eq!(views, net.hosts.values().map(|host| host.views.len()).collect::<Vec<_>>());
    let mesh = &mut net.hosts.get_mut(&1).unwrap().mesh;
    mesh.handle(net.now, Input::Tunnel { peer: name(2), up: true });
    assert!(mesh.poll_output().is_none());
}

#[test]
fn a_change_is_told_to_all_neighbours_within_twenty_milliseconds() {
    let mut net = Net::star(3);
    net.run(10.0);
    let mesh = &mut net.hosts.get_mut(&1).unwrap().mesh;
    mesh.handle(net.now, Input::Tunnel { peer: name(2), up: false });
    let at = mesh.poll_timeout().unwrap();
    assert!(at <= net.now + Duration::from_millis(20));
    while mesh.poll_output().is_some() {}
    mesh.handle_timeout(at);
    let mut sends = 0;
    while let Some(output) = mesh.poll_output() {
        sends += usize::from(matches!(output, Output::Send { .. }));
    }
    assert_eq!(sends, 2);
}

#[test]
fn status_is_json() {
    let mut net = Net::star(3);
    net.run(5.0);
    let json = serde_json::to_value(net.hosts[&2].mesh.status(net.now)).unwrap();
    assert_eq!(json["name"], "02:00:00:00:00:02");
    assert_eq!(json["connections"][0]["state"], "established");
    assert_eq!(json["peers"].as_array().unwrap().len(), 3);
}

#[test]
fn after_any_trouble_the_mesh_comes_together_again() {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};
    for seed in 0..16_u8 {
        let mut rng = StdRng::from_seed([seed; 32]);
        let mut net = if seed % 2 == 0 { Net::star(5) } else { Net::line(5) };
        net.run(5.0);
        for step in 0..30_u64 {
            let a = rng.random_range(1..=5_u8);
            let b = rng.random_range(1..=4_u8);
            let b = if b >= a { b + 1 } else { b };
            match rng.random_range(0..6) {
                0 | 1 => net.cut(a, b),
                2 => net.heal(a, b),
                3 => net.kill(a),
                4 => net.crash(a),
                _ => {}
            }
            net.run(rng.random_range(0.0..4.0));
            if !net.hosts.contains_key(&a) {
                let mut again = config(a, if a == 1 { &[] } else { &[1] });
                again.uid = PeerUid(rng.random());
                again.discovery = seed % 2 == 0 || step % 2 == 0;
                net.start(a, again);
            }
        }
        net.blocked.clear();
        net.run(120.0);
        net.assert_all_reach_all();
        net.assert_trees();
        let status = net.hosts.values().map(|host| host.mesh.status(net.now));
        for status in status {
            assert!(status.collisions.is_empty(), "seed {seed}: {:?}", status.collisions);
            assert!(status.counters.garbage.is_empty());
        }
        for host in net.hosts.values_mut() {
            host.delivered.clear();
        }
        net.tell(3, Input::Broadcast { channel: Channel("test".to_owned()), payload: Bytes::new() });
        net.run(1.0);
        assert!(net.hosts.iter().all(|(host, state)| state.delivered.len() == usize::from(*host != 3)), "seed {seed}");
    }
}
