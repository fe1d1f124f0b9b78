//! The switch as one machine: dispatch, timers, output queue.

use std::collections::VecDeque;

use super::status::{Counters, FlowCounts};
use super::{Config, Input, Output, Status};
use crate::Time;

/// The virtual switch. Pure: effects come out of [`poll_output`](Self::poll_output), time is an argument.
#[derive(Debug)]
pub struct Switch {
    config: Config,
    out: VecDeque<Output>,
}

impl Switch {
    /// A switch that knows nobody yet.
    pub fn new(config: Config) -> Self {
        Self { config, out: VecDeque::new() }
    }

    /// Takes in what happened; what follows from it comes out of [`poll_output`](Self::poll_output).
    pub fn handle(&mut self, _now: Time, _input: Input) {}

    /// To be called when the time of [`poll_timeout`](Self::poll_timeout) has come; earlier or later does no harm.
    pub fn handle_timeout(&mut self, _now: Time) {}

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next.
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }

    /// For people and for the control API.
    pub fn status(&self, _now: Time) -> Status {
        Status {
            name: self.config.name,
            short: self.config.short,
            ports: Vec::new(),
            peers: Vec::new(),
            fdb: Vec::new(),
            flows: FlowCounts::default(),
            counters: Counters::default(),
        }
    }
}
