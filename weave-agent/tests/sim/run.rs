//! One run of one case: world and model side by side, step after step.

use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use rand::RngExt;
use weave_agent::Time;
use weave_agent::addr::Mac;
use weave_agent::datapath::PortId;
use weave_agent::router::Input;
use weave_agent::switch;

use crate::case::{Case, Ending};
use crate::frame::{self, FrameId, Payload};
use crate::ledger::Place;
use crate::model::{Container, Model};
use crate::properties::Violation;
use crate::trace::{self, Errors};
use crate::wire::HostId;
use crate::world::World;

/// World and model.
pub(crate) struct Run {
    pub(crate) world: World,
    pub(crate) model: Model,
    /// Wires lost or reordered datagrams in this run.
    pub(crate) noisy: bool,
}

/// Bytes of a frame that fits every wire.
const LONGEST: usize = 1200;
/// The same for tunnels that lost probes by chance: until they grow again, a minute later, they take little more
/// than the least that IPv4 promises.
const LONGEST_AFTER_NOISE: usize = 560;

/// What a run that went well says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Of all that happened.
    pub(crate) trace: u64,
    /// Frames sent.
    pub(crate) frames: u64,
    /// Virtual time.
    pub(crate) time: Time,
}

/// Runs a case from beginning to end.
pub(crate) fn run(case: &Case) -> Result<Summary, Violation> {
    let attempt = AssertUnwindSafe(|| tracing::subscriber::with_default(Errors::new(), || all_steps(case)));
    _ = trace::take_error();
    std::panic::catch_unwind(attempt).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Violation::new(11, format!("panic: {}", text.unwrap_or_default())))
    })
}

fn all_steps(case: &Case) -> Result<Summary, Violation> {
    let mut run = Run { world: World::new(&case.setting), model: Model::default(), noisy: false };
    for (pause, step) in &case.steps {
        run.world.run_for(*pause)?;
        run.step(step)?;
    }
    run.quiet_down()?;
    run.settled(true)?;
    match case.ending {
        Ending::Plain => {}
        Ending::Move => run.moved_macs_are_found()?,
        Ending::Crash => run.crashes_cost_nothing()?,
        Ending::Failover => run.cuts_are_survived()?,
        Ending::Flood => run.floods_are_bounded()?,
    }
    Ok(Summary { trace: run.world.trace.hash(), frames: run.world.ledger.sent(), time: run.world.now })
}

impl Run {
    /// A container sends a frame.
    pub(crate) fn send(&mut self, from: Container, dst: Mac, payload: Payload) -> FrameId {
        let longest = if self.noisy { LONGEST_AFTER_NOISE } else { LONGEST };
        let len = self.world.rng.random_range(60..longest);
        let id = self.world.ledger.send(Some(from.place), self.world.now);
        let bytes = frame::build(dst, from.mac, payload, id, len);
        self.emit(from.place, &bytes);
        id
    }

    /// Bytes enter at a port.
    pub(crate) fn emit(&mut self, (host, port): Place, bytes: &Bytes) {
        self.world.port_frame(host, port, bytes);
    }

    /// A container tells all where it is, as a gratuitous ARP does.
    pub(crate) fn announce(&mut self, from: Container) -> FrameId {
        self.send(from, Mac::BROADCAST, Payload::Other)
    }

    /// Attaches a container, if an agent is there to do it.
    pub(crate) fn attach(&mut self, host: HostId, mac: Mac, twin: bool) -> Option<Container> {
        self.world.hosts[host].agent.as_ref()?;
        let port = self.plug(host);
        let container = Container { mac, place: (host, port), twin };
        self.model.containers.push(container);
        Some(container)
    }

    /// A new port.
    pub(crate) fn plug(&mut self, host: HostId) -> PortId {
        let port = self.model.new_port();
        self.world.hosts[host].kernel.ports.insert(port);
        self.world.input(host, Input::Switch(switch::Input::PortAdded(port)));
        port
    }

    /// The interface goes away, and the agent, if it runs, is told.
    pub(crate) fn unplug(&mut self, (host, port): Place) {
        self.world.hosts[host].kernel.ports.remove(&port);
        self.world.input(host, Input::Switch(switch::Input::PortRemoved(port)));
    }

    /// Detaches a container, by its place in the model's list.
    pub(crate) fn detach(&mut self, index: usize) {
        let container = self.model.containers.remove(index);
        self.unplug(container.place);
    }
}
