//! Addresses of ports: asked of the loop before a port has them, given back after it lost them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use tokio::sync::{OwnedMutexGuard, oneshot};

use super::api::{Refusal, Wanted};
use super::asks::Ask;
use super::event::{Event, Events};
use super::net::{NetnsId, new_port_name};
use crate::ipam::{self, Answer};

/// Where ports get their addresses.
#[derive(Clone, Debug)]
pub struct Leases {
    events: Events,
    turns: Turns,
    ports: Arc<AtomicU32>,
}

/// Addresses that a port is about to get.
#[derive(Debug)]
pub struct Lease {
    /// The port's interface.
    pub owner: String,
    /// What is new.
    pub addresses: Vec<IpNet>,
    /// All that was asked for, also what the port has already.
    pub all: Vec<IpNet>,
}

type Turn = Arc<tokio::sync::Mutex<()>>;

/// One change of a container at a time: two would each make a port.
#[derive(Clone, Debug, Default)]
struct Turns(Arc<Mutex<BTreeMap<NetnsId, Turn>>>);

impl Turns {
    async fn of(&self, container: NetnsId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever waits for its turn, or has it, holds one more.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(container).or_default())
        };
        turn.lock_owned().await
    }
}

impl Leases {
    /// From the loop at the other end of `events`; `seed` is a random number.
    pub fn new(events: Events, seed: u32) -> Self {
        Self { events, turns: Turns::default(), ports: Arc::new(AtomicU32::new(seed)) }
    }

    /// A name for a port that no port of ours had before: addresses belong to ports by name, and what is still to be freed of
    /// a dead one must not be the next one's.
    pub fn new_port(&self) -> String {
        new_port_name(self.ports.fetch_add(1, Ordering::Relaxed))
    }

    /// Waits until nobody else changes this container.
    pub async fn turn(&self, container: NetnsId) -> OwnedMutexGuard<()> {
        self.turns.of(container).await
    }

    /// What `wanted` asks for beyond what the port `has`; all of it or none. Nothing said is an address of the default subnet.
    ///
    /// # Errors
    /// When one of them is not to be had.
    pub async fn take(&self, owner: &str, wanted: &[Wanted], has: &[IpNet]) -> Result<Lease, Refusal> {
        let wanted = if wanted.is_empty() { &[Wanted::Default] } else { wanted };
        let mut lease = Lease { owner: owner.to_owned(), addresses: Vec::new(), all: Vec::new() };
        for asked in wanted {
            match self.one(owner, asked).await {
                Ok(given) => lease.add(&given, has),
                Err(refusal) => {
                    self.give_back(&lease.owner, &lease.addresses).await;
                    return Err(refusal);
                }
            }
        }
        Ok(lease)
    }

    /// Addresses that a port has lost, or never got.
    pub async fn give_back(&self, owner: &str, addresses: &[IpNet]) {
        let addresses = addresses.iter().map(IpNet::addr).collect();
        // An agent that is just ending finds out at its next start.
        let _ = self.events.send(Event::Release { owner: owner.to_owned(), addresses }).await;
    }

    /// Anything of the keeper of addresses.
    ///
    /// # Errors
    /// What it says.
    pub async fn ask(&self, ask: Ask) -> Result<Answer, Refusal> {
        let (told, answer) = oneshot::channel();
        self.events.send(Event::Ipam { ask, told }).await.map_err(|_| Refusal::ending())?;
        answer.await.map_err(|_| Refusal::ending())?.map_err(refused)
    }

    async fn one(&self, owner: &str, wanted: &Wanted) -> Result<Vec<IpNet>, Refusal> {
        let owner = owner.to_owned();
        let ask = match *wanted {
            Wanted::This(address) => Ask::Claim { owner, address },
            Wanted::Of(subnet) => Ask::Allocate { owner, subnets: vec![subnet] },
            Wanted::Default => Ask::Allocate { owner, subnets: Vec::new() },
        };
        match self.ask(ask).await? {
            Answer::Addresses(addresses) => Ok(addresses),
            other => Err(Refusal::internal(format!("asked for an address and got {other:?}"))),
        }
    }
}

/// Whose fault it is.
fn refused(error: ipam::Error) -> Refusal {
    use ipam::Error as E;
    match error {
        E::Outside { .. } | E::Wider { .. } | E::NotASubnet(_) | E::NotAHost(_) | E::Myself(_) | E::Ambiguous { .. } => {
            Refusal::bad_request(error)
        }
        E::UnknownPeer { .. } => Refusal::not_found(error),
        E::NotStored => Refusal::internal(error),
        _ => Refusal::conflict(error),
    }
}

impl Lease {
    fn add(&mut self, given: &[IpNet], has: &[IpNet]) {
        let is_new = |address: &&IpNet| !has.iter().chain(&self.addresses).any(|other| other.addr() == address.addr());
        let new: Vec<IpNet> = given.iter().filter(is_new).copied().collect();
        self.addresses.extend(new);
        self.all.extend(given);
    }
}
