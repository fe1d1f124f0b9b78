//! Network namespaces with names under /run/netns.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{feed, output};

/// How long a process has between being asked to end and being ended.
const GRACE: Duration = Duration::from_secs(3);

/// A network namespace with a name under /run/netns.
#[derive(Debug, Clone)]
pub(crate) struct Netns {
    name: String,
}

impl Netns {
    pub(crate) fn named(name: String) -> Self {
        Self { name }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    pub(crate) fn exists(&self) -> bool {
        self.path().exists()
    }

    pub(crate) fn create(&self) -> Result<()> {
        output(Command::new("ip").args(["netns", "add", &self.name]))?;
        self.ip("link set lo up")
    }

    /// Makes `command` start in this namespace. `ip netns exec` would also give it a /sys of its own, in which the
    /// agent's bpffs is not to be seen.
    pub(crate) fn enter(&self, command: &mut Command) -> Result<()> {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("no namespace {}: is the lab up?", path.display()))?;
        // SAFETY: between fork and exec only setns(2) is called, a bare system call on a descriptor opened before.
        unsafe { command.pre_exec(move || Ok(setns(&file, CloneFlags::CLONE_NEWNET)?)) };
        Ok(())
    }

    /// Runs lines of `ip` commands (without the word `ip`) in this namespace.
    pub(crate) fn ip(&self, lines: &str) -> Result<()> {
        feed(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), lines)
    }

    /// Runs a command in this namespace and returns what it said.
    pub(crate) fn output<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<String> {
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().context("no command")?);
        self.enter(&mut command)?;
        output(command.args(words))
    }

    /// Runs a script of `nft` in this namespace.
    pub(crate) fn nft(&self, script: &str) -> Result<()> {
        let mut nft = Command::new("nft");
        self.enter(&mut nft)?;
        feed(nft.args(["-f", "-"]), script)
    }

    /// Sets `net.ipv4.conf.all` and the like: `sysctl("ip_forward", 1)`.
    pub(crate) fn sysctl(&self, name: &str, value: u32) -> Result<()> {
        let mut shell = Command::new("sh");
        self.enter(&mut shell)?;
        output(shell.args(["-c", &format!("echo {value} > /proc/sys/net/ipv4/{name}")])).map(drop)
    }

    /// Ends what runs in the namespace and deletes it; the interfaces in it go with it.
    pub(crate) fn remove(&self) -> Result<()> {
        if !self.exists() {
            return Ok(());
        }
        let ended = self.end_processes();
        output(Command::new("ip").args(["netns", "del", &self.name]))?;
        ended
    }

    /// Whatever runs in a namespace of the lab was started there for the lab.
    fn end_processes(&self) -> Result<()> {
        signal_all(&self.processes()?, Signal::SIGTERM)?;
        let asked = Instant::now();
        while !self.processes()?.is_empty() {
            if asked.elapsed() > GRACE {
                return signal_all(&self.processes()?, Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn processes(&self) -> Result<Vec<Pid>> {
        let pids = output(Command::new("ip").args(["netns", "pids", &self.name]))?;
        let pids = pids.split_whitespace().map(str::parse).collect::<Result<Vec<i32>, _>>()?;
        let own = process::id().cast_signed();
        Ok(pids.into_iter().filter(|pid| *pid != own).map(Pid::from_raw).collect())
    }
}

fn signal_all(pids: &[Pid], signal: Signal) -> Result<()> {
    for pid in pids {
        match kill(*pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot end process {pid}")),
        }
    }
    Ok(())
}
