//! The tables.

use super::table::{ago, or_dash, peer, table};
use crate::addr::Mac;
use crate::io::api::body::Changed;
use crate::status::{Attachment, Connection, FdbEntry, Flow, FlowAction, FlowKey, Peer, PeerConnection, Target, Tunnel};

/// `status connections`
pub fn connections(all: &[Connection]) -> String {
    if all.is_empty() {
        return "no connections: nobody has connected to this host, and it was not told of another; `weave-agent connect HOST` does that\n"
            .to_owned();
    }
    let rows: Vec<[String; 8]> = all.iter().map(connection).collect();
    table(["", "ADDRESS", "STATE", "PEER", "TUNNEL", "MTU", "RTT", ""], &rows)
}

fn connection(connection: &Connection) -> [String; 8] {
    let tunnel = connection.tunnel.as_ref();
    [
        arrow(connection.outbound).to_owned(),
        connection.address.to_string(),
        connection.state.clone(),
        or_dash(connection.peer.as_ref().map(|name| peer(name, connection.nickname.as_deref()))),
        or_dash(tunnel.map(way)),
        or_dash(tunnel.and_then(|tunnel| tunnel.mtu)),
        or_dash(tunnel.and_then(|tunnel| tunnel.rtt).map(|ms| format!("{ms:.1}ms"))),
        note(connection),
    ]
}

fn note(connection: &Connection) -> String {
    let retry = connection.retry.map(|seconds| format!("retry in {}", ago(seconds.max(0.0))));
    connection.encryption.clone().into_iter().chain(connection.info.clone()).chain(retry).collect::<Vec<_>>().join(", ")
}

fn way(tunnel: &Tunnel) -> String {
    let via = tunnel.via.as_ref().map(|via| format!(" via {via}")).unwrap_or_default();
    let since = tunnel.since.map(|seconds| format!(" for {}", ago(seconds))).unwrap_or_default();
    let reason = tunnel.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    format!("{}{via}{since}{reason}", tunnel.kind)
}

fn arrow(outbound: bool) -> &'static str {
    if outbound { "->" } else { "<-" }
}

/// `status peers`
pub fn peers(all: &[Peer]) -> String {
    all.iter().map(one_peer).collect()
}

fn one_peer(shown: &Peer) -> String {
    let way = match &shown.next_hop {
        _ if shown.me => " - this agent".to_owned(),
        None => " - unreachable".to_owned(),
        Some(next) if *next == shown.name => String::new(),
        Some(next) => format!(" - via {}", peer(next, shown.next_hop_nickname.as_deref())),
    };
    let connections: String = shown.connections.iter().map(peer_connection).collect();
    format!("{}{way}\n{connections}", peer(&shown.name, Some(&shown.nickname)))
}

fn peer_connection(connection: &PeerConnection) -> String {
    let state = if connection.established { "established" } else { "pending" };
    let other = peer(&connection.name, connection.nickname.as_deref());
    format!("   {} {:<21} {other:<37} {state}\n", arrow(connection.outbound), or_dash(connection.address))
}

/// `status targets`
pub fn targets(all: &[Target]) -> String {
    let means = |target: &Target| match target.addresses.as_slice() {
        [] => "(not resolved)".to_owned(),
        addresses => addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    };
    if all.is_empty() {
        return "no targets: `weave-agent connect HOST` adds one; other hosts may connect to this one all the same\n".to_owned();
    }
    let rows: Vec<[String; 2]> = all.iter().map(|target| [target.name.clone(), means(target)]).collect();
    table(["TARGET", "ADDRESSES"], &rows)
}

/// `status flows`
pub fn flows(all: &[Flow]) -> String {
    let rows: Vec<[String; 7]> = all.iter().map(flow).collect();
    table(["FROM", "SOURCE", "DESTINATION", "ACTION", "PACKETS", "BYTES", "IDLE"], &rows)
}

fn flow(flow: &Flow) -> [String; 7] {
    [
        ingress(&flow.key),
        mac(flow.key.src),
        mac(flow.key.dst),
        action(&flow.action),
        flow.packets.to_string(),
        flow.bytes.to_string(),
        flow.idle.map_or_else(|| "never used".to_owned(), ago),
    ]
}

fn ingress(key: &FlowKey) -> String {
    match (key.port, key.outer_src, key.vni) {
        (Some(port), ..) => interface(port, key.interface.as_deref()),
        (None, Some(source), Some(vni)) => format!("tunnel {source} vni {vni:#08x}"),
        _ => "tunnel".to_owned(),
    }
}

fn interface(port: u32, name: Option<&str>) -> String {
    name.map_or_else(|| format!("port {port}"), str::to_owned)
}

fn mac(mac: Mac) -> String {
    if mac == Mac::ZERO { "any (transit)".to_owned() } else { mac.to_string() }
}

