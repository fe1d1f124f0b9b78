//! What the host tells a guest, and what the guest says.

use serde::{Deserialize, Serialize};

/// Where the guest finds its orders.
pub const ORDERS: &str = "/orders.json";
/// Where its modules are.
pub const MODULES: &str = "/modules";

/// All that a guest is to do.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Orders {
    /// Files below [`MODULES`], in the order in which they are loaded.
    pub modules: Vec<String>,
    /// Environment of all that is run.
    pub env: Vec<(String, String)>,
    /// What is run, in this order.
    pub tasks: Vec<Task>,
    /// How many are run at once.
    pub workers: usize,
}

/// One thing to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// What it is.
    pub work: Work,
    /// After so many seconds it is killed.
    pub limit: u64,
    /// Nothing else is run at the same time.
    pub alone: bool,
}

/// What is run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Work {
    /// A program.
    Run {
        /// Its path.
        program: String,
        /// Its arguments.
        arguments: Vec<String>,
    },
    /// The kernel is made to panic: to see that this is reported.
    Panic,
    /// The guest stops: likewise.
    Hang,
}

/// One line from a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Said {
    /// It runs.
    Up {
        /// `uname -r`.
        release: String,
    },
    /// All modules are loaded.
    Ready,
    /// A task has begun.
    Begun {
        /// Its place in the orders.
        task: usize,
    },
    /// A task wrote a line.
    Wrote {
        /// Its place in the orders.
        task: usize,
        /// Without the end of the line.
        line: String,
    },
    /// A task has ended.
    Ended {
        /// Its place in the orders.
        task: usize,
        /// How.
        end: End,
        /// How long it took.
        seconds: f64,
    },
    /// The guest cannot go on.
    Trouble(String),
    /// All is done: the last line.
    Done,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// With this exit status.
    Exit(i32),
    /// By this signal.
    Signal(i32),
    /// It was killed at its limit.
    Limit,
    /// It could not be started.
    NotStarted(String),
}

impl Said {
    /// As it goes over the wire, without the end of the line.
    pub fn line(&self) -> String {
        // Strings and numbers: nothing in it can fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What a line says; `None`: it is not one of a guest's.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line.trim()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_was_said_whatever_the_terminal_adds() {
        let said = Said::Wrote { task: 3, line: "a \"b\"\tc".to_owned() };
        let line = said.line();
        assert!(!line.contains('\n'));
        assert_eq!(Said::parse(&format!("{line}\r\n")), Some(said));
        assert_eq!(Said::parse("SeaBIOS (version 1.16)"), None);
    }
}
