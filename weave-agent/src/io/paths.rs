//! Where an agent keeps its files. Two agents with different directories do not meet.

use std::path::PathBuf;

/// The directories of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Socket, pid, log, pins: gone with a reboot.
    pub run: PathBuf,
    /// Name, short id, targets: stays.
    pub state: PathBuf,
}

impl Paths {
    /// The control API.
    pub fn socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    /// Locked by the agent as long as it runs; says its process id.
    pub fn pid_file(&self) -> PathBuf {
        self.run.join("agent.pid")
    }

    /// What an agent in the background has to say.
    pub fn log(&self) -> PathBuf {
        self.run.join("agent.log")
    }

    /// A BPF filesystem of this agent's own.
    pub fn pins(&self) -> PathBuf {
        self.run.join("bpf")
    }

    /// What is kept.
    pub fn state_file(&self) -> PathBuf {
        self.state.join("agent.json")
    }
}
