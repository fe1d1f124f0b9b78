//! Sessions come and go, neighbours move, heartbeats are answered.

use std::net::{SocketAddr, UdpSocket};

use bytes::Bytes;
use weave_agent::io::sleeve::{Count, Options, Sleeve};
use weave_agent::sleeve::{Heard, Op};

use crate::bed::{MAKE, Namespace, PORT, eventually, on_a_bed, session, sh};
use crate::wire::host;

#[test]
fn a_probe_is_answered_with_a_datagram_of_its_size() {
    on_a_bed(MAKE, |bed| {
        let [asking, answering] = &mut bed.hosts;
        let neighbour = asking.neighbour;
        for (asked, answered) in [(1_472, 1_472), (552, 552), (0, 40)] {
            let heartbeat = Bytes::from_static(b"a heartbeat");
            asking.sleeve.apply(&Op::Probe { neighbour, heartbeat: heartbeat.clone(), datagram: asked });
            let reply = loop {
                match asking.hears() {
                    Heard::Moved { .. } => {}
                    other => break other,
                }
            };
            let expected = if asked == 0 { 12 + 3 + 11 + 16 } else { answered };
            assert_eq!(reply, Heard::Reply { neighbour, heartbeat, datagram: expected });
        }
        assert_eq!(answering.count(Count::Answered), 3);
        // The first hop itself does not take this one.
        asking.sleeve.apply(&Op::Probe { neighbour, heartbeat: Bytes::new(), datagram: 1_473 });
        assert_eq!(asking.count(Count::TooBig), 1);
    });
}

#[test]
fn a_new_session_takes_over_and_the_old_one_is_refused_then() {
    on_a_bed(MAKE, |bed| {
        assert!(bed.pings(""));
        let before = bed.wire.record();
        for first in [11, 21, 31] {
            bed.open(first, MAKE.cipher);
            assert!(bed.pings(""));
        }
        for id in [1, 2, 11, 12, 21, 22] {
            bed.hosts.iter().for_each(|host| host.sleeve.apply(&Op::Refuse(session(id))));
        }
        assert!(bed.pings(""));
        before.iter().for_each(|(side, datagram)| bed.wire.send(*side, datagram));
        eventually("they are strangers now", || {
            bed.hosts.iter().map(|host| host.count(Count::Stranger)).sum::<u64>() == before.len() as u64
        });
        assert_eq!(bed.hosts[0].count(Count::Replayed) + bed.hosts[0].count(Count::Forged), 0);
    });
}

#[test]
fn the_same_session_again_goes_on_counting() {
    on_a_bed(MAKE, |bed| {
        for _ in 0..3 {
            assert!(bed.pings(""));
            bed.open(1, MAKE.cipher);
        }
        let numbers: Vec<[u8; 12]> = bed.wire.record().iter().map(|(_, datagram)| *datagram.first_chunk().unwrap()).collect();
        let mut once = numbers.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), numbers.len());
    });
}

#[test]
fn a_neighbour_without_a_session_is_sent_nothing() {
    on_a_bed(MAKE, |bed| {
        let sender = &bed.hosts[0];
        sender.sleeve.apply(&Op::Send { neighbour: sender.neighbour, session: None });
        let sent = || bed.wire.record().iter().filter(|(to, _)| *to == 1).count();
        let before = sent();
        assert!(!bed.pings(""));
        assert!(sender.count(Count::NoSession) > 0);
        assert_eq!(sent(), before);
    });
}

#[test]
fn a_neighbour_that_is_heard_from_elsewhere_is_answered_there() {
    on_a_bed(MAKE, |bed| {
        // What the first host sends never gets to the second by the wire, but from another port, as behind a NAT that forgot.
        bed.wire.cut(true);
        assert!(!bed.pings(""));
        let (_, datagram) = bed.wire.record().pop().unwrap();
        let elsewhere: UdpSocket = bed.hosts[1].host.enter(|| UdpSocket::bind("192.168.2.1:0").unwrap());
        elsewhere.send_to(&datagram, host(1)).unwrap();
        let SocketAddr::V4(remote) = elsewhere.local_addr().unwrap() else { panic!("not IPv4") };
        let moved = bed.hosts[1].hears();
        assert_eq!(moved, Heard::Moved { neighbour: bed.hosts[1].neighbour, remote });
        assert_eq!(bed.hosts[1].sleeve.status().neighbours[0].remote, remote);
        // A replay moves nobody.
        bed.wire.send(1, &datagram);
        eventually("the replay is seen", || bed.hosts[1].count(Count::Replayed) == 1);
        assert_eq!(bed.hosts[1].sleeve.status().neighbours[0].remote, remote);
    });
}

#[test]
fn the_device_has_nothing_to_say_and_goes_when_the_sleeve_does() {
    if !vm_tests::root_or_skip() {
        return;
    }
    let host = Namespace::new("d");
    host.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (sleeve, _heard) = runtime.block_on(Sleeve::start(&Options::on_port(PORT))).unwrap();
        assert!(sh("ip -o link show weave-sleeve").contains("mtu 65521"));
        assert_eq!(sh("ip -o addr show weave-sleeve"), "");
        assert!(sleeve.status().counters.iter().all(|(_, count)| *count == 0));
    });
    assert!(!host.succeeds("ip link show weave-sleeve"));
}

#[test]
fn a_device_that_somebody_deletes_is_noticed_once() {
    on_a_bed(MAKE, |bed| {
        assert!(bed.pings(""));
        let [first, _] = &bed.hosts;
        first.host.sh("ip link del weave-sleeve");
        eventually("both threads have seen it", || first.count(Count::DeviceGone) == 2);
        // They still answer heartbeats, and nothing is counted over and over.
        let (neighbour, heartbeat) = (first.neighbour, Bytes::from_static(b"?"));
        first.sleeve.apply(&Op::Probe { neighbour, heartbeat, datagram: 0 });
        eventually("the other answers", || bed.hosts[1].count(Count::Answered) == 1);
        assert_eq!(bed.hosts[0].count(Count::DeviceGone), 2);
    });
}
