//! What happens to meshes with passwords, told end to end.

use std::net::SocketAddrV4;

use bytes::Bytes;

use super::frame::{Mode, preamble};
use super::harness::{World, address, config, millis, name, seconds, target};
use super::{Config, ConnectionState, Encryption, Input, LinkId, Mesh, Output, Psk};

fn psk(n: u8) -> Psk {
    Psk([n; 32])
}

fn secret(host: usize, targets: &[usize], passwords: &[u8]) -> Config {
    Config { passwords: passwords.iter().map(|n| psk(*n)).collect(), ..config(host, targets) }
}

/// Each host has all lower ones as targets, and its own passwords.
fn world(passwords: &[&[u8]]) -> World {
    let one = |(host, passwords): (usize, &&[u8])| secret(host, &(0..host).collect::<Vec<_>>(), passwords);
    World::new(passwords.iter().enumerate().map(one).collect())
}

/// What the status of a host says of connections that are no links.
fn complaints(world: &World, host: usize) -> Vec<(SocketAddrV4, bool, ConnectionState, String)> {
    let connections = world.status(host).connections;
    let failed = connections.into_iter().filter(|connection| connection.peer.is_none() && !connection.info.is_empty());
    failed.map(|connection| (connection.address, connection.outbound, connection.state, connection.info)).collect()
}

#[test]
fn hosts_with_one_password_converge_and_say_that_they_are_encrypted() {
    let mut world = world(&[&[1], &[1], &[1]]);
    world.run(seconds(2));
    world.assert_full();
    let protection: Vec<_> = world.status(0).connections.iter().map(|connection| connection.encryption).collect();
    assert_eq!(protection, [Some(Encryption::Encrypted); 2]);
    assert!(world.status(0).encrypted);
}

#[test]
fn hosts_that_share_none_of_their_passwords_have_no_link_and_both_say_why() {
    let mut world = world(&[&[1], &[2]]);
    world.run(seconds(5));
    assert_eq!((world.links(0), world.links(1)), (0, 0));
    let (there, here) = (complaints(&world, 0), complaints(&world, 1));
    assert_eq!((there.len(), here.len()), (1, 1));
    assert_eq!((there[0].0.ip(), there[0].1, there[0].2), (address(1).ip(), false, ConnectionState::Failed));
    assert!(there[0].3.contains("it has another password"), "{there:?}");
    assert_eq!((here[0].0, here[0].1, here[0].2), (address(0), true, ConnectionState::Retrying));
    assert!(here[0].3.contains("does not accept our password"), "{here:?}");
    assert!(world.status(0).counters.wrong_passwords >= 2);
    // It goes on trying, and never so often that it would be barred.
    world.run(seconds(300));
    assert_eq!(world.status(0).counters.barred, 0);
    assert!(world.dials[1] >= 10);
}

#[test]
fn a_host_without_the_password_has_no_link_whoever_dials_and_both_say_what_to_do() {
    for (one, other) in [(&[1][..], &[][..]), (&[], &[1])] {
        let mut world = world(&[one, other]);
        world.run(seconds(5));
        assert_eq!((world.links(0), world.links(1)), (0, 0));
        let (with, without) = if one.is_empty() { (1, 0) } else { (0, 1) };
        assert!(complaints(&world, with)[0].3.contains("it has no password and this host has one: launch it with"));
        assert!(complaints(&world, without)[0].3.contains("its network has a password and this host has none: launch with --password"));
    }
}

#[test]
fn a_corrected_password_needs_no_wait() {
    let mut world = world(&[&[1], &[2]]);
    world.run(seconds(100));
    world.input(1, Input::Passwords(vec![psk(1)]));
    world.run(millis(500));
    world.assert_full();
}

#[test]
fn a_mesh_changes_its_password_host_by_host_and_no_route_is_lost() {
    let mut world = world(&[&[1], &[1], &[1], &[1]]);
    world.run(seconds(5));
    world.assert_full();
    let mut change = |host, passwords: &[u8]| {
        let before = world.up_and_down.len();
        world.input(host, Input::Passwords(passwords.iter().map(|n| psk(*n)).collect()));
        for _ in 0..20 {
            world.run(millis(100));
            // Frames go on in all directions.
            for (from, to) in world.pairs() {
                assert_eq!(world.next_hop(from, to), Some(name(to)), "from {from} to {to}");
            }
        }
        assert!((0..4).all(|host| world.links(host) == 3), "after {host} had {passwords:?}");
        world.up_and_down.len() - before
    };
    assert_eq!((0..4).map(|host| change(host, &[1, 2])).sum::<usize>(), 0);
    assert_eq!((0..4).map(|host| change(host, &[2, 1])).sum::<usize>(), 0);
    let moved = (0..4).map(|host| change(host, &[2])).sum::<usize>();
    // Six links went down and up at both ends, once each.
    assert_eq!(moved, 6 * 4);
    world.restart(3, Config { discovery: false, ..secret(3, &[0], &[1]) }, false);
    world.run(seconds(3));
    assert_eq!(world.links(3), 0);
}

