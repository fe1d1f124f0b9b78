//! Ports.

use weave_agent::datapath::Action;

use crate::frames::{BROADCAST, arp, container, kinds, tcp, udp, udp_of};
use crate::host::Host;

pub(crate) async fn a_frame_goes_from_port_to_port_as_it_was(mut host: Host) {
    let mut frames = kinds(1, container(2));
    // As large as the wire takes.
    frames.push(udp_of(1, container(2), 9_014));
    for frame in frames {
        host.cache(0, &frame, Action::Port(host.port(1)));
        host.send_from(0, &frame);
        host.expect(vec![host.at_container(1, &frame)]);
        assert_eq!(host.matched(), 1);
    }
}

/// 30 segments, each of which counts, in one piece, with its checksum as unfinished as it was.
pub(crate) async fn a_large_segment_stays_whole_between_ports(mut host: Host) {
    let frame = tcp(1, container(2), 54 + 30 * 1_400);
    host.cache(0, &frame, Action::Port(host.port(1)));
    host.send_large_from(0, &frame, 1_400);
    host.expect(vec![host.at_container(1, &frame)]);
    let whole = host.kind.counted(30);
    assert_eq!(host.matched(), whole);
    for (number, len) in [500, 54, 60].into_iter().enumerate() {
        let small = tcp(1, container(2), len);
        host.send_large_from(0, &small, 0);
        host.expect(vec![host.at_container(1, &small)]);
        assert_eq!(host.matched(), whole + 1 + number as u64);
    }
}

pub(crate) async fn a_port_that_was_detached_neither_gives_nor_takes(mut host: Host) {
    let (there, back) = (udp(1, container(2)), udp(2, container(1)));
    host.cache(0, &there, Action::Port(host.port(1)));
    host.cache(1, &back, Action::Port(host.port(0)));
    host.datapath.detach_port(host.port(1)).unwrap();
    host.send_from(1, &back);
    host.expect(vec![]);
    assert_eq!(host.matched(), 0);
    // And again.
    host.datapath.detach_port(host.port(1)).unwrap();
    host.datapath.attach_port(host.port(1), true).unwrap();
    host.send_from(1, &back);
    host.expect(vec![host.at_container(0, &back)]);
}

/// It would answer an ARP request for any address of its own, and forward.
pub(crate) async fn the_host_s_own_stack_does_not_hear_containers(mut host: Host) {
    let mut request = arp(1, BROADCAST);
    request[22..28].copy_from_slice(&container(1));
    request[28..32].copy_from_slice(&[10, 0, 0, 77]);
    request[32..38].fill(0);
    request[38..42].copy_from_slice(&[10, 0, 0, 1]);
    host.send_from(0, &request);
    host.expect(vec![]);
    host.counts("upcalls", 1);
}
