//! What the switch does, told from outside.

use std::collections::{BTreeMap, BTreeSet};

use weave_ebpf::flow::FlowKey;
use weave_ebpf::stats::DropReason;

use super::bench::{Bench, US, address, frame, full_mesh, local, mac, name, neighbour, remote, short, transit};
use super::heartbeat::Heartbeat;
use super::status::Location;
use super::{Adopted, Input, Output};
use crate::Time;
use crate::addr::Mac;
use crate::datapath::{Action, Egress, Op, PeerRoute, PortId, Source, TunnelKind, Upcall};
use crate::mesh::{Neighbour, View};

const LOCAL: Location = Location::Port(PortId(11));

#[test]
fn two_containers_of_one_host_meet_by_a_flood_and_are_then_cached_both_ways() {
    let mut bench = Bench::settled();
    let ways = bench.miss(local(11, mac(1), mac(2)));
    let peers = [2, 3].map(|n| Egress::Peer { to: short(n), origin: short(US) });
    assert_eq!(ways, [&[Egress::Port(PortId(12))][..], &peers].concat());
    assert_eq!(bench.flows[&local(11, mac(1), mac(2))], Action::Flood(short(US)));
    assert_eq!(bench.miss(local(12, mac(2), mac(1))), [Egress::Port(PortId(11))]);
    assert_eq!(bench.flows.get(&local(11, mac(1), mac(2))), None, "the flood is void");
    assert_eq!(bench.miss(local(11, mac(1), mac(2))), [Egress::Port(PortId(12))]);
    assert_eq!(bench.flows.len(), 2);
}

#[test]
fn a_decision_is_installed_before_the_frame_is_sent() {
    let mut bench = Bench::settled();
    bench.miss(local(11, mac(1), Mac::BROADCAST));
    let install = bench.outputs.iter().position(|output| matches!(output, Output::Op(Op::Install(..))));
    let execute = bench.outputs.iter().position(|output| matches!(output, Output::Op(Op::Execute(..))));
    assert!(install.unwrap() < execute.unwrap());
}

#[test]
fn frames_for_a_mac_at_another_peer_go_to_it_alone() {
    let mut bench = Bench::settled();
    assert_eq!(bench.miss(remote(2, 2, mac(9), Mac::BROADCAST)), [11, 12].map(|port| Egress::Port(PortId(port))));
    assert_eq!(bench.miss(local(11, mac(1), mac(9))), [Egress::Peer { to: short(2), origin: short(US) }]);
    assert_eq!(bench.flows[&local(11, mac(1), mac(9))], Action::Peer(short(2)));
}

#[test]
fn frames_that_no_switch_forwards_are_dropped_and_the_drop_is_cached() {
    let mut bench = Bench::settled();
    bench.miss(local(11, mac(2), Mac::BROADCAST));
    for (key, reason) in [
        (local(11, mac(1), Mac([0x01, 0x80, 0xc2, 0, 0, 0x0e])), DropReason::Reserved),
        (local(11, Mac::BROADCAST, mac(2)), DropReason::Malformed),
        (local(11, Mac::ZERO, mac(2)), DropReason::Malformed),
        (local(11, mac(1), Mac::ZERO), DropReason::Malformed),
        (local(11, mac(1), mac(2)), DropReason::Reflected),
    ] {
        assert!(bench.miss(key).is_empty());
        assert_eq!(bench.flows.get(&key), Some(&Action::Drop(reason)));
    }
    assert_eq!(bench.at(Mac::BROADCAST), None);
}

#[test]
fn strangers_and_unknown_peers_teach_nothing_and_leave_no_flow() {
    let mut bench = Bench::settled();
    for key in
        [remote(9, 2, mac(1), mac(2)), remote(2, 9, mac(1), mac(2)), remote(2, US, mac(1), mac(2)), transit(2, 3, 9), transit(9, 3, 2)]
    {
        assert!(bench.miss(key).is_empty());
    }
    assert!(bench.miss(local(99, mac(1), mac(2))).is_empty());
    assert!(bench.flows.is_empty());
    assert_eq!(bench.at(mac(1)), None);
    assert_eq!(bench.switch.counters.dropped, 6);
}

