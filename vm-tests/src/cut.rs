//! Cutting hosts off from each other, on the wire.
//!
//! Not in the hosts: frames that a TC program redirects pass no netfilter hook there. The switch's or router's ports
//! take them as any others, and a netdev ingress chain sees all of them, bridged or routed.

use anyhow::{Result, ensure};

use crate::{LabConfig, Underlay};

/// Before anything else that may look at a frame.
const PRIORITY: i32 = -500;

/// Makes the rules; as yet they cut nothing.
pub(crate) fn prepare(config: &LabConfig) -> Result<()> {
    if config.underlay == Underlay::Direct {
        return Ok(());
    }
    config.wire().nft(&rules(config))
}

fn rules(config: &LabConfig) -> String {
    let ports: Vec<_> = config.uplinks().into_iter().map(|uplink| format!("\"{}\"", uplink.port())).collect();
    let ports = ports.join(", ");
    format!(
        "table netdev lab {{
            set cuts {{ type ipv4_addr . ipv4_addr; }}
            set blocks {{ type ipv4_addr . ipv4_addr . inet_service; }}
            chain wire {{
                type filter hook ingress devices = {{ {ports} }} priority {PRIORITY}; policy accept;
                ip saddr . ip daddr @cuts drop
                arp saddr ip . arp daddr ip @cuts drop
                ip saddr . ip daddr . udp dport @blocks drop
            }}
        }}\n"
    )
}

/// Drops everything between two hosts, both ways.
pub(crate) fn cut(config: &LabConfig, a: u8, b: u8) -> Result<()> {
    ensure!(config.underlay != Underlay::Direct, "nothing stands between two hosts on one cable: use a flat or routed underlay to cut");
    config.wire().nft(&format!("add element netdev lab cuts {{ {} }}\n", pairs(config, a, b)))
}

/// Lets everything between two hosts through again.
pub(crate) fn mend(config: &LabConfig, a: u8, b: u8) -> Result<()> {
    config.wire().nft(&format!("delete element netdev lab cuts {{ {} }}\n", pairs(config, a, b)))
}

/// Drops UDP to this port between two hosts, both ways.
pub(crate) fn block(config: &LabConfig, a: u8, b: u8, port: u16) -> Result<()> {
    ensure!(config.underlay != Underlay::Direct, "nothing stands between two hosts on one cable: use a flat or routed underlay to block");
    config.wire().nft(&format!("add element netdev lab blocks {{ {} }}\n", to_port(&pairs(config, a, b), port)))
}

/// Lets it through again.
pub(crate) fn unblock(config: &LabConfig, a: u8, b: u8, port: u16) -> Result<()> {
    config.wire().nft(&format!("delete element netdev lab blocks {{ {} }}\n", to_port(&pairs(config, a, b), port)))
}

fn to_port(pairs: &str, port: u16) -> String {
    pairs.split(", ").map(|pair| format!("{pair} . {port}")).collect::<Vec<_>>().join(", ")
}

fn pairs(config: &LabConfig, a: u8, b: u8) -> String {
    let mut pairs = Vec::new();
    for near in config.uplinks_of(a) {
        for far in config.uplinks_of(b) {
            let (near, far) = (near.address(), far.address());
            pairs.extend([format!("{near} . {far}"), format!("{far} . {near}")]);
        }
    }
    pairs.join(", ")
}
