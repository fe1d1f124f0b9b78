//! What to say when the agent cannot be asked: its locked pid file tells whether it runs.

use std::time::Duration;

use crate::io::api::client::ClientError;
use crate::io::paths::Paths;
use crate::io::pidfile::PidFile;

/// What the kernel takes to let go of all that a killed agent had.
const LOOKS: u32 = 25;
const PAUSE: Duration = Duration::from_millis(20);

/// The same error, or what is behind it.
pub(super) fn explained(error: anyhow::Error, paths: &Paths) -> anyhow::Error {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::NoAgent(_)) => match PidFile::holder(&paths.pid_file()) {
            Some(Some(pid)) => anyhow::anyhow!(
                "an agent (pid {pid}) is running here, but its socket {} is not: if it is not just starting or ending, \
                 `weave-agent stop && weave-agent launch` brings it back, and no container notices",
                paths.socket().display()
            ),
            Some(None) | None => error,
        },
        Some(ClientError::Broken { why, .. }) if has_ended(paths) => anyhow::anyhow!(
            "the agent has ended meanwhile ({why}): `weave-agent launch` starts it again, and its log {} may say why it ended",
            paths.log().display()
        ),
        _ => error,
    }
}

fn has_ended(paths: &Paths) -> bool {
    (0..LOOKS).any(|_| {
        let has_ended = PidFile::holder(&paths.pid_file()).is_none();
        if !has_ended {
            std::thread::sleep(PAUSE);
        }
        has_ended
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::pidfile::Claim;

    #[test]
    fn what_is_advised_depends_on_whether_an_agent_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { run: dir.path().to_owned(), state: dir.path().to_owned() };
        let absent = || explained(ClientError::NoAgent(paths.socket()).into(), &paths).to_string();
        let broken = || explained(ClientError::Broken { socket: paths.socket(), why: "cut".into() }.into(), &paths).to_string();
        assert!(absent().contains("start one with `weave-agent launch`"), "{}", absent());
        assert!(broken().contains("the agent has ended meanwhile (cut): `weave-agent launch`"), "{}", broken());
        let Claim::Ours(_lock) = PidFile::claim(&paths.pid_file()).unwrap() else { panic!("nobody holds it") };
        let pid = std::process::id();
        assert!(
            absent().contains(&format!("(pid {pid})")) && absent().contains("`weave-agent stop && weave-agent launch`"),
            "{}",
            absent()
        );
        assert!(broken().contains("`weave-agent reset` ends it by force"), "{}", broken());
    }
}
