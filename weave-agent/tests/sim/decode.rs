//! Between the switch's words and the tables' numbers, as the real datapath does it.

use weave_agent::datapath::{Action, PortId};
use weave_agent::peer::ShortId;
use weave_ebpf::flow::{Flow, action, port};
use weave_ebpf::stats::DropReason;

/// A table entry for an action.
pub(crate) fn flow(action: Action, epoch: u32, redirect_peer: bool) -> Flow {
    let (action, target) = match action {
        Action::Drop(reason) => (action::DROP, reason.index()),
        Action::Port(port) => (action::PORT, port.0),
        Action::Peer(short) => (action::PEER, u32::from(short.get())),
        Action::Flood(origin) => (action::FLOOD, u32::from(origin.get())),
    };
    let flags = if action == action::PORT && redirect_peer { port::REDIRECT_PEER } else { 0 };
    Flow { epoch, action, target, flags, ..Flow::default() }
}

/// What a table entry does.
pub(crate) fn action(flow: &Flow) -> Action {
    let short = || ShortId::new(u16::try_from(flow.target).unwrap_or(u16::MAX));
    match flow.action {
        action::PORT => Action::Port(PortId(flow.target)),
        action::PEER => short().map_or(Action::Drop(DropReason::UnknownPeer), Action::Peer),
        action::FLOOD => short().map_or(Action::Drop(DropReason::UnknownPeer), Action::Flood),
        _ => Action::Drop(DropReason::from_index(flow.target).unwrap_or(DropReason::Switch)),
    }
}