fn action(action: &FlowAction) -> String {
    match action {
        FlowAction::Drop { reason } => format!("drop {reason}"),
        FlowAction::Port { port, interface: name } => format!("to {}", interface(*port, name.as_deref())),
        FlowAction::Peer { short_id, peer } => format!("to peer {}", peer.clone().unwrap_or_else(|| short_id.to_string())),
        FlowAction::Flood { origin, peer } => format!("flood of {}", peer.clone().unwrap_or_else(|| origin.to_string())),
    }
}

/// `status fdb`
pub fn fdb(all: &[FdbEntry]) -> String {
    let place = |entry: &FdbEntry| match (&entry.peer, entry.port) {
        (Some(name), _) => peer(name, entry.nickname.as_deref()),
        (None, Some(port)) => interface(port, entry.interface.as_deref()),
        (None, None) => "-".to_owned(),
    };
    let note = |entry: &FdbEntry| if entry.contested { "contested" } else { "" }.to_owned();
    let rows: Vec<[String; 4]> = all.iter().map(|entry| [entry.mac.to_string(), place(entry), ago(entry.age), note(entry)]).collect();
    table(["MAC", "AT", "SEEN", ""], &rows)
}

/// `ps`
pub fn attachments(all: &[Attachment]) -> String {
    let row = |shown: &Attachment| [shown.target.clone(), shown.interface.clone(), shown.mac.to_string(), list(&shown.addresses)];
    table(["TARGET", "PORT", "MAC", "ADDRESSES"], &all.iter().map(row).collect::<Vec<_>>())
}

/// `attach`, `detach`, `expose`, `hide`: the addresses that came or went, one per line, as Weave Net prints them.
pub fn changed(changed: &Changed) -> String {
    // Asked for a free address again, a container has it already.
    let shown = if changed.changed.is_empty() { &changed.addresses } else { &changed.changed };
    shown.iter().map(|address| format!("{}\n", address.addr())).collect()
}

