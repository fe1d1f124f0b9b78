//! What is to be seen of a replica.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::config::list;
use super::error::{Named, all_shown, shown};
use super::machine::Ipam;
use super::requests::Wish;
use crate::Time;
use crate::peer::PeerName;

/// A replica at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// One per range, IPv4 first.
    pub ranges: Vec<RangeStatus>,
    /// How far the first ring is.
    pub ring: RingState,
    /// From whom it was made.
    #[serde(serialize_with = "all_shown")]
    pub seeds: Vec<PeerName>,
    /// Addresses in use on this host, with their owners.
    pub owned: Vec<(String, Vec<IpNet>)>,
    /// Peers whose word is missing before our own free space is used again; empty if it is in use.
    pub quarantined_for: Vec<Named>,
    /// Requests that wait.
    pub pending: Vec<PendingStatus>,
    /// Peers that are gone for good, as somebody said with `rmpeer` within the last minutes.
    pub removals: Vec<Named>,
    /// Addresses in use here and elsewhere.
    pub conflicts: Vec<Conflict>,
    /// Addresses in use here that lie in the space of others, who were asked to hand them over.
    pub displaced: Vec<IpAddr>,
    /// Replicas with another range or other seeds, whose words are ignored.
    pub foreign: Vec<Foreign>,
    /// Why the state on disk was not used at the start.
    pub discarded: Option<String>,
    /// This host has handed on its addresses.
    pub left: bool,
    /// Events since the start.
    pub counters: Counters,
}

/// One range.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RangeStatus {
    /// The range.
    pub range: IpNet,
    /// What addresses are taken from if nobody says otherwise.
    pub subnet: IpNet,
    /// Who owns it, ourselves included; empty before there is a ring.
    pub owners: Vec<OwnerStatus>,
    /// This host's part.
    pub own: OwnStatus,
}

/// This host's part of a range. Counts are of addresses; large ones are text, because JSON readers round large numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OwnStatus {
    /// Free to be handed out or given away; not the ends of the range, which no container can have.
    pub free: String,
    /// In use.
    pub used: u64,
    /// Perhaps ours, and not used until every other owner told what it knows.
    pub quarantined: String,
}

/// An owner of part of a range.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OwnerStatus {
    /// Its name.
    #[serde(serialize_with = "shown")]
    pub name: PeerName,
    /// Free text; empty if it is not known.
    pub nickname: String,
    /// Whether it can be asked (true for ourselves).
    pub reachable: bool,
    /// How many addresses, as text.
    pub size: String,
    /// How much of the range.
    pub percent: f64,
    /// In how many pieces.
    pub pieces: usize,
    /// The highest version among them.
    pub version: u64,
    /// Bits of the number of its free addresses, as it told last.
    pub free_bits: Option<u8>,
}

/// How far the first ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum RingState {
    /// Nobody wanted an address yet.
    None,
    /// The hosts vote.
    Awaiting {
        /// Hosts that take part in the latest ballot.
        votes: usize,
        /// How many must.
        wanted: usize,
    },
    /// There is one.
    Ready,
}

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PendingStatus {
    /// Its number.
    pub request: u64,
    /// What it wants, for people.
    pub wants: String,
    /// Milliseconds until it is answered whatever happens.
    pub left_ms: u64,
}

/// An address that two use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// Which.
    pub address: IpAddr,
    /// Who has it here.
    pub owner: String,
    /// The peer that has it too (ourselves if both are on this host).
    pub peer: Named,
    /// Who has it there, if it says so.
    pub user: Option<String>,
}

/// A replica of another network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Foreign {
    /// Who.
    pub peer: Named,
    /// Its ranges.
    pub ranges: Vec<IpNet>,
    /// From whom its ring was made.
    #[serde(serialize_with = "all_shown")]
    pub seeds: Vec<PeerName>,
    /// Our ranges.
    pub our_ranges: Vec<IpNet>,
    /// From whom our ring was made.
    #[serde(serialize_with = "all_shown")]
    pub our_seeds: Vec<PeerName>,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, ranges, our_ranges, .. } = self;
        if ranges != our_ranges {
            return write!(
                f,
                "peer {peer} ({}) has the range {}, this host {}: they do not share addresses; start one of them with the range of the other",
                peer.name,
                list(ranges),
                list(our_ranges)
            );
        }
        let names = |seeds: &[PeerName]| seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        write!(
            f,
            "peer {peer} ({}) shares out the range among {}, this host among {}: they came to be apart and do not share addresses; run `weave-agent reset` on the hosts of one side",
            peer.name,
            names(&self.seeds),
            names(&self.our_seeds)
        )
    }
}

