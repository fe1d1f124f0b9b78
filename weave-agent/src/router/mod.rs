//! The whole agent as one machine: [`Input`] in, [`Output`] out.

use crate::datapath::Op;
use crate::{mesh, switch};

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
    /// Dial, send, close, keep.
    Mesh(mesh::Output),
    /// An order to the datapath.
    Datapath(Op),
}
