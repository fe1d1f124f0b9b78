//! The eBPF object: `weave-ebpf`'s binary, compiled for the kernel.

use std::env::consts::ARCH;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use vm_tests::process;

use super::library::Library;
use crate::workspace::Workspace;

const TARGET: &str = "bpfel-unknown-none";

/// Builds the programs and puts the object where the agent's build script looks for it.
pub(super) fn build(workspace: &Workspace, library: &Library, linker: &Path, log: bool) -> Result<((), String)> {
    compile(workspace, library, linker, log)?;
    let built = workspace.own("ebpf").join(TARGET).join("release/weave");
    let changed = place(&built, &workspace.bpf_object())?;
    let object = workspace.bpf_object();
    Ok(((), format!("{}{}", object.display(), if changed { "" } else { " (unchanged)" })))
}

/// In a target folder of its own: the flags would otherwise invalidate everything built for the host.
fn compile(workspace: &Workspace, library: &Library, linker: &Path, log: bool) -> Result<()> {
    let mut cargo = workspace.cargo("build");
    cargo.args(["--package", "weave-ebpf", "--bin", "weave", "--release"]);
    cargo.args(["--features", if log { "bpf,log" } else { "bpf" }]);
    cargo.args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"]).arg(workspace.own("ebpf"));
    // The stable compiler takes -Z flags with this.
    cargo.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", flags(linker));
    if let Library::Unpacked(path) = library {
        cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", path);
    }
    process::run(&mut cargo)
}

/// The flags that aya-build 0.2 uses, and our own.
fn flags(linker: &Path) -> OsString {
    let arch = format!("--cfg=bpf_target_arch=\"{ARCH}\"");
    let mut linker_flag = OsString::from("-Clinker=");
    linker_flag.push(linker);
    let flags = [
        &arch,
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        // 32-bit registers and jumps, which every kernel of ours verifies (Linux 5.1).
        "-Ctarget-cpu=v3",
        // Without it the linker has memory copied byte by byte and cleared in loops.
        "-Clink-arg=--disable-expand-memcpy-in-order",
    ];
    let flags = flags.map(OsStr::new);
    [flags.as_slice(), &[linker_flag.as_os_str()]].concat().join(OsStr::new("\x1f"))
}

/// Copies the object only if it differs, so that an unchanged one does not build the agent again.
fn place(built: &Path, object: &Path) -> Result<bool> {
    let new = fs::read(built).with_context(|| format!("cargo left no {}", built.display()))?;
    if fs::read(object).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    fs::write(object, new).with_context(|| format!("cannot write {}", object.display()))?;
    Ok(true)
}
