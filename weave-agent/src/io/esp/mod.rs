//! IPsec for the kernel's tunnel: carries out what [`crate::esp`] orders, and looks that it stays so.

mod guard;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::event::{Event, Events};
use super::net::xfrm::{Present, Xfrm};
use crate::esp::{Direction, Id, Input, Key, Op, Protection};

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
    /// Of our tunnel.
    port: u16,
    ops: mpsc::UnboundedReceiver<Op>,
    wanted: BTreeMap<Ipv4Addr, Protection>,
    /// Of these nobody has been told that they are protected.
    untold: BTreeSet<Ipv4Addr>,
    ids: BTreeSet<Id>,
    /// How the rules looked when they were written; `None` if they could not be.
    rules: Option<String>,
    looks: u32,
    /// There may be policies that nobody wants.
    unclean: bool,
}

/// Tries whether the kernel and this machine's `nft` can do it, and finds what an earlier agent left for a tunnel with this port. Nothing is
/// removed: that must wait until nobody sends any more what it protects.
///
/// # Errors
/// With what is lacking; then [`leave`] is to be called.
pub async fn start(port: u16) -> Result<(Esp, Keeper, Input)> {
    let xfrm = Xfrm::here()?;
    xfrm.probe().await.context("the kernel has no ESP with AES-GCM (CONFIG_INET_ESP, CONFIG_CRYPTO_GCM)")?;
    guard::probe().await?;
    let present = xfrm.present().await?;
    let whole = present.policies.iter().map(|(protection, _)| *protection);
    let whole = whole.filter(|protection| protection.port == port && present.protects(*protection));
    let wanted: BTreeMap<_, _> = whole.map(|protection| (protection.remote, protection)).collect();
    let found = Input::Found { protected: wanted.keys().copied().collect(), ids: present.ids.clone() };
    let (sender, ops) = mpsc::unbounded_channel();
    let keeper = Keeper { xfrm, port, ops, wanted, untold: BTreeSet::new(), ids: present.ids, rules: None, looks: 0, unclean: true };
    Ok((Esp { ops: sender }, keeper, found))
}

/// Removes all of ours, as far as it can. Returns what there was.
///
/// # Errors
/// With what is there still.
pub async fn leave() -> Result<Vec<String>> {
    let (mut removed, mut failures) = (Vec::new(), Vec::new());
    let mut note = |what: String, result: Result<(), String>| match result {
        Ok(()) => removed.push(what),
        Err(error) => failures.push(error),
    };
    // A kernel without IPsec has none of it.
    if let Ok(xfrm) = Xfrm::here() {
        match xfrm.present().await {
            Ok(Present { ids, policies }) => {
                for (protection, direction) in &policies {
                    let done = xfrm.unprotect(protection, *direction).await;
                    note(format!("IPsec policy for {} ({direction:?})", protection.remote), done.map_err(|error| error.to_string()));
                }
                for id in &ids {
                    let done = xfrm.remove(id).await;
                    note(format!("IPsec association {} ({})", id.spi, id.remote), done.map_err(|error| error.to_string()));
                }
            }
            Err(error) => failures.push(error.to_string()),
        }
    }
    // Last: until then nothing goes in clear.
    match guard::remove().await {
        Ok(true) => removed.push(format!("nftables table {TABLE}")),
        Ok(false) => {}
        Err(error) => failures.push(format!("nftables table {TABLE}: {error}")),
    }
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(removed)
}