#[test]
fn a_flood_goes_on_along_its_tree_only_if_it_came_from_the_parent() {
    let mut bench = Bench::settled();
    let mut view = full_mesh(&[2, 3]);
    view.peers.get_mut(&name(2)).unwrap().hops = vec![name(3), name(2)];
    bench.view(view);
    let on = Egress::Peer { to: short(3), origin: short(2) };
    assert_eq!(bench.miss(remote(2, 2, mac(9), Mac::BROADCAST)), [Egress::Port(PortId(11)), Egress::Port(PortId(12)), on]);
    assert!(bench.miss(remote(3, 2, mac(9), Mac::BROADCAST)).is_empty());
    assert_eq!(bench.trees[&short(2)], (Some(address(2)), vec![short(3)]), "not back to the parent");
}

#[test]
fn a_frame_for_a_mac_that_moved_on_is_flooded_on_and_not_sent_to_and_fro() {
    let mut bench = Bench::settled();
    bench.miss(remote(3, 3, mac(9), Mac::BROADCAST));
    let ways = bench.miss(remote(2, 2, mac(8), mac(9)));
    assert_eq!(ways, [11, 12].map(|port| Egress::Port(PortId(port))));
    assert!(bench.miss(remote(3, 2, mac(8), mac(9))).is_empty(), "not from the parent");
}

#[test]
fn transit_is_relayed_unlearned_and_never_back() {
    let mut bench = Bench::settled();
    assert_eq!(bench.miss(transit(2, 2, 3)), [Egress::Peer { to: short(3), origin: short(2) }]);
    assert_eq!(bench.flows[&transit(2, 2, 3)], Action::Peer(short(3)));
    assert!(bench.miss(transit(3, 2, 3)).is_empty());
    assert!(bench.miss(transit(3, 2, 2)).is_empty(), "not to where it began");
    assert_eq!(bench.flows.len(), 1);
}

#[test]
fn a_mac_that_moves_takes_all_its_flows_with_it() {
    let mut bench = Bench::settled();
    bench.miss(local(11, mac(1), mac(2)));
    bench.miss(local(12, mac(2), mac(1)));
    bench.miss(local(12, mac(2), mac(7)));
    bench.miss(remote(2, 2, mac(1), Mac::BROADCAST));
    assert_eq!(bench.at(mac(1)), Some(Location::Peer(name(2))));
    let left: Vec<FlowKey> = bench.flows.keys().copied().collect();
    assert_eq!(left, [remote(2, 2, mac(1), Mac::BROADCAST), local(12, mac(2), mac(7))]);
}

#[test]
fn a_mac_that_came_here_is_announced_and_one_announced_elsewhere_moves_if_it_is_known() {
    let mut bench = Bench::settled();
    bench.miss(local(11, mac(1), mac(2)));
    bench.miss(local(11, mac(3), mac(2)));
    bench.pass(20);
    assert_eq!(bench.announced(), [mac(1), mac(3)]);
    bench.input(Input::Announced { peer: name(3), macs: vec![mac(1), mac(5), Mac::BROADCAST] });
    assert_eq!(bench.at(mac(1)), Some(Location::Peer(name(3))));
    assert_eq!((bench.at(mac(5)), bench.at(Mac::BROADCAST)), (None, None));
    bench.input(Input::Announced { peer: name(9), macs: vec![mac(1)] });
    assert_eq!(bench.at(mac(1)), Some(Location::Peer(name(3))), "nobody knows peer 9");
}

#[test]
fn a_peer_that_comes_into_reach_is_told_what_it_may_have_missed() {
    let mut bench = Bench::settled();
    bench.miss(local(11, mac(1), mac(2)));
    bench.pass(5000);
    bench.outputs.clear();
    bench.view(full_mesh(&[2, 3, 4]));
    bench.pass(2000);
    assert_eq!(bench.announced(), [mac(1)]);
}

