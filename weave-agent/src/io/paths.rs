//! Where an agent keeps its files. Two agents with different directories do not meet.

use std::path::PathBuf;

/// The directories of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Socket, pid, log, pins, the note of what was stored last: gone with a reboot.
    pub run: PathBuf,
    /// Name, short id, targets, addresses, names: stays.
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

    /// What an agent in the background has to say; what it said before is in `agent.log.1`.
    pub fn log(&self) -> PathBuf {
        self.run.join("agent.log")
    }

    /// A BPF filesystem of this agent's own.
    pub fn pins(&self) -> PathBuf {
        self.run.join("bpf")
    }

    /// What the next agent needs to know of the openvswitch module's datapath.
    pub fn odp(&self) -> PathBuf {
        self.run.join("agent.odp")
    }

    /// What is kept: a database.
    pub fn state_file(&self) -> PathBuf {
        self.state.join("agent.redb")
    }

    /// Where earlier versions kept it.
    pub fn old_state_file(&self) -> PathBuf {
        self.state.join("agent.json")
    }

    /// Says what was stored last in this boot.
    pub fn latest(&self) -> PathBuf {
        self.run.join("agent.latest")
    }
}
