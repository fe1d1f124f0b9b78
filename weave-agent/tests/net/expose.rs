use weave_agent::io::net::{AttachError, DetachError, Netlink, PortKind, expose, hide, ports};

use crate::host::{Namespace, attached, host_state, on_a_host, sh};

#[test]
fn the_host_joins_repeats_itself_and_leaves_without_a_trace() {
    on_a_host(async || {
        let host = Netlink::here().unwrap();
        let before = host_state();
        let done = expose(&host, &["10.32.0.1/16".parse().unwrap()], 1400).await.unwrap();
        assert!(done.created && done.port.kind == PortKind::Host && done.port.ifname == "weave");
        assert!(sh("ip route").contains("10.32.0.0/16 dev weave"));
        assert_eq!(sh("ip -o addr show dev vethwe-host"), "");
        assert!(sh("ip -o link show dev vethwe-host").contains("mtu 1400"));
        assert_eq!(ports::list(&host).await.unwrap(), std::slice::from_ref(&done.port));

        let both = ["10.32.0.1/16".parse().unwrap(), "10.32.0.2/16".parse().unwrap()];
        let again = expose(&host, &both, 1400).await.unwrap();
        assert!(!again.created && again.added == both[1..] && again.port.addrs == both);
        assert!(expose(&host, &both, 1400).await.unwrap().added.is_empty());

        let hidden = hide(&host, &[both[0].addr()]).await.unwrap();
        assert!(hidden.removed == both[..1] && hidden.left == both[1..]);
        assert!(sh("ip -o addr show dev weave").contains("10.32.0.2/16"));
        hide(&host, &[]).await.unwrap();
        assert_eq!(host_state(), before);
        assert!(matches!(hide(&host, &[]).await, Err(DetachError::NotExposed)));
    });
}

#[test]
fn the_host_does_not_take_a_containers_address_nor_anybodys_interface() {
    on_a_host(async || {
        let (host, container) = (Netlink::here().unwrap(), Namespace::new());
        attached(&container, &["10.32.0.1/16"]).await;
        let before = host_state();
        let used = expose(&host, &["10.32.0.1/16".parse().unwrap()], 1400).await.unwrap_err();
        assert!(matches!(used, AttachError::AddressInUse { .. }));
        assert_eq!(host_state(), before);
        sh("ip link add weave type veth peer name else");
        let foreign = expose(&host, &["10.32.0.2/16".parse().unwrap()], 1400).await.unwrap_err();
        assert!(matches!(foreign, AttachError::ForeignInterface { .. }));
    });
}