#[test]
fn a_contested_mac_stays_and_the_drop_of_the_other_ends_with_the_hold() {
    let mut bench = Bench::settled();
    bench.miss(local(12, mac(2), mac(1)));
    for n in 0..6 {
        bench.miss(local(11 + n % 2, mac(1), mac(2)));
    }
    assert_eq!(bench.at(mac(1)), Some(Location::Port(PortId(12))));
    assert!(bench.miss(local(11, mac(1), mac(2))).is_empty());
    assert_eq!(bench.flows[&local(11, mac(1), mac(2))], Action::Drop(DropReason::Contested));
    assert!(!bench.miss(local(11, mac(3), mac(2))).is_empty(), "others are as they were");
    bench.pass(9_900);
    assert!(bench.flows.contains_key(&local(11, mac(1), mac(2))));
    bench.pass(200);
    assert!(!bench.flows.contains_key(&local(11, mac(1), mac(2))));
    assert_eq!(bench.miss(local(11, mac(1), mac(2))), [Egress::Port(PortId(12))]);
    assert_eq!(bench.at(mac(1)), Some(LOCAL));
}

#[test]
fn a_port_that_goes_takes_its_macs_and_the_flows_of_and_to_it() {
    let mut bench = Bench::settled();
    bench.miss(local(11, mac(1), mac(2)));
    bench.miss(local(12, mac(2), mac(1)));
    bench.miss(local(12, mac(2), Mac::BROADCAST));
    bench.input(Input::PortRemoved(PortId(11)));
    assert_eq!(bench.flows.keys().copied().collect::<Vec<_>>(), [local(12, mac(2), Mac::BROADCAST)]);
    assert_eq!(bench.flood_ports, [PortId(12)]);
    assert_eq!(bench.at(mac(1)), None);
}

#[test]
fn a_peer_that_leaves_takes_its_macs_flows_slot_and_tree() {
    let mut bench = Bench::settled();
    bench.miss(remote(2, 2, mac(9), Mac::BROADCAST));
    bench.miss(local(11, mac(1), mac(9)));
    bench.miss(transit(3, 3, 2));
    bench.input(Input::LinkDown(name(2)));
    bench.view(full_mesh(&[3]));
    assert!(bench.flows.is_empty(), "{:?}", bench.flows);
    assert_eq!(bench.slots.keys().copied().collect::<Vec<_>>(), [short(3)]);
    assert_eq!(bench.trees[&short(2)], (None, vec![]));
    assert_eq!(bench.sources.keys().copied().collect::<Vec<_>>(), [address(3)]);
    assert!(bench.outputs.contains(&Output::Tunnel { peer: name(2), up: false }));
}

#[test]
fn a_peer_whose_tunnel_dies_is_reached_through_the_next_hop_and_directly_again_within_ten_seconds() {
    let mut bench = Bench::settled();
    bench.answering.remove(&address(2));
    bench.pass(2100);
    assert!(bench.outputs.contains(&Output::Tunnel { peer: name(2), up: false }));
    assert_eq!(bench.slots[&short(2)].remote, address(2), "no other way is known");
    let mut view = full_mesh(&[2, 3]);
    view.peers.get_mut(&name(2)).unwrap().next_hop = Some(name(3));
    bench.view(view);
    assert_eq!(bench.slots[&short(2)].remote, address(3));
    bench.answering.insert(address(2), 1450);
    bench.pass(3000);
    assert_eq!(bench.slots[&short(2)].remote, address(2));
}

#[test]
fn a_tunnel_outlives_its_link_as_long_as_it_is_answered() {
    let mut bench = Bench::settled();
    bench.input(Input::LinkDown(name(2)));
    bench.pass(60_000);
    assert!(bench.sources.contains_key(&address(2)));
    bench.answering.remove(&address(2));
    bench.outputs.clear();
    bench.pass(2100);
    assert!(bench.outputs.contains(&Output::Tunnel { peer: name(2), up: false }));
    assert!(bench.sources.contains_key(&address(2)), "it is tried on as long as the mesh knows the peer");
    bench.view(full_mesh(&[3]));
    bench.pass(2100);
    assert!(!bench.sources.contains_key(&address(2)) && !bench.slots.contains_key(&short(2)));
}

#[test]
fn a_narrower_path_narrows_the_slot_and_those_relayed_by_it() {
    let mut bench = Bench::settled();
    bench.input(Input::RouteMtu { remote: address(2), mtu: 1400 });
    assert_eq!(bench.slots[&short(2)].mtu, 1400);
    let mut view = full_mesh(&[2, 3, 4]);
    view.peers.get_mut(&name(4)).unwrap().next_hop = Some(name(2));
    bench.view(view);
    assert_eq!(bench.slots[&short(4)], bench.slots[&short(2)]);
}

