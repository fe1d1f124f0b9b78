use std::net::IpAddr;

use weave_agent::io::net::{AttachError, DetachError, Known, Netlink, PortKind, PortWatch, attach, detach, expose, follow_mtu, ports};

use crate::host::{Namespace, attached, eventually, host_state, on_a_host, sh, spec};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_container_gets_an_interface_and_loses_it_without_a_trace() {
    on_a_host(async || {
        let (host, container) = (Netlink::here().unwrap(), Namespace::new());
        let before = (host_state(), container.state());
        let done = attached(&container, &["10.32.0.1/12", "fd00:32::1/64"]).await;
        assert!(done.created && done.added.len() == 2 && done.port.addrs.len() == 2);

        let inside = container.sh("ip -o addr show dev ethwe");
        assert!(inside.contains("10.32.0.1/12") && inside.contains("fd00:32::1/64"), "{inside}");
        let usable = async || !container.sh("ip -o addr show dev ethwe").contains("tentative");
        eventually("the link-local address is usable", usable).await;
        let link = container.sh("ip link show dev ethwe");
        assert!(link.contains("mtu 1400") && link.contains("LOWER_UP") && link.contains(&done.port.mac.to_string()), "{link}");
        assert!(container.sh("ip route show 224.0.0.0/4").contains("dev ethwe proto static scope link"));
        assert_eq!(container.sh("cat /proc/sys/net/ipv6/conf/ethwe/accept_ra").trim(), "0");
        assert_eq!(container.sh("cat /proc/sys/net/ipv4/neigh/ethwe/delay_first_probe_time").trim(), "2");

        let name = &done.port.host_ifname;
        assert!(name.len() == 15 && name.starts_with("vethwepl"));
        assert_eq!(sh(&format!("ip -o addr show dev {name}")), "");
        assert!(sh(&format!("ip link show dev {name}")).contains("mtu 1400"));
        assert_eq!(ports::list(&host).await.unwrap(), std::slice::from_ref(&done.port));

        let gone = detach(&host, &container.netns(), "ethwe", &[]).await.unwrap();
        assert!(gone.port == done.port.id && gone.removed.len() == 2 && gone.left.is_empty());
        assert_eq!((host_state(), container.state()), before);
        let again = detach(&host, &container.netns(), "ethwe", &[]).await;
        assert!(matches!(again, Err(DetachError::NotAttached(_))));
    });
}

#[test]
fn addresses_come_and_go_one_by_one_and_the_others_stay() {
    on_a_host(async || {
        let (host, container) = (Netlink::here().unwrap(), Namespace::new());
        let first = attached(&container, &["10.32.0.1/12"]).await;
        let second = attached(&container, &["10.32.0.2/12", "10.32.0.3/12"]).await;
        assert!(!second.created && second.port.id == first.port.id && second.port.addrs.len() == 3);

        // The subnet's first address: the kernel would take the others with it.
        container.sh("sysctl -qw net.ipv4.conf.ethwe.promote_secondaries=0");
        let done = detach(&host, &container.netns(), "ethwe", &[ip("10.32.0.1")]).await.unwrap();
        assert_eq!(done.left.len(), 2);
        let inside = container.sh("ip -o -4 addr show dev ethwe");
        assert!(inside.contains("10.32.0.2/12") && inside.contains("10.32.0.3/12") && !inside.contains("10.32.0.1/"), "{inside}");

        let missing = detach(&host, &container.netns(), "ethwe", &[ip("10.32.0.2"), ip("10.32.0.9")]).await;
        assert!(matches!(missing, Err(DetachError::NoSuchAddress { .. })));
        assert!(container.sh("ip -o -4 addr show dev ethwe").contains("10.32.0.2/12"));
        let done = detach(&host, &container.netns(), "ethwe", &[ip("10.32.0.2"), ip("10.32.0.3")]).await.unwrap();
        assert!(done.left.is_empty());
        assert!(ports::list(&host).await.unwrap().is_empty());
    });
}

