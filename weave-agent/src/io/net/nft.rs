//! `nft`, told in its own language, which builds of it without JSON understand, too.

use std::io::{self, ErrorKind};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// The kernel does it in milliseconds; modules may have to be loaded first.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where `nft` is when PATH was made for users.
const PROGRAMS: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no `nft`.
    #[error("`nft` is not installed: install the package nftables")]
    NotInstalled,
    /// It does not want to.
    #[error("nft refuses: {0}")]
    Refused(String),
    /// Neither nor.
    #[error("cannot run nft: {0}")]
    Failed(#[from] io::Error),
}

/// Delete a table of the family `inet`. False: there was none.
///
/// # Errors
/// When it is there still.
pub async fn delete_table(name: &str) -> Result<bool, NftError> {
    match run(&["delete", "table", "inet", name], "").await {
        Ok(_) => Ok(true),
        // Whoever has no `nft` has made no table.
        Err(NftError::NotInstalled) => Ok(false),
        // Nor has a kernel that knows of no tables.
        Err(NftError::Refused(why)) if why.contains("No such file or directory") || why.contains("not supported") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Run it with these arguments and this on its standard input.
///
/// # Errors
/// With what it says.
pub async fn run(args: &[&str], input: &str) -> Result<Output, NftError> {
    run_one_of(&PROGRAMS, args, input).await
}

async fn run_one_of(programs: &[&str], args: &[&str], input: &str) -> Result<Output, NftError> {
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
        return Err(NftError::Refused(complaint(&output)));
    }
    Err(NftError::NotInstalled)
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
    async fn a_missing_nft_and_what_it_complains_of_are_told() {
        let error = run_one_of(&["/nowhere/nft", "no-such-nft"], &[], "").await.unwrap_err();
        assert!(matches!(error, NftError::NotInstalled), "{error}");
        let error = run_one_of(&["/nowhere/nft", "sh"], &["-c", "cat >&2; exit 1"], "Error: no such thing\n^^^").await.unwrap_err();
        assert!(matches!(&error, NftError::Refused(why) if why == "Error: no such thing"), "{error}");
    }
}
