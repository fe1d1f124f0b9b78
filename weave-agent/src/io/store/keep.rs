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

/// Writes a state whenever it changed; what fails is tried again every second. Ends when the last sender is gone, all written if
/// it can be.
pub async fn keep(store: Store, mut state: watch::Receiver<State>) {
    let mut failed = String::new();
    while state.changed().await.is_ok() {
        loop {
            let changes = Changes { state: Some(state.borrow_and_update().clone()), ..Changes::default() };
            let Err(error) = commit(&store, changes).await else { break };
            let error = format!("{error:#}");
            if error != failed {
                tracing::error!("{error}: after a restart this agent will not know its latest settings");
                failed = error;
            }
            if state.has_changed().is_err() {
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
    while snapshots.changed().await.is_ok() {
        loop {
            let Snapshot { number, bytes } = snapshots.borrow_and_update().clone();
            match commit(&store, Changes { ipam: Some(bytes), ..Changes::default() }).await {
                Ok(()) => break stored(number).await,
                Err(error) => tracing::error!("{error:#}: no address is given out until this works"),
            }
            sleep(PAUSE).await;
        }
    }
}

/// Writes the names given by hand whenever they changed; ends, all written, when the last sender is gone.
pub async fn keep_names(store: Store, mut names: watch::Receiver<Vec<Kept>>) {
    while names.changed().await.is_ok() {
        let names = names.borrow_and_update().iter().map(|kept| (kept.name.clone(), kept.address)).collect();
        if let Err(error) = commit(&store, Changes { names: Some(names), ..Changes::default() }).await {
            tracing::error!("{error:#}: after a restart this agent will not know the latest names given by hand");
        }
    }
}

async fn commit(store: &Store, changes: Changes) -> anyhow::Result<()> {
    let store = store.clone();
    spawn_blocking(move || store.commit(&changes)).await?
}
