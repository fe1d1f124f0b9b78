use std::net::UdpSocket;

use ipnet::IpNet;
use socket2::SockRef;
use weave_agent::io::net::{Netlink, expose, hide, nat};
use weave_agent::io::paths::Paths;
use weave_agent::io::reset;

use crate::host::{Namespace, attached, eventually, on_a_host, sh};

const OUTSIDE: [&str; 2] = ["192.0.2.9", "2001:db8:2::9"];
const CONTAINER: [&str; 2] = ["10.32.1.1", "fd00:10:32::1:1"];
const HOST: [&str; 2] = ["10.32.0.1", "fd00:10:32::1"];

fn exposed() -> [IpNet; 2] {
    ["10.32.0.1/16".parse().unwrap(), "fd00:10:32::1/64".parse().unwrap()]
}

fn ruleset() -> String {
    sh("nft list ruleset")
}

fn reaches(from: &Namespace, to: &str) -> bool {
    from.sh(&format!("sh -c 'ping -n -c 1 -W 1 {to} >/dev/null && echo yes || echo no'")).trim() == "yes"
}

/// Who is behind this host, and knows nothing of the network.
fn outside() -> Namespace {
    let outside = Namespace::new();
    sh(&format!("ip link add out type veth peer name in netns {}", outside.name));
    sh("ip link set out up && ip addr add 192.0.2.1/24 dev out && ip addr add 2001:db8:2::1/64 dev out nodad");
    outside.sh("ip link set in up");
    outside.sh("ip addr add 192.0.2.9/24 dev in");
    outside.sh("ip addr add 2001:db8:2::9/64 dev in nodad");
    outside
}

/// A container and the host on one wire, which a bridge plays here.
async fn network(host: &Netlink) -> Namespace {
    let container = Namespace::new();
    let attached = attached(&container, &["10.32.1.1/16", "fd00:10:32::1:1/64"]).await;
    expose(host, &exposed(), 1400).await.unwrap();
    // Where Docker has loaded br_netfilter a bridge would be a router as well.
    sh("for file in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $file ] || echo 0 >$file; done");
    sh("ip link add wire type bridge && ip link set wire up");
    sh(&format!("ip link set vethwe-host master wire && ip link set {} master wire", attached.port.host_ifname));
    container
}

#[test]
fn containers_reach_the_outside_through_the_host_and_are_reached_in_its_name() {
    on_a_host(async || {
        let host = Netlink::here().unwrap();
        // The namespace may have it from the machine.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let before = ruleset();
        let (container, outside) = (network(&host).await, outside());
        eventually("the host is reached", async || HOST.iter().all(|to| reaches(&container, to))).await;
        container.sh("ip route add default via 10.32.0.1");
        container.sh("ip route add default via fd00:10:32::1");
        assert!(OUTSIDE.iter().all(|to| !reaches(&container, to)), "there is no way back yet");

        let notes = nat::apply(&exposed()).await.unwrap();
        assert!(notes.len() == 2 && notes[0].contains("IPv4") && notes[1].contains("IPv6"), "{notes:?}");
        eventually("the outside is reached", async || OUTSIDE.iter().all(|to| reaches(&container, to))).await;

        // The other way round the container needs no gateway: it is the host that speaks to it.
        container.sh("ip route del default");
        container.sh("ip -6 route del default");
        outside.sh("ip route add 10.32.0.0/16 via 192.0.2.1");
        outside.sh("ip route add fd00:10:32::/64 via 2001:db8:2::1");
        eventually("the container is reached", async || CONTAINER.iter().all(|to| reaches(&outside, to))).await;

        let applied = ruleset();
        assert_eq!(nat::apply(&exposed()).await.unwrap(), [""; 0]);
        assert_eq!(ruleset(), applied, "repeated, it is the same");
        let one = nat::apply(&exposed()[..1]).await.unwrap();
        assert!(one.is_empty() && !ruleset().contains("fd00") && ruleset().contains("10.32.0.0/16"));
        hide(&host, &[]).await.unwrap();
        nat::apply(&[]).await.unwrap();
        assert_eq!(ruleset(), before);
        nat::apply(&[]).await.unwrap();
    });
}

#[test]
fn what_stays_inside_keeps_its_name() {
    on_a_host(async || {
        let host = Netlink::here().unwrap();
        let container = network(&host).await;
        nat::apply(&exposed()).await.unwrap();
        let other = Namespace::new();
        let port = attached(&other, &["10.32.1.2/16"]).await;
        sh(&format!("ip link set {} master wire", port.port.host_ifname));
        eventually("containers reach each other", async || reaches(&container, "10.32.1.2") && reaches(&container, HOST[0])).await;
        sh("nft 'add table inet probe; add chain inet probe in { type filter hook input priority 0; }; \
            add rule inet probe in ip saddr 10.32.1.1 icmp type echo-request counter'");
        assert!(reaches(&container, HOST[0]));
        assert!(ruleset().contains("counter packets 1"), "{}", ruleset());
    });
}

#[test]
fn multicast_keeps_its_source() {
    on_a_host(async || {
        let host = Netlink::here().unwrap();
        let (_container, _outside) = (network(&host).await, outside());
        nat::apply(&exposed()).await.unwrap();
        sh("nft 'add table netdev probe; add chain netdev probe out { type filter hook egress device out priority 0; }; \
            add rule netdev probe out ip daddr 224.1.2.3 ip saddr 10.32.0.1 counter; \
            add rule netdev probe out ip daddr 203.0.113.1 ip saddr 192.0.2.1 counter'");
        sh("ip route add 203.0.113.0/24 via 192.0.2.9");
        for to in ["224.1.2.3:9", "203.0.113.1:9"] {
            let socket = UdpSocket::bind("10.32.0.1:0").unwrap();
            // Or else multicast would leave by the interface of that address.
            SockRef::from(&socket).set_multicast_if_v4(&[192, 0, 2, 1].into()).unwrap();
            socket.send_to(b"x", to).unwrap();
        }
        eventually("each is seen once", async || ruleset().matches("counter packets 1 ").count() == 2).await;
    });
}

#[test]
fn tables_of_others_stay_and_reset_leaves_only_those() {
    on_a_host(async || {
        sh("nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'");
        let (before, dir) = (ruleset(), tempfile::tempdir().unwrap());
        let notes = nat::apply(&exposed()).await.unwrap();
        assert!(notes.last().unwrap().contains("iptables -I FORWARD -i weave -j ACCEPT"), "{notes:?}");
        assert_ne!(ruleset(), before);
        let paths = Paths { run: dir.path().join("run"), state: dir.path().join("state") };
        let done = reset::remove_everything(&paths).await;
        assert!(done.failures.is_empty() && done.removed.iter().any(|removed| removed.contains("inet weave-agent")), "{done:?}");
        assert_eq!(ruleset(), before);
        assert!(!nat::remove().await.unwrap());
    });
}