fn list(all: &[impl ToString]) -> String {
    if all.is_empty() {
        return "-".to_owned();
    }
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(state: &str) -> Connection {
        let address = "10.0.0.2:6783".parse().unwrap();
        let (peer, nickname, encryption, tunnel, info, retry) = Default::default();
        Connection { outbound: true, address, state: state.into(), peer, nickname, encryption, tunnel, info, retry }
    }

    fn tunnel(kind: &str) -> Tunnel {
        let (via, mtu, rtt, since, reason) = Default::default();
        Tunnel { kind: kind.into(), via, mtu, rtt, since, reason }
    }

    #[test]
    fn connections_say_who_how_and_why_not() {
        let direct = Tunnel { mtu: Some(1450), rtt: Some(0.25), ..tunnel("vxlan") };
        let relayed = Tunnel { via: Some("02:00:00:00:00:03(h3)".into()), ..tunnel("relay") };
        let down = Tunnel { since: Some(61.0), reason: Some("no answer".into()), ..tunnel("down") };
        let known = |way| Connection {
            peer: Some("02:00:00:00:00:02".into()),
            nickname: Some("h2".into()),
            tunnel: Some(way),
            outbound: false,
            ..wanted("established")
        };
        let failed = |retry| Connection { info: Some("connection refused".into()), retry, ..wanted("failed") };
        let sealed = Connection { encryption: Some("encrypted".into()), ..known(direct.clone()) };
        let all = [known(direct), sealed, known(relayed), known(down), wanted("connecting"), failed(Some(2.5)), failed(None)];
        insta::assert_snapshot!(connections(&all), @r"
            ADDRESS        STATE        PEER                   TUNNEL                            MTU  RTT
        <-  10.0.0.2:6783  established  02:00:00:00:00:02(h2)  vxlan                            1450  0.2ms
        <-  10.0.0.2:6783  established  02:00:00:00:00:02(h2)  vxlan                            1450  0.2ms  encrypted
        <-  10.0.0.2:6783  established  02:00:00:00:00:02(h2)  relay via 02:00:00:00:00:03(h3)     -  -
        <-  10.0.0.2:6783  established  02:00:00:00:00:02(h2)  down for 61s: no answer             -  -
        ->  10.0.0.2:6783  connecting   -                      -                                   -  -
        ->  10.0.0.2:6783  failed       -                      -                                   -  -      connection refused, retry in 2.5s
        ->  10.0.0.2:6783  failed       -                      -                                   -  -      connection refused
        ");
    }

    #[test]
    fn a_lonely_host_is_told_how_to_find_others() {
        assert!(connections(&[]).contains("no connections: ") && connections(&[]).contains("`weave-agent connect HOST`"));
        assert!(targets(&[]).contains("no targets: ") && targets(&[]).contains("`weave-agent connect HOST`"));
    }

    #[test]
    fn flows_say_what_they_match_and_do() {
        let port = FlowKey {
            port: Some(12),
            interface: Some("vethwepl42".into()),
            vni: None,
            outer_src: None,
            src: Mac([2, 0, 0, 0, 0, 1]),
            dst: Mac([2, 0, 0, 0, 0, 2]),
        };
        let transit = FlowKey {
            port: None,
            interface: None,
            vni: Some(0x7001),
            outer_src: Some([10, 0, 0, 9].into()),
            src: Mac::ZERO,
            dst: Mac::ZERO,
        };
        let flow = |key: &FlowKey, action, idle| Flow { key: key.clone(), action, packets: 12, bytes: 3456, idle };
        let all = [
            flow(&port, FlowAction::Peer { short_id: 7, peer: Some("02:00:00:00:00:02(h2)".into()) }, Some(0.25)),
            flow(&port, FlowAction::Port { port: 13, interface: None }, Some(90.0)),
            flow(&port, FlowAction::Flood { origin: 1, peer: None }, None),
            flow(&transit, FlowAction::Drop { reason: "no-route".into() }, Some(1.0)),
        ];
        insta::assert_snapshot!(flows(&all), @r"
        FROM                          SOURCE             DESTINATION        ACTION                         PACKETS  BYTES  IDLE
        vethwepl42                    02:00:00:00:00:01  02:00:00:00:00:02  to peer 02:00:00:00:00:02(h2)       12   3456  0.2s
        vethwepl42                    02:00:00:00:00:01  02:00:00:00:00:02  to port 13                          12   3456  90s
        vethwepl42                    02:00:00:00:00:01  02:00:00:00:00:02  flood of 1                          12   3456  never used
        tunnel 10.0.0.9 vni 0x007001  any (transit)      any (transit)      drop no-route                       12   3456  1.0s
        ");
    }

    #[test]
    fn peers_are_listed_with_their_connections() {
        let connection = PeerConnection {
            name: "02:00:00:00:00:02".into(),
            nickname: Some("h2".into()),
            address: "10.0.0.2:6783".parse().ok(),
            outbound: true,
            established: true,
        };
        let peer = |name: &str, me, next_hop: Option<&str>, connections: &[PeerConnection]| Peer {
            name: name.into(),
            nickname: "x".into(),
            short_id: Some(1),
            me,
            next_hop: next_hop.map(str::to_owned),
            next_hop_nickname: next_hop.map(|_| "h2".to_owned()),
            connections: connections.to_vec(),
        };
        let pending = PeerConnection { established: false, outbound: false, address: None, ..connection.clone() };
        let all = [
            peer("a", true, None, &[connection, pending]),
            peer("b", false, Some("b"), &[]),
            peer("c", false, Some("b"), &[]),
            peer("d", false, None, &[]),
        ];
        insta::assert_snapshot!(peers(&all), @r"
        a(x) - this agent
           -> 10.0.0.2:6783         02:00:00:00:00:02(h2)                 established
           <- -                     02:00:00:00:00:02(h2)                 pending
        b(x)
        c(x) - via b(h2)
        d(x) - unreachable
        ");
    }

    #[test]
    fn the_other_tables_have_a_place_for_everything() {
        let unresolved = Target { name: "h3.example".into(), addresses: vec![] };
        let resolved = Target { name: "h2".into(), addresses: vec!["10.0.0.2:6783".parse().unwrap()] };
        insta::assert_snapshot!(targets(&[unresolved, resolved]), @r"
        TARGET      ADDRESSES
        h3.example  (not resolved)
        h2          10.0.0.2:6783
        ");
        let (port, interface, peer, nickname) = Default::default();
        let entry = FdbEntry { mac: Mac([2; 6]), port, interface, peer, nickname, age: 3.0, contested: false };
        let local = FdbEntry { port: Some(3), interface: Some("vethwepl42".into()), contested: true, ..entry.clone() };
        let remote = FdbEntry { peer: Some("02:00:00:00:00:02".into()), nickname: Some("h2".into()), ..entry };
        insta::assert_snapshot!(fdb(&[local, remote]), @r"
        MAC                AT                     SEEN
        02:02:02:02:02:02  vethwepl42             3.0s  contested
        02:02:02:02:02:02  02:00:00:00:00:02(h2)  3.0s
        ");
        let addresses = vec!["10.32.1.1/16".parse().unwrap(), "fd00::1/64".parse().unwrap()];
        let shown = Attachment { target: "web".into(), port: 3, interface: "vethwepl42".into(), mac: Mac([2; 6]), addresses, mtu: 1450 };
        insta::assert_snapshot!(attachments(&[shown]), @r"
        TARGET  PORT        MAC                ADDRESSES
        web     vethwepl42  02:02:02:02:02:02  10.32.1.1/16 fd00::1/64
        ");
    }
}
