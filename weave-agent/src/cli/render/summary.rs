//! `weave-agent status`, shaped like Weave Net's: keys to the right, values to the left.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::table::{ago, peer};
use crate::status::Summary;

/// Width of the keys, as in Weave Net.
const KEYS: usize = 15;

/// The whole page.
pub fn summary(status: &Summary) -> String {
    let blocks = [agent(status), mesh(status), datapath(status)];
    blocks.map(|block| block.into_iter().collect::<String>()).join("\n")
}

fn agent(status: &Summary) -> Vec<String> {
    vec![
        line("Version", &status.version),
        line("Name", peer(&status.name, Some(&status.nickname))),
        line("Ready", if status.ready { "yes" } else { "not yet" }),
        line("Process", format!("{} (up {})", status.pid, ago(status.uptime))),
    ]
}

fn mesh(status: &Summary) -> Vec<String> {
    vec![
        line("Ports", format!("{} tcp (mesh), {} udp (tunnel)", status.port, status.tunnel_port)),
        line("PeerDiscovery", if status.discovery { "enabled" } else { "disabled" }),
        line("Encryption", if status.encrypted { "enabled" } else { "disabled" }),
        line("Targets", status.targets),
        line("Connections", connections(&status.connections)),
        line("Peers", format!("{} ({} reachable)", status.peers, status.reachable)),
    ]
}

fn datapath(status: &Summary) -> Vec<String> {
    let mut lines = vec![line("Datapath", &status.datapath)];
    lines.extend(status.xdp.iter().map(|interface| line("XDP", interface)));
    lines.extend([
        line("MTU", status.mtu),
        line("Attached", status.ports),
        line("Flows", status.flows),
        line("MACs", status.fdb),
        line("Upcalls", status.counters.get("upcalls").copied().unwrap_or(0)),
    ]);
    let drops: Vec<String> = status.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    lines.push(line("Drops", if drops.is_empty() { "none".to_owned() } else { drops.join(", ") }));
    lines.extend(status.warnings.iter().map(|warning| line("Warning", warning)));
    lines
}

fn connections(states: &BTreeMap<String, usize>) -> String {
    let total: usize = states.values().sum();
    let each: Vec<String> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
    if each.is_empty() { "0".to_owned() } else { format!("{total} ({})", each.join(", ")) }
}

fn line(key: &str, value: impl Display) -> String {
    format!("{key:>KEYS$}: {value}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_looks_like_weave_nets() {
        let counts = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let status = Summary {
            version: "0.1.0".into(),
            pid: 4711,
            uptime: 3.21,
            ready: true,
            name: "02:11:22:33:44:55".into(),
            nickname: "h1".into(),
            short_id: 7,
            port: 6783,
            tunnel_port: 6784,
            discovery: true,
            encrypted: false,
            datapath: "ebpf".into(),
            xdp: vec!["eth0: strangers' packets end in the driver".into()],
            mtu: 1450,
            targets: 2,
            connections: BTreeMap::from([("established".into(), 2), ("retrying".into(), 1)]),
            peers: 3,
            reachable: 2,
            ports: 2,
            fdb: 5,
            flows: 12,
            counters: counts(&[("upcalls", 17)]),
            drops: counts(&[("stranger", 3), ("no-route", 1)]),
            warnings: vec!["another peer has our name".into()],
        };
        insta::assert_snapshot!(summary(&status), @r"
              Version: 0.1.0
                 Name: 02:11:22:33:44:55(h1)
                Ready: yes
              Process: 4711 (up 3.2s)

                Ports: 6783 tcp (mesh), 6784 udp (tunnel)
        PeerDiscovery: enabled
           Encryption: disabled
              Targets: 2
          Connections: 3 (2 established, 1 retrying)
                Peers: 3 (2 reachable)

             Datapath: ebpf
                  XDP: eth0: strangers' packets end in the driver
                  MTU: 1450
             Attached: 2
                Flows: 12
                 MACs: 5
              Upcalls: 17
                Drops: no-route 1, stranger 3
              Warning: another peer has our name
        ");
    }
}
