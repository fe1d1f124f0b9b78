//! What containers want: allocate, claim, free, and the requests that wait.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::block::{Block, Family, number};
use super::machine::Ipam;
use super::space::Space;
use super::{Answer, Error};
use crate::Time;
use crate::peer::PeerName;

/// How long a request that nobody in reach can fulfil waits for others: a link that has just broken may be there again, and one that
/// is just being made be up.
const HOPE: Time = Time::from_millis(700);

/// A request without an answer yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) wish: Wish,
    pub(super) deadline: Time,
    /// Until when somebody may come into reach who has what is wanted; `None` once that was.
    pub(super) hopes: Option<Time>,
}

/// What is requested.
#[derive(Clone, Debug)]
pub(super) enum Wish {
    Allocate { owner: String, subnets: Vec<IpNet> },
    Claim { owner: String, address: IpNet },
    Remove { peer: PeerName },
    Prime,
}

impl Wish {
    fn owner(&self) -> Option<&str> {
        match self {
            Self::Allocate { owner, .. } | Self::Claim { owner, .. } => Some(owner),
            Self::Remove { .. } | Self::Prime => None,
        }
    }

    /// Whether a ring would help.
    pub(super) fn wants_ring(&self) -> bool {
        !matches!(self, Self::Remove { .. })
    }
}

impl Ipam {
    pub(super) fn allocate(&mut self, now: Time, request: u64, owner: String, subnets: Vec<IpNet>, deadline: Time) {
        let subnets = if subnets.is_empty() { self.spaces.iter().map(|space| space.subnet).collect() } else { subnets };
        match subnets.iter().find_map(|subnet| self.objection(*subnet)) {
            Some(error) => self.out.refuse(request, error),
            None => self.wish(now, request, deadline, Wish::Allocate { owner, subnets }),
        }
    }

    fn objection(&self, subnet: IpNet) -> Option<Error> {
        let host_bits = subnet.max_prefix_len() - subnet.prefix_len();
        if subnet != subnet.trunc() || host_bits < 2 {
            return Some(Error::NotASubnet(subnet));
        }
        let outside = || Error::Outside { subnet, ranges: self.config.ranges.clone() };
        let Some((index, _)) = self.part_of(subnet) else { return Some(outside()) };
        let Space { range, subnet: default, .. } = self.spaces[index];
        // A default subnet may be wider than the range: the rest of it is given by hand.
        let wider = subnet.prefix_len() < range.prefix_len() && subnet != default;
        wider.then_some(Error::Wider { subnet, range })
    }

    pub(super) fn claim(&mut self, now: Time, request: u64, owner: String, address: IpNet, deadline: Time) {
        if is_edge(address) {
            return self.out.refuse(request, Error::NotAHost(address));
        }
        self.wish(now, request, deadline, Wish::Claim { owner, address });
    }

    pub(super) fn prime(&mut self, now: Time, request: u64, deadline: Time) {
        self.wish(now, request, deadline, Wish::Prime);
    }

    /// Fulfils a wish now, or keeps it.
    pub(super) fn wish(&mut self, now: Time, request: u64, deadline: Time, wish: Wish) {
        if self.pending.contains_key(&request) || self.out.waits(request) {
            return self.out.refuse(request, Error::Duplicate(request));
        }
        if self.left {
            return self.out.refuse(request, Error::Left);
        }
        self.pending.insert(request, Pending { wish, deadline, hopes: Some(now + HOPE) });
        self.attempt(request);
    }

    /// Looks at all requests that wait.
    pub(super) fn advance(&mut self) {
        let requests: Vec<u64> = self.pending.keys().copied().collect();
        for request in requests {
            self.attempt(request);
        }
    }

