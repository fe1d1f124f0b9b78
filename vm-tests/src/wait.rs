//! Waiting for a condition, with a deadline.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `condition` holds and returns how long that took; `what` completes "waited in vain for …".
pub fn wait_for(what: &str, deadline: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let started = Instant::now();
    while !condition()? {
        if started.elapsed() > deadline {
            bail!("waited {deadline:?} in vain for {what}");
        }
        thread::sleep(PAUSE);
    }
    Ok(started.elapsed())
}
