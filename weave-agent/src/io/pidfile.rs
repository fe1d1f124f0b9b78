//! One agent per run directory: a locked file that says its process id.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The lock of a running agent; dropping it lets the next one run.
#[derive(Debug)]
pub struct PidFile {
    lock: Flock<File>,
    path: PathBuf,
}

/// Whether an agent runs.
#[derive(Debug)]
pub enum Claim {
    /// None did; now it is us.
    Ours(PidFile),
    /// Another does. Its process id, if it has written one.
    Held(Option<u32>),
}

impl PidFile {
    /// Be the one agent here, unless one runs already.
    pub fn claim(path: &Path) -> anyhow::Result<Claim> {
        let mut patience = 5;
        loop {
            let context = || format!("cannot open {}", path.display());
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).with_context(context)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // The agent before us removes the file as it ends: what we locked may no longer be what others will open.
                Ok(lock) if !is_at(&lock, path) => continue,
                Ok(lock) => return Self { lock, path: path.to_owned() }.written().map(Claim::Ours),
                // Somebody who only asks, in `holder`, has it for a moment.
                Err((_, Errno::EWOULDBLOCK)) if patience > 0 => {
                    patience -= 1;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err((mut file, Errno::EWOULDBLOCK)) => return Ok(Claim::Held(read_pid(&mut file))),
                Err((_, errno)) => return Err(errno).with_context(|| format!("cannot lock {}", path.display())),
            }
        }
    }

    /// The process id of the running agent; `None` if none runs. The outer `Some` without a number: it is just starting.
    pub fn holder(path: &Path) -> Option<Option<u32>> {
        let mut file = File::open(path).ok()?;
        match Flock::lock(file.try_clone().ok()?, FlockArg::LockSharedNonblock) {
            Ok(_) => None,
            Err(_) => Some(read_pid(&mut file)),
        }
    }

    /// Remove it; we are the last to know.
    pub fn remove(self) -> std::io::Result<()> {
        std::fs::remove_file(&self.path)
    }

    fn written(mut self) -> anyhow::Result<Self> {
        let text = format!("{}\n", std::process::id());
        let written = self.lock.set_len(0).and_then(|()| self.lock.rewind()).and_then(|()| self.lock.write_all(text.as_bytes()));
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok(self)
    }
}

/// What to say to whoever finds it held.
pub fn already_running(pid: Option<u32>) -> String {
    let pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
    format!("an agent is already running here{pid}: `weave-agent status` shows it, `weave-agent stop` ends it")
}

fn is_at(file: &File, path: &Path) -> bool {
    let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    matches!((file.metadata(), path.metadata()), (Ok(a), Ok(b)) if same(&a, &b))
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_agent_at_a_time_and_its_pid_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.pid");
        assert_eq!(PidFile::holder(&path), None);
        let Claim::Ours(first) = PidFile::claim(&path).unwrap() else { panic!("nobody holds it") };
        let us = Some(std::process::id());
        assert_eq!(PidFile::holder(&path), Some(us));
        assert!(matches!(PidFile::claim(&path).unwrap(), Claim::Held(pid) if pid == us));
        first.remove().unwrap();
        assert_eq!(PidFile::holder(&path), None);
        assert!(matches!(PidFile::claim(&path).unwrap(), Claim::Ours(_)));
    }

    #[test]
    fn what_a_dead_agent_left_is_no_hindrance() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.pid");
        std::fs::write(&path, "4194304 and more\n").unwrap();
        assert_eq!(PidFile::holder(&path), None);
        assert!(matches!(PidFile::claim(&path).unwrap(), Claim::Ours(_)));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }
}
