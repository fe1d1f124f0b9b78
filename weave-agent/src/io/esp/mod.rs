//! IPsec for the kernel's tunnel: carries out what [`crate::esp`] orders, and looks that it stays so.

mod guard;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::event::{Event, Events};
use super::net::xfrm::{Present, Xfrm};
use crate::esp::{Id, Input, Key, Op, Protection};

pub use guard::TABLE;

/// How often the kernel's associations and policies are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// The rules behind them are looked at each time this many have been, for it takes a process.
const RULES: u32 = 4;

/// The way to the keeper of IPsec's state.
#[derive(Debug)]
pub struct Esp {
    ops: mpsc::UnboundedSender<Op>,
}

impl Esp {
    /// Carry out an order, after those before.
    pub fn apply(&self, op: Op) {
        // It ends with the agent only.
        let _ = self.ops.send(op);
    }
}

/// What keeps IPsec's state, ready to run.
#[derive(Debug)]
pub struct Keeper {
    xfrm: Xfrm,
    ops: mpsc::UnboundedReceiver<Op>,
    wanted: BTreeMap<Ipv4Addr, Protection>,
    ids: BTreeSet<Id>,
    /// How the rules looked when they were written; `None` if they could not be.
    rules: Option<String>,
    looks: u32,
}

/// Tries whether the kernel and this machine's `nft` can do it, and takes over what an earlier agent left.
///
/// # Errors
/// With what is lacking. What was left is then gone.
pub async fn start() -> Result<(Esp, Keeper, Input)> {
    let started = begin().await;
    if started.is_err()
        && let Err(error) = leave().await
    {
        tracing::debug!("nothing to remove of IPsec: {error:#}");
    }
    started
}

async fn begin() -> Result<(Esp, Keeper, Input)> {
    let xfrm = Xfrm::here()?;
    xfrm.probe().await.context("the kernel has no ESP with AES-GCM (CONFIG_INET_ESP, CONFIG_CRYPTO_GCM)")?;
    guard::probe().await?;
    let (sender, ops) = mpsc::unbounded_channel();
    let mut keeper = Keeper { xfrm, ops, wanted: BTreeMap::new(), ids: BTreeSet::new(), rules: None, looks: 0 };
    let left = keeper.xfrm.present().await?;
    let mut protected = BTreeSet::new();
    for protection in left.whole() {
        if keeper.protect(protection).await.is_ok() {
            protected.insert(protection.remote);
        }
    }
    for protection in left.protections.keys().filter(|protection| !protected.contains(&protection.remote)) {
        keeper.xfrm.unprotect(protection).await?;
    }
    keeper.write_rules().await?;
    keeper.ids.clone_from(&left.ids);
    Ok((Esp { ops: sender }, keeper, Input::Found { protected, ids: left.ids }))
}

/// Removes all of ours. Returns what there was.
///
/// # Errors
/// With what is there still.
pub async fn leave() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    // A kernel without IPsec has none of it.
    if let Ok(xfrm) = Xfrm::here() {
        let Present { ids, protections } = xfrm.present().await?;
        for protection in protections.keys() {
            xfrm.unprotect(protection).await?;
            removed.push(format!("IPsec policies for {}", protection.remote));
        }
        for id in &ids {
            xfrm.remove(id).await?;
            removed.push(format!("IPsec association {} ({})", id.spi, id.remote));
        }
    }
    // Last: until then nothing goes in clear.
    if guard::remove().await? {
        removed.push(format!("nftables table {TABLE}"));
    }
    Ok(removed)
}