#[test]
fn what_cannot_be_is_refused_by_name_and_leaves_nothing_behind() {
    on_a_host(async || {
        let (host, container, other) = (Netlink::here().unwrap(), Namespace::new(), Namespace::new());
        sh("ip link add up0 type veth peer name up1 && ip addr add 192.168.7.1/24 dev up0 && ip link set up0 up");
        sh("ip route add 10.99.0.0/16 dev up0 && ip route add default via 192.168.7.2 dev up0");
        attached(&container, &["10.32.0.1/16"]).await;
        attached(&other, &["10.32.0.2/16"]).await;
        expose(&host, &["10.32.0.3/16".parse().unwrap()], 1400).await.unwrap();
        let before = (host_state(), container.state(), other.state());

        let refused = async |addr: &str| attach(&host, &container.netns(), &spec(&[addr])).await.unwrap_err();
        let already = refused("10.32.0.1/16").await;
        assert!(matches!(already, AttachError::AlreadyAttached { .. }) && already.to_string().contains(&container.name));
        let used = refused("10.32.0.2/16").await;
        assert!(matches!(used, AttachError::AddressInUse { .. }) && used.to_string().contains(&other.name), "{used}");
        assert!(matches!(refused("10.32.0.3/16").await, AttachError::AddressInUse { .. }));
        assert!(refused("192.168.7.1/24").await.to_string().contains("the host (up0)"));
        let overlap = refused("10.99.3.4/24").await.to_string();
        assert!(overlap.contains("10.99.0.0/16") && overlap.contains("up0"), "{overlap}");
        assert!(matches!(refused("192.168.0.5/16").await, AttachError::RouteOverlap { .. }));
        assert!(matches!(refused("10.33.0.0/16").await, AttachError::InvalidAddress { .. }));
        assert_eq!((host_state(), container.state(), other.state()), before);
    });
}

#[test]
fn a_failure_half_way_is_undone() {
    on_a_host(async || {
        let (host, container) = (Netlink::here().unwrap(), Namespace::new());
        let before = (host_state(), container.state());
        // IPv6 wants 1,280 bytes: the pair and the first address are there when the second fails.
        let mut spec = spec(&["10.32.0.1/16", "fd00:32::1/64"]);
        spec.mtu = 1000;
        let error = attach(&host, &container.netns(), &spec).await.unwrap_err();
        assert!(matches!(&error, AttachError::Kernel(_)) && error.to_string().contains("fd00:32::1/64"), "{error}");
        assert_eq!((host_state(), container.state()), before);

        spec.addrs.truncate(1);
        attach(&host, &container.netns(), &spec).await.unwrap();
        let before = (host_state(), container.state());
        spec.addrs = vec!["10.32.0.2/16".parse().unwrap(), "fd00:32::1/64".parse().unwrap()];
        attach(&host, &container.netns(), &spec).await.unwrap_err();
        assert_eq!((host_state(), container.state()), before);
    });
}

#[test]
fn interfaces_of_others_are_left_alone_and_unfinished_ones_of_ours_replaced() {
    on_a_host(async || {
        let (host, container) = (Netlink::here().unwrap(), Namespace::new());
        let target = container.netns();
        sh(&format!("ip link add mine type veth peer name ethwe netns {}", container.name));
        let foreign = attach(&host, &target, &spec(&["10.32.0.1/16"])).await.unwrap_err();
        assert!(matches!(foreign, AttachError::ForeignInterface { .. }), "{foreign}");
        assert!(matches!(detach(&host, &target, "ethwe", &[]).await, Err(DetachError::ForeignInterface { .. })));
        sh("ip link del mine");

        // As an agent leaves it that was killed half-way.
        sh(&format!("ip link add vethwepl0000000 type veth peer name ethwe netns {}", container.name));
        assert!(ports::list(&host).await.unwrap().is_empty());
        assert!(attached(&container, &["10.32.0.1/16"]).await.created);
        assert!(!sh("ip -o link").contains("vethwepl0000000"));
    });
}