/// Events since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Snapshots handed out to be written.
    pub stores: u64,
    /// Messages that changed our ring.
    pub merges: u64,
    /// Messages of replicas with another range or other seeds.
    pub foreign: u64,
    /// Messages that made no sense.
    pub malformed: u64,
    /// Messages of later versions.
    pub unknown: u64,
    /// Peers we asked for space.
    pub asks_sent: u64,
    /// Of these, not answered in time.
    pub asks_unanswered: u64,
    /// Peers that asked us for space.
    pub asks_received: u64,
    /// Of these, who got some.
    pub grants: u64,
    /// And who did not.
    pub refusals: u64,
}

impl Ipam {
    /// A picture of the replica.
    pub fn status(&self, now: Time) -> Status {
        Status {
            ranges: (0..self.spaces.len()).map(|index| self.range_status(index)).collect(),
            ring: self.ring_state(),
            seeds: self.seeds.clone(),
            owned: self.owned.clone().into_iter().collect(),
            quarantined_for: if self.quarantined { self.missing() } else { Vec::new() },
            pending: self.pending.iter().map(|(request, pending)| pending_status(now, *request, &pending.wish, pending.deadline)).collect(),
            removals: self.removals.keys().map(|peer| self.named(*peer)).collect(),
            conflicts: self.conflicts.values().cloned().collect(),
            displaced: self.displaced.iter().copied().collect(),
            foreign: self.foreign.values().cloned().collect(),
            discarded: self.discarded.as_ref().map(ToString::to_string),
            left: self.left,
            counters: self.counters,
        }
    }

    fn ring_state(&self) -> RingState {
        let (votes, wanted) = self.turnout();
        match (self.has_ring(), self.ballot.is_some() || votes > 0) {
            (true, _) => RingState::Ready,
            (false, true) => RingState::Awaiting { votes, wanted },
            (false, false) => RingState::None,
        }
    }

    fn range_status(&self, index: usize) -> RangeStatus {
        let space = &self.spaces[index];
        let me = self.config.name;
        let owners = space.ring.iter().flat_map(super::ring::Ring::owners).map(|owner| self.owner_status(index, owner)).collect();
        let quarantined: u128 = space.quarantined(me, space.hosts()).map(|block| block.size() - space.count_used(block)).sum();
        let own = OwnStatus {
            free: space.count_free(me, space.hosts()).to_string(),
            used: u64::try_from(space.count_used(space.block())).unwrap_or(u64::MAX),
            quarantined: quarantined.to_string(),
        };
        RangeStatus { range: space.range, subnet: space.subnet, owners, own }
    }

    fn owner_status(&self, index: usize, owner: PeerName) -> OwnerStatus {
        let space = &self.spaces[index];
        let block = space.block();
        let tokens = || space.ring.iter().flat_map(|ring| ring.tokens()).filter(|token| token.owner == owner);
        let size = space.ring.as_ref().map(|ring| ring.size_of(owner)).unwrap_or_default();
        let Named { name, nickname } = self.named(owner);
        // The loss of precision is far below what is shown.
        #[allow(clippy::cast_precision_loss, reason = "a percentage for people")]
        let percent = size as f64 * 100.0 / block.size() as f64;
        OwnerStatus {
            name,
            nickname,
            reachable: owner == self.config.name || self.reachable(owner),
            size: size.to_string(),
            percent,
            pieces: tokens().count(),
            version: tokens().map(|token| token.version).max().unwrap_or_default(),
            free_bits: self.levels.get(&owner).and_then(|levels| levels.get(index)).copied(),
        }
    }
}

fn pending_status(now: Time, request: u64, wish: &Wish, deadline: Time) -> PendingStatus {
    let wants = match wish {
        Wish::Allocate { owner, subnets } => format!("an address in {} for {owner}", list(subnets)),
        Wish::Claim { owner, address } => format!("{address} for {owner}"),
        Wish::Remove { peer } => format!("the space of {peer}"),
        Wish::Prime => "the first ring".to_owned(),
    };
    let left = deadline.saturating_sub(now).as_millis();
    PendingStatus { request, wants, left_ms: u64::try_from(left).unwrap_or(u64::MAX) }
}