impl Keeper {
    /// Keep IPsec's state until the agent ends; it stays then, for the next.
    pub async fn run(mut self, events: Events) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let told = tokio::select! {
                op = self.ops.recv() => match op {
                    Some(op) => self.carry_out(op).await.into_iter().collect(),
                    None => return,
                },
                _ = look.tick() => self.look().await,
            };
            for input in told {
                if events.send(Event::Esp(input)).await.is_err() {
                    return;
                }
            }
        }
    }

    async fn carry_out(&mut self, op: Op) -> Option<Input> {
        match op {
            Op::Protect(protection) => match self.protect_whole(protection).await {
                Ok(()) => Some(Input::Protected(protection.remote)),
                Err(error) => {
                    tracing::error!("the kernel's tunnel to {} is not used, it cannot be sealed: {error:#}", protection.remote);
                    None
                }
            },
            Op::Unprotect(remote) => {
                if let Err(error) = self.unprotect(remote).await {
                    tracing::warn!("IPsec policies for {remote} stay: {error:#}");
                }
                None
            }
            Op::Add(id, key) => Some(self.add(id, &key).await),
            Op::Remove(id) => {
                self.ids.remove(&id);
                if let Err(error) = self.xfrm.remove(&id).await {
                    tracing::warn!("{error}");
                }
                None
            }
        }
    }

    /// The rules first: they hold whatever becomes of the policies.
    async fn protect_whole(&mut self, protection: Protection) -> Result<()> {
        let before = self.wanted.insert(protection.remote, protection);
        if before != Some(protection) || self.rules.is_none() {
            self.write_rules().await?;
        }
        self.protect(protection).await
    }

    async fn protect(&mut self, protection: Protection) -> Result<()> {
        self.wanted.insert(protection.remote, protection);
        Ok(self.xfrm.protect(&protection).await?)
    }

    async fn unprotect(&mut self, remote: Ipv4Addr) -> Result<()> {
        let Some(protection) = self.wanted.remove(&remote) else { return Ok(()) };
        self.xfrm.unprotect(&protection).await?;
        self.write_rules().await
    }

    async fn write_rules(&mut self) -> Result<()> {
        self.rules = None;
        self.rules = Some(guard::write(&self.wanted.values().copied().collect()).await?);
        Ok(())
    }

    async fn add(&mut self, id: Id, key: &Key) -> Input {
        match self.xfrm.add(&id, key).await {
            Ok(()) => {
                self.ids.insert(id);
                Input::Installed(id)
            }
            Err(error) => {
                tracing::warn!("{error}");
                Input::Missing(id)
            }
        }
    }

    /// What somebody took away is said, or put back.
    async fn look(&mut self) -> Vec<Input> {
        if self.wanted.is_empty() && self.ids.is_empty() {
            return Vec::new();
        }
        self.looks += 1;
        if self.looks.is_multiple_of(RULES)
            && let Err(error) = self.look_at_rules().await
        {
            tracing::warn!("the rules that keep VXLAN from going in clear cannot be looked at: {error:#}");
        }
        let present = match self.xfrm.present().await {
            Ok(present) => present,
            Err(error) => {
                tracing::warn!("{error}");
                return Vec::new();
            }
        };
        self.put_back(&present).await;
        let missing: Vec<Id> = self.ids.difference(&present.ids).copied().collect();
        self.ids.retain(|id| present.ids.contains(id));
        missing.into_iter().map(Input::Missing).collect()
    }

    async fn put_back(&self, present: &Present) {
        let whole = present.whole();
        for protection in self.wanted.values().filter(|protection| !whole.contains(protection)) {
            match self.xfrm.protect(protection).await {
                Ok(()) => tracing::warn!("somebody removed IPsec policies for {}: they are back", protection.remote),
                Err(error) => tracing::error!("{error}"),
            }
        }
    }

    async fn look_at_rules(&mut self) -> Result<()> {
        if self.rules.as_ref().is_some_and(|rules| !rules.is_empty()) && self.rules.as_deref() == Some(guard::look().await?.as_str()) {
            return Ok(());
        }
        if !self.wanted.is_empty() {
            tracing::warn!("somebody changed the nftables table {TABLE}: it is as it was again");
            self.write_rules().await?;
        }
        Ok(())
    }
}