#[test]
fn a_second_interface_of_one_container_is_a_port_of_its_own() {
    on_a_host(async || {
        let (host, container) = (Netlink::here().unwrap(), Namespace::new());
        let first = attached(&container, &["10.32.0.1/16"]).await;
        let mut spec = spec(&["10.33.0.1/16"]);
        spec.ifname = "net1".to_owned();
        let second = attach(&host, &container.netns(), &spec).await.unwrap();
        assert!(first.port.id != second.port.id && first.port.host_ifname != second.port.host_ifname);
        assert_eq!(ports::list(&host).await.unwrap(), [first.port, second.port]);
    });
}

#[test]
fn many_at_once_never_get_the_same_address() {
    on_a_host(async || {
        let host = Netlink::here().unwrap();
        let containers: Vec<_> = (0..4).map(|_| Namespace::new()).collect();
        let attempts = containers.iter().map(|container| {
            let (host, target) = (host.clone(), container.netns());
            async move { attach(&host, &target, &spec(&["10.32.0.1/16"])).await }
        });
        let results = futures_util::future::join_all(attempts).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        assert_eq!(ports::list(&host).await.unwrap().len(), 1);
    });
}

#[test]
fn one_socket_answers_many_questions_at_once() {
    on_a_host(async || {
        let host = Netlink::here().unwrap();
        let answers = futures_util::future::join_all((0..50).map(|_| host.routes())).await;
        assert!(answers.into_iter().all(|answer| answer.is_ok()));
        for micros in 0..100 {
            // Not waited for to the end.
            let _ = tokio::time::timeout(std::time::Duration::from_micros(micros), host.links()).await;
            host.routes().await.unwrap();
        }
    });
}

#[test]
fn attach_goes_on_when_nobody_waits_for_it() {
    on_a_host(async || {
        let (host, container) = (Netlink::here().unwrap(), Namespace::new());
        let (target, spec) = (container.netns(), spec(&["10.32.0.1/16"]));
        drop(tokio::time::timeout(std::time::Duration::from_micros(1), attach(&host, &target, &spec)).await);
        eventually("the port is finished", async || ports::list(&host).await.unwrap().len() == 1).await;
    });
}

#[test]
fn a_dead_containers_port_is_reported() {
    on_a_host(async || {
        let container = Namespace::new();
        let mut watch = PortWatch::new().unwrap();
        let port = attached(&container, &["10.32.0.1/16"]).await.port;
        assert!(matches!(port.kind, PortKind::Container(id) if id == container.netns().id()));
        drop(container);
        let gone = tokio::time::timeout(crate::host::PATIENCE, watch.gone()).await.unwrap().unwrap();
        assert_eq!(gone, Some(port.id));
    });
}

#[test]
fn a_port_is_known_by_its_note_whatever_its_ends_are_called() {
    on_a_host(async || {
        let (host, container) = (Netlink::here().unwrap(), Namespace::new());
        let made = attached(&container, &["10.32.0.1/16"]).await.port;
        let mut watch = PortWatch::new().unwrap();
        let name = &made.host_ifname;
        sh(&format!("ip link set {name} down && ip link set {name} name nuport && ip link set nuport up"));
        container.sh("sh -c 'ip link set ethwe down && ip link set ethwe name mine && ip link set mine up'");

        let second = attached(&container, &["10.32.0.2/16", "fd00:32::2/64"]).await;
        assert!(!second.created && second.port.id == made.id && second.port.made_as == made.made_as);
        assert_eq!((second.port.host_ifname.as_str(), second.port.ifname.as_str()), ("nuport", "mine"));
        assert_eq!(ports::list(&host).await.unwrap(), [second.port]);
        let detached = detach(&host, &container.netns(), "ethwe", &[]).await.unwrap();
        assert!(detached.made_as == made.made_as && detached.left.is_empty());
        let mut gone = async || watch.gone().await.unwrap() == Some(made.id);
        tokio::time::timeout(crate::host::PATIENCE, async { while !gone().await {} }).await.unwrap();
    });
}

