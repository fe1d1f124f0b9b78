//! What containers send arrives, over whatever wire.

use std::net::UdpSocket;

use weave_agent::io::sleeve::Count;
use weave_agent::sleeve::{Cipher, Op};

use crate::bed::{MAKE, Make, PATIENCE, eventually, on_a_bed};
use crate::wire::Treatment;

#[test]
fn pings_and_streams_cross_with_every_cipher() {
    for cipher in [Cipher::Clear, Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm] {
        on_a_bed(Make { cipher, ..MAKE }, |bed| {
            assert!(bed.pings(""));
            bed.carries_a_stream(20_000_000);
            let [sender, receiver] = &bed.hosts;
            // Large segments on their way out and joined again on their way in: not one frame per 1,400 bytes.
            for frames in [sender.count(Count::FramesOut), receiver.count(Count::FramesIn)] {
                assert!(frames < 20_000_000 / 1_400 / 2, "{frames} frames");
            }
            assert_eq!(receiver.count(Count::Malformed) + receiver.count(Count::Undelivered) + receiver.count(Count::Forged), 0);
        });
    }
}

#[test]
fn version_6_of_ip_crosses_as_well() {
    on_a_bed(MAKE, |bed| {
        for (host, i) in bed.hosts.iter().zip(1..) {
            host.container.sh(&format!("ip addr add fd00::{i}/64 dev eth0 nodad"));
        }
        assert!(bed.hosts[0].container.succeeds("ping -c 3 -i 0.05 -s 1352 -M do fd00::2"));
        bed.carries_a_stream_to("[fd00::2]:8080", 20_000_000);
        let frames = bed.hosts[1].count(Count::FramesIn);
        assert!(frames < 20_000_000 / 1_400 / 2, "{frames} frames");
    });
}

#[test]
fn datagrams_of_a_flow_arrive_one_by_one_and_unchanged() {
    on_a_bed(MAKE, |bed| {
        let [client, server] = &bed.hosts;
        assert!(bed.pings(""));
        let receiver = server.container.enter(|| UdpSocket::bind("10.32.0.2:8080").unwrap());
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let sender = client.container.enter(|| UdpSocket::bind("10.32.0.1:8081").unwrap());
        // Runs of equal lengths, as a call of one size makes them; and others.
        let datagrams: Vec<Vec<u8>> =
            (0..2_000_u32).map(|i| vec![i as u8; [64, 64, 64, 64, 30, 64, 1_000, 0, 64, 1_372][i as usize % 10]]).collect();
        for batch in datagrams.chunks(100) {
            batch.iter().for_each(|datagram| assert_eq!(sender.send_to(datagram, "10.32.0.2:8080").unwrap(), datagram.len()));
            for datagram in batch {
                let mut buffer = vec![0; 2_000];
                let length = receiver.recv(&mut buffer).unwrap();
                assert!(buffer[..length] == datagram[..]);
            }
        }
    });
}

#[test]
fn nothing_that_was_sent_is_to_be_seen_on_the_wire() {
    on_a_bed(MAKE, |bed| {
        assert!(bed.pings("-s 1000 -p 5eec2e7ba5e11e"));
        let sees = |pattern: &[u8]| bed.wire.record().iter().any(|(_, datagram)| datagram.windows(pattern.len()).any(|at| at == pattern));
        assert!(!bed.wire.record().is_empty());
        assert!(!sees(&[0x5e, 0xec, 0x2e, 0x7b]) && !sees(&[10, 32, 0, 2]));
    });
    on_a_bed(Make { cipher: Cipher::Clear, ..MAKE }, |bed| {
        assert!(bed.pings("-s 1000 -p 5eec2e7ba5e11e"));
        assert!(bed.wire.record().iter().any(|(_, datagram)| datagram.windows(4).any(|at| at == [0x5e, 0xec, 0x2e, 0x7b])));
    });
}

#[test]
fn frames_that_fit_no_datagram_arrive_whole() {
    on_a_bed(Make { container_mtu: 9000, ..MAKE }, |bed| {
        for size in [1_300, 1_372, 1_400, 1_444, 2_800, 8_972] {
            assert!(bed.pings(&format!("-M do -s {size}")), "{size}");
        }
        // The stream's segments are larger than a datagram, too.
        bed.carries_a_stream(10_000_000);
        assert_eq!(bed.hosts[1].count(Count::FragmentLost), 0);
    });
}

#[test]
fn a_stream_arrives_over_a_wire_that_loses_repeats_and_reorders() {
    on_a_bed(Make { treatment: Treatment { lost: 5, repeated: 3, late: 3 }, ..MAKE }, |bed| {
        bed.carries_a_stream(3_000_000);
        assert!(bed.hosts[1].count(Count::Replayed) > 0);
        assert_eq!(bed.hosts[1].count(Count::Malformed) + bed.hosts[1].count(Count::Undelivered), 0);
    });
}

#[test]
fn a_narrow_underlay_takes_what_the_path_is_said_to_take() {
    on_a_bed(Make { underlay_mtu: 1280, datagram: 1252, ..MAKE }, |bed| {
        assert!(bed.pings("-M do -s 1372"));
        bed.carries_a_stream(10_000_000);
        let sender = &bed.hosts[0];
        assert_eq!(sender.count(Count::TooBig), 0);
        // What is too much is counted and harms nothing: small frames go on, and all do when the path is known again.
        sender.sleeve.apply(&Op::Path { neighbour: sender.neighbour, datagram: 1472 });
        assert!(!bed.pings("-M do -s 1372") && bed.pings(""));
        assert!(sender.count(Count::TooBig) > 0);
        sender.sleeve.apply(&Op::Path { neighbour: sender.neighbour, datagram: 1252 });
        assert!(bed.pings("-M do -s 1372"));
        bed.carries_a_stream(10_000_000);
    });
}

#[test]
fn a_stream_waits_while_the_wire_is_cut_and_goes_on() {
    on_a_bed(MAKE, |bed| {
        bed.carries_a_stream(1_000_000);
        bed.wire.cut(true);
        assert!(!bed.pings(""));
        bed.wire.cut(false);
        eventually("the wire is mended", || bed.pings(""));
        bed.carries_a_stream(1_000_000);
    });
}
