//! What the openvswitch module has, for people and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use super::table::{or_dash, table};
use crate::io::datapath::odp::wire::{Act, Datapath, Fields, Flow, Tunnel, Vport};

/// `odp datapath list`
pub fn datapaths(all: &[Datapath]) -> String {
    let row = |datapath: &Datapath| {
        let stats = datapath.stats;
        [datapath.name.clone(), stats.flows.to_string(), stats.hit.to_string(), stats.missed.to_string(), stats.lost.to_string()]
    };
    table(["NAME", "FLOWS", "HIT", "MISSED", "LOST"], &all.iter().map(row).collect::<Vec<_>>())
}

/// `odp vport list`
pub fn vports(datapaths: &[Datapath], all: &[Vport]) -> String {
    let name = |ifindex| datapaths.iter().find(|datapath| datapath.ifindex == ifindex).map(|datapath| datapath.name.clone());
    let row = |port: &Vport| {
        let [received, _, sent, _] = port.traffic;
        let datapath = or_dash(name(port.datapath));
        let kind = port.kind.name().to_owned();
        [datapath, port.number.to_string(), kind, or_dash(port.udp_port), received.to_string(), sent.to_string(), port.name.clone()]
    };
    table(["DATAPATH", "PORT", "TYPE", "UDP", "RECEIVED", "SENT", "NAME"], &all.iter().map(row).collect::<Vec<_>>())
}

/// `odp flow list`
pub fn flows(all: &[Flow]) -> String {
    let line = |flow: &Flow| {
        let actions = if flow.actions.is_empty() { "drop".to_owned() } else { acts(&flow.actions) };
        format!("{} packets:{} bytes:{} actions:{actions}\n", pattern(flow), flow.packets, flow.bytes)
    };
    all.iter().map(line).collect()
}

/// The fields of its key that count.
fn pattern(flow: &Flow) -> String {
    let mut text = format!("in_port({})", or_dash(flow.key.in_port));
    let all = Fields::default();
    let mask = flow.mask.as_ref().unwrap_or(&all);
    // Writing to a string does not fail.
    if let Some(tunnel) = &flow.key.tunnel {
        let exact = |bits: Option<u8>| flow.mask.is_none() || bits == Some(u8::MAX);
        let ttl = tunnel.ttl.filter(|_| exact(mask.tunnel.as_ref().and_then(|tunnel| tunnel.ttl)));
        let _ = write!(text, ",tunnel({})", tunnel_text(&Tunnel { ttl, ..tunnel.clone() }));
    }
    if let Some([src, dst]) = flow.key.ethernet {
        let [src_bits, dst_bits] = mask.ethernet.unwrap_or_default().map(|bits| bits.0 != [0; 6] || flow.mask.is_none());
        let fields = [("src", src, src_bits), ("dst", dst, dst_bits)];
        let said: Vec<_> = fields.iter().filter(|(.., counts)| *counts).map(|(name, mac, _)| format!("{name}={mac}")).collect();
        let _ = write!(text, ",eth({})", said.join(","));
    }
    if let Some(vlan) = flow.key.vlan.as_ref().filter(|vlan| vlan.tci != 0) {
        let _ = write!(text, ",vlan({:#06x})", flow.key.ethertype.unwrap_or(vlan.tci));
    }
    text
}

fn acts(actions: &[Act]) -> String {
    actions.iter().map(act).collect::<Vec<_>>().join(",")
}

fn act(action: &Act) -> String {
    match action {
        Act::Output(port) => format!("output({port})"),
        Act::SetTunnel(tunnel) => format!("tunnel({})", tunnel_text(tunnel)),
        Act::PushVlan { kind, tci } => format!("push-vlan({kind:#06x},{tci:#06x})"),
        Act::Truncate(len) => format!("truncate({len})"),
        Act::Userspace { pid, .. } => format!("userspace({pid})"),
        Act::CheckLength { at_most, fits, larger } => format!("length(<={at_most}:{};else:{})", acts(fits), acts(larger)),
        Act::Other(kind, value) => format!("action-{kind}({})", hex(value)),
    }
}

fn tunnel_text(tunnel: &Tunnel) -> String {
    let mut words = Vec::new();
    words.extend(tunnel.id.map(|id| format!("id={id:#x}")));
    words.extend(tunnel.src.map(|src| format!("src={src}")));
    words.extend(tunnel.dst.map(|dst| format!("dst={dst}")));
    words.extend(tunnel.ttl.map(|ttl| format!("ttl={ttl}")));
    words.extend(tunnel.port.map(|port| format!("port={port}")));
    words.extend(tunnel.dont_fragment.then(|| "df".to_owned()));
    words.join(",")
}

