//! Programs on interfaces: put there, replaced under traffic, found again by the next agent, and taken off.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use weave_agent::datapath::{Action, PortId};
use weave_agent::io::datapath::ebpf::{Ebpf, unload};
use weave_ebpf::flow::vni;

use crate::capture::Seen;
use crate::host::{Host, OWN, attach, container, short, tunnelled, udp, writes_headers};
use crate::outside::Outside;
use crate::place::{ip, private_async, run, wait_for_carrier};
use crate::trampoline;
use crate::wires::index_of;

/// Between two frames of the traffic.
const PACE: Duration = Duration::from_micros(50);
/// How often all programs are replaced while frames flow.
const SWAPS: usize = 5;

/// Ends a thread when it goes out of scope.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn with_tcx_programs_are_replaced_under_traffic_and_nothing_is_lost() {
    if has_tcx() {
        programs_are_replaced_under_traffic_and_nothing_is_lost(true);
    }
}

#[test]
fn with_clsact_programs_are_replaced_under_traffic_and_nothing_is_lost() {
    programs_are_replaced_under_traffic_and_nothing_is_lost(false);
}

fn programs_are_replaced_under_traffic_and_nothing_is_lost(tcx: bool) {
    private_async(move |pins| async move {
        let mut host = Host::new(&pins, Some(tcx));
        let outside = Outside::open(&host.wires);
        let frame = udp(1, container(2));
        host.cache(0, &frame, Action::Port(PortId(host.wires.ports[1])));
        let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut arrived = 0;
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    outside.send_from(0, &frame);
                    sent.fetch_add(1, Ordering::Relaxed);
                    // As many as the capture's buffer holds until it is looked at.
                    thread::sleep(PACE);
                }
            });
            // The scope waits for its threads, also after a panic.
            let _stop = Stop(&stop);
            for _ in 0..SWAPS {
                let (mut ebpf, upcalls) = host.successor();
                attach(&mut ebpf, &host.wires);
                (host.ebpf, host.upcalls) = (ebpf, upcalls);
                arrived += outside.arrived();
            }
        });
        arrived += outside.arrivals(0).len();
        let sent = sent.into_inner();
        assert!(sent > 1_000, "only {sent} frames were sent");
        assert_eq!((arrived as u64, host.matched()), (sent, sent));
    });
}

/// What the first agent was told, the second one knows; in between the kernel goes on.
#[test]
fn traffic_goes_on_without_an_agent_and_the_next_one_adopts_what_it_finds() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, None);
        let outside = Outside::open(&host.wires);
        let frame = udp(1, container(2));
        host.cache(0, &frame, Action::Peer(short(2)));
        let routes: Vec<_> = host.ebpf.routes().collect();
        assert_eq!(routes.len(), 3);
        let expected = [Seen { ifindex: outside.wire(0), bytes: host.sent_to(2, &frame) }];
        let Host { wires, ebpf, upcalls, options } = host;
        drop((ebpf, upcalls));
        outside.send_from(0, &frame);
        assert_eq!(outside.arrivals(1), expected);

        let (ebpf, upcalls) = Ebpf::load(weave_agent::io::object::OBJECT, &options).unwrap();
        let mut host = Host { wires, ebpf, upcalls, options };
        assert_eq!(host.ebpf.routes().collect::<Vec<_>>(), routes);
        assert_eq!(host.matched(), 1);
        host.attach();
        // It has adopted the next hops too: a slot that is written anew stays direct.
        host.op(weave_agent::datapath::Op::SetPeer(short(2), Some(routes[0].1)));
        outside.send_from(0, &frame);
        assert_eq!(outside.arrivals(1), expected);
        assert_eq!((host.count("via-stack"), host.matched()), (if writes_headers() { 0 } else { 2 }, 2));
    });
}

#[test]
fn clsact_filters_do_the_same_and_leave_nothing_behind() {
    private_async(|pins| async move {
        let mut host = Host::new(&pins, Some(false));
        let outside = Outside::open(&host.wires);
        assert_eq!(host.ebpf.hooks(), "clsact");
        let (out, back) = (udp(1, container(9)), udp(9, container(1)));
        host.cache(0, &out, Action::Peer(short(2)));
        host.cache_tunnel(2, &back, Action::Port(PortId(host.wires.ports[0])));
        outside.send_from(0, &out);
        assert_eq!(outside.arrivals(1), [Seen { ifindex: outside.wire(0), bytes: host.sent_to(2, &out) }]);
        outside.send_to_underlay(0, &tunnelled(&host.wires, 2, vni(OWN.into(), 2), &back));
        assert_eq!(outside.arrivals(1), [Seen { ifindex: outside.container(0), bytes: back }]);

        host.ebpf.detach_port(PortId(host.wires.ports[0])).unwrap();
        assert_eq!(qdiscs("p0"), "");
        assert_eq!(qdiscs("p1"), "clsact");
        let Host { wires, ebpf, upcalls, options } = host;
        drop((ebpf, upcalls));
        unload(&options.pins).unwrap();
        for interface in ["p1", "p2", "p3", "u0", "u1", "vx"] {
            assert_eq!(qdiscs(interface), "", "{interface}");
        }
        assert!(!options.pins.exists());
        drop(wires);
    });
}

