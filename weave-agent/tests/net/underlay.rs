use std::net::Ipv4Addr;

use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;
use weave_agent::addr::Mac;
use weave_agent::io::net::{Heartbeats, Netlink, NextHop, Underlay, UnderlayEvent, mtu_for};

use crate::host::{Namespace, PATIENCE, attached, on_a_host, sh};

const US: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const NEIGHBOUR_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

/// The host on `up0`, a neighbour at the other end.
fn wired() -> Namespace {
    let neighbour = Namespace::new();
    sh(&format!("ip link add up0 type veth peer name up1 netns {}", neighbour.name));
    sh("ip link set up0 address 02:00:00:00:00:01 up && ip addr add 10.1.0.1/24 dev up0");
    neighbour.sh("ip link set up1 address 02:00:00:00:00:02 up");
    neighbour.sh("ip addr add 10.1.0.2/24 dev up1");
    neighbour
}

/// The next event that `wanted` takes.
async fn next<T>(events: &mut Receiver<UnderlayEvent>, what: &str, mut wanted: impl FnMut(UnderlayEvent) -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = wanted(events.recv().await.unwrap()) {
                return found;
            }
        }
    };
    timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("in vain: {what}"))
}

async fn next_hop(
    events: &mut Receiver<UnderlayEvent>,
    what: &str,
    to: Ipv4Addr,
    mut holds: impl FnMut(Option<NextHop>) -> bool,
) -> Option<NextHop> {
    let wanted = |event| match event {
        UnderlayEvent::NextHop { remote, next_hop, .. } if remote == to && holds(next_hop) => Some(next_hop),
        _ => None,
    };
    next(events, what, wanted).await
}

#[test]
fn a_neighbour_is_resolved_and_its_changes_followed() {
    on_a_host(async || {
        let neighbour = wired();
        let (underlay, mut events) = Underlay::start().unwrap();
        underlay.watch(NEIGHBOUR, US);
        let hop = next_hop(&mut events, "resolution", NEIGHBOUR, |hop| hop.is_some_and(|hop| hop.next_hop_mac.is_some())).await.unwrap();
        assert_eq!((hop.next_hop_mac, hop.source_mac, hop.mtu), (Some(NEIGHBOUR_MAC), Mac([2, 0, 0, 0, 0, 1]), 1500));
        assert_eq!(hop.gateway, None);

        neighbour.sh("ip link set up1 address 02:00:00:00:00:22");
        sh("ip neigh replace 10.1.0.2 lladdr 02:00:00:00:00:22 dev up0 nud reachable");
        let moved = Some(Mac([2, 0, 0, 0, 0, 0x22]));
        next_hop(&mut events, "a new MAC", NEIGHBOUR, |hop| hop.is_some_and(|hop| hop.next_hop_mac == moved)).await;

        sh("ip link set up0 mtu 1300");
        next_hop(&mut events, "a new MTU", NEIGHBOUR, |hop| hop.is_some_and(|hop| hop.mtu == 1300)).await;

        sh("ip link set up0 down");
        next_hop(&mut events, "no way", NEIGHBOUR, |hop| hop.is_none()).await;
        sh("ip link set up0 up");
        next_hop(&mut events, "the way back", NEIGHBOUR, |hop| hop.is_some_and(|hop| hop.next_hop_mac == moved)).await;

        sh("ip addr del 10.1.0.1/24 dev up0");
        next(&mut events, "our address gone", |event| (event == UnderlayEvent::AddressGone(US)).then_some(())).await;
        next_hop(&mut events, "no way without it", NEIGHBOUR, |hop| hop.is_none()).await;
    });
}

#[test]
fn a_flushed_entry_is_asked_for_again() {
    on_a_host(async || {
        let _neighbour = wired();
        let (underlay, mut events) = Underlay::start().unwrap();
        underlay.watch(NEIGHBOUR, US);
        let resolved = |hop: Option<NextHop>| hop.is_some_and(|hop| hop.next_hop_mac == Some(NEIGHBOUR_MAC));
        next_hop(&mut events, "resolution", NEIGHBOUR, resolved).await;
        sh("ip neigh del 10.1.0.2 dev up0");
        next_hop(&mut events, "it is unknown", NEIGHBOUR, |hop| !resolved(hop)).await;
        next_hop(&mut events, "it is known again", NEIGHBOUR, resolved).await;
    });
}

