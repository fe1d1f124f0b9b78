//! Debian's kernels: fetched, unpacked under `target/`, and never installed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use vm_tests::process;
use vm_tests::vm::matrix::Kernel;

use crate::debian::{self, Apt};
use crate::workspace::Workspace;

/// The package that wants the newest of a suite's kernels for virtual machines.
const NEWEST: &str = "linux-image-cloud-amd64";
/// What an image is made of: newer ones are four packages.
const PARTS: [&str; 4] = ["linux-image-", "linux-base-", "linux-binary-", "linux-modules-"];
/// Names the release that was unpacked last.
const CURRENT: &str = "current";

/// A kernel that is there.
#[derive(Debug, Clone)]
pub(super) struct Unpacked {
    pub(super) release: String,
    dir: PathBuf,
}

/// Finds a kernel that was fetched before, or fetches it. `anew`: there may be a newer one.
pub(super) fn find(workspace: &Workspace, kernel: &Kernel, anew: bool) -> Result<(Unpacked, String)> {
    let dir = workspace.own("vm").join("kernels").join(&kernel.name);
    if !anew && let Some(unpacked) = there(&dir) {
        let told = unpacked.release.clone();
        return Ok((unpacked, told));
    }
    let release = fetch(&dir, kernel).with_context(|| format!("cannot get kernel {} from Debian's {}", kernel.name, kernel.suite))?;
    fs::write(dir.join(CURRENT), &release)?;
    let unpacked = there(&dir).with_context(|| format!("{} does not hold kernel {release}", dir.display()))?;
    Ok((unpacked, format!("{release}, in {}", dir.display())))
}

fn there(dir: &Path) -> Option<Unpacked> {
    let release = fs::read_to_string(dir.join(CURRENT)).ok()?;
    let unpacked = Unpacked { dir: dir.join(&release), release };
    (unpacked.image().is_file() && unpacked.modules().join("modules.dep").is_file()).then_some(unpacked)
}

fn fetch(dir: &Path, kernel: &Kernel) -> Result<String> {
    let apt = Apt::new(dir.join("apt"), &kernel.suite)?;
    println!("    asking {} for {NEWEST} {}", apt.told(), kernel.version);
    let version = apt.newest(NEWEST, &kernel.version)?;
    let version = version.with_context(|| format!("{} has no {NEWEST} {}", kernel.suite, kernel.version))?;
    let image = apt.wants(NEWEST, &version)?.into_iter().find(|package| package.name.starts_with(PARTS[0]));
    let image = image.with_context(|| format!("{NEWEST} {version} wants no image"))?;
    let release = image.name[PARTS[0].len()..].to_owned();
    let root = dir.join(&release);
    if there(dir).is_some_and(|there| there.release == release) {
        return Ok(release);
    }
    let parts = apt.wants(&image.name, &image.version)?.into_iter();
    let parts = parts.filter(|part| PARTS.iter().any(|prefix| part.name == format!("{prefix}{release}")));
    for part in std::iter::once(image.clone()).chain(parts) {
        debian::unpack(&apt.download(&part.name, &part.version)?, &root)?;
    }
    // An installation would do this at its end.
    if !root.join("lib").exists() {
        symlink("usr/lib", root.join("lib")).context("cannot link lib")?;
    }
    process::output(Command::new("/usr/sbin/depmod").arg("--basedir").arg(&root).arg(&release))?;
    Ok(release)
}

impl Unpacked {
    /// What the machine boots; since 7.0 it is among the modules.
    pub(super) fn image(&self) -> PathBuf {
        let among_modules = self.modules().join("vmlinuz");
        if among_modules.is_file() { among_modules } else { self.dir.join("boot").join(format!("vmlinuz-{}", self.release)) }
    }

    fn modules(&self) -> PathBuf {
        self.dir.join("lib/modules").join(&self.release)
    }

    /// A text of the kernel's about its modules.
    pub(super) fn about_modules(&self, name: &str) -> Result<String> {
        let path = self.modules().join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// A module as the kernel wants it: not compressed.
    pub(super) fn module(&self, path: &str) -> Result<Vec<u8>> {
        let file = self.modules().join(path);
        let unpacker = match file.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => "xz",
            Some("zst") => "zstd",
            _ => return fs::read(&file).with_context(|| format!("cannot read {}", file.display())),
        };
        let output = process::captured(Command::new(unpacker).args(["--decompress", "--stdout"]).arg(&file))?;
        ensure!(output.status.success(), "{unpacker} cannot unpack {}", file.display());
        Ok(output.stdout)
    }
}
