//! A system out of a kernel and a handful of files.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use vm_tests::process;
use vm_tests::vm::orders::MODULES;

/// Kind, place, options. In this order: some are inside others.
const MOUNTS: [(&str, &str, &str); 9] = [
    ("devtmpfs", "/dev", ""),
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devpts", "/dev/pts", ""),
    ("tmpfs", "/tmp", "mode=1777"),
    ("tmpfs", "/run", "mode=755"),
    ("cgroup2", "/sys/fs/cgroup", ""),
    ("bpf", "/sys/fs/bpf", ""),
    ("tracefs", "/sys/kernel/tracing", ""),
];

/// Mounts what every system has.
pub(crate) fn mount_all() -> Result<()> {
    for (kind, place, options) in MOUNTS {
        // What is inside another one is there with it, or is made there.
        let _ = fs::create_dir_all(place);
        mount(Some(kind), place, Some(kind), MsFlags::empty(), Some(options)).with_context(|| format!("cannot mount {place}"))?;
    }
    Ok(())
}

/// Loads modules, in this order.
pub(crate) fn load_modules(modules: &[String]) -> Result<()> {
    for module in modules {
        let path = Path::new(MODULES).join(module);
        let file = fs::File::open(&path).with_context(|| path.display().to_string())?;
        match finit_module(file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot load {module}")),
        }
    }
    Ok(())
}

/// What a distribution's start does besides.
pub(crate) fn settle(env: &[(String, String)]) -> Result<()> {
    nix::unistd::sethostname("guest").context("cannot set the host's name")?;
    fs::write("/proc/sys/kernel/printk", "4").context("cannot quieten the kernel")?;
    let mut ip = Command::new("/usr/bin/ip");
    process::run(ip.args(["link", "set", "lo", "up"]).envs(env.iter().cloned()))
}
