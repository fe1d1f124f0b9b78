//! NAT for the host's own addresses: one table of nftables that is ours alone, always written as a whole.
//!
//! As Weave Net does it: between an exposed subnet and anywhere else, either way, the host speaks in its own name; what stays
//! inside, and multicast, is left alone.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::io;

use ipnet::IpNet;

use super::forwarding;
use super::nft::{self, NftError};

/// Nobody else's table is called so.
pub const TABLE: &str = "inet weave-agent";

/// Why there is no NAT.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// There is no `nft`.
    #[error("`nft` is not installed: install the package nftables, or leave NAT out with --no-masq")]
    NotInstalled,
    /// It does not want to.
    #[error("nft refuses: {0}; NAT needs a kernel with nf_tables and its masquerade (`modprobe nft_masq`); or leave it out with --no-masq")]
    Refused(String),
    /// Neither nor.
    #[error("cannot run nft: {0}")]
    Failed(io::Error),
    /// Packets are not routed.
    #[error("cannot let packets through this host: {path}: {error}; write 1 to it yourself, or leave NAT out with --no-masq")]
    Forwarding {
        /// Under /proc/sys.
        path: String,
        /// Why it cannot be written.
        error: io::Error,
    },
}

impl From<NftError> for NatError {
    fn from(error: NftError) -> Self {
        match error {
            NftError::NotInstalled => Self::NotInstalled,
            NftError::Refused(why) => Self::Refused(why),
            NftError::Failed(error) => Self::Failed(error),
        }
    }
}

/// Masquerade what goes between these subnets and anywhere else, and nothing else; with none of them the table goes. Packets are
/// let through the host, which stays so. Repeating it changes nothing. Returns what the user should know.
///
/// # Errors
/// What was before is still so, but for forwarding.
pub async fn apply(addrs: &[IpNet]) -> Result<Vec<String>, NatError> {
    let subnets: BTreeSet<IpNet> = addrs.iter().map(IpNet::trunc).collect();
    if subnets.is_empty() {
        remove().await?;
        return Ok(Vec::new());
    }
    let (v4, v6) = (subnets.iter().any(|net| net.addr().is_ipv4()), subnets.iter().any(|net| net.addr().is_ipv6()));
    let mut notes = forwarding::enable(v4, v6)?;
    nft::run(&["-f", "-"], &script(&subnets)).await?;
    for (family, _) in [("ip", v4), ("ip6", v6)].into_iter().filter(|(_, used)| *used) {
        notes.extend(dropped_by_policy(family).await);
    }
    Ok(notes)
}

/// Remove the table. False: there was none.
pub async fn remove() -> Result<bool, NatError> {
    Ok(nft::delete_table("weave-agent").await?)
}

/// One transaction: there is the old table or the new one at any moment.
fn script(subnets: &BTreeSet<IpNet>) -> String {
    let mut rules = String::new();
    for net in subnets {
        let (family, multicast) = if net.addr().is_ipv4() { ("ip", "224.0.0.0/4") } else { ("ip6", "ff00::/8") };
        // Writing to a string does not fail.
        let _ = write!(
            rules,
            "    {family} saddr {net} {family} daddr {multicast} return\n    \
                 {family} daddr {net} {family} saddr != {net} masquerade\n    \
                 {family} saddr {net} {family} daddr != {net} masquerade\n"
        );
    }
    format!(
        "table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n  chain postrouting {{\n    \
         type nat hook postrouting priority srcnat; policy accept;\n{rules}  }}\n}}\n"
    )
}

/// Another table's verdict that ours cannot overrule: Docker sets it where it is the first to let packets through.
async fn dropped_by_policy(family: &str) -> Option<String> {
    let chain = nft::run(&["list", "chain", family, "filter", "FORWARD"], "").await.ok()?;
    if !String::from_utf8_lossy(&chain.stdout).contains("policy drop") {
        return None;
    }
    let tool = if family == "ip" { "iptables" } else { "ip6tables" };
    let note = format!(
        "the firewall of this host drops what it is not told to forward (policy drop in {family} filter FORWARD): let the network \
         through with `{tool} -I FORWARD -i weave -j ACCEPT; {tool} -I FORWARD -o weave -j ACCEPT`"
    );
    tracing::warn!("{note}");
    Some(note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_nft_is_told_with_what_to_install_and_what_to_do_without() {
        let error = NatError::from(NftError::NotInstalled).to_string();
        insta::assert_snapshot!(error, @"`nft` is not installed: install the package nftables, or leave NAT out with --no-masq");
    }

    #[test]
    fn the_table_is_replaced_as_a_whole_and_names_subnets_not_addresses() {
        let subnets = ["10.32.0.0/16", "fd00:10:32::/64"].map(|net| net.parse().unwrap()).into();
        insta::assert_snapshot!(script(&subnets), @"
        table inet weave-agent
        delete table inet weave-agent
        table inet weave-agent {
          chain postrouting {
            type nat hook postrouting priority srcnat; policy accept;
            ip saddr 10.32.0.0/16 ip daddr 224.0.0.0/4 return
            ip daddr 10.32.0.0/16 ip saddr != 10.32.0.0/16 masquerade
            ip saddr 10.32.0.0/16 ip daddr != 10.32.0.0/16 masquerade
            ip6 saddr fd00:10:32::/64 ip6 daddr ff00::/8 return
            ip6 daddr fd00:10:32::/64 ip6 saddr != fd00:10:32::/64 masquerade
            ip6 saddr fd00:10:32::/64 ip6 daddr != fd00:10:32::/64 masquerade
          }
        }
        ");
    }
}
