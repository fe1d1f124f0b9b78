//! bpf-linker, which turns LLVM bitcode into an eBPF object.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use vm_tests::process;

use crate::workspace::Workspace;

/// The last release whose default LLVM is the one inside rustc 1.95: it needs no LLVM on the system.
const VERSION: &str = "0.10.3";

/// Finds the pinned bpf-linker under `target/`, or installs it there.
pub(super) fn find(workspace: &Workspace) -> Result<(PathBuf, String)> {
    let root = workspace.own("tools");
    let linker = root.join("bin/bpf-linker");
    if !is_pinned(&linker) {
        println!("    installing bpf-linker {VERSION} under {} (a minute or two)", root.display());
        install(workspace, &root).context("cannot install bpf-linker: it comes from crates.io")?;
    }
    Ok((linker, format!("bpf-linker {VERSION}")))
}

fn is_pinned(linker: &Path) -> bool {
    let version = process::output(Command::new(linker).arg("--version"));
    version.is_ok_and(|text| text.split_whitespace().nth(1) == Some(VERSION))
}

fn install(workspace: &Workspace, root: &Path) -> Result<()> {
    let package = format!("bpf-linker@{VERSION}");
    process::run(workspace.cargo("install").args([&package, "--locked", "--quiet", "--force", "--root"]).arg(root))
}
