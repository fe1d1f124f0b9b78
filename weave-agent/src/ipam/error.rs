//! Why a request could not be fulfilled, for users: what is so, and what to do about it.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::Foreign;
use super::config::list;
use crate::peer::PeerName;

/// A peer, as people know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Named {
    /// Its name; text in JSON.
    #[serde(serialize_with = "shown")]
    pub name: PeerName,
    /// Free text; empty if it is not known.
    pub nickname: String,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nickname.is_empty() { write!(f, "{}", self.name) } else { f.write_str(&self.nickname) }
    }
}

/// A name as people write it.
pub(super) fn shown<S: Serializer>(name: &PeerName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}

/// The same for several.
pub(super) fn all_shown<S: Serializer>(names: &[PeerName], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names.iter().map(ToString::to_string))
}

/// Several peers as people write them.
pub(super) fn names(peers: &[Named]) -> String {
    peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn first(peers: &[Named]) -> String {
    peers.first().map(ToString::to_string).unwrap_or_default()
}

fn strangers(foreign: &[Foreign]) -> String {
    if foreign.is_empty() {
        return "check `weave-agent status connections`".to_owned();
    }
    foreign.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn by(owner: &Option<String>) -> String {
    owner.as_ref().map(|owner| format!(" by {owner}")).unwrap_or_default()
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The first ring is not there yet.
    #[error(
        "the hosts have not agreed yet on who hands out which addresses: {votes} of {wanted} hosts that must take part did; {}",
        strangers(foreign)
    )]
    NoRing {
        /// Hosts heard, ourselves included.
        votes: usize,
        /// How many are a majority.
        wanted: usize,
        /// Hosts that do not take part, for they have another range or came to be apart.
        foreign: Vec<Foreign>,
    },
    /// The same for a host without a vote.
    #[error(
        "no other host has shared out the range yet, and this one has no part in that (--ipalloc-init observer); {}",
        strangers(foreign)
    )]
    NothingToObserve {
        /// Hosts that have another range or came to be apart.
        foreign: Vec<Foreign>,
    },
    /// All who could have one were asked.
    #[error("no address free in {subnet}: all of them are in use; free some, or use another subnet")]
    Full {
        /// In what.
        subnet: IpNet,
    },
    /// Those who have some cannot be asked.
    #[error(
        "no address free in {subnet}: {} {percent} % {} unreachable ({}); if {} gone for good run `weave-agent rmpeer {}`",
        if peers.len() == 1 { "1 peer that owns".to_owned() } else { format!("{} peers that own", peers.len()) },
        if peers.len() == 1 { "is" } else { "are" },
        names(peers),
        if peers.len() == 1 { "it is" } else { "they are" },
        first(peers)
    )]
    Unreachable {
        /// In what.
        subnet: IpNet,
        /// Who.
        peers: Vec<Named>,
        /// How much of the subnet they own.
        percent: u8,
    },
    /// Those who have some did not answer, or could not give any yet.
    #[error("no address free in {subnet} on this host, and none came in time from {}; try again", names(peers))]
    NotInTime {
        /// In what.
        subnet: IpNet,
        /// Who was asked.
        peers: Vec<Named>,
    },
    /// The state on disk may be older than what we did.
    #[error(
        "no address free in {subnet} yet: this host's state may be old, and its own addresses are used again only after {} told what {}; if {} gone for good run `weave-agent rmpeer {}`",
        names(waiting),
        if waiting.len() == 1 { "it knows" } else { "they know" },
        if waiting.len() == 1 { "it is" } else { "they are" },
        first(waiting)
    )]
    Quarantined {
        /// In what.
        subnet: IpNet,
        /// Whose word is missing.
        waiting: Vec<Named>,
    },
    /// Nothing to allocate from.
    #[error("{subnet} lies outside the range {}", list(ranges))]
    Outside {
        /// What was asked for.
        subnet: IpNet,
        /// What there is.
        ranges: Vec<IpNet>,
    },
    /// Most of it could not be given out.
    #[error("net:{subnet} is larger than the range {range} that addresses are given out from: say net:{range}, or a part of it")]
    Wider {
        /// What was asked for.
        subnet: IpNet,
        /// What there is.
        range: IpNet,
    },
    /// Not a network with addresses for containers.
    #[error("{0} will not do: give the start of a network with at least 4 addresses, such as 10.32.1.0/24")]
    NotASubnet(IpNet),
    /// The network's own address, or its broadcast address.
    #[error("{0} cannot be the address of a container: it is the network's first or its last one")]
    NotAHost(IpNet),
    /// Another owner on this host has it.
    #[error("address {address} is already owned by {owner}")]
    Taken {
        /// Which.
        address: IpAddr,
        /// By whom.
        owner: String,
    },
    /// Another peer will not give it.
    #[error("address {address} is in use{} on peer {peer}", by(owner))]
    TakenElsewhere {
        /// Which.
        address: IpAddr,
        /// The peer that has it.
        peer: Named,
        /// By whom there, if it says so.
        owner: Option<String>,
    },
    /// Another peer has it and cannot be asked.
    #[error(
        "address {address} is in the space of peer {peer}, which is unreachable; if it is gone for good run `weave-agent rmpeer {peer}`"
    )]
    HolderUnreachable {
        /// Which.
        address: IpAddr,
        /// The peer that has it.
        peer: Named,
    },
    /// Another peer has it and did not give it in time.
    #[error("address {address} is in the space of peer {peer}, which did not hand it over in time; try again")]
    HolderSilent {
        /// Which.
        address: IpAddr,
        /// The peer that has it.
        peer: Named,
    },
    /// `rmpeer` of ourselves.
    #[error("{0} is this host: to hand on its addresses run `weave-agent reset`")]
    Myself(Named),
    /// No owner of that name.
    #[error("no peer {given:?} owns addresses; those that do: {}", names(owners))]
    UnknownPeer {
        /// What was asked for.
        given: String,
        /// Who owns something.
        owners: Vec<Named>,
    },
    /// Several have the nickname.
    #[error("several peers are called {given:?}: say which, by name: {}", peers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Ambiguous {
        /// What was asked for.
        given: String,
        /// Their names.
        peers: Vec<PeerName>,
    },
    /// It lives.
    #[error("peer {0} is reachable: run `weave-agent reset` there instead")]
    PeerReachable(Named),
    /// Its agent does not run, but its kernel does.
    #[error(
        "peer {0} has no agent that runs, but its containers are still on the network with their addresses, or were until a moment ago: run `weave-agent launch` or `weave-agent reset` there instead; if its host has just died, this again in 5 s"
    )]
    PeerCarries(Named),
    /// Others may have got some of its space.
    #[error(
        "the addresses of {peer} can be taken over only after {} told what came from it: run `weave-agent rmpeer {peer}` again when all of these are reachable; if one is gone for good as well run `weave-agent rmpeer {}` now and then this again",
        names(waiting),
        first(waiting)
    )]
    RemovalWaits {
        /// Who is removed.
        peer: Named,
        /// Whose word is missing.
        waiting: Vec<Named>,
    },
    /// Nobody takes our space.
    #[error("no peer that could take over this host's addresses is reachable: run `weave-agent rmpeer {me}` on one that stays")]
    NoHeir {
        /// Ourselves.
        me: PeerName,
    },
    /// Our state may be old: handing it on would spread it.
    #[error(
        "this host's state may be old and was not compared with {} yet: run `weave-agent rmpeer {me}` on a host that stays",
        names(waiting)
    )]
    StaleHeritage {
        /// Ourselves.
        me: PeerName,
        /// Whose word is missing.
        waiting: Vec<Named>,
    },
    /// After `reset`.
    #[error("this host has handed on its addresses and is leaving the network")]
    Left,
    /// The owner was freed meanwhile.
    #[error("the address is not wanted any more")]
    Cancelled,
    /// The disk takes too long.
    #[error(
        "the address state could not be written to disk in time: `weave-agent status` warns of what is wrong with the state directory; mend that and try again"
    )]
    NotStored,
    /// No range was given.
    #[error("this agent gives out no addresses (its --ipalloc-range is empty): say which one, for example 10.32.1.1/16")]
    Disabled,
    /// Something in the caller.
    #[error("request {0} is still being worked on")]
    Duplicate(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_say_what_to_do() {
        let peers: Vec<Named> = [3, 4].map(|n| Named { name: PeerName([2, 0, 0, 0, 0, n]), nickname: format!("h{n}") }).into();
        let subnet = "10.32.0.0/12".parse().unwrap();
        let text = Error::Unreachable { subnet, peers: peers.clone(), percent: 50 }.to_string();
        let expected = "no address free in 10.32.0.0/12: 2 peers that own 50 % are unreachable (h3, h4); if they are gone for good run `weave-agent rmpeer h3`";
        assert_eq!(text, expected);
        let one = Error::Unreachable { subnet, peers: peers[..1].to_vec(), percent: 25 }.to_string();
        let expected = "no address free in 10.32.0.0/12: 1 peer that owns 25 % is unreachable (h3); if it is gone for good run `weave-agent rmpeer h3`";
        assert_eq!(one, expected);
        let waits = Error::RemovalWaits { peer: peers[0].clone(), waiting: peers[1..].to_vec() }.to_string();
        assert!(waits.contains("of h3") && waits.contains("rmpeer h4"));
        let nameless = Named { name: peers[0].name, nickname: String::new() };
        assert!(Error::Myself(nameless).to_string().starts_with("02:00:00:00:00:03 is this host"));
    }
}