#[test]
fn routes_through_gateways_are_followed() {
    on_a_host(async || {
        let neighbour = wired();
        neighbour.sh("ip addr add 10.1.0.3/24 dev up1");
        let far = Ipv4Addr::new(10, 2, 0, 9);
        let (underlay, mut events) = Underlay::start().unwrap();
        underlay.watch(far, US);
        next_hop(&mut events, "no route yet", far, |hop| hop.is_none()).await;
        sh("ip route add 10.2.0.0/24 via 10.1.0.2 mtu 1400");
        let via = |gateway: Ipv4Addr, mtu: u32| {
            move |hop: Option<NextHop>| {
                hop.is_some_and(|hop| hop.gateway == Some(gateway) && hop.next_hop_mac == Some(NEIGHBOUR_MAC) && hop.mtu == mtu)
            }
        };
        next_hop(&mut events, "the first gateway", far, via(NEIGHBOUR, 1400)).await;
        sh("ip route replace 10.2.0.0/24 via 10.1.0.3");
        next_hop(&mut events, "the second gateway", far, via(Ipv4Addr::new(10, 1, 0, 3), 1500)).await;
        sh("ip route del 10.2.0.0/24");
        next_hop(&mut events, "no route any more", far, |hop| hop.is_none()).await;
    });
}

#[test]
fn somebody_who_does_not_answer_has_no_address() {
    on_a_host(async || {
        let _neighbour = wired();
        let silent = Ipv4Addr::new(10, 1, 0, 99);
        let (underlay, mut events) = Underlay::start().unwrap();
        underlay.watch(silent, US);
        let hop = next_hop(&mut events, "a path", silent, |_| true).await;
        assert_eq!(hop.map(|hop| hop.next_hop_mac), Some(None));
    });
}

#[test]
fn interfaces_and_addresses_are_told_and_ours_are_not() {
    on_a_host(async || {
        let neighbour = wired();
        let (_underlay, mut events) = Underlay::start().unwrap();
        let interfaces = |event| match event {
            UnderlayEvent::Interfaces(interfaces) => Some(interfaces),
            _ => None,
        };
        next(&mut events, "our address", |event| (event == UnderlayEvent::AddressAdded(US)).then_some(())).await;
        let first = next(&mut events, "the first interface", interfaces).await;
        assert_eq!(first.len(), 1);

        let container = Namespace::new();
        let port = attached(&container, &["10.32.0.1/16"]).await.port;
        sh("ip link add other type veth peer name up3 && ip addr add 10.3.0.1/24 dev other");
        let second = next(&mut events, "the second interface", interfaces).await;
        assert!(second.len() == 2 && second.contains(&first[0]) && !second.contains(&port.id.0));

        drop(container);
        next(&mut events, "the port's link", |event| (event == UnderlayEvent::LinkGone(port.id.0)).then_some(())).await;
        drop(neighbour);
        next(&mut events, "the first is gone", |event| (event == UnderlayEvent::LinkGone(first[0])).then_some(())).await;
    });
}

#[test]
fn the_mtu_is_that_of_the_narrowest_known_path() {
    on_a_host(async || {
        let host = Netlink::here().unwrap();
        assert_eq!(mtu_for(&host, &[]).await, 1450);
        let _neighbour = wired();
        sh("ip link set up0 mtu 2000 && ip link add up2 mtu 1300 type veth peer name up3 && ip link set up2 up");
        assert_eq!(mtu_for(&host, &[]).await, 1250);
        sh("ip route add default via 10.1.0.2");
        assert_eq!(mtu_for(&host, &[]).await, 1950);
        sh("ip route add 10.2.0.0/24 via 10.1.0.2 mtu 1700");
        assert_eq!(mtu_for(&host, &[Ipv4Addr::new(10, 2, 0, 1), NEIGHBOUR]).await, 1650);
    });
}

#[test]
fn heartbeats_carry_df_and_fail_one_by_one() {
    on_a_host(async || {
        let neighbour = wired();
        let receiver = neighbour.netns().run(|| std::net::UdpSocket::bind("10.1.0.2:6784")).await.unwrap().unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut heartbeats = Heartbeats::new();
        heartbeats.send(US, NEIGHBOUR, 6784, &[7; 1472]).unwrap();
        assert_eq!(receiver.recv(&mut [0; 2000]).unwrap(), 1472);
        let too_large = heartbeats.send(US, NEIGHBOUR, 6784, &[7; 1473]).unwrap_err();
        assert_eq!((too_large.raw_os_error(), heartbeats.errors()), (Some(nix::libc::EMSGSIZE), 1));
        heartbeats.send(Ipv4Addr::new(10, 9, 9, 9), NEIGHBOUR, 6784, &[7; 10]).unwrap_err();
        heartbeats.address_gone(US);
        heartbeats.send(US, NEIGHBOUR, 6784, &[8; 10]).unwrap();
        assert_eq!(receiver.recv(&mut [0; 2000]).unwrap(), 10);
    });
}
