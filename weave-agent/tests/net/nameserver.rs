//! The name server as containers reach it. A bridge plays the switch.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use weave_agent::dns::{Domain, Zone};
use weave_agent::io::dns::{Config, Server};
use weave_agent::io::net::{
    CONTAINER_IFNAME, NAMESERVER, NAMESERVER_6, Nameserver, Netlink, PortWatch, is_inhabited, lead_to_nameserver, nameserver_mac, ports,
};
use weave_agent::peer::PeerName;

use crate::host::{Namespace, attached, eventually, on_a_host, sh};

/// One host's name server: the answer tells whose it is.
struct Named {
    place: Nameserver,
    server: Server,
    _zones: watch::Sender<Arc<Zone>>,
}

impl Named {
    async fn new(number: u8) -> Self {
        let host = Netlink::here().unwrap();
        let place = Nameserver::new(&host, nameserver_mac(peer(number)), 1400).await.unwrap();
        sh(&format!("ip link set {} master switch", place.port().host_ifname));
        let addresses = [format!("10.99.0.{number}"), format!("fd99::{number}")];
        let entries = addresses.map(|address| ("web.weave.local".parse().unwrap(), address.parse().unwrap()));
        let (sender, zones) = watch::channel(Arc::new(Zone::new(Domain::default(), 1, entries)));
        let server = Server::new(zones, Config { resolv_conf: "/nonexistent".into(), ..Config::default() });
        for address in [SocketAddr::new(NAMESERVER.into(), 53), SocketAddr::new(NAMESERVER_6.into(), 53)] {
            server.listen_in(place.netns(), address).await.unwrap();
        }
        Self { place, server, _zones: sender }
    }
}

fn peer(number: u8) -> PeerName {
    PeerName([2, 0, 0, 0, 0, number])
}

fn switch() {
    sh("ip link add switch type bridge && ip link set switch up");
}

/// Attached, on the switch, and led to the name server of this host.
async fn container(number: u8, addresses: &[&str]) -> Namespace {
    let container = Namespace::new();
    let port = attached(&container, addresses).await.port;
    sh(&format!("ip link set {} master switch", port.host_ifname));
    for _ in 0..2 {
        lead_to_nameserver(&container.netns(), CONTAINER_IFNAME, nameserver_mac(peer(number))).await.unwrap();
    }
    container
}

async fn dig(container: &Namespace, words: &str) -> String {
    let command = format!("nsenter --net=/run/netns/{} dig {words}", container.name);
    tokio::task::spawn_blocking(move || sh(&command)).await.unwrap()
}

#[test]
fn containers_of_any_network_reach_the_name_server_of_their_own_host() {
    on_a_host(|| async {
        switch();
        let named = [Named::new(1).await, Named::new(2).await];
        assert_eq!(named[0].place.port().mac, nameserver_mac(peer(1)));
        for number in [1, 2] {
            for address in ["10.32.0.7/12", "192.168.7.7/24", "172.30.1.1/32"] {
                let container = container(number, &[address]).await;
                for transport in ["", "+tcp"] {
                    let found = dig(&container, &format!("@{NAMESERVER} web.weave.local A +short {transport}")).await;
                    assert_eq!(found, format!("10.99.0.{number}\n"), "{address} {transport}");
                }
            }
            let container = container(number, &[&format!("fd00::{number}/64")]).await;
            assert_eq!(dig(&container, &format!("@{NAMESERVER_6} web.weave.local AAAA +short")).await, format!("fd99::{number}\n"));
        }
    });
}

#[test]
fn a_container_ends_with_its_namespace_while_the_name_server_goes_on() {
    on_a_host(|| async {
        switch();
        let mut watch = PortWatch::new().unwrap();
        let named = Named::new(1).await;
        let container = container(1, &["10.32.0.7/12"]).await;
        assert_eq!(dig(&container, &format!("@{NAMESERVER} web A +short")).await, "10.99.0.1\n");
        // A connection that is open on our side is none on theirs.
        let port = ports::list(&Netlink::here().unwrap()).await.unwrap().into_iter().find(|port| !port.addrs.is_empty()).unwrap();
        assert_eq!(port.addrs[0].to_string(), "10.32.0.7/12");
        drop(container);
        assert_eq!(tokio::time::timeout(crate::host::PATIENCE, watch.gone()).await.unwrap().unwrap(), Some(port.id));
        assert_eq!(named.server.status().listening.len(), 2);
    });
}

#[test]
fn with_the_agent_go_the_name_servers_namespace_and_its_port() {
    on_a_host(|| async {
        switch();
        let named = Named::new(1).await;
        assert_eq!(ports::list(&Netlink::here().unwrap()).await.unwrap().len(), 1);
        drop(named);
        eventually("its port has gone", async || !sh("ip -o link").contains("vethwepl")).await;
        // The next agent makes it again.
        let again = Named::new(1).await;
        assert_eq!(again.place.port().mac, nameserver_mac(peer(1)));
    });
}

#[test]
fn a_host_with_nothing_but_what_a_stopped_agent_had_is_not_inhabited() {
    on_a_host(|| async {
        let host = Netlink::here().unwrap();
        // What is left of a name server until the kernel has taken its namespace down.
        sh("ip link add vethwepl0000001 type veth peer name left");
        sh("ip link set vethwepl0000001 alias 'weave-agent 4:1 ethwe vethwepl0000001'");
        assert_eq!(ports::names(&host).await.unwrap().len(), 1);
        assert!(!is_inhabited(&host).await.unwrap());
        let container = Namespace::new();
        attached(&container, &["10.32.0.1/12"]).await;
        assert!(is_inhabited(&host).await.unwrap());
    });
}