    fn attempt(&mut self, request: u64) {
        let Some(pending) = self.pending.get(&request).cloned() else { return };
        let result = match &pending.wish {
            Wish::Allocate { .. } | Wish::Claim { .. } if self.held.is_some() => None,
            Wish::Allocate { owner, subnets } => self.try_allocate(owner, subnets),
            Wish::Claim { owner, address } => self.try_claim(owner, *address),
            Wish::Prime => self.has_ring().then_some(Ok(Answer::Done)),
            Wish::Remove { .. } => None,
        };
        let hopeless = || pending.hopes.is_none() && self.is_beyond_reach(&pending.wish);
        let result = result.or_else(|| hopeless().then(|| Err(self.explain(&pending.wish))));
        match result {
            None => return,
            Some(Ok(answer)) => self.out.answer(request, pending.deadline, pending.wish.owner(), answer),
            Some(Err(error)) => self.out.refuse(request, error),
        }
        self.pending.remove(&request);
    }

    /// An address of each subnet or none at all; `None` if there may be some later.
    fn try_allocate(&mut self, owner: &str, subnets: &[IpNet]) -> Option<Result<Answer, Error>> {
        let (mut all, mut new) = (Vec::new(), Vec::new());
        for subnet in subnets {
            if let Some(address) = self.owned_in(owner, *subnet) {
                all.push(address);
            } else if let Some(address) = self.next_free(*subnet) {
                self.record(owner, address);
                new.push(address);
                all.push(address);
            } else {
                new.iter().for_each(|address| self.forget(owner, address.addr()));
                return self.hopeless(*subnet).then_some(Err(Error::Full { subnet: *subnet }));
            }
        }
        if !new.is_empty() {
            self.out.changed();
        }
        Some(Ok(Answer::Addresses(all)))
    }

    /// The address that an owner has in a subnet.
    pub(super) fn owned_in(&self, owner: &str, subnet: IpNet) -> Option<IpNet> {
        self.owned.get(owner)?.iter().find(|address| subnet.contains(&address.addr())).copied()
    }

    fn next_free(&self, subnet: IpNet) -> Option<IpNet> {
        let (index, _) = self.part_of(subnet)?;
        let space = &self.spaces[index];
        let address = space.family.address(space.next(self.config.name, subnet)?);
        IpNet::new(address, subnet.prefix_len()).ok()
    }

    fn try_claim(&mut self, owner: &str, net: IpNet) -> Option<Result<Answer, Error>> {
        let address = net.addr();
        let answer = Some(Ok(Answer::Addresses(vec![net])));
        let Some(index) = self.space_of(address) else { return answer };
        match self.users.get(&address) {
            Some(user) if user == owner => return answer,
            Some(user) => return Some(Err(Error::Taken { address, owner: user.clone() })),
            None => {}
        }
        let space = &self.spaces[index];
        if space.is_free(self.config.name, number(address)) {
            self.record(owner, net);
            self.out.changed();
            return answer;
        }
        let (peer, owner) = self.refused(index, number(address))?;
        Some(Err(Error::TakenElsewhere { address, peer: self.named(peer), owner }))
    }

    /// Notes that an owner has an address; says whether that is news.
    pub(super) fn record(&mut self, owner: &str, net: IpNet) -> bool {
        if self.users.contains_key(&net.addr()) {
            return false;
        }
        self.users.insert(net.addr(), owner.to_owned());
        self.owned.entry(owner.to_owned()).or_default().push(net);
        if let Some(index) = self.space_of(net.addr()) {
            self.spaces[index].take(number(net.addr()));
        }
        true
    }

    /// Notes that an owner does not have an address any more.
    fn forget(&mut self, owner: &str, address: IpAddr) {
        if self.users.get(&address).is_none_or(|user| user != owner) {
            return;
        }
        self.users.remove(&address);
        self.displaced.remove(&address);
        self.conflicts.remove(&address);
        if let Some(addresses) = self.owned.get_mut(owner) {
            addresses.retain(|net| net.addr() != address);
            if addresses.is_empty() {
                self.owned.remove(owner);
            }
        }
        if let Some(index) = self.space_of(address) {
            self.spaces[index].put_back(number(address));
        }
    }

