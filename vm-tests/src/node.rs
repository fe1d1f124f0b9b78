//! Running things on hosts and in containers.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, iter};

use anyhow::{Context, Result, ensure};

use crate::process::{captured, line, not_started, output};
use crate::{LabConfig, Place, lab_dir};

/// A host or a container, to run things in.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    pub(crate) config: &'a LabConfig,
    pub(crate) place: Place,
}

impl Node<'_> {
    /// Which one it is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The name of its namespace under /run/netns: what `weave-agent attach` takes.
    pub fn netns(&self) -> String {
        self.config.netns(self.place).name().to_owned()
    }

    /// A command that will run in this place; `weave-agent` in it is the lab's, and finds the host's agent.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new(program);
        self.config.netns(self.place).enter(&mut command)?;
        let dir = self.agent_dir();
        command.env("WEAVE_RUN_DIR", dir.join("run")).env("WEAVE_STATE_DIR", dir.join("state"));
        if let Some(bin) = self.config.agent.as_deref().and_then(|agent| agent.parent()) {
            let path = env::var_os("PATH").unwrap_or_default();
            command.env("PATH", env::join_paths(iter::once(bin.to_owned()).chain(env::split_paths(&path)))?);
        }
        Ok(command)
    }

    /// Runs a command to its end and returns what it wrote; failing is an error that quotes its complaint.
    pub fn exec<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<String> {
        output(&mut self.words(words)?).with_context(|| format!("on {}", self.place))
    }

    /// Starts a command that runs until it is dropped or waited for.
    pub fn spawn<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Running> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = lab_dir(&self.config.name).join(format!("{}-{count}.out", self.place));
        Running::start(self.words(words)?, log).with_context(|| format!("on {}", self.place))
    }

    /// Whether one ping is answered within a second.
    pub fn reaches(&self, address: impl Into<IpAddr>) -> Result<bool> {
        let mut ping = self.command("ping")?;
        ping.args(["-n", "-q", "-c1", "-W1"]).arg(address.into().to_string());
        Ok(captured(&mut ping)?.status.success())
    }

    /// Where the files of this host's agent are.
    pub(crate) fn agent_dir(&self) -> PathBuf {
        lab_dir(&self.config.name).join(Place::Host(self.place.host()).to_string())
    }

    fn words<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<Command> {
        let mut words = words.into_iter();
        let mut command = self.command(words.next().context("no command given")?)?;
        command.args(words);
        Ok(command)
    }
}

/// A program that runs in a lab; it ends when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    log: PathBuf,
}

impl Running {
    /// Its output goes to a file: nobody reads a pipe meanwhile, and a full one would stop it.
    pub(crate) fn start(mut command: Command, log: PathBuf) -> Result<Self> {
        let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().map_err(|error| not_started(&command, error))?;
        Ok(Self { child, command: line(&command), log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far, to standard output and error.
    pub fn written(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("cannot read {}", self.log.display()))
    }

    /// Its verdict, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for it to end and returns what it wrote.
    pub fn finish(mut self) -> Result<String> {
        let status = self.child.wait()?;
        let text = self.written()?;
        ensure!(status.success(), "`{}` failed ({status}): {}", self.command, text.trim());
        Ok(text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
