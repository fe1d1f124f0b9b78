//! What the agent says of addresses.

use crate::ipam::{Conflict, OwnerStatus, PendingStatus, RangeStatus, RingState, Status};
use crate::status::{Answered, Ipam, IpamOwner, IpamRange};

/// The replica's own words, for people and programs; `None`: addresses are given by hand only.
pub(super) fn ipam(status: Option<&Status>, me: &str, answered: Answered) -> Ipam {
    let Some(status) = status else { return Ipam { ring: "off".to_owned(), ..Ipam::default() } };
    let (ring, votes) = match status.ring {
        RingState::None => ("none", None),
        RingState::Awaiting { votes, wanted } => ("awaiting", Some((votes, wanted))),
        RingState::Ready => ("ready", None),
    };
    Ipam {
        ring: ring.to_owned(),
        votes,
        ranges: status.ranges.iter().map(|shown| range(shown, me)).collect(),
        owned: status.owned.iter().cloned().collect(),
        pending: status.pending.iter().map(pending).collect(),
        warnings: warnings(status),
        answered,
        counters: serde_json::to_value(status.counters).unwrap_or_default(),
    }
}

/// What somebody should look at.
pub(super) fn warnings(status: &Status) -> Vec<String> {
    let foreign = status.foreign.iter().map(ToString::to_string);
    let conflicts = status.conflicts.iter().map(conflict);
    let discarded = status.discarded.iter().map(|why| format!("the addresses on disk were not used: {why}"));
    let removals = status.removals.iter().map(|peer| format!("the addresses of {peer} are being taken over"));
    let left = status.left.then(|| "this host has handed on its addresses: it gives out none until it is launched again".to_owned());
    foreign.chain(conflicts).chain(discarded).chain(removals).chain(quarantine(status)).chain(left).collect()
}

fn quarantine(status: &Status) -> Option<String> {
    let waiting: Vec<String> = status.quarantined_for.iter().map(ToString::to_string).collect();
    let text = || format!("this host's own free addresses are not used until it has heard from {}", waiting.join(", "));
    (!waiting.is_empty()).then(text)
}

fn conflict(conflict: &Conflict) -> String {
    let Conflict { address, owner, peer, user } = conflict;
    let user = user.as_ref().map(|user| format!(" by {user}")).unwrap_or_default();
    format!("{address} is in use here by {owner} and on peer {peer}{user}: detach one of them")
}

fn pending(pending: &PendingStatus) -> String {
    format!("{}, for another {:.1} s", pending.wants, pending.left_ms as f64 / 1e3)
}

fn range(status: &RangeStatus, me: &str) -> IpamRange {
    IpamRange {
        range: status.range,
        subnet: status.subnet,
        owners: status.owners.iter().map(|shown| owner(shown, me)).collect(),
        free: status.own.free.clone(),
        used: status.own.used,
        quarantined: status.own.quarantined.clone(),
    }
}

fn owner(status: &OwnerStatus, me: &str) -> IpamOwner {
    let name = status.name.to_string();
    IpamOwner {
        me: name == me,
        name,
        nickname: Some(status.nickname.clone()).filter(|nickname| !nickname.is_empty()),
        reachable: status.reachable,
        addresses: status.size.clone(),
        percent: status.percent,
        pieces: status.pieces,
    }
}