    pub(super) fn free(&mut self, owner: &str) {
        let waiting = |pending: &Pending| pending.wish.owner() == Some(owner);
        let cancelled: Vec<u64> = self.pending.iter().filter(|(_, pending)| waiting(pending)).map(|(request, _)| *request).collect();
        for request in cancelled {
            self.pending.remove(&request);
            self.out.refuse(request, Error::Cancelled);
        }
        self.out.cancel(owner);
        for net in self.owned.get(owner).cloned().unwrap_or_default() {
            self.free_address(owner, net.addr());
        }
    }

    pub(super) fn free_address(&mut self, owner: &str, address: IpAddr) {
        if self.users.get(&address).is_some_and(|user| user == owner) {
            self.forget(owner, address);
            if let Some(index) = self.space_of(address) {
                self.spaces[index].rest(number(address));
            }
            self.out.changed();
            self.stirred = true;
        }
    }

    pub(super) fn reconcile(&mut self, present: BTreeMap<String, Vec<IpNet>>) {
        let gone: Vec<String> = self.owned.keys().filter(|owner| !present.contains_key(*owner)).cloned().collect();
        for owner in gone {
            self.free(&owner);
        }
        for (owner, addresses) in &present {
            for net in addresses {
                self.believe_eyes(&present, owner, net.addr());
                self.found_in_use(owner, *net);
            }
        }
        self.find_displaced();
        self.stirred = true;
    }

    /// An address that is remembered to be of an owner who does not use it, and found with another, is the other's.
    fn believe_eyes(&mut self, present: &BTreeMap<String, Vec<IpNet>>, owner: &str, address: IpAddr) {
        let Some(user) = self.users.get(&address).filter(|user| *user != owner).cloned() else { return };
        if !present.get(&user).is_some_and(|nets| nets.iter().any(|net| net.addr() == address)) {
            self.free_address(&user, address);
        }
    }

    fn found_in_use(&mut self, owner: &str, net: IpNet) {
        if self.space_of(net.addr()).is_none() {
            return;
        }
        if self.record(owner, net) {
            self.out.changed();
        } else if let Some(user) = self.users.get(&net.addr()).filter(|user| *user != owner) {
            tracing::warn!(address = %net.addr(), owner, %user, "two owners on this host use one address");
            let conflict = super::Conflict { address: net.addr(), owner: owner.to_owned(), peer: self.myself(), user: Some(user.clone()) };
            self.conflicts.insert(net.addr(), conflict);
        }
    }

    /// Which addresses in use here lie in the space of other peers.
    pub(super) fn find_displaced(&mut self) {
        let me = self.config.name;
        let elsewhere = |address: &IpAddr| {
            let space = self.spaces.iter().find(|space| space.contains(*address));
            space.and_then(|space| space.owner(number(*address))).is_some_and(|owner| owner != me)
        };
        self.displaced = self.users.keys().copied().filter(elsewhere).collect();
        self.conflicts.retain(|address, conflict| self.displaced.contains(address) || conflict.peer.name == me);
    }

    /// Of which subnets an owner has no address and there is none free here.
    fn lacking(&self, owner: &str, subnets: &[IpNet]) -> impl Iterator<Item = IpNet> {
        subnets.iter().copied().filter(move |subnet| self.owned_in(owner, *subnet).is_none() && self.next_free(*subnet).is_none())
    }

    /// Whether only peers that are out of reach have what is wanted: one that came into reach would be asked.
    fn is_beyond_reach(&self, wish: &Wish) -> bool {
        let peers = || self.view.iter().flat_map(|view| view.peers.values());
        // With a link but no tunnel: most often it is about to come up.
        let arriving = || peers().any(|peer| peer.linked && peer.next_hop.is_none());
        let waits = self.held.is_some() || self.expected.is_some() || !self.has_ring() || arriving();
        !waits
            && match wish {
                Wish::Allocate { owner, subnets } => self.lacking(owner, subnets).any(|subnet| self.is_spent(subnet)),
                Wish::Claim { address, .. } => {
                    let holder = self.space_of(address.addr()).and_then(|index| self.spaces[index].owner(number(address.addr())));
                    holder.is_some_and(|holder| holder != self.config.name && !self.reachable(holder))
                }
                Wish::Remove { .. } | Wish::Prime => false,
            }
    }

