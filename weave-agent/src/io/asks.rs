//! What is asked of the keeper of addresses, and who waits for the answer.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::oneshot;

use crate::Time;
use crate::ipam::{Answer, Error, Input};
use crate::status::Answered;

/// An answer comes within this time, whatever it is: asking other hosts takes a second each at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many answers [`Asks::answered`] is about.
const REMEMBERED: usize = 1_000;

/// A request of [`crate::ipam`], without its number and deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Free addresses for a port.
    Allocate {
        /// The port's interface.
        owner: String,
        /// Of these subnets; of the default ones if empty.
        subnets: Vec<IpNet>,
    },
    /// This address for a port.
    Claim {
        /// The port's interface.
        owner: String,
        /// With the prefix of its subnet.
        address: IpNet,
    },
    /// Take over what a dead peer had.
    Remove {
        /// Name or nickname.
        peer: String,
    },
    /// Hand on everything.
    Leave,
    /// Wait until there is something to allocate from.
    Prime,
}

/// Where an answer goes.
pub type Told = oneshot::Sender<Result<Answer, Error>>;

/// Requests under way.
#[derive(Debug, Default)]
pub struct Asks {
    last: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// How long the latest answers took.
    took: VecDeque<Time>,
}

#[derive(Debug)]
struct Waiting {
    told: Told,
    since: Time,
}

impl Asks {
    /// What the router is to be told.
    pub fn begin(&mut self, now: Time, ask: Ask, told: Told) -> Input {
        self.last += 1;
        self.waiting.insert(self.last, Waiting { told, since: now });
        let (request, deadline) = (self.last, now + PATIENCE);
        match ask {
            Ask::Allocate { owner, subnets } => Input::Allocate { request, owner, subnets, deadline },
            Ask::Claim { owner, address } => Input::Claim { request, owner, address, deadline },
            Ask::Remove { peer } => Input::Remove { request, peer, deadline },
            Ask::Leave => Input::Leave { request, deadline },
            Ask::Prime => Input::Prime { request, deadline },
        }
    }

    /// What the router has answered. Whoever asked may have left.
    pub fn end(&mut self, now: Time, request: u64, result: Result<Answer, Error>) {
        let Some(Waiting { told, since }) = self.waiting.remove(&request) else { return };
        if self.took.len() == REMEMBERED {
            self.took.pop_front();
        }
        self.took.push_back(now.saturating_sub(since));
        drop(told.send(result));
    }

    /// How long answers took lately.
    pub fn answered(&self) -> Answered {
        let mut took: Vec<Time> = self.took.iter().copied().collect();
        took.sort_unstable();
        let at = |percent: usize| took.get(took.len() * percent / 100).or(took.last()).map_or(0.0, |time| time.as_secs_f64() * 1e3);
        Answered { requests: took.len(), p50_ms: at(50), p99_ms: at(99), max_ms: at(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_reach_who_asked_and_their_times_are_told() {
        let mut asks = Asks::default();
        let ask = |asks: &mut Asks| {
            let (told, answer) = oneshot::channel();
            let Input::Prime { request, .. } = asks.begin(Time::ZERO, Ask::Prime, told) else { panic!() };
            (request, answer)
        };
        let ((first, mut one), (second, mut two)) = (ask(&mut asks), ask(&mut asks));
        asks.end(Time::from_millis(30), second, Ok(Answer::Done));
        asks.end(Time::from_millis(10), first, Err(Error::Left));
        asks.end(Time::from_millis(99), first, Ok(Answer::Done));
        assert_eq!((one.try_recv().unwrap(), two.try_recv().unwrap()), (Err(Error::Left), Ok(Answer::Done)));
        assert_eq!(asks.answered(), Answered { requests: 2, p50_ms: 30.0, p99_ms: 30.0, max_ms: 30.0 });
    }
}
