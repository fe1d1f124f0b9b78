//! The rules behind the policies: VXLAN that a neighbour may have under ESP only is dropped in clear, whatever became of them.
//!
//! One table of nftables that is ours alone, always written as a whole.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::esp::Protection;
use crate::io::net::nft::{self, NftError};

/// Nobody else's table is called so.
const NAME: &str = "weave-agent-esp";

/// What `nft` calls it.
pub const TABLE: &str = "inet weave-agent-esp";

/// Tries whether the kernel and `nft` know such rules. Nothing is left.
///
/// # Errors
/// With what they say.
pub(super) async fn probe() -> Result<(), NftError> {
    let any = Protection { remote: [192, 0, 2, 1].into(), port: 1 };
    nft::run(&["-c", "-f", "-"], &script(&[any].into())).await.map(drop)
}

/// Makes the table what it should be, and returns how it looks then.
///
/// # Errors
/// What was before is still so.
pub(super) async fn write(protected: &BTreeSet<Protection>) -> Result<String, NftError> {
    if protected.is_empty() {
        remove().await?;
        return Ok(String::new());
    }
    nft::run(&["-f", "-"], &script(protected)).await?;
    look().await
}

/// The table as it is; empty if there is none.
///
/// # Errors
/// When that cannot be told.
pub(super) async fn look() -> Result<String, NftError> {
    match nft::run(&["-s", "list", "table", "inet", NAME], "").await {
        Ok(output) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(NftError::Refused(why)) if why.contains("No such file or directory") => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// Removes the table. False: there was none.
///
/// # Errors
/// When it is there still.
pub(super) async fn remove() -> Result<bool, NftError> {
    nft::delete_table(NAME).await
}

/// One transaction: there is the old table or the new one at any moment.
fn script(protected: &BTreeSet<Protection>) -> String {
    let (mut out, mut into) = (String::new(), String::new());
    for Protection { remote, port } in protected {
        // Writing to a string does not fail.
        let _ = writeln!(out, "    ip daddr {remote} udp dport {port} rt ipsec missing counter drop");
        let _ = writeln!(into, "    ip saddr {remote} udp dport {port} meta secpath missing counter drop");
    }
    format!(
        "table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n  \
           chain out {{\n    type filter hook output priority 0; policy accept;\n{out}  }}\n  \
           chain in {{\n    type filter hook input priority 0; policy accept;\n{into}  }}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_clear_is_dropped_both_ways_and_nothing_else() {
        let protection = Protection { remote: [10, 0, 0, 2].into(), port: 6784 };
        insta::assert_snapshot!(script(&[protection].into()), @"
        table inet weave-agent-esp
        delete table inet weave-agent-esp
        table inet weave-agent-esp {
          chain out {
            type filter hook output priority 0; policy accept;
            ip daddr 10.0.0.2 udp dport 6784 rt ipsec missing counter drop
          }
          chain in {
            type filter hook input priority 0; policy accept;
            ip saddr 10.0.0.2 udp dport 6784 meta secpath missing counter drop
          }
        }
        ");
    }
}