    /// Requests whose time has come say what they waited for.
    pub(super) fn expire(&mut self, now: Time) {
        for pending in self.pending.values_mut() {
            self.stirred |= pending.hopes.take_if(|until| *until <= now).is_some();
        }
        let late: Vec<u64> = self.pending.iter().filter(|(_, pending)| pending.deadline <= now).map(|(request, _)| *request).collect();
        for request in late {
            // Perhaps it became possible in this very moment.
            self.attempt(request);
            if let Some(pending) = self.pending.remove(&request) {
                let error = self.explain(&pending.wish);
                self.out.refuse(request, error);
            }
        }
    }

    fn explain(&self, wish: &Wish) -> Error {
        match wish {
            Wish::Remove { peer } => Error::RemovalWaits { peer: self.named(*peer), waiting: self.missing() },
            _ if !self.has_ring() => self.undecided(),
            Wish::Claim { address, .. } => self.explain_claim(*address),
            Wish::Allocate { owner, subnets } => self.explain_allocation(owner, subnets),
            Wish::Prime => self.undecided(),
        }
    }

    fn explain_claim(&self, net: IpNet) -> Error {
        let address = net.addr();
        let holder = self.space_of(address).and_then(|index| self.spaces[index].owner(number(address)));
        match holder.filter(|holder| *holder != self.config.name) {
            None => Error::Quarantined { subnet: net, waiting: self.missing() },
            Some(holder) if self.reachable(holder) => Error::HolderSilent { address, peer: self.named(holder) },
            Some(holder) => Error::HolderUnreachable { address, peer: self.named(holder) },
        }
    }

    fn explain_allocation(&self, owner: &str, subnets: &[IpNet]) -> Error {
        // That nobody in reach can help counts more than that somebody has not yet.
        let mut lacking: Vec<IpNet> = self.lacking(owner, subnets).collect();
        lacking.sort_by_key(|subnet| !self.is_spent(*subnet));
        let Some(subnet) = lacking.first().or(subnets.first()).copied() else { return Error::Cancelled };
        let Some((index, part)) = self.part_of(subnet) else {
            return Error::Outside { subnet, ranges: self.config.ranges.clone() };
        };
        if self.barred(index, part) {
            return Error::Quarantined { subnet, waiting: self.missing() };
        }
        let others = self.others(index, part);
        let unreachable: BTreeMap<PeerName, u128> =
            others.iter().filter(|(peer, _)| !self.reachable(**peer)).map(|(p, s)| (*p, *s)).collect();
        if !unreachable.is_empty() {
            let percent = unreachable.values().sum::<u128>().saturating_mul(100).div_ceil(part.size().max(1));
            let peers = unreachable.keys().map(|peer| self.named(*peer)).collect();
            return Error::Unreachable { subnet, peers, percent: u8::try_from(percent).unwrap_or(100).min(100) };
        }
        let peers: Vec<_> = others.keys().map(|peer| self.named(*peer)).collect();
        if peers.is_empty() { Error::Full { subnet } } else { Error::NotInTime { subnet, peers } }
    }

    /// Whether some of our own space in a block is in quarantine.
    pub(super) fn barred(&self, index: usize, part: Block) -> bool {
        self.spaces[index].quarantined(self.config.name, part).next().is_some()
    }

    /// The other owners of a block, and how much of it they own.
    pub(super) fn others(&self, index: usize, part: Block) -> BTreeMap<PeerName, u128> {
        let mut others = BTreeMap::new();
        for (span, token) in self.spaces[index].ring.iter().flat_map(|ring| ring.spans(part)) {
            if token.owner != self.config.name {
                *others.entry(token.owner).or_default() += span.size();
            }
        }
        others
    }
}

/// Whether an address is the first or last one of its network, which no container can have.
fn is_edge(net: IpNet) -> bool {
    let v4 = Family::of(net.addr()) == Family::V4;
    net.max_prefix_len() - net.prefix_len() >= 2 && (net.addr() == net.network() || v4 && net.addr() == net.broadcast())
}
