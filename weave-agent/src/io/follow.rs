//! Attached containers follow the MTU that one attached now would get, and the size of segments.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::event::Event;
use super::hands::Hands;
use super::names::Names;
use super::net;
use crate::datapath::PortId;

/// One change of the underlay comes as several.
const MOMENT: Duration = Duration::from_millis(100);
/// What path MTU discovery learns is told by nobody.
const LOOK: Duration = Duration::from_secs(5);

/// Looks after every change of the underlay, and now and then.
pub async fn keep_mtu(hands: Hands) {
    let (mut told, mut told_of_big_tcp, mut looked) = (false, None, false);
    loop {
        // Long enough after the start for the neighbours that an earlier agent left.
        sleep(MOMENT).await;
        if let Some(failures) = follow(&hands).await {
            let is_news = told || !failures.is_empty();
            told = !failures.is_empty();
            if is_news && hands.events.send(Event::Mtu(failures)).await.is_err() {
                return;
            }
        }
        // Without it there is only to take back once what an earlier agent did.
        if (hands.big_tcp || !looked)
            && let Some(obstacle) = follow_big_tcp(&hands).await
        {
            looked = true;
            let is_news = obstacle != told_of_big_tcp;
            told_of_big_tcp.clone_from(&obstacle);
            if is_news && hands.events.send(Event::BigTcp(obstacle)).await.is_err() {
                return;
            }
        }
        // Timely enough if nobody says anything.
        let _ = timeout(LOOK, hands.look_at_mtu.notified()).await;
    }
}

/// Why it cannot be had, if it is wanted; `None`: that could not be found out.
async fn follow_big_tcp(hands: &Hands) -> Option<Option<String>> {
    let neighbours: Vec<_> = hands.neighbours.borrow().keys().copied().collect();
    let followed = net::follow_big_tcp(&hands.host, hands.big_tcp, &neighbours).await;
    followed.inspect_err(|error| tracing::warn!(%error, "cannot look after the segments of ports")).ok()
}

async fn follow(hands: &Hands) -> Option<BTreeMap<PortId, String>> {
    // Without neighbours there is no path to follow: what is guessed until they are back would only be taken back then.
    if hands.mtu.is_none() && hands.neighbours.borrow().is_empty() {
        return None;
    }
    let followed = net::follow_mtu(&hands.host, hands.mtu().await).await;
    let mut failures = followed.inspect_err(|error| tracing::warn!(%error, "cannot look after the MTU of ports")).ok()?;
    // Nobody finds the name server's namespace, and it sends nothing large.
    if let Some(port) = hands.names.as_ref().and_then(Names::port) {
        failures.remove(&port.id);
    }
    Some(failures)
}