#[test]
fn a_request_that_the_kernel_left_is_answered_and_nonsense_is_counted() {
    let mut bench = Bench::settled();
    let key = remote(2, 2, Mac::ZERO, Mac::ZERO);
    let request = Heartbeat::request(77, 1, 2, 100);
    let frame = request.datagram(short(US), short(2)).slice(8..);
    bench.input(Input::Upcall(Upcall::Heartbeat { key, frame: frame.clone() }));
    let reply = request.reply().datagram(short(2), short(US));
    assert_eq!(bench.outputs, [Output::Op(Op::Heartbeat { local: address(US), remote: address(2), port: 6784, datagram: reply })]);
    let bad = [
        (key, request.reply().datagram(short(US), short(2)).slice(8..)),
        (key, frame.slice(..50)),
        (remote(9, 2, Mac::ZERO, Mac::ZERO), frame),
    ];
    for (key, frame) in bad {
        bench.input(Input::Upcall(Upcall::Heartbeat { key, frame }));
    }
    assert_eq!((bench.outputs.len(), bench.switch.counters.bad_heartbeats), (1, 3));
}

#[test]
fn a_short_id_in_other_hands_voids_all_flows() {
    let mut bench = Bench::settled();
    bench.miss(remote(2, 2, mac(9), Mac::BROADCAST));
    bench.miss(local(11, mac(1), mac(9)));
    let mut view = full_mesh(&[2, 3]);
    view.peers.get_mut(&name(2)).unwrap().short = Some(short(3));
    view.peers.get_mut(&name(3)).unwrap().short = Some(short(5));
    bench.view(view);
    assert!(bench.outputs.contains(&Output::Op(Op::BumpEpoch)));
    assert!(bench.flows.is_empty());
    assert_eq!(bench.slots[&short(3)].remote, address(2));
    assert_eq!(bench.slots[&short(5)].remote, address(3));
    assert_eq!(bench.miss(local(11, mac(1), mac(9))), [Egress::Peer { to: short(3), origin: short(US) }]);
}

#[test]
fn our_new_short_id_is_told_and_voids_all_flows() {
    let mut bench = Bench::settled();
    bench.miss(local(11, mac(1), mac(9)));
    bench.view(View { short: short(7), ..full_mesh(&[2, 3]) });
    assert!(bench.flows.is_empty());
    assert!(bench.outputs.contains(&Output::Op(Op::SetSelf(short(7)))));
    assert_eq!(bench.trees[&short(7)].1, [short(2), short(3)]);
    assert_eq!(bench.trees[&short(US)].1, []);
}

#[test]
fn flows_not_used_for_two_minutes_go_and_macs_not_seen_for_ten() {
    let mut bench = Bench::settled();
    bench.miss(local(12, mac(2), Mac::BROADCAST));
    bench.miss(local(11, mac(1), mac(2)));
    for _ in 0..30 {
        bench.pass(60_000);
        bench.flows.remove(&local(12, mac(2), Mac::BROADCAST));
        bench.input(bench.list(Some(Time::ZERO)));
        bench.miss(local(12, mac(2), mac(3)));
    }
    assert_eq!(bench.at(mac(1)), Some(LOCAL), "its flow is used");
    bench.pass(130_000);
    bench.input(bench.list(Some(Time::from_secs(130))));
    assert!(bench.flows.is_empty());
    assert_eq!(bench.at(mac(1)), Some(LOCAL));
    bench.pass(500_000);
    assert_eq!(bench.at(mac(1)), None);
}

#[test]
fn a_mac_that_falls_silent_takes_the_flows_to_it_along() {
    let mut bench = Bench::settled();
    bench.miss(local(12, mac(2), Mac::BROADCAST));
    bench.miss(local(11, mac(1), mac(2)));
    for _ in 0..13 {
        bench.pass(60_000);
        bench.input(bench.list(Some(Time::ZERO)));
        bench.input(Input::Upcall(Upcall::Miss { key: local(11, mac(1), mac(3)), frame: frame() }));
        bench.flows.remove(&local(12, mac(2), Mac::BROADCAST));
    }
    assert_eq!((bench.at(mac(1)), bench.at(mac(2))), (Some(LOCAL), None));
    assert_eq!(bench.flows.keys().copied().collect::<Vec<_>>(), [local(11, mac(1), mac(3))]);
}

