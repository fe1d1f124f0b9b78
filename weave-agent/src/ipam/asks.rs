//! Space moves: we ask the peers that have some, one after the other, and give when asked.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Conflict;
use super::block::{Block, number};
use super::machine::Ipam;
use super::message::{Ask, MAX_IN_USE, Message, Outcome, Reply, clean};
use super::requests::Wish;
use super::ring::MAX_TOKENS;
use crate::Time;
use crate::peer::PeerName;

/// How long a peer may take to answer before the next one is asked.
const PATIENCE: Time = Time::from_secs(1);
/// After all were asked in vain, before the first is asked again.
const PAUSE: Time = Time::from_millis(500);
/// The same for addresses that were found in use in other peers' space.
const LONG_PAUSE: Time = Time::from_secs(5);

/// Most addresses remembered for others while our space is in quarantine.
const MAX_RESERVED: usize = 1 << 16;

/// What is wanted from other peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Goal {
    /// Index of the range.
    range: usize,
    /// Where.
    block: Block,
    /// All of it (one address), not some of it.
    all: bool,
}

/// How far we are with it. Requests that want the same share one.
#[derive(Clone, Debug, Default)]
pub(super) struct Want {
    asked: Option<Asked>,
    /// Asked since the last pause.
    tried: BTreeSet<PeerName>,
    /// Who said that there is nothing free.
    full: BTreeSet<PeerName>,
    /// Who said that it is in use, and by whom.
    taken: Option<(PeerName, String)>,
    /// Ask nobody before this.
    resume: Time,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    id: u64,
    to: PeerName,
    due: Time,
}

impl Want {
    /// When something is to be done about it.
    pub(super) fn due(&self) -> Time {
        self.asked.map_or(self.resume, |asked| asked.due)
    }
}

impl Ipam {
    /// What requests that wait, and addresses in use in other peers' space, want from others.
    fn goals(&self) -> BTreeSet<Goal> {
        let mut goals = BTreeSet::new();
        if !self.has_ring() || self.left {
            return goals;
        }
        for pending in self.pending.values() {
            match &pending.wish {
                Wish::Allocate { owner, subnets } => {
                    let lacking = subnets.iter().filter(|subnet| self.owned_in(owner, **subnet).is_none());
                    goals.extend(lacking.filter_map(|subnet| self.goal(*subnet)));
                }
                Wish::Claim { address, .. } => goals.extend(self.single(address.addr())),
                Wish::Remove { .. } | Wish::Prime => {}
            }
        }
        goals.extend(self.displaced.iter().filter_map(|address| self.single(*address)));
        goals
    }

    /// Space for a subnet in which we have none that is free.
    fn goal(&self, subnet: ipnet::IpNet) -> Option<Goal> {
        let (range, block) = self.part_of(subnet)?;
        let lacking = self.spaces[range].next(self.config.name, subnet).is_none();
        lacking.then_some(Goal { range, block, all: false })
    }

    /// An address that another peer owns.
    fn single(&self, address: IpAddr) -> Option<Goal> {
        let range = self.space_of(address)?;
        let number = number(address);
        let elsewhere = self.spaces[range].owner(number).is_some_and(|owner| owner != self.config.name);
        elsewhere.then_some(Goal { range, block: Block::single(number), all: true })
    }

    /// Asks whom it is time to ask.
    pub(super) fn pursue(&mut self, now: Time) {
        let goals = self.goals();
        self.wants.retain(|goal, _| goals.contains(goal));
        for goal in goals {
            let mut want = self.wants.remove(&goal).unwrap_or_default();
            self.pursue_one(now, goal, &mut want);
            self.wants.insert(goal, want);
        }
    }

    fn pursue_one(&mut self, now: Time, goal: Goal, want: &mut Want) {
        if want.asked.take_if(|asked| asked.due <= now).is_some() {
            self.counters.asks_unanswered += 1;
        }
        if want.asked.is_some() || now < want.resume {
            return;
        }
        let Some(to) = self.choose(goal, &want.tried) else {
            let found = goal.all && self.displaced.iter().any(|address| goal.block.contains(number(*address)));
            want.resume = now + if found { LONG_PAUSE } else { PAUSE };
            want.tried.clear();
            want.full.clear();
            return;
        };
        let id = self.next_ask;
        self.next_ask = id.wrapping_add(1);
        want.tried.insert(to);
        want.asked = Some(Asked { id, to, due: now + PATIENCE });
        self.counters.asks_sent += 1;
        let range = u8::try_from(goal.range).unwrap_or(u8::MAX);
        let ask = Ask { id, digest: self.digest(), range, start: goal.block.start, end: goal.block.end, all: goal.all };
        self.unicast(to, &Message::Ask(ask));
    }

