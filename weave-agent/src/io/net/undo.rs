//! What to do if the next step fails.

use std::io;
use std::pin::Pin;

use super::socket::{Error, Result};

type Step = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Steps that take back what was done, run last first.
#[derive(Default)]
pub(super) struct Undo {
    steps: Vec<Step>,
}

impl Undo {
    /// Remember how to take back what has just been done.
    pub(super) fn push(&mut self, step: impl Future<Output = Result<()>> + Send + 'static) {
        self.steps.push(Box::pin(step));
    }

    /// Take everything back; a step that fails does not stop the others. What has gone by itself needs no undoing.
    pub(super) async fn run(self) -> Vec<String> {
        let mut failures = Vec::new();
        for step in self.steps.into_iter().rev() {
            match step.await {
                Err(error) if !error.is_not_found() => failures.push(error.to_string()),
                _ => {}
            }
        }
        failures
    }
}

/// Do it all, even if nobody waits for it any more.
pub(super) async fn to_the_end<T, E>(
    what: &str,
    work: impl Future<Output = std::result::Result<T, E>> + Send + 'static,
) -> std::result::Result<T, E>
where
    T: Send + 'static,
    E: From<Error> + Send + 'static,
{
    tokio::spawn(work).await.unwrap_or_else(|e| Err(Error::new(what, io::Error::other(e)).into()))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn every_step_is_tried_last_first_and_each_failure_told() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut undo = Undo::default();
        for (step, errno) in [(1, 0), (2, libc::EPERM), (3, libc::ENODEV), (4, libc::EIO)] {
            let order = order.clone();
            undo.push(async move {
                order.lock().unwrap().push(step);
                if errno == 0 { Ok(()) } else { Err(Error::new(format!("step {step}"), io::Error::from_raw_os_error(errno))) }
            });
        }
        let failures = undo.run().await;
        assert_eq!(*order.lock().unwrap(), [4, 3, 2, 1]);
        assert!(failures.len() == 2 && failures[0].starts_with("step 4") && failures[1].starts_with("step 2"));
    }
}
