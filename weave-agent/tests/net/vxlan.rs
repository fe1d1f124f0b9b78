use weave_agent::io::net::{DeviceWatch, Netlink, Vxlan, ensure_vxlan, remove_vxlans};

use crate::host::{PATIENCE, host_state, on_a_host, sh};

#[test]
fn the_vxlan_device_is_made_adopted_and_removed() {
    on_a_host(async || {
        let host = Netlink::here().unwrap();
        let before = host_state();
        let made = ensure_vxlan(&host, 6784).await.unwrap();
        assert!(!made.adopted && made.name == "vxlan-6784" && made.mtu == 65485);
        let link = sh("ip -d link show dev vxlan-6784");
        assert!(["external", "dstport 6784", "nolearning", "mtu 65485", "UP"].iter().all(|word| link.contains(word)), "{link}");
        assert_eq!(sh("ip -o addr show dev vxlan-6784"), "");

        let again = ensure_vxlan(&host, 6784).await.unwrap();
        assert!(again.adopted && again.ifindex == made.ifindex);
        assert!(remove_vxlans(&host, None).await.unwrap());
        assert!(!remove_vxlans(&host, None).await.unwrap());
        assert_eq!(host_state(), before);
    });
}

#[test]
fn a_wrong_device_of_ours_is_made_anew_and_those_of_others_are_named() {
    on_a_host(async || {
        let host = Netlink::here().unwrap();
        sh("ip link add vxlan-6784 type vxlan external dstport 7000 && ip link set vxlan-6784 alias weave-agent");
        assert!(!ensure_vxlan(&host, 6784).await.unwrap().adopted);
        assert!(sh("ip -d link show dev vxlan-6784").contains("dstport 6784"));
        remove_vxlans(&host, None).await.unwrap();

        sh("ip link add vxlan-6784 type veth peer name else && ip link set vxlan-6784 alias theirs");
        let before = host_state();
        assert!(ensure_vxlan(&host, 6784).await.unwrap_err().to_string().contains("vxlan-6784"));
        assert!(!remove_vxlans(&host, None).await.unwrap());
        assert_eq!(host_state(), before);
        sh("ip link del vxlan-6784");

        sh("ip link add theirs type vxlan external dstport 6784 && ip link set theirs up");
        let before = host_state();
        assert!(ensure_vxlan(&host, 6784).await.unwrap_err().to_string().contains("UDP port 6784"));
        assert_eq!(host_state(), before);
    });
}

#[test]
fn those_of_other_ports_and_names_go_and_those_of_others_stay() {
    on_a_host(async || {
        let host = Netlink::here().unwrap();
        sh("ip link add vxlan-42 type vxlan id 42 dstport 4789 && ip link add vxlan-4790 type vxlan external dstport 4789");
        let before = host_state();
        // One that we were killed over, one that was renamed, and the one that stays.
        sh("ip link add vxlan-7000 type vxlan external dstport 7000 nolearning");
        let renamed = ensure_vxlan(&host, 7001).await.unwrap();
        sh("ip link set vxlan-7001 down && ip link set vxlan-7001 name mine");
        ensure_vxlan(&host, 6784).await.unwrap();
        assert!(remove_vxlans(&host, Some(6784)).await.unwrap());
        assert!(!remove_vxlans(&host, Some(6784)).await.unwrap());
        assert!(host.link_at(renamed.ifindex).await.unwrap().is_none() && host.link_named("vxlan-6784").await.unwrap().is_some());
        assert!(remove_vxlans(&host, None).await.unwrap());
        assert_eq!(host_state(), before);
    });
}

#[test]
fn a_taken_udp_port_is_named_and_nothing_left() {
    on_a_host(async || {
        let host = Netlink::here().unwrap();
        let before = host_state();
        let _taken = std::net::UdpSocket::bind("0.0.0.0:6784").unwrap();
        let error = ensure_vxlan(&host, 6784).await.unwrap_err().to_string();
        assert!(error.contains("another program uses UDP port 6784"), "{error}");
        assert_eq!(host_state(), before);
    });
}

#[test]
fn a_device_that_somebody_deleted_set_down_or_renamed_is_mended_at_once() {
    on_a_host(async || {
        let host = Netlink::here().unwrap();
        let made = ensure_vxlan(&host, 6784).await.unwrap();
        let mut watch = DeviceWatch::new(host.clone(), Vxlan { port: 6784, made: made.clone() }).unwrap();
        let mut next = async || tokio::time::timeout(PATIENCE, watch.next()).await.unwrap();
        let is_right = || sh("ip -d link show dev vxlan-6784").contains("mtu 65485") && sh("ip link show up").contains("vxlan-6784");

        sh("ip link set vxlan-6784 down");
        assert_eq!(next().await.unwrap(), made.ifindex);
        assert!(is_right());
        sh("ip link set vxlan-6784 down && ip link set vxlan-6784 name theirs && ip link set theirs up");
        assert_eq!(next().await.unwrap(), made.ifindex);
        assert!(is_right());
        sh("ip link del vxlan-6784");
        assert_ne!(next().await.unwrap(), made.ifindex);
        assert!(is_right());

        sh("ip link del vxlan-6784 && ip link add theirs type vxlan external dstport 6784 && ip link set theirs up");
        assert!(next().await.unwrap_err().to_string().contains("UDP port 6784"));
        sh("ip link del theirs");
        while next().await.is_err() {}
        assert!(is_right());
    });
}
