//! NAT for the host's own addresses: one table of nftables that is ours alone, always written as a whole.
//!
//! As Weave Net does it: between an exposed subnet and anywhere else, either way, the host speaks in its own name; what stays
//! inside, and multicast, is left alone. `nft` is told in its own language, which builds of it without JSON understand, too.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::io::{self, ErrorKind};
use std::process::{Output, Stdio};
use std::time::Duration;

use ipnet::IpNet;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::forwarding;

/// Nobody else's table is called so.
pub const TABLE: &str = "inet weave-agent";
/// The kernel does it in milliseconds; modules may have to be loaded first.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where `nft` is when PATH was made for users.
const PROGRAMS: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

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
    Failed(#[from] io::Error),
    /// Packets are not routed.
    #[error("cannot let packets through this host: {path}: {error}; write 1 to it yourself, or leave NAT out with --no-masq")]
    Forwarding {
        /// Under /proc/sys.
        path: String,
        /// Why it cannot be written.
        error: io::Error,
    },
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
    run(&["-f", "-"], &script(&subnets)).await?;
    for (family, _) in [("ip", v4), ("ip6", v6)].into_iter().filter(|(_, used)| *used) {
        notes.extend(dropped_by_policy(family).await);
    }
    Ok(notes)
}

/// Remove the table. False: there was none.
pub async fn remove() -> Result<bool, NatError> {
    match run(&["delete", "table", "inet", "weave-agent"], "").await {
        Ok(_) => Ok(true),
        // Whoever has no `nft` has made no table.
        Err(NatError::NotInstalled) => Ok(false),
        // Nor has a kernel that knows of no tables.
        Err(NatError::Refused(why)) if why.contains("No such file or directory") || why.contains("not supported") => Ok(false),
        Err(error) => Err(error),
    }
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
    let chain = run(&["list", "chain", family, "filter", "FORWARD"], "").await.ok()?;
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

async fn run(args: &[&str], input: &str) -> Result<Output, NatError> {
    run_one_of(&PROGRAMS, args, input).await
}

async fn run_one_of(programs: &[&str], args: &[&str], input: &str) -> Result<Output, NatError> {
    for program in programs {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env("LC_ALL", "C").kill_on_drop(true);
        let mut child = match command.spawn() {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        let told = async {
            if let Some(mut stdin) = child.stdin.take() {
                // One that stops listening says why itself.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = timeout(PATIENCE, told).await.map_err(|_| io::Error::from(ErrorKind::TimedOut))??;
        if output.status.success() {
            return Ok(output);
        }
        return Err(NatError::Refused(complaint(&output)));
    }
    Err(NatError::NotInstalled)
}

/// The first line says what; the others point at it.
fn complaint(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    stderr.lines().map(str::trim).find(|line| !line.is_empty()).map_or_else(|| output.status.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_nft_is_told_with_what_to_install_and_what_to_do_without() {
        let error = run_one_of(&["/nowhere/nft", "no-such-nft"], &[], "").await.unwrap_err().to_string();
        insta::assert_snapshot!(error, @"`nft` is not installed: install the package nftables, or leave NAT out with --no-masq");
        let error = run_one_of(&["/nowhere/nft", "sh"], &["-c", "cat >&2; exit 1"], "Error: no such thing\n^^^").await.unwrap_err();
        assert!(matches!(&error, NatError::Refused(why) if why == "Error: no such thing"), "{error}");
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
