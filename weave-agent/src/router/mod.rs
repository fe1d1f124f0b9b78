//! The whole agent as one machine: [`Input`] in, [`Output`] out.
//!
//! Mesh and switch know nothing of each other. What one says that concerns the other is carried across here, at the
//! same instant, until neither has anything left to say:
//!
//! | from | to | |
//! |---|---|---|
//! | mesh | switch | a new view, links up and down, `macs` that another peer announced |
//! | switch | mesh | tunnels up and down, `macs` to announce |

mod macs;

use std::collections::VecDeque;

use serde::Serialize;

pub use self::macs::{DecodeError, MAX_MACS};
use crate::datapath::Op;
use crate::mesh::Mesh;
use crate::peer::PeerName;
use crate::switch::Switch;
use crate::{Time, mesh, switch};

/// Everything that can happen to an agent. The simulator makes these up; `io` reports them.
#[derive(Clone, Debug)]
pub enum Input {
    /// To the mesh: links, targets, addresses.
    Mesh(mesh::Input),
    /// To the switch: upcalls, ports, flows.
    Switch(switch::Input),
}

/// Everything an agent can want. The simulator acts these out; `io` does them.
#[derive(Clone, Debug)]
pub enum Output {
    /// Dial, send, close, keep; links and views, too, for whoever shows them.
    Mesh(mesh::Output),
    /// An order to the datapath.
    Datapath(Op),
}

/// What an agent is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of the control plane.
    pub mesh: mesh::Config,
    /// Of the data plane.
    pub switch: switch::Config,
}

/// What an agent says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Peers, links, targets.
    pub mesh: mesh::Status,
    /// Ports, fdb, tunnels.
    pub switch: switch::Status,
}

/// Mesh and switch, composed.
#[derive(Debug)]
pub struct Router {
    mesh: Mesh,
    switch: Switch,
    outputs: VecDeque<Output>,
}

impl Router {
    /// An agent that has just started. `seed` is all the randomness it ever uses.
    pub fn new(config: Config, seed: [u8; 32]) -> Self {
        Self { mesh: Mesh::new(config.mesh, seed), switch: Switch::new(config.switch), outputs: VecDeque::new() }
    }

    /// Something happened.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Mesh(input) => self.mesh.handle(now, input),
            Input::Switch(input) => self.switch.handle(now, input),
        }
        self.exchange(now);
    }

    /// It is [`Self::poll_timeout`] or later.
    pub fn handle_timeout(&mut self, now: Time) {
        self.mesh.handle_timeout(now);
        self.switch.handle_timeout(now);
        self.exchange(now);
    }

    /// What is to be done next; to be called until `None` after every `handle` and `handle_timeout`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        [self.mesh.poll_timeout(), self.switch.poll_timeout()].into_iter().flatten().min()
    }

    /// For `weave-agent status`.
    pub fn status(&self, now: Time) -> Status {
        Status { mesh: self.mesh.status(now), switch: self.switch.status(now) }
    }

    /// Carries the halves' outputs across and out until both are silent.
    fn exchange(&mut self, now: Time) {
        loop {
            if let Some(output) = self.mesh.poll_output() {
                self.take_from_mesh(now, output);
            } else if let Some(output) = self.switch.poll_output() {
                self.take_from_switch(now, output);
            } else {
                return;
            }
        }
    }

    fn take_from_mesh(&mut self, now: Time, output: mesh::Output) {
        match output {
            mesh::Output::View(view) => self.switch.handle(now, switch::Input::View(view)),
            mesh::Output::LinkUp(neighbour) => self.switch.handle(now, switch::Input::LinkUp(neighbour)),
            mesh::Output::LinkDown { peer } => self.switch.handle(now, switch::Input::LinkDown(peer)),
            mesh::Output::Delivered { channel, from, payload } if macs::is_channel(&channel) => self.announced(now, from, &payload),
            other => self.outputs.push_back(Output::Mesh(other)),
        }
    }

    fn take_from_switch(&mut self, now: Time, output: switch::Output) {
        match output {
            switch::Output::Op(op) => self.outputs.push_back(Output::Datapath(op)),
            switch::Output::Tunnel { peer, up } => self.mesh.handle(now, mesh::Input::Tunnel { peer, up }),
            switch::Output::Announce(list) => {
                for payload in macs::encode(&list) {
                    self.mesh.handle(now, mesh::Input::Broadcast { channel: macs::channel(), payload });
                }
            }
        }
    }

    /// A message that makes no sense is its sender's fault, and nobody else's trouble.
    fn announced(&mut self, now: Time, peer: PeerName, payload: &[u8]) {
        match macs::decode(payload) {
            Ok(macs) => self.switch.handle(now, switch::Input::Announced { peer, macs }),
            Err(error) => tracing::warn!(%peer, %error, "ignored an announcement of addresses"),
        }
    }
}