#[test]
fn who_was_left_out_when_the_password_changed_has_left_the_mesh_a_minute_later() {
    let mut world = world(&[&[1], &[1], &[1]]);
    world.run(seconds(5));
    world.assert_full();
    for passwords in [&[1, 2][..], &[2, 1], &[2]] {
        for host in [0, 1] {
            world.input(host, Input::Passwords(passwords.iter().map(|n| psk(*n)).collect()));
            world.run(seconds(2));
        }
    }
    // Its tunnels answer: it could be an agent that restarts.
    assert_eq!(world.next_hop(0, 2), Some(name(2)));
    world.run(seconds(65));
    for host in [0, 1] {
        assert!(!world.view(host).peers.contains_key(&name(2)), "host {host}");
        assert_eq!(world.next_hop(host, 1 - host), Some(name(1 - host)));
    }
    // Whenever it has the password it is one of them again.
    world.input(2, Input::Passwords(vec![psk(2)]));
    world.run(seconds(5));

    world.assert_full();
}

#[test]
fn an_agent_that_is_down_when_a_password_is_added_keeps_its_tunnels() {
    let mut world = world(&[&[1], &[1]]);
    world.run(seconds(5));
    let links: Vec<_> = world.pipes.keys().filter(|(host, _)| *host == 1).map(|(_, link)| *link).collect();
    links.into_iter().for_each(|link| world.close(1, link));
    world.pipes.clear();
    world.cut.insert((0, 1));
    world.run(seconds(15));
    world.input(0, Input::Passwords(vec![psk(1), psk(2)]));
    world.run(seconds(100));
    assert_eq!((world.links(0), world.next_hop(0, 1)), (0, Some(name(1))));
    world.input(0, Input::Passwords(vec![psk(2)]));
    world.run(seconds(100));
    assert_eq!(world.next_hop(0, 1), None);
}

#[test]
fn passwords_tried_faster_than_a_host_would_are_not_even_looked_at() {
    let mut mesh = Mesh::new(secret(0, &[], &[1]), [0; 32]);
    let mut said = Vec::new();
    for number in 0..100 {
        let link = LinkId(number);
        mesh.handle(millis(number), Input::Accepted { link, local: address(0), remote: address(9) });
        let first = [&preamble(Mode::Noise)[..], &[0, 48], &[7; 48]].concat();
        mesh.handle(millis(number), Input::Received { link, bytes: first.into() });
        while let Some(output) = mesh.poll_output() {
            if let Output::Send { bytes, .. } = output {
                said.push(bytes);
            }
        }
        mesh.handle(millis(number), Input::Closed { link, error: "closed".into() });
    }
    let no = Bytes::from_static(&[0, 0]);
    assert_eq!(said.iter().filter(|bytes| **bytes == no).count(), 5);
    assert_eq!(said.iter().filter(|bytes| **bytes == preamble(Mode::Barred)).count(), 95);
    let counters = mesh.status(millis(100)).counters;
    assert_eq!((counters.wrong_passwords, counters.barred), (5, 95));
    // Others are heard all the same.
    mesh.handle(millis(100), Input::Accepted { link: LinkId(200), local: address(0), remote: address(8) });
    assert!(std::iter::from_fn(|| mesh.poll_output()).any(|o| matches!(o, Output::Send { bytes, .. } if bytes == preamble(Mode::Noise))));
}

#[test]
fn no_name_is_on_the_wire_in_clear() {
    let mut mesh = Mesh::new(Config { nickname: "nickname-of-zero".into(), ..secret(0, &[1], &[1]) }, [0; 32]);
    let mut other = Mesh::new(Config { nickname: "nickname-of-one".into(), ..secret(1, &[], &[1]) }, [1; 32]);
    let (link, now) = (LinkId(1), seconds(1));
    mesh.handle(now, Input::Connect { targets: vec![target(1)], replace: true });
    mesh.handle(now, Input::Dialled { link, local: address(0), remote: address(1) });
    other.handle(now, Input::Accepted { link, local: address(1), remote: address(0) });
    let mut wire = Vec::new();
    for _ in 0..20 {
        for (from, to) in [(true, false), (false, true)] {
            let (from, to) = if from && !to { (&mut mesh, &mut other) } else { (&mut other, &mut mesh) };
            while let Some(output) = from.poll_output() {
                if let Output::Send { bytes, .. } = output {
                    wire.extend_from_slice(&bytes);
                    to.handle(now, Input::Received { link, bytes });
                }
            }
        }
    }
    assert!(wire.len() > 300 && mesh.neighbours().len() == 1 && other.neighbours().len() == 1);
    assert!(!wire.windows(8).any(|bytes| bytes == b"nickname"));
}