#[test]
fn a_flow_the_datapath_lost_is_forgotten_and_one_it_should_not_have_is_removed() {
    let mut bench = Bench::settled();
    bench.miss(local(11, mac(1), Mac::BROADCAST));
    bench.input(Input::Flows(vec![]));
    assert_eq!(bench.flows.len(), 1, "the list may be older than the flow");
    bench.pass(10_000);
    bench.flows.insert(local(11, mac(8), mac(9)), Action::Port(PortId(12)));
    bench.input(bench.list(None));
    assert_eq!(bench.flows.keys().copied().collect::<Vec<_>>(), [local(11, mac(1), Mac::BROADCAST)]);
    bench.input(Input::Flows(vec![]));
    assert_eq!(bench.switch.flows.iter().count(), 0);
}

/// However long the list is, nothing waits for all of it.
#[test]
fn a_list_of_flows_may_come_in_parts() {
    let mut bench = Bench::settled();
    for destination in [Mac::BROADCAST, Mac([0x33; 6]), mac(9)] {
        bench.miss(local(11, mac(1), destination));
    }
    bench.pass(10_000);
    let Input::Flows(mut all) = bench.list(None) else { panic!() };
    let keys: Vec<FlowKey> = all.iter().map(|entry| entry.key).collect();
    let (second, first) = (all.pop().unwrap(), all.remove(0));
    bench.input(Input::FlowsPart(vec![first]));
    bench.input(Input::FlowsPart(vec![second]));
    assert_eq!(bench.flows.keys().copied().collect::<Vec<_>>(), keys, "the list has not ended");
    bench.input(Input::FlowsEnd);
    assert_eq!(bench.flows.keys().copied().collect::<Vec<_>>(), [keys[0], keys[2]]);
    // The next list is another one.
    bench.input(Input::FlowsEnd);
    assert!(bench.flows.is_empty());
}

fn source() -> Source {
    Source { short: short(2), local: address(US), least: TunnelKind::Vxlan }
}

/// What a datapath kept over a restart: two ports, neighbour 2 as parent of its own tree, and us flooding to it.
fn kept(bench: &mut Bench) {
    let route = PeerRoute { remote: address(2), local: address(US), port: 6784, mtu: 1450, tunnel: TunnelKind::Vxlan, big: false };
    let tree = (short(2), Some(address(2)), vec![]);
    bench.slots.insert(short(2), route);
    bench.sources.insert(address(2), source());
    bench.trees = [(short(2), (tree.1, tree.2.clone())), (short(US), (None, vec![short(2)]))].into();
    bench.flood_ports = vec![PortId(11), PortId(12)];
    bench.input(Input::Adopted(Adopted {
        short: Some(short(US)),
        slots: vec![(short(2), route)],
        sources: vec![(address(2), source())],
        trees: vec![tree, (short(US), None, vec![short(2)])],
        flood_ports: vec![PortId(11), PortId(12)],
    }));
}

#[test]
fn a_restart_takes_nothing_away_within_the_grace_and_then_what_is_not_wanted() {
    let mut bench = Bench::new(|_| {});
    kept(&mut bench);
    bench.input(Input::PortAdded(PortId(11)));
    bench.answering.insert(address(3), 1450);
    bench.input(Input::LinkUp(neighbour(3)));
    bench.view(full_mesh(&[3]));
    bench.pass(29_999);
    assert!(bench.slots.contains_key(&short(2)) && bench.sources.contains_key(&address(2)));
    assert_eq!(bench.trees[&short(US)].1, [short(3), short(2)]);
    assert_eq!(bench.flood_ports, [PortId(11), PortId(12)]);
    bench.pass(2);
    assert!(!bench.slots.contains_key(&short(2)) && !bench.sources.contains_key(&address(2)));
    assert_eq!((&bench.trees[&short(US)].1, &bench.trees[&short(2)].0), (&vec![short(3)], &None));
    assert_eq!(bench.flood_ports, [PortId(11)]);
}

