//! What the user told us to connect to: names into addresses, again and again.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::event::{Event, Events};
use super::store::State;
use crate::mesh::Target;

/// How often names are looked up again.
const AGAIN: Duration = Duration::from_secs(30);
/// A name server that takes longer has nothing to say.
const PATIENCE: Duration = Duration::from_secs(5);

/// A target as it was typed, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Typed {
    text: String,
    host: String,
    port: u16,
}

/// It was typed wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no peer to connect to: say a host name or IPv4 address, with :PORT if it is not the usual one")]
pub struct BadTarget(String);

impl Typed {
    /// `host` or `host:port`; without a port it is ours, because most meshes have one.
    pub fn parse(text: &str, our_port: u16) -> Result<Self, BadTarget> {
        let bad = || BadTarget(text.to_owned());
        let (host, port) = match text.split_once(':') {
            None => (text, our_port),
            Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?),
        };
        let plausible = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        // Dots and digits alone are an address or a mistake, never a name.
        let numeric = host.chars().all(|c| c.is_ascii_digit() || c == '.');
        if host.is_empty() || host.len() > 253 || !host.chars().all(plausible) || numeric && host.parse::<Ipv4Addr>().is_err() {
            return Err(bad());
        }
        Ok(Self { text: text.to_owned(), host: host.to_owned(), port })
    }

    /// What it means without asking anybody: nothing, for a name.
    pub fn unresolved(&self) -> Target {
        let addresses = self.host.parse().map(|address| SocketAddrV4::new(address, self.port));
        Target { name: self.text.clone(), addresses: addresses.into_iter().collect() }
    }

    /// Look it up. A name that means nothing now has no addresses, and the reason beside it.
    pub async fn resolve(&self) -> (Target, Option<String>) {
        let unresolved = self.unresolved();
        if !self.is_name() {
            return (unresolved, None);
        }
        match self.look_up().await {
            Ok(addresses) => (Target { addresses, ..unresolved }, None),
            Err(why) => (unresolved, Some(format!("{}: {why}", self.text))),
        }
    }

    async fn look_up(&self) -> Result<Vec<SocketAddrV4>, String> {
        let answer = timeout(PATIENCE, tokio::net::lookup_host((self.host.as_str(), self.port))).await;
        let all = answer.map_err(|_| "the name server does not answer".to_owned())?.map_err(|e| e.to_string())?;
        let mut addresses: Vec<_> = all.filter_map(only_v4).collect();
        addresses.sort();
        addresses.dedup();
        if addresses.is_empty() { Err("it has no IPv4 address".to_owned()) } else { Ok(addresses) }
    }

    fn is_name(&self) -> bool {
        self.host.parse::<Ipv4Addr>().is_err()
    }
}

fn only_v4(address: SocketAddr) -> Option<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(_) => None,
    }
}

/// Look all up at once.
pub async fn resolve_all(typed: &[Typed]) -> Vec<(Target, Option<String>)> {
    join_all(typed.iter().map(Typed::resolve)).await
}

/// Tell the loop whenever a name means something else.
pub async fn keep_resolved(state: watch::Receiver<State>, our_port: u16, events: Events) {
    let mut known = BTreeMap::new();
    let mut ticks = interval(AGAIN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let names = names(&state.borrow().targets, our_port);
        known.retain(|name, _| names.iter().any(|typed| typed.text == *name));
        for (target, why) in resolve_all(&names).await {
            // What does not resolve now may be back in a moment: its old addresses are as good as none.
            if let Some(why) = why {
                tracing::warn!("cannot resolve {why}");
            } else if known.insert(target.name.clone(), target.addresses.clone()).as_ref() != Some(&target.addresses)
                && events.send(Event::Resolved(target)).await.is_err()
            {
                return;
            }
        }
    }
}

fn names(targets: &[String], our_port: u16) -> Vec<Typed> {
    targets.iter().filter_map(|text| Typed::parse(text, our_port).ok()).filter(Typed::is_name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_need_no_name_server() {
        let resolved = async |text| Typed::parse(text, 6783).unwrap().resolve().await;
        let (target, why) = resolved("10.0.0.2").await;
        assert_eq!((target.addresses, why), (vec!["10.0.0.2:6783".parse().unwrap()], None));
        assert_eq!(resolved("10.0.0.2:7000").await.0.addresses, ["10.0.0.2:7000".parse().unwrap()]);
    }

    #[test]
    fn what_can_be_no_host_is_refused() {
        for bad in ["", ":", "a:0", "a:b", "a:70000", "a b", "10.0.0", "10.0.0.256", "fe80::1", "[::1]:6783", "a/16", "10.0.0.1/16"] {
            let error = Typed::parse(bad, 6783).unwrap_err().to_string();
            assert!(error.contains("say a host name"), "{error}");
        }
        assert!(Typed::parse("host-3.example.com:6783", 1).unwrap().is_name());
    }
}
