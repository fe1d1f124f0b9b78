//! The kernel's tunnel where frames must be sealed: under ESP, and only while the kernel keeps it from going in clear.

use super::bench::{Bench, address, full_mesh, neighbour, short};
use super::{Adopted, Input, Output};
use crate::datapath::{Op, PeerRoute, TunnelKind};
use crate::mesh::Neighbour;

fn sealed(n: u16) -> Neighbour {
    Neighbour { sealed: true, esp: true, ..neighbour(n) }
}

fn protected(n: u16, protected: bool) -> Input {
    Input::Protected { remote: address(n), protected }
}

fn heartbeats(bench: &Bench) -> usize {
    bench.outputs.iter().filter(|output| matches!(output, Output::Op(Op::Heartbeat { .. }))).count()
}

fn went_in_clear(bench: &Bench) -> bool {
    bench.outputs.iter().any(|output| matches!(output, Output::Op(Op::SetPeer(_, Some(PeerRoute { tunnel: TunnelKind::Vxlan, .. })))))
}

/// A neighbour whose sleeve works, and whose ESP would.
fn met() -> Bench {
    let mut bench = Bench::new(|config| config.sealed_but_for = Some(vec![]));
    bench.answering.insert(address(2), 1416);
    bench.sleeves.insert(address(2), 1472);
    bench.input(Input::LinkUp(sealed(2)));
    bench.view(full_mesh(&[2]));
    bench
}

#[test]
fn nothing_is_said_to_the_tunnel_before_the_kernel_protects_it_and_then_esp_carries() {
    let mut bench = met();
    bench.pass(3_000);
    assert_eq!(
        (heartbeats(&bench), bench.slots[&short(2)].tunnel, bench.sources[&address(2)].least),
        (0, TunnelKind::Sleeve, TunnelKind::Sleeve)
    );
    bench.input(protected(2, true));
    bench.pass(20_000);
    let slot = bench.slots[&short(2)];
    assert_eq!((slot.tunnel, slot.mtu, bench.sources[&address(2)].least), (TunnelKind::Esp, 1416, TunnelKind::Esp));
    assert!(!went_in_clear(&bench));
}

#[test]
fn what_is_protected_no_more_is_left_at_once() {
    let mut bench = met();
    bench.input(protected(2, true));
    bench.pass(20_000);
    bench.outputs.clear();
    bench.input(protected(2, false));
    assert_ne!(bench.slots.get(&short(2)).map(|slot| slot.tunnel), Some(TunnelKind::Esp));
    assert_eq!(bench.sources[&address(2)].least, TunnelKind::Sleeve);
    bench.pass(20_000);
    assert_eq!((heartbeats(&bench), bench.slots[&short(2)].tunnel), (0, TunnelKind::Sleeve));
}

#[test]
fn when_esp_does_not_get_through_the_sleeve_carries_and_status_says_why() {
    let mut bench = met();
    bench.input(protected(2, true));
    bench.pass(20_000);
    bench.answering.remove(&address(2));
    bench.pass(4_000);
    assert_eq!(bench.slots[&short(2)].tunnel, TunnelKind::Sleeve);
    let status = bench.switch.status(bench.now);
    let why = status.peers.iter().find_map(|peer| peer.tunnel.as_ref()?.why.clone()).unwrap();
    assert!(why.starts_with("esp unanswered for ") && why.contains("IP protocol 50"), "{why}");
}

#[test]
fn what_an_earlier_agent_sealed_with_esp_goes_on_if_the_kernel_still_protects_it() {
    for is_protected in [true, false] {
        let mut bench = Bench::new(|config| config.sealed_but_for = Some(vec![]));
        if is_protected {
            bench.input(protected(2, true));
        }
        let route = PeerRoute { remote: address(2), local: address(9), port: 6784, mtu: 1416, tunnel: TunnelKind::Esp, big: false };
        bench.slots.insert(short(2), route);
        bench.input(Input::Adopted(Adopted { slots: vec![(short(2), route)], ..Adopted::default() }));
        assert_eq!(bench.slots.contains_key(&short(2)), is_protected);
    }
}