#[test]
fn what_an_earlier_agent_sent_in_clear_is_not_kept_once_there_is_a_password() {
    for (trusted, kept_open) in [("10.9.0.0/16", false), ("10.0.0.0/24", true)] {
        let mut bench = Bench::new(|config| config.sealed_but_for = Some(vec![trusted.parse().unwrap()]));
        kept(&mut bench);
        assert_eq!(
            (bench.slots.contains_key(&short(2)), bench.sources[&address(2)].least == TunnelKind::Vxlan),
            (kept_open, kept_open),
            "{trusted}"
        );
        bench.view(full_mesh(&[2]));
        assert_eq!(bench.slots.contains_key(&short(2)), kept_open, "{trusted}");
    }
}

#[test]
fn a_neighbour_that_must_be_sealed_from_now_on_gets_nothing_in_clear_before_its_sleeve_works() {
    let mut bench = Bench::settled();
    assert_eq!(bench.slots[&short(2)].tunnel, TunnelKind::Vxlan);
    bench.input(Input::LinkUp(Neighbour { sealed: true, connection: 7, ..neighbour(2) }));
    assert!(!bench.slots.contains_key(&short(2)) && bench.sources[&address(2)].least == TunnelKind::Sleeve);
    assert_eq!(bench.slots[&short(3)].tunnel, TunnelKind::Vxlan, "others are as they were");
    bench.pass(20_000);
    assert_eq!(bench.slots.get(&short(2)).map(|route| route.remote), None, "nor while nothing answers");
    bench.sleeves.insert(address(2), 1472);
    bench.pass(20_000);
    assert_eq!(bench.slots[&short(2)].tunnel, TunnelKind::Sleeve);
}

#[test]
fn the_first_password_ends_what_goes_in_clear_at_once() {
    let mut bench = Bench::settled();
    bench.input(Input::SealedButFor(Some(vec!["10.0.0.3/32".parse().unwrap()])));
    assert!(!bench.slots.contains_key(&short(2)) && bench.sources[&address(2)].least == TunnelKind::Sleeve);
    assert!(bench.slots.contains_key(&short(3)) && bench.sources[&address(3)].least == TunnelKind::Vxlan, "that network is trusted");
    // A sleeve that was agreed on before is in clear as well.
    bench.answering.remove(&address(2));
    bench.sleeves.insert(address(2), 1472);
    bench.pass(20_000);
    assert!(!bench.slots.contains_key(&short(2)));
    bench.input(Input::SealedButFor(None));
    assert!(bench.slots.contains_key(&short(2)));
}

#[test]
fn flows_of_an_earlier_agent_teach_where_macs_are_unless_they_contradict_what_is_known() {
    let mut bench = Bench::new(|_| {});
    kept(&mut bench);
    let to_peer = local(11, mac(1), mac(9));
    let back = remote(2, 2, mac(9), mac(1));
    let wrong = local(12, mac(1), mac(9));
    let early = local(12, mac(2), mac(1));
    bench.flows.insert(to_peer, Action::Peer(short(2)));
    bench.flows.insert(back, Action::Port(PortId(11)));
    bench.flows.insert(wrong, Action::Flood(short(US)));
    bench.flows.insert(early, Action::Port(PortId(11)));
    bench.input(Input::PortAdded(PortId(11)));
    bench.view(full_mesh(&[2]));
    bench.input(bench.list(Some(Time::from_secs(1))));
    assert_eq!(bench.switch.flows.iter().count(), 2, "port 12 is not known yet");
    bench.input(Input::PortAdded(PortId(12)));
    bench.input(bench.list(Some(Time::from_secs(1))));
    assert_eq!((bench.at(mac(1)), bench.at(mac(9))), (Some(LOCAL), Some(Location::Peer(name(2)))));
    assert_eq!(bench.flows.keys().copied().collect::<BTreeSet<_>>(), [to_peer, back, early].into());
    assert_eq!(bench.switch.flows.iter().collect::<BTreeMap<_, _>>(), bench.flows);
    bench.pass(5000);
    assert!(bench.announced().is_empty());
}

#[test]
fn a_flow_of_an_earlier_agent_whose_source_has_no_room_is_removed() {
    let mut bench = Bench::new(|config| config.port_macs = 1);
    bench.input(Input::PortAdded(PortId(11)));
    bench.input(Input::PortAdded(PortId(12)));
    bench.miss(local(12, mac(1), Mac::BROADCAST));
    let key = local(11, mac(1), mac(6));
    bench.flows.insert(key, Action::Port(PortId(12)));
    bench.input(bench.list(Some(Time::ZERO)));
    assert!(!bench.flows.contains_key(&key));
}

