//! A host behind a NAT: the router masquerades for it.

use std::ops::RangeInclusive;

use anyhow::{Result, ensure};

use crate::{LabConfig, Underlay};

/// Makes the rules, in place of earlier ones; connections that these tracked are forgotten.
pub(crate) fn masquerade(config: &LabConfig, host: u8, ports: RangeInclusive<u16>) -> Result<()> {
    ensure!(config.underlay == Underlay::Routed, "a NAT is a router's: use a routed underlay");
    let wire = config.wire();
    wire.nft(&rules(config, host, &ports))?;
    wire.output(["conntrack", "-F"]).map(drop)
}

fn rules(config: &LabConfig, host: u8, ports: &RangeInclusive<u16>) -> String {
    let inside: Vec<_> = config.uplinks_of(host).into_iter().map(|uplink| format!("\"{}\"", uplink.port())).collect();
    let (inside, first, last) = (inside.join(", "), ports.start(), ports.end());
    format!(
        "table ip nat {{}}
        delete table ip nat
        table ip nat {{
            chain forward {{
                type filter hook forward priority 0; policy accept;
                oifname {{ {inside} }} ct state != {{ established, related }} drop
            }}
            chain postrouting {{
                type nat hook postrouting priority 100; policy accept;
                iifname {{ {inside} }} oifname != {{ {inside} }} meta l4proto {{ tcp, udp }} masquerade to :{first}-{last}
            }}
        }}\n"
    )
}
