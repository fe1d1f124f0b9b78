//! `stop` and `reset`.

use std::time::Duration;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep, timeout};

use super::show::print;
use crate::io::api::body::Stopping;
use crate::io::api::client::{Client, ClientError};
use crate::io::paths::Paths;
use crate::io::pidfile::{Claim, PidFile, already_running};
use crate::io::presence::{self, Doing, Presence};
use crate::io::{mounts, reset};

/// An agent ends within a second, or hangs.
const PATIENCE: Duration = Duration::from_secs(5);
/// One that does not say so soon does not listen.
const ANSWER: Duration = Duration::from_secs(3);
/// What the kernel takes to let go of all that a killed agent had.
const MOMENT: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(20);

/// End the agent; the data plane goes on.
pub async fn stop(paths: &Paths) -> anyhow::Result<()> {
    let holder = PidFile::holder(&paths.pid_file());
    let is_private = holder.flatten().is_some_and(|pid| mounts::is_private(&pid.to_string()));
    let Stopping { pid, carried_on } = match Client::new(paths.socket()).order::<Stopping>("/stop").await {
        Ok(stopping) => stopping,
        // One that runs and cannot be asked ends the same way when it is told to.
        Err(ClientError::NoAgent(_) | ClientError::Broken { .. }) if holder.is_some() => {
            Stopping { pid: told_to_end(paths)?, carried_on: true }
        }
        Err(error) => return Err(error.into()),
    };
    if !ends(paths, PATIENCE).await {
        bail!("the agent (pid {pid}) does not end: `weave-agent reset` ends it by force, and removes the network with it");
    }
    if is_private {
        return print(&format!(
            "the agent has stopped (pid {pid}); it was started in a mount namespace of its own (as `ip netns exec` makes one):\n\
             the data plane ends with that; `weave-agent launch` starts again, `weave-agent reset` removes everything\n"
        ));
    }
    let becomes = match carried_on {
        true => "; the data plane goes on:\nattached containers keep their network, `weave-agent launch` takes over again",
        false => ", which carried frames itself:\ncontainers are cut off from other hosts until `weave-agent launch`",
    };
    print(&format!("the agent has stopped (pid {pid}){becomes}, `weave-agent reset` removes everything\n"))
}

fn told_to_end(paths: &Paths) -> anyhow::Result<u32> {
    let pid = PidFile::holder(&paths.pid_file()).flatten();
    let pid = pid.with_context(|| format!("an agent holds {} and does not answer: it may be just starting", paths.pid_file().display()))?;
    signalled(pid, Signal::SIGTERM)?;
    Ok(pid)
}

/// End the agent, dead or alive, and remove all that it made.
pub async fn reset(paths: &Paths) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("reset needs root: it removes network interfaces and BPF programs; try `sudo weave-agent reset`");
    }
    refuse_anothers(paths)?;
    let ended = end_agent(paths).await?;
    if let Some(how) = ended {
        print(&format!("{how}\n"))?;
    }
    // Until all is removed nobody launches here.
    let _alone = (Presence::claim(Doing::Reset, paths)?, lock(paths)?);
    let done = reset::remove_everything(paths).await;
    print(&done.removed.iter().map(|line| format!("removed {line}\n")).collect::<String>())?;
    if ended.is_none() && done.removed.is_empty() && done.failures.is_empty() {
        print("nothing to remove\n")?;
    }
    if done.failures.is_empty() {
        return Ok(());
    }
    bail!("not everything could be removed:\n  {}", done.failures.join("\n  "))
}

/// Interfaces do not say whose they are: they are those of the agent that lives here, and only its directories remove them.
fn refuse_anothers(paths: &Paths) -> anyhow::Result<()> {
    let holder = PidFile::holder(&paths.pid_file());
    match presence::other() {
        Some(other) if !other.is_of(paths, holder) => bail!("nothing was removed: {}", other.refusal()),
        Some(other) => match other.other_state(paths) {
            Some(state) => bail!(
                "nothing was removed: the agent of {} keeps its state in {}: say `weave-agent --run-dir {} --state-dir {} reset`",
                paths.run.display(),
                state.display(),
                paths.run.display(),
                state.display()
            ),
            None => Ok(()),
        },
        None => holder.flatten().filter(|pid| is_elsewhere(*pid)).map_or(Ok(()), |pid| {
            bail!(
                "nothing was removed: the agent of {} (pid {pid}) lives in another network namespace: \
                 say `nsenter --net=/proc/{pid}/ns/net weave-agent --run-dir {} --state-dir {} reset`",
                paths.run.display(),
                paths.run.display(),
                paths.state.display()
            )
        }),
    }
}

fn is_elsewhere(pid: u32) -> bool {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let (theirs, ours) = (namespace(&pid.to_string()), namespace("self"));
    theirs.is_some() && theirs != ours
}

/// The run directory's lock, if there is such a directory.
fn lock(paths: &Paths) -> anyhow::Result<Option<PidFile>> {
    if !paths.run.exists() {
        return Ok(None);
    }
    match PidFile::claim(&paths.pid_file()) {
        Ok(Claim::Ours(lock)) => Ok(Some(lock)),
        Ok(Claim::Held(pid)) => bail!("{}", already_running(pid)),
        // A full disk must not keep anybody from emptying it.
        Err(_) => Ok(None),
    }
}

/// Ask, then tell, then force; says what it took. `None` if none ran, or it ended by itself.
async fn end_agent(paths: &Paths) -> anyhow::Result<Option<&'static str>> {
    if PidFile::holder(&paths.pid_file()).is_none() {
        return Ok(None);
    }
    let asked = timeout(ANSWER, Client::new(paths.socket()).order::<Stopping>("/reset")).await;
    match asked {
        Ok(Ok(_)) if ends(paths, PATIENCE).await => return Ok(Some("the agent has stopped")),
        Ok(Ok(_)) => {}
        // One that was killed takes a moment to be gone.
        _ if ends(paths, MOMENT).await => return Ok(None),
        _ => {}
    }
    let means = [
        (Signal::SIGTERM, "the agent did not answer: SIGTERM has ended it"),
        (Signal::SIGKILL, "the agent did not end when it was told to: SIGKILL has ended it"),
    ];
    for (signal, how) in means {
        let Some(holder) = PidFile::holder(&paths.pid_file()) else { return Ok(None) };
        let Some(pid) = holder.filter(|pid| *pid > 1) else {
            bail!("an agent holds {} and does not answer; end it yourself, then reset again", paths.pid_file().display());
        };
        signalled(pid, signal)?;
        if ends(paths, PATIENCE).await {
            return Ok(Some(how));
        }
    }
    bail!("the agent survives SIGKILL: it hangs in the kernel")
}

fn signalled(pid: u32, signal: Signal) -> anyhow::Result<()> {
    match kill(Pid::from_raw(i32::try_from(pid)?), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("cannot send {signal} to the agent (pid {pid})")),
    }
}

/// Wait until nobody holds the lock.
async fn ends(paths: &Paths, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while PidFile::holder(&paths.pid_file()).is_some() {
        if Instant::now() > deadline {
            return false;
        }
        sleep(POLL).await;
    }
    true
}