#[test]
fn what_is_not_known_by_the_end_of_the_grace_is_removed() {
    let mut bench = Bench::new(|_| {});
    kept(&mut bench);
    bench.flows.insert(local(12, mac(2), mac(1)), Action::Port(PortId(11)));
    bench.input(bench.list(Some(Time::ZERO)));
    assert_eq!(bench.flows.len(), 1);
    bench.pass(30_001);
    bench.input(bench.list(Some(Time::ZERO)));
    assert!(bench.flows.is_empty());
}

#[test]
fn more_hops_than_the_kernel_copies_to_are_served_frame_by_frame() {
    let mut bench = Bench::settled();
    bench.miss(local(11, mac(1), Mac::BROADCAST));
    assert_eq!(bench.flows.len(), 1);
    for port in 100..400 {
        bench.input(Input::PortAdded(PortId(port)));
    }
    assert!(bench.flows.is_empty());
    assert_eq!(bench.miss(local(11, mac(1), Mac::BROADCAST)).len(), 303);
    assert!(bench.flows.is_empty());
}

#[test]
fn status_shows_where_everything_is() {
    let mut bench = Bench::settled();
    bench.miss(remote(2, 2, mac(9), Mac::BROADCAST));
    bench.miss(local(11, mac(1), mac(9)));
    let mut view = full_mesh(&[2, 3, 4]);
    view.peers.get_mut(&name(4)).unwrap().next_hop = Some(name(2));
    bench.view(view);
    insta::assert_snapshot!(serde_json::to_string_pretty(&bench.switch.status(bench.now)).unwrap());
}

#[test]
fn when_the_kernels_tunnel_dies_the_sleeve_carries_within_two_seconds_and_no_flow_is_lost() {
    let mut bench = Bench::settled();
    bench.sleeves.insert(address(2), 1472);
    bench.miss(remote(2, 2, mac(9), Mac::BROADCAST));
    bench.miss(local(11, mac(1), mac(9)));
    bench.pass(5000);
    assert_eq!(bench.slots[&short(2)].tunnel, TunnelKind::Vxlan);
    bench.answering.remove(&address(2));
    let flows = bench.flows.clone();
    bench.outputs.clear();
    bench.pass(2000);
    assert_eq!((bench.slots[&short(2)].tunnel, bench.slots[&short(2)].remote), (TunnelKind::Sleeve, address(2)));
    assert_eq!(bench.flows, flows);
    assert!(!bench.outputs.iter().any(|output| matches!(output, Output::Tunnel { .. })), "the edge never went");
    bench.pass(10_000);
    let status = bench.switch.status(bench.now);
    let tunnel = status.peers[0].tunnel.clone().unwrap();
    assert_eq!(tunnel.why.unwrap(), "vxlan unanswered for 12 s, UDP 6784 blocked?");
    bench.answering.insert(address(2), 1450);
    bench.pass(4000);
    assert_eq!(bench.slots[&short(2)].tunnel, TunnelKind::Sleeve, "not yet");
    bench.pass(5000);
    assert_eq!(bench.slots[&short(2)].tunnel, TunnelKind::Vxlan);
}

#[test]
fn what_must_be_sealed_never_goes_by_the_kernels_tunnel() {
    let mut bench = Bench::new(|_| {});
    bench.answering.insert(address(2), 1450);
    bench.sleeves.insert(address(2), 1472);
    bench.input(Input::LinkUp(Neighbour { sealed: true, ..neighbour(2) }));
    bench.view(full_mesh(&[2]));
    bench.pass(20_000);
    assert!(bench.sources[&address(2)].least == TunnelKind::Sleeve);
    assert_eq!(bench.slots[&short(2)].tunnel, TunnelKind::Sleeve);
    assert!(!bench.outputs.iter().any(|output| matches!(output, Output::Op(Op::Heartbeat { .. }))));
    bench.sleeves.remove(&address(2));
    bench.pass(20_000);
    assert!(
        !bench.outputs.iter().any(|output| matches!(output, Output::Op(Op::SetPeer(_, Some(PeerRoute { tunnel: TunnelKind::Vxlan, .. })))))
    );
}