    /// Who is to be asked next: of the reachable owners the one that said it has most; of several, any.
    fn choose(&mut self, goal: Goal, tried: &BTreeSet<PeerName>) -> Option<PeerName> {
        let others = self.others(goal.range, goal.block);
        let able: Vec<PeerName> = others.keys().copied().filter(|peer| self.reachable(*peer) && !tried.contains(peer)).collect();
        let level = |peer: &PeerName| {
            let told = self.levels.get(peer).and_then(|levels| levels.get(goal.range)).copied();
            told.unwrap_or_else(|| u8::try_from(128 - others[peer].leading_zeros()).unwrap_or(u8::MAX))
        };
        let most = able.iter().map(level).max()?;
        let mut best: Vec<PeerName> = able.iter().copied().filter(|peer| level(peer) == most).collect();
        let index = rand::RngExt::random_range(&mut self.rng, 0..best.len());
        Some(best.swap_remove(index))
    }

    /// Those that are not reachable any more will not answer.
    pub(super) fn give_up_on_unreachable(&mut self, now: Time) {
        let gone: BTreeSet<PeerName> =
            self.wants.values().filter_map(|want| want.asked.map(|asked| asked.to)).filter(|peer| !self.reachable(*peer)).collect();
        for want in self.wants.values_mut() {
            want.resume = want.resume.min(now);
            if let Some(asked) = want.asked.as_mut().filter(|asked| gone.contains(&asked.to)) {
                asked.due = now;
            }
        }
    }

    /// Whether there is nothing to be hoped for in a subnet: all who own some of it have said that it is full.
    pub(super) fn hopeless(&self, subnet: ipnet::IpNet) -> bool {
        self.all_others(subnet, |_| false)
    }

    /// Whether there is nothing to be hoped for of those who are in reach: the other owners have said that it is full.
    pub(super) fn is_spent(&self, subnet: ipnet::IpNet) -> bool {
        self.all_others(subnet, |peer| !self.reachable(peer))
    }

    /// Whether all other owners of a part of a subnet have said that it is full, or are excused.
    fn all_others(&self, subnet: ipnet::IpNet, is_excused: impl Fn(PeerName) -> bool) -> bool {
        let Some((range, block)) = self.part_of(subnet) else { return true };
        if !self.has_ring() || self.barred(range, block) {
            return false;
        }
        let full = self.wants.get(&Goal { range, block, all: false }).map(|want| &want.full);
        self.others(range, block).keys().all(|peer| is_excused(*peer) || full.is_some_and(|full| full.contains(peer)))
    }

    /// Who refused to hand over an address, and who uses it there.
    pub(super) fn refused(&self, range: usize, address: u128) -> Option<(PeerName, Option<String>)> {
        let want = self.wants.get(&Goal { range, block: Block::single(address), all: true })?;
        let (peer, user) = want.taken.clone()?;
        (self.spaces[range].owner(address) == Some(peer)).then_some((peer, Some(user).filter(|user| !user.is_empty())))
    }

    /// A peer wants space.
    pub(super) fn asked(&mut self, from: PeerName, ask: &Ask) {
        self.counters.asks_received += 1;
        let outcome = self.grant(from, ask);
        match outcome {
            Outcome::Granted(..) => self.counters.grants += 1,
            _ => self.counters.refusals += 1,
        }
        let state = super::message::State { reply: Some(Reply { id: ask.id, outcome }), ..self.state() };
        self.unicast(from, &Message::State(Box::new(state)));
    }

    fn grant(&mut self, to: PeerName, ask: &Ask) -> Outcome {
        let me = self.config.name;
        let Some(space) = self.spaces.get(usize::from(ask.range)) else { return Outcome::NotNow };
        let within = Block::new(ask.start, ask.end);
        let sound = ask.digest == self.digest() && !within.is_empty() && space.block().covers(within);
        let Some(ring) = space.ring.as_ref().filter(|_| sound) else { return Outcome::NotNow };
        if ring.owned_by(me, within).next().is_none() {
            return Outcome::Elsewhere;
        }
        // We might own it no more, or the ring may not take it.
        if self.quarantined || ring.tokens().len() + 2 > MAX_TOKENS {
            return Outcome::NotNow;
        }
        let block = if ask.all { self.exactly(usize::from(ask.range), within, 1) } else { space.spare(me, within).ok_or(Outcome::Full) };
        match block {
            Ok(block) => {
                self.give(usize::from(ask.range), block, to);
                Outcome::Granted(block.start, block.end)
            }
            Err(outcome) => outcome,
        }
    }

