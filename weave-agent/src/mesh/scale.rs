//! What a mesh says and how long a change takes, by the number of peers. `MESH_PEERS=100,1000` says how many; `cargo xtask bench` does.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use vm_tests::figure;

use super::harness::{World, config, millis, name, seconds};
use super::{Config, Input};
use crate::Time;

/// Up to so many peers link with all others, as they do by themselves. More are told of [`TARGETS`] each.
const ALL_LINKED: usize = 100;
const TARGETS: usize = 4;
/// Bytes that a peer may say at rest, a second.
const LITTLE: f64 = 5_000.0;
/// A change must be known by then.
const SOON: Time = seconds(5);

#[test]
fn a_mesh_says_little_at_rest_and_knows_a_change_soon() {
    let peers = std::env::var("MESH_PEERS").unwrap_or_else(|_| "10".to_owned());
    for peers in peers.split(',').map(|peers| peers.parse().unwrap()) {
        let mut world = formed(peers);
        let links = (0..peers).map(|host| world.links(host)).sum::<usize>() as f64 / peers as f64;
        let before: usize = world.sent.iter().sum();
        world.run(seconds(60));
        let said = (world.sent.iter().sum::<usize>() - before) as f64 / 60.0 / peers as f64;
        figure::say(&format!("mesh of {peers}, {links:.0} links each: said at rest"), said, "bytes/s per peer");
        assert!(said < LITTLE, "{said} bytes a second with {peers} peers");
        let took = change(&mut world);
        figure::say(&format!("mesh of {peers}, {links:.0} links each: until a change is known"), took.as_secs_f64() * 1e3, "ms");
        assert!(took <= SOON, "{took:?} with {peers} peers");
    }
}

/// All know all.
fn formed(peers: usize) -> World {
    let mut rng = StdRng::seed_from_u64(7);
    let mut targets = |host: usize| -> Vec<usize> {
        // The one before it, so that there is one mesh.
        let others = (1..TARGETS.min(host)).map(|_| rng.random_range(0..host));
        host.checked_sub(1).into_iter().chain(others).collect()
    };
    let mut world = World::new((0..peers).map(|host| Config { discovery: peers <= ALL_LINKED, ..config(host, &targets(host)) }).collect());
    world.run(seconds(60));
    assert!((0..peers).all(|host| world.view(host).peers.len() == peers - 1), "{peers} peers do not all know each other");
    world
}

/// How long it takes until all know that two peers are no neighbours any more.
fn change(world: &mut World) -> Time {
    let begun = world.now;
    world.input(0, Input::Tunnel { peer: name(1), up: false });
    let version = world.version(0, 0);
    while (0..world.meshes.len()).any(|host| world.version(host, 0) < version) {
        assert!(world.now < begun + 4 * SOON, "it never comes to all");
        world.run(millis(5));
    }
    world.now - begun
}