impl Keeper {
    /// Keep IPsec's state until the agent ends; it stays then, for the next. To be called when the switch knows what was found: what of
    /// that is not whole is removed.
    pub async fn run(mut self, events: Events) {
        if let Err(error) = self.write_rules().await {
            tracing::error!("{error:#}");
        }
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
            Op::Protect(protection) => {
                let before = self.wanted.insert(protection.remote, protection);
                if before != Some(protection) {
                    self.rules = None;
                }
                return self.protect(protection).await;
            }
            Op::Unprotect(remote) => {
                self.wanted.remove(&remote);
                self.untold.remove(&remote);
                self.unprotect(remote).await;
            }
            Op::Add(id, key) => return Some(self.add(id, &key).await),
            Op::Remove(id) => {
                self.ids.remove(&id);
                if let Err(error) = self.xfrm.remove(&id).await {
                    tracing::warn!("{error}");
                }
            }
        }
        None
    }

    /// The rules first: they hold whatever becomes of the policies. What fails is tried again at the next look.
    async fn protect(&mut self, protection: Protection) -> Option<Input> {
        let done = async {
            if self.rules.is_none() {
                self.write_rules().await?;
            }
            anyhow::Ok(self.xfrm.protect(&protection).await?)
        };
        match done.await {
            Ok(()) => {
                self.untold.remove(&protection.remote);
                Some(Input::Protected(protection.remote))
            }
            Err(error) => {
                if self.untold.insert(protection.remote) {
                    tracing::error!("the kernel's tunnel to {} is not used, it cannot be sealed: {error:#}", protection.remote);
                }
                None
            }
        }
    }

    /// What stays is removed at the next look.
    async fn unprotect(&mut self, remote: Ipv4Addr) {
        let protection = Protection { remote, port: self.port };
        for direction in [Direction::Out, Direction::In] {
            if let Err(error) = self.xfrm.unprotect(&protection, direction).await {
                tracing::warn!("{error}");
                self.unclean = true;
            }
        }
        if let Err(error) = self.write_rules().await {
            tracing::warn!("rules for {remote} stay: {error:#}");
        }
    }

    async fn write_rules(&mut self) -> Result<()> {
        self.rules = None;
        self.rules = Some(guard::write(&self.wanted.values().copied().collect()).await?);
        Ok(())
    }

    async fn add(&mut self, id: Id, key: &Key) -> Input {
        if let Err(error) = self.xfrm.add(&id, self.port, key).await {
            tracing::warn!("{error}");
            return Input::Missing(id);
        }
        self.ids.insert(id);
        // Since 6.13 a policy remembers the association that it used last: a new policy has to look.
        if let (Direction::Out, Some(protection)) = (id.direction, self.wanted.get(&id.remote))
            && let Err(error) = self.xfrm.protect(protection).await
        {
            tracing::warn!("{error}");
        }
        Input::Installed(id)
    }

    /// What somebody took away is said, or put back.
    async fn look(&mut self) -> Vec<Input> {
        if self.wanted.is_empty() && self.ids.is_empty() && !self.unclean {
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
        let missing: Vec<Id> = self.ids.difference(&present.ids).copied().collect();
        self.ids.retain(|id| present.ids.contains(id));
        let mut told = self.put_right(&present).await;
        told.extend(missing.into_iter().map(Input::Missing));
        told
    }

    /// Policies: those that are wanted and no others.
    async fn put_right(&mut self, present: &Present) -> Vec<Input> {
        let mut told = Vec::new();
        for protection in self.wanted.values().copied().collect::<Vec<_>>() {
            let is_untold = self.untold.contains(&protection.remote);
            if present.protects(protection) && !is_untold {
                continue;
            }
            if !is_untold {
                tracing::warn!("somebody removed IPsec policies for {}: they are put back", protection.remote);
            }
            told.extend(self.protect(protection).await);
        }
        self.unclean = false;
        for (protection, direction) in &present.policies {
            if self.wanted.get(&protection.remote) == Some(protection) {
                continue;
            }
            if let Err(error) = self.xfrm.unprotect(protection, *direction).await {
                tracing::warn!("{error}");
                self.unclean = true;
            }
        }
        told
    }

    async fn look_at_rules(&mut self) -> Result<()> {
        if self.wanted.is_empty() || self.rules.as_deref() == Some(guard::look().await?.as_str()) {
            return Ok(());
        }
        if self.rules.is_some() {
            tracing::warn!("somebody changed the nftables table {TABLE}: it is as it was again");
        }
        self.write_rules().await
    }
}
