//! What is asked of the keeper of addresses, and who waits for the answer.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::oneshot;

use crate::Time;
use crate::ipam::{Answer, Error, Input};

/// An answer comes within this time, whatever it is: asking other hosts takes a second each at most.
const PATIENCE: Duration = Duration::from_secs(10);

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
    waiting: BTreeMap<u64, Told>,
}

impl Asks {
    /// What the router is to be told.
    pub fn begin(&mut self, now: Time, ask: Ask, told: Told) -> Input {
        self.last += 1;
        self.waiting.insert(self.last, told);
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
    pub fn end(&mut self, request: u64, result: Result<Answer, Error>) {
        if let Some(told) = self.waiting.remove(&request) {
            drop(told.send(result));
        }
    }
}
