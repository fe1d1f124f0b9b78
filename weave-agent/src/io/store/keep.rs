//! Tasks that write what changed, off the loop.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::{Changes, State, Store};
use crate::dns::Kept;

/// After a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Who owns which addresses, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Counts up; what is promised on the strength of this snapshot waits for its number.
    pub number: u64,
    /// All of it, in whatever form.
    pub bytes: Bytes,
}

/// Writes a state whenever it changed. Ends when the last sender is gone, all written if it can be.
pub async fn keep(store: Store, state: watch::Receiver<State>) {
    let changes = |state: &State| Changes { state: Some(state.clone()), ..Changes::default() };
    keep_latest(store, state, changes, "after a restart this agent will not know its latest settings").await;
}

/// The same with the names given by hand.
pub async fn keep_names(store: Store, names: watch::Receiver<Vec<Kept>>) {
    let changes = |names: &Vec<Kept>| {
        let names = names.iter().map(|kept| (kept.name.clone(), kept.address)).collect();
        Changes { names: Some(names), ..Changes::default() }
    };
    keep_latest(store, names, changes, "after a restart this agent will not know the latest names given by hand").await;
}

/// What fails is tried again every second.
async fn keep_latest<T>(store: Store, mut latest: watch::Receiver<T>, changes: impl Fn(&T) -> Changes, or_else: &str) {
    let mut failed = String::new();
    while latest.changed().await.is_ok() {
        loop {
            let changes = changes(&latest.borrow_and_update());
            let Err(error) = commit(&store, changes).await else {
                failed.clear();
                break;
            };
            complain(&mut failed, &error, or_else);
            if latest.has_changed().is_err() {
                return;
            }
            sleep(PAUSE).await;
        }
    }
}

/// Stores the latest snapshot whenever there is a new one, then tells its number: it and all before it may be relied upon. Those
/// that come while one is being stored share the next transaction. What fails is tried again every second. Ends, all stored, when
/// the last sender is gone.
pub async fn keep_ipam<F: Future<Output = ()>>(store: Store, mut snapshots: watch::Receiver<Snapshot>, mut stored: impl FnMut(u64) -> F) {
    let mut failed = String::new();
    while snapshots.changed().await.is_ok() {
        loop {
            let Snapshot { number, bytes } = snapshots.borrow_and_update().clone();
            match commit(&store, Changes { ipam: Some(bytes), ..Changes::default() }).await {
                Ok(()) => break stored(number).await,
                Err(error) => complain(&mut failed, &error, "no address is given out until this works"),
            }
            sleep(PAUSE).await;
        }
        // Another failure is news.
        failed.clear();
    }
}

/// Says it once: a disk that is full stays so for hours, and `status` warns as long.
fn complain(failed: &mut String, error: &anyhow::Error, or_else: &str) {
    let error = format!("{error:#}");
    if error != *failed {
        tracing::error!("{error}: {or_else}");
        *failed = error;
    }
}

async fn commit(store: &Store, changes: Changes) -> anyhow::Result<()> {
    let store = store.clone();
    spawn_blocking(move || store.commit(&changes)).await?
}
