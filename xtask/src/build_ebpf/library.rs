//! The sources of Rust's `core`, which is compiled for the eBPF target: no toolchain ships it built.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use vm_tests::process;

use crate::debian::{self, Apt};
use crate::workspace::Workspace;

/// Where a release of Rust that is newer than Debian's own shows up first.
const SUITES: [&str; 2] = ["trixie-backports", "sid"];

/// Where `core`'s sources were found.
#[derive(Debug)]
pub(super) enum Library {
    /// In the sysroot, where cargo looks for them.
    Sysroot,
    /// Somewhere else: cargo is told.
    Unpacked(PathBuf),
}

/// Finds library sources of the compiler's own version, or fetches them.
pub(super) fn find(workspace: &Workspace) -> Result<(Library, String)> {
    let in_sysroot = sysroot()?.join("lib/rustlib/src/rust/library");
    let version = rustc_version()?;
    let unpacked = workspace.own("rust-src").join(format!("usr/src/rustc-{version}/library"));
    if is_library(&in_sysroot) {
        return Ok((Library::Sysroot, in_sysroot.display().to_string()));
    }
    if is_library(&unpacked) {
        return Ok(found_unpacked(unpacked));
    }
    if add_component(&in_sysroot) {
        return Ok((Library::Sysroot, format!("added rust-src with rustup: {}", in_sysroot.display())));
    }
    println!("    rustup cannot add rust-src; looking in Debian's archive");
    fetch(&workspace.own("rust-src"), &version).with_context(|| nothing_found(&version))?;
    if !is_library(&unpacked) {
        bail!("Debian's rust-src does not hold {}; {}", unpacked.display(), nothing_found(&version));
    }
    Ok(found_unpacked(unpacked))
}

/// Fetches Debian's package `rust-src` of exactly this compiler version and unpacks it under `dir`.
fn fetch(dir: &Path, version: &str) -> Result<()> {
    for suite in SUITES {
        let apt = Apt::new(dir.join("apt").join(suite), suite)?;
        println!("    asking {} for rust-src {version}", apt.told());
        if let Some(package) = apt.newest("rust-src", &format!("{version}+"))? {
            return debian::unpack(&apt.download("rust-src", &package)?, dir);
        }
    }
    bail!("neither of Debian's {} has rust-src {version}", SUITES.join(" and "))
}

fn found_unpacked(library: PathBuf) -> (Library, String) {
    let outcome = library.display().to_string();
    (Library::Unpacked(library), outcome)
}

fn nothing_found(version: &str) -> String {
    format!("no library sources for rustc {version}: run `rustup component add rust-src`")
}

/// `Cargo.lock` is what cargo itself looks for.
fn is_library(path: &Path) -> bool {
    path.join("Cargo.lock").is_file()
}

/// Quiet, because where rustup is missing or offline the next source is tried.
fn add_component(library: &Path) -> bool {
    let added = process::captured(Command::new("rustup").args(["component", "add", "rust-src"]));
    added.is_ok_and(|output| output.status.success()) && is_library(library)
}

fn sysroot() -> Result<PathBuf> {
    let sysroot = process::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(sysroot.trim_end()))
}

fn rustc_version() -> Result<String> {
    let verbose = process::output(Command::new("rustc").args(["--version", "--verbose"]))?;
    let release = verbose.lines().find_map(|line| line.strip_prefix("release: "));
    Ok(release.context("`rustc --version --verbose` names no release")?.to_owned())
}
