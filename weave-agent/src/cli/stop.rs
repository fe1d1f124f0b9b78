//! `stop` and `reset`.

use std::time::Duration;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep, timeout};

use crate::io::api::body::Stopping;
use crate::io::api::client::Client;
use crate::io::paths::Paths;
use crate::io::pidfile::PidFile;
use crate::io::reset;

/// An agent ends within a second, or hangs.
const PATIENCE: Duration = Duration::from_secs(5);
/// One that does not say so soon does not listen.
const ANSWER: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);

/// End the agent; the data plane goes on.
pub async fn stop(paths: &Paths) -> anyhow::Result<()> {
    let stopping: Stopping = Client::new(paths.socket()).order("/stop").await?;
    if !ends(paths).await {
        bail!("the agent (pid {}) does not end: `weave-agent reset` ends it by force, and removes the network with it", stopping.pid);
    }
    println!("the agent has stopped (pid {}); the data plane goes on:", stopping.pid);
    println!("attached containers keep their network, `weave-agent launch` takes over again, `weave-agent reset` removes everything");
    Ok(())
}

/// End the agent, dead or alive, and remove all that it made.
pub async fn reset(paths: &Paths) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("reset needs root: it removes network interfaces and BPF programs; try `sudo weave-agent reset`");
    }
    let ended = end_agent(paths).await?;
    if ended {
        println!("the agent has stopped");
    }
    let done = reset::remove_everything(paths).await;
    for line in &done.removed {
        println!("removed {line}");
    }
    if !ended && done.removed.is_empty() && done.failures.is_empty() {
        println!("nothing to remove");
    }
    if done.failures.is_empty() {
        return Ok(());
    }
    bail!("not everything could be removed:\n  {}", done.failures.join("\n  "))
}

/// Ask, then tell, then force. `false` if none ran.
async fn end_agent(paths: &Paths) -> anyhow::Result<bool> {
    let Some(pid) = PidFile::holder(&paths.pid_file()) else { return Ok(false) };
    let asked = timeout(ANSWER, Client::new(paths.socket()).order::<Stopping>("/reset")).await;
    if matches!(asked, Ok(Ok(_))) && ends(paths).await {
        return Ok(true);
    }
    let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 1) else {
        bail!("an agent holds {} and does not answer; end it yourself, then reset again", paths.pid_file().display());
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        signalled(pid, signal)?;
        if ends(paths).await {
            return Ok(true);
        }
    }
    bail!("process {pid} survives SIGKILL: it hangs in the kernel")
}

fn signalled(pid: i32, signal: Signal) -> anyhow::Result<()> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("cannot send {signal} to the agent (pid {pid})")),
    }
}

/// Wait until nobody holds the lock.
async fn ends(paths: &Paths) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while PidFile::holder(&paths.pid_file()).is_some() {
        if Instant::now() > deadline {
            return false;
        }
        sleep(POLL).await;
    }
    true
}
