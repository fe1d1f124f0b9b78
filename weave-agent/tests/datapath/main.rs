//! The contract of `datapath.rs`, tested from outside on each datapath that keeps it: real namespaces, real frames.
//!
//! A new datapath is a new `Kind` and one more line below. All need root, and run in network and mount namespaces of
//! their own.
#![cfg(feature = "io")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../programs/capture.rs"]
#[expect(dead_code, reason = "not every test needs all of it")]
mod capture;
#[path = "../programs/place.rs"]
#[expect(dead_code, reason = "not every test needs all of it")]
mod place;
#[path = "../programs/wires.rs"]
#[expect(dead_code, reason = "not every test needs all of it")]
mod wires;

mod cases;
mod frames;
mod host;
mod module;
mod stream;
mod tap;

use host::{Host, Kind};

fn run<F: Future<Output = ()>>(kind: Kind, case: impl FnOnce(Host) -> F + Send + 'static) {
    if !kind.is_there() {
        return;
    }
    place::private_async(move |pins| async move { case(Host::new(kind, &pins)).await });
}

macro_rules! contract {
    ($($file:ident: $($case:ident)+;)+) => {
        mod ebpf {
            $($(#[test] fn $case() { super::run(super::Kind::Ebpf, super::cases::$file::$case); })+)+
        }
        mod odp {
            $($(#[test] fn $case() { super::run(super::Kind::Odp, super::cases::$file::$case); })+)+
        }
        mod userspace {
            $($(#[test] fn $case() { super::run(super::Kind::Userspace, super::cases::$file::$case); })+)+
        }
    };
}

contract! {
    ports:
        a_frame_goes_from_port_to_port_as_it_was
        a_large_segment_stays_whole_between_ports
        a_port_that_was_detached_neither_gives_nor_takes
        the_host_s_own_stack_does_not_hear_containers;
    flows:
        a_miss_comes_up_whole_and_what_is_installed_for_it_hits_and_counts
        after_an_epoch_bump_every_flow_is_a_miss_and_none_is_listed
        a_removed_flow_is_a_miss
        what_a_flow_drops_is_counted_under_its_reason
        a_frame_for_the_port_it_came_from_is_reflected
        a_port_that_asks_too_often_is_refused_and_no_frame_is_uncounted;
    peers:
        a_frame_for_a_peer_is_on_the_wire_as_vxlan
        a_frame_too_big_for_the_way_comes_up_or_is_counted
        a_frame_without_a_way_is_counted
        a_changed_slot_moves_traffic_and_touches_no_flow
        an_unfinished_checksum_is_finished_before_the_wire
        a_frame_from_a_peer_goes_into_its_port
        what_comes_from_strangers_or_for_nobody_goes_nowhere
        what_is_no_vxlan_is_counted
        a_frame_in_transit_goes_on_with_a_smaller_hop_limit_until_it_is_used_up;
    floods:
        a_flood_reaches_every_port_but_its_own_and_every_hop_of_the_tree_once
        a_neighbour_s_flood_goes_to_every_port_and_on_along_its_tree
        a_flood_from_the_wrong_neighbour_goes_nowhere
        a_flood_that_was_relayed_too_often_ends_at_our_own_ports;
    sleeve:
        a_frame_for_a_sleeved_peer_comes_out_of_the_device_with_its_prefix
        a_flood_has_a_copy_for_the_sleeve
        what_the_sleeve_brings_goes_where_it_would_from_a_tunnel
        a_large_segment_from_the_sleeve_arrives_in_one_piece
        vxlan_from_a_neighbour_whose_frames_must_be_sealed_is_refused;
    orders:
        an_executed_frame_goes_by_every_way_it_was_told
        a_heartbeat_is_answered_without_the_switch
        an_answer_to_a_heartbeat_comes_up
        a_heartbeat_leaves_as_it_was_told;
}
