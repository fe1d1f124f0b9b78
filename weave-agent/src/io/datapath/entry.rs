//! Flows as the tables have them and as the switch speaks of them.

use std::time::Duration;

use weave_ebpf::flow::{self, Flow, FlowKey};
use weave_ebpf::stats::DropReason;

use crate::datapath::{Action, FlowEntry, PortId, TunnelKind};
use crate::peer::ShortId;

/// [`flow::source`] bits of who may bring frames.
pub(super) const fn source_flags(least: TunnelKind) -> u32 {
    match least {
        TunnelKind::Vxlan => 0,
        TunnelKind::Esp => flow::source::ESP,
        TunnelKind::Sleeve => flow::source::SEALED,
    }
}

/// The same back.
pub(super) const fn least(flags: u32) -> TunnelKind {
    if flags & flow::source::SEALED != 0 {
        TunnelKind::Sleeve
    } else if flags & flow::source::ESP != 0 {
        TunnelKind::Esp
    } else {
        TunnelKind::Vxlan
    }
}

/// What carries the frames for a slot with these [`flow::slot`] bits.
pub(super) const fn tunnel(flags: u32) -> TunnelKind {
    if flags & flow::slot::SLEEVE != 0 {
        TunnelKind::Sleeve
    } else if flags & flow::slot::ESP != 0 {
        TunnelKind::Esp
    } else {
        TunnelKind::Vxlan
    }
}

/// A decision, to be cached. `port_flags`: of the port, if it is one.
pub(super) fn flow(epoch: u32, action: Action, port_flags: impl Fn(PortId) -> u32) -> Flow {
    let (action, target, flags) = match action {
        Action::Drop(reason) => (flow::action::DROP, reason.index(), 0),
        Action::Port(port) => (flow::action::PORT, port.0, port_flags(port)),
        Action::Peer(short) => (flow::action::PEER, short.get().into(), 0),
        Action::Flood(origin) => (flow::action::FLOOD, origin.get().into(), 0),
    };
    Flow { epoch, action, target, flags, ..Flow::default() }
}

/// The same back, with what it counted; `None` if it is of no kind that we know.
pub(super) fn entry(key: FlowKey, flow: &Flow, now: Duration) -> Option<FlowEntry> {
    let short = || ShortId::new(flow.target as u16);
    let action = match flow.action {
        flow::action::DROP => Action::Drop(DropReason::from_index(flow.target)?),
        flow::action::PORT => Action::Port(PortId(flow.target)),
        flow::action::PEER => Action::Peer(short()?),
        flow::action::FLOOD => Action::Flood(short()?),
        _ => return None,
    };
    let idle = (flow.used_ns != 0).then(|| now.saturating_sub(Duration::from_nanos(flow.used_ns)));
    Some(FlowEntry { key, action, packets: flow.packets, bytes: flow.bytes, idle })
}
