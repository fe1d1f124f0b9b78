//! Programs that tests use, installed with apt where they are missing.

use std::collections::BTreeSet;
use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use vm_tests::process::{self, debian_package};

/// Installs what is missing of these programs; touches nothing if nothing is.
pub(crate) fn install_missing(programs: &[&str]) -> Result<((), String)> {
    let missing: BTreeSet<_> = programs.iter().filter(|p| !is_installed(p)).filter_map(|p| debian_package(p)).collect();
    if missing.is_empty() {
        return Ok(((), format!("all there: {}", programs.join(", "))));
    }
    let packages: Vec<_> = missing.into_iter().collect();
    let list = packages.join(" ");
    println!("    installing {list}");
    // A fresh container has no package lists; a machine that has them should not wait for new ones.
    if process::output(&mut apt(&["install"], &packages)).is_err() {
        process::output(&mut apt(&["update"], &[])).context("cannot fetch package lists")?;
        process::output(&mut apt(&["install"], &packages)).with_context(|| format!("install by hand: {list}"))?;
    }
    Ok(((), format!("installed {list}")))
}

fn apt(verb: &[&str], packages: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["--yes", "--quiet", "--no-install-recommends"]).args(verb).args(packages);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).any(|dir| dir.join(program).is_file());
    on_path || ["/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join(program).is_file())
}