/// A flow as JSON.
pub fn flow_value(flow: &Flow) -> Value {
    json!({
        "ufid": flow.ufid.as_deref().map(hex),
        "key": fields(&flow.key),
        "mask": flow.mask.as_ref().map(fields),
        "actions": flow.actions.iter().map(act_value).collect::<Vec<_>>(),
        "packets": flow.packets,
        "bytes": flow.bytes,
        "used_ms": flow.used,
    })
}

fn fields(fields: &Fields) -> Value {
    let [src, dst] = fields.ethernet.map_or([None; 2], |macs| macs.map(Some));
    json!({
        "in_port": fields.in_port,
        "tunnel": fields.tunnel.as_ref().map(tunnel),
        "src": src.map(|mac| mac.to_string()),
        "dst": dst.map(|mac| mac.to_string()),
        "ethertype": fields.ethertype,
        "vlan": fields.vlan.as_ref().map(|vlan| vlan.tci),
        "others": fields.others.iter().map(|(kind, value)| json!({ "attribute": kind, "value": hex(value) })).collect::<Vec<_>>(),
    })
}

fn tunnel(tunnel: &Tunnel) -> Value {
    json!({
        "id": tunnel.id, "src": tunnel.src, "dst": tunnel.dst, "tos": tunnel.tos, "ttl": tunnel.ttl,
        "df": tunnel.dont_fragment, "checksum": tunnel.checksum, "port": tunnel.port,
    })
}

fn act_value(action: &Act) -> Value {
    let list = |actions: &[Act]| actions.iter().map(act_value).collect::<Vec<_>>();
    match action {
        Act::Output(port) => json!({ "output": port }),
        Act::SetTunnel(set) => json!({ "tunnel": tunnel(set) }),
        Act::PushVlan { kind, tci } => json!({ "push_vlan": { "ethertype": kind, "tci": tci } }),
        Act::Truncate(len) => json!({ "truncate": len }),
        Act::Userspace { pid, cookie } => json!({ "userspace": { "pid": pid, "cookie": hex(cookie) } }),
        Act::CheckLength { at_most, fits, larger } => {
            json!({ "length": { "at_most": at_most, "fits": list(fits), "larger": list(larger) } })
        }
        Act::Other(kind, value) => json!({ "other": { "attribute": kind, "value": hex(value) } }),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::addr::Mac;

    fn flow() -> Flow {
        let (src, dst) = (Some(Ipv4Addr::new(10, 0, 0, 2)), Some(Ipv4Addr::new(10, 0, 0, 1)));
        let tunnel = Tunnel { id: Some(0x1002), src, dst, ttl: Some(64), ..Tunnel::default() };
        let mask = Tunnel { ttl: Some(0), ..tunnel.clone() };
        let set = Tunnel { dont_fragment: true, port: Some(6784), ..tunnel.clone() };
        let macs = Some([Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])]);
        Flow {
            key: Fields { in_port: Some(1), tunnel: Some(tunnel), ethernet: macs, ..Fields::default() },
            mask: Some(Fields { in_port: Some(u32::MAX), tunnel: Some(mask), ethernet: macs, ..Fields::default() }),
            actions: vec![Act::CheckLength { at_most: 1_464, fits: vec![Act::SetTunnel(set), Act::Output(1)], larger: Vec::new() }],
            packets: 7,
            bytes: 700,
            ..Flow::default()
        }
    }

    #[test]
    fn a_flow_is_a_line() {
        let strange = Flow { actions: vec![Act::Other(12, vec![1, 0xfe]), Act::Userspace { pid: 5, cookie: vec![1] }], ..Flow::default() };
        insta::assert_snapshot!(flows(&[flow(), strange, Flow::default()]), @r"
        in_port(1),tunnel(id=0x1002,src=10.0.0.2,dst=10.0.0.1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02) packets:7 bytes:700 actions:length(<=1464:tunnel(id=0x1002,src=10.0.0.2,dst=10.0.0.1,ttl=64,port=6784,df),output(1);else:)
        in_port(-) packets:0 bytes:0 actions:action-12(01fe),userspace(5)
        in_port(-) packets:0 bytes:0 actions:drop
        ");
    }

    #[test]
    fn a_flow_is_json() {
        let value = flow_value(&flow());
        assert_eq!(
            (&value["packets"], &value["key"]["tunnel"]["id"], &value["actions"][0]["length"]["at_most"]),
            (&json!(7), &json!(0x1002), &json!(1_464))
        );
    }
}