    /// An address of ours that a peer claims. An owner keeps one address (see `Space::spare`), but not one that others use.
    fn exactly(&self, range: usize, block: Block, keep: u128) -> Result<Block, Outcome> {
        let space = &self.spaces[range];
        if block.size() != 1 {
            return Err(Outcome::NotNow);
        }
        if let Some(user) = self.users.get(&space.family.address(block.start)) {
            return Err(Outcome::Taken(clean(user)));
        }
        let last = space.ring.as_ref().is_none_or(|ring| ring.size_of(self.config.name) <= keep);
        if space.is_free(self.config.name, block.start) && !last { Ok(block) } else { Err(Outcome::NotNow) }
    }

    fn give(&mut self, range: usize, block: Block, to: PeerName) {
        if let Some(ring) = self.spaces[range].ring.as_mut() {
            ring.grant(block, to);
        }
        self.ring_changed();
        self.news();
    }

    /// Addresses in use here in the space of others, for messages.
    pub(super) fn displaced_numbers(&self) -> Vec<(u8, u128)> {
        let numbered = |address: &IpAddr| Some((u8::try_from(self.space_of(*address)?).ok()?, number(*address)));
        self.displaced.iter().filter_map(numbered).take(MAX_IN_USE).collect()
    }

    /// A peer uses addresses that may be in our space.
    pub(super) fn spoken_for(&mut self, peer: PeerName, in_use: &[(u8, u128)]) {
        for (range, address) in in_use.iter().map(|(range, address)| (usize::from(*range), *address)) {
            let Some(owner) = self.spaces.get(range).and_then(|space| space.owner(address)) else { continue };
            let (ours, soon_ours) = (owner == self.config.name, self.removals.contains_key(&owner));
            if ours && !self.quarantined {
                self.concede(range, address, peer);
            } else if (ours || soon_ours) && self.reserved.len() < MAX_RESERVED {
                self.reserved.insert((range, address), peer);
            }
        }
    }

    /// Gives a peer an address that it uses, if we do not.
    pub(super) fn concede(&mut self, range: usize, address: u128, peer: PeerName) {
        let room = self.spaces[range].ring.as_ref().is_some_and(|ring| ring.tokens().len() + 2 <= MAX_TOKENS);
        if let Ok(block) = self.exactly(range, Block::single(address), 0)
            && room
        {
            self.counters.grants += 1;
            self.give(range, block, peer);
        }
    }

    /// The answer to an ask of ours; the ring that came with it is merged already.
    pub(super) fn replied(&mut self, now: Time, from: PeerName, reply: Reply) {
        let ours = |want: &Want| want.asked.is_some_and(|asked| asked.id == reply.id && asked.to == from);
        let Some((goal, want)) = self.wants.iter_mut().find(|(_, want)| ours(want)) else { return };
        let goal = *goal;
        want.asked = None;
        want.taken = None;
        want.resume = now;
        self.stirred = true;
        match reply.outcome {
            Outcome::Granted(start, end) => {
                // It may have more where that came from.
                want.tried.remove(&from);
                // Given after our start: whatever we forgot, this is ours. (The ring says so too, or it is not free.)
                self.spaces[goal.range].trust(Block::new(start, end).and(goal.block));
            }
            Outcome::Full => {
                want.full.insert(from);
            }
            Outcome::Taken(user) => {
                want.taken = Some((from, user.clone()));
                self.note_conflict(goal, from, user);
            }
            Outcome::Elsewhere | Outcome::NotNow => {}
        }
    }

    fn note_conflict(&mut self, goal: Goal, from: PeerName, user: String) {
        let address = self.spaces[goal.range].family.address(goal.block.start);
        let Some(owner) = self.users.get(&address).cloned().filter(|_| self.displaced.contains(&address)) else { return };
        let conflict = Conflict { address, owner, peer: self.named(from), user: Some(user) };
        tracing::warn!(%address, owner = %conflict.owner, peer = %conflict.peer, "an address is in use on two hosts");
        self.conflicts.insert(address, conflict);
    }

    /// Ranges and seeds in one number (FNV-1a): who has another one speaks of another ring.
    pub(super) fn digest(&self) -> u64 {
        let ranges = self.config.ranges.iter().map(ToString::to_string);
        let text: String = ranges.chain(self.seeds.iter().map(ToString::to_string)).collect::<Vec<_>>().join(" ");
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}