#[test]
fn a_clsact_qdisc_of_someone_else_stays() {
    private_async(|pins| async move {
        let host = Host::new(&pins, Some(false));
        run("ip", "link add q0 type veth peer name q1");
        run("tc", "qdisc add dev q0 clsact");
        let mut ebpf = host.ebpf;
        ebpf.attach_underlay(index_of("q0")).unwrap();
        assert_ne!(filters("q0"), "");
        ebpf.detach_underlay(index_of("q0")).unwrap();
        assert_eq!((qdiscs("q0").as_str(), filters("q0").as_str()), ("clsact", ""));
        // And ours, while someone else's filter is on it.
        ebpf.attach_underlay(index_of("q1")).unwrap();
        let _theirs = trampoline::nothing(&pins);
        run("tc", &format!("filter add dev q1 egress bpf da object-pinned {}", pins.join("nothing").display()));
        ebpf.detach_underlay(index_of("q1")).unwrap();
        assert_eq!(qdiscs("q1"), "clsact");
    });
}

#[test]
fn tcx_links_come_off_with_their_pins() {
    if !has_tcx() {
        return;
    }
    private_async(|pins| async move {
        let mut host = Host::new(&pins, Some(true));
        let outside = Outside::open(&host.wires);
        let frame = udp(1, container(9));
        host.cache(0, &frame, Action::Peer(short(2)));
        host.ebpf.detach_port(PortId(host.wires.ports[0])).unwrap();
        outside.send_from(0, &frame);
        assert_eq!(outside.arrivals(0), []);
        assert_eq!(host.matched(), 0);
        let Host { wires, ebpf, upcalls, options } = host;
        drop((ebpf, upcalls));
        unload(&options.pins).unwrap();
        outside.send_to_underlay(0, &tunnelled(&wires, 2, vni(OWN.into(), 2), &udp(9, container(1))));
        assert_eq!(outside.arrivals(0), []);
        assert!(!options.pins.exists());
    });
}

#[test]
fn with_tcx_a_pin_of_an_interface_that_is_gone_is_replaced() {
    if has_tcx() {
        a_pin_of_an_interface_that_is_gone_is_replaced(true);
    }
}

#[test]
fn with_clsact_what_tells_of_an_interface_that_is_gone_is_replaced() {
    a_pin_of_an_interface_that_is_gone_is_replaced(false);
}

/// An interface goes, and another gets its index: the pin that is left is of no use to it.
fn a_pin_of_an_interface_that_is_gone_is_replaced(tcx: bool) {
    private_async(move |pins| async move {
        let mut host = Host::new(&pins, Some(tcx));
        let index = host.wires.ports[3];
        ip("link del p3");
        ip(&format!("link add p3 index {index} type veth peer name c3"));
        host.wires.outside.take("c3");
        host.wires.outside.enter(|| ip("link set c3 up"));
        ip("link set p3 up");
        wait_for_carrier(&["p3"]);
        host.wires.outside.enter(|| wait_for_carrier(&["c3"]));
        host.ebpf.attach_port(PortId(index), true).unwrap();
        let outside = Outside::open(&host.wires);
        let frame = udp(1, container(9));
        host.cache(3, &frame, Action::Peer(short(2)));
        outside.send_from(3, &frame);
        assert_eq!(outside.arrivals(1), [Seen { ifindex: outside.wire(0), bytes: host.sent_to(2, &frame) }]);
        // Gone for good: taking the program off is no error.
        ip("link del p3");
        host.ebpf.detach_port(PortId(index)).unwrap();
    });
}

/// Linux 6.6, commit e420bed02507.
fn has_tcx() -> bool {
    vm_tests::kernel::has("TCX", (6, 6))
}

fn qdiscs(interface: &str) -> String {
    let text = run("tc", &format!("qdisc show dev {interface}"));
    if text.contains("clsact") { "clsact".to_owned() } else { String::new() }
}

fn filters(interface: &str) -> String {
    run("tc", &format!("filter show dev {interface} ingress"))
}
