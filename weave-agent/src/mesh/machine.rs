//! The mesh as one machine.

use std::collections::VecDeque;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{Input, Output, Status, Target};
use crate::Time;
use crate::peer::{PeerName, PeerUid, ShortId};

/// Who we are and how we meet others.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our name, from the state directory.
    pub name: PeerName,
    /// This incarnation.
    pub uid: PeerUid,
    /// Free text, for people; cut at 255 bytes.
    pub nickname: String,
    /// The short id of our last incarnation, so that flows that name it stay right.
    pub short: Option<ShortId>,
    /// TCP port we accept links on (6783).
    pub port: u16,
    /// UDP port of our tunnels (6784).
    pub tunnel_port: u16,
    /// Dial peers that other peers are connected to.
    pub discovery: bool,
    /// Most links at a time; 0 is no limit. The default is 200.
    pub connection_limit: usize,
    /// What to dial.
    pub targets: Vec<Target>,
}

/// The control plane of one agent.
#[derive(Debug)]
pub struct Mesh {
    #[expect(dead_code, reason = "skeleton")]
    rng: StdRng,
    outputs: VecDeque<Output>,
}

impl Mesh {
    /// A mesh without links. `seed` is all the randomness it ever uses.
    pub fn new(_config: Config, seed: [u8; 32]) -> Self {
        Self { rng: StdRng::from_seed(seed), outputs: VecDeque::new() }
    }

    /// Something happened.
    pub fn handle(&mut self, _now: Time, _input: Input) {}

    /// Does what is due; call it when [`Mesh::poll_timeout`] says so. Harmless at any other time.
    pub fn handle_timeout(&mut self, _now: Time) {}

    /// The next thing wanted done. To be drained after every `handle` and `handle_timeout`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Mesh::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }

    /// What people want to know.
    pub fn status(&self, _now: Time) -> Status {
        Status::default()
    }
}