#[test]
fn ports_follow_the_mtu_down_and_up_unless_the_container_chose_less() {
    on_a_host(async || {
        let (host, one, two) = (Netlink::here().unwrap(), Namespace::new(), Namespace::new());
        let first = attached(&one, &["10.32.0.1/16"]).await.port;
        attached(&two, &["10.32.0.2/16"]).await;
        expose(&host, &["10.32.0.3/16".parse().unwrap()], 1400).await.unwrap();
        two.sh("ip link set ethwe mtu 1300");
        let has = |link: String, mtu: u32| link.contains(&format!("mtu {mtu} "));
        for (wanted, inside_two) in [(1350, 1300), (1250, 1250), (1400, 1400)] {
            assert!(follow_mtu(&host, wanted).await.unwrap().is_empty());
            assert!(has(one.sh("ip link show ethwe"), wanted) && has(sh(&format!("ip link show {}", first.host_ifname)), wanted));
            assert!(has(sh("ip link show weave"), wanted) && has(sh("ip link show vethwe-host"), wanted));
            assert!(has(two.sh("ip link show ethwe"), inside_two), "{}", two.sh("ip link show ethwe"));
        }
    });
}

#[test]
fn who_cannot_be_given_another_mtu_is_named() {
    on_a_host(async || {
        let (host, hidden, ipv6) = (Netlink::here().unwrap(), Namespace::new(), Namespace::new());
        let lost = attached(&hidden, &["10.32.0.1/16"]).await.port;
        let small = attached(&ipv6, &["fd00:32::1/64"]).await.port;
        let kept_alive = hidden.netns();
        sh(&format!("umount -l /run/netns/{0} && rm /run/netns/{0}", hidden.name));
        let failures = follow_mtu(&host, 1200).await.unwrap();
        assert!(failures[&lost.id].contains("attach it again"), "{failures:?}");
        assert!(failures[&small.id].contains("IPv6"), "{failures:?}");
        assert!(sh(&format!("ip link show {}", lost.host_ifname)).contains("mtu 1400 "));
        assert!(ipv6.sh("ip addr show ethwe").contains("fd00:32::1/64"));
        drop(kept_alive);
    });
}

#[test]
fn a_container_with_a_route_of_its_own_into_the_subnet_is_refused() {
    on_a_host(async || {
        let (host, container) = (Netlink::here().unwrap(), Namespace::new());
        container.sh("ip link add own0 type veth peer name own1");
        container.sh("ip link set own0 up");
        container.sh("ip link set own1 up");
        container.sh("ip addr add 10.32.0.9/16 dev own0");
        let before = container.state();
        let refused = attach(&host, &container.netns(), &spec(&["10.32.0.1/16"])).await.unwrap_err();
        assert!(matches!(refused, AttachError::OwnRoute { .. }) && refused.to_string().contains("own0"), "{refused}");
        assert_eq!(container.state(), before);

        // Its default route and wider ones do not win over ours.
        container.sh("ip addr del 10.32.0.9/16 dev own0");
        container.sh("ip route add default dev own0");
        container.sh("ip route add 10.0.0.0/8 dev own0");
        attached(&container, &["10.32.0.1/16"]).await;
        attached(&container, &["10.32.0.2/16"]).await;
    });
}

#[test]
fn what_is_remembered_of_addresses_only_says_when_to_look() {
    on_a_host(async || {
        let (host, one, two) = (Netlink::here().unwrap(), Namespace::new(), Namespace::new());
        let known = Known::default();
        known.learn(&[]);
        let wanted = spec(&["10.32.0.1/16"]).knowing(&known);
        attach(&host, &one.netns(), &wanted).await.unwrap();
        let refused = attach(&host, &two.netns(), &wanted).await.unwrap_err().to_string();
        assert!(refused.contains(&one.name), "{refused}");
        // Who gave it up by hand is not refused for it.
        one.sh("ip addr del 10.32.0.1/16 dev ethwe");
        attach(&host, &two.netns(), &wanted).await.unwrap();
    });
}
