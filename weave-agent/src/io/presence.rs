//! One agent per network namespace: an abstract Unix socket, which each network namespace has its own of, and which ends with
//! whoever holds it. Who connects is told what goes on here.

use std::io::{self, ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::{Deserialize, Serialize};

use super::paths::Paths;

const NAME: &[u8] = b"weave-agent";
/// Whoever holds it answers at once, or hangs.
const PATIENCE: Duration = Duration::from_secs(1);
/// Whoever holds it may just be ending.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(25);

/// What goes on in a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Doing {
    /// An agent runs.
    Agent,
    /// The traces of one are being removed.
    Reset,
}

/// What the holder says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Said {
    doing: Doing,
    run: PathBuf,
    state: PathBuf,
}

/// Whoever is here already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// As the kernel says it; `None` if it is not in our PID namespace.
    pub pid: Option<u32>,
    said: Option<Said>,
}

/// While it lives, nobody else is here.
#[derive(Debug)]
pub struct Presence {
    name: Vec<u8>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Presence {
    /// Be the only one in this network namespace.
    ///
    /// # Errors
    /// Another is; the message says who.
    pub fn claim(doing: Doing, paths: &Paths) -> anyhow::Result<Self> {
        Self::claim_as(NAME, doing, paths)
    }

    fn claim_as(name: &[u8], doing: Doing, paths: &Paths) -> anyhow::Result<Self> {
        let said = serde_json::to_vec(&Said { doing, run: paths.run.clone(), state: paths.state.clone() })?;
        for _ in 0..TRIES {
            match UnixListener::bind_addr(&address(name)?) {
                Ok(listener) => return Self::answer(name, listener, said),
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).context("cannot see whether an agent runs in this network namespace"),
            }
            if let Some(other) = there(name) {
                bail!("{}", other.refusal());
            }
            thread::sleep(PAUSE);
        }
        bail!("somebody holds the abstract Unix socket @weave-agent and does not say who: `ss -xlp | grep @weave-agent` shows the process")
    }

    fn answer(name: &[u8], listener: UnixListener, said: Vec<u8>) -> anyhow::Result<Self> {
        let ending = Arc::new(AtomicBool::new(false));
        let is_over = ending.clone();
        let serve = move || {
            for stream in listener.incoming() {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                match stream {
                    // Who does not read has left; the text is shorter than any buffer.
                    Ok(mut stream) => drop(stream.write_all(&said)),
                    Err(_) => thread::sleep(PAUSE),
                }
            }
        };
        let thread = thread::Builder::new().name("presence".to_owned()).spawn(serve).context("cannot start a thread")?;
        Ok(Self { name: name.to_owned(), ending, thread: Some(thread) })
    }
}

impl Drop for Presence {
    /// The next one may be here once this returns.
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        let woken = address(&self.name).and_then(|address| UnixStream::connect_addr(&address));
        if let Some(thread) = self.thread.take().filter(|_| woken.is_ok()) {
            // A thread that panicked has let go as well.
            let _ = thread.join();
        }
    }
}

/// Who is in this network namespace.
pub fn other() -> Option<Other> {
    there(NAME)
}

fn there(name: &[u8]) -> Option<Other> {
    let stream = UnixStream::connect_addr(&address(name).ok()?).ok()?;
    let credentials = getsockopt(&stream, PeerCredentials).ok();
    let pid = credentials.and_then(|peer| u32::try_from(peer.pid()).ok()).filter(|pid| *pid > 0);
    match said(stream) {
        // It was just ending: nobody is here.
        Ok(text) if text.is_empty() => None,
        Ok(text) => Some(Other { pid, said: serde_json::from_slice(&text).ok() }),
        Err(_) => Some(Other { pid, said: None }),
    }
}

fn said(mut stream: UnixStream) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = Vec::new();
    (&mut stream).take(1 << 16).read_to_end(&mut text)?;
    Ok(text)
}

fn address(name: &[u8]) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name)
}

impl Other {
    /// Is it the agent of this run directory? One that hangs is known by what its pid file says.
    pub fn is_of(&self, paths: &Paths, holder: Option<Option<u32>>) -> bool {
        let same = |said: &Said| said.doing == Doing::Agent && is_same(&said.run, &paths.run);
        self.said.as_ref().map_or_else(|| self.pid.is_some() && holder == Some(self.pid), same)
    }

    /// Whether it lives: one that is being killed, or hangs, says nothing.
    pub fn answers(&self) -> bool {
        self.said.is_some()
    }

    /// Where it keeps what it keeps, if that is elsewhere.
    pub fn other_state(&self, paths: &Paths) -> Option<&Path> {
        self.said.as_ref().map(|said| said.state.as_path()).filter(|state| !is_same(state, &paths.state))
    }

    /// What to say to whoever wants to be here.
    pub fn refusal(&self) -> String {
        let pid = self.pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
        match &self.said {
            Some(Said { doing: Doing::Reset, .. }) => {
                format!("`weave-agent reset` is just at work in this network namespace{pid}: try again when it has ended")
            }
            Some(Said { run, .. }) => {
                let run = run.display();
                format!(
                    "another agent runs in this network namespace{pid}, with run directory {run}, and there can be only one: \
                     `weave-agent --run-dir {run} stop` ends it"
                )
            }
            None => format!("another agent runs in this network namespace{pid} and does not say where: end it first"),
        }
    }
}

/// `/var/run/weave` and `/run/weave` are one.
fn is_same(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real(a) == real(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(name: &str) -> Paths {
        Paths { run: format!("/nowhere/{name}/run").into(), state: format!("/nowhere/{name}/state").into() }
    }

    fn name(text: &str) -> Vec<u8> {
        format!("weave-agent-test-{}-{text}", std::process::id()).into_bytes()
    }

    #[test]
    fn there_is_one_at_a_time_and_the_next_is_told_where() {
        let (name, a, b) = (name("one"), paths("a"), paths("b"));
        assert_eq!(there(&name), None);
        let first = Presence::claim_as(&name, Doing::Agent, &a).unwrap();
        let refused = Presence::claim_as(&name, Doing::Agent, &b).unwrap_err().to_string();
        let pid = std::process::id();
        assert!(refused.contains(&format!("(pid {pid})")) && refused.contains("/nowhere/a/run"), "{refused}");
        let other = there(&name).unwrap();
        assert!(other.is_of(&a, None) && !other.is_of(&b, Some(Some(pid))));
        assert_eq!((other.other_state(&a), other.other_state(&b)), (None, Some(Path::new("/nowhere/a/state"))));
        drop(first);
        let _reset = Presence::claim_as(&name, Doing::Reset, &b).unwrap();
        let refused = Presence::claim_as(&name, Doing::Agent, &b).unwrap_err().to_string();
        assert!(refused.contains("reset` is just at work"), "{refused}");
        assert!(!there(&name).unwrap().is_of(&b, None));
    }

    #[test]
    fn one_that_hangs_is_known_by_its_process_id() {
        let name = name("hangs");
        let _hangs = UnixListener::bind_addr(&address(&name).unwrap()).unwrap();
        let other = there(&name).unwrap();
        let us = std::process::id();
        assert!(
            other.is_of(&paths("a"), Some(Some(us))) && !other.is_of(&paths("a"), Some(Some(us + 1))) && !other.is_of(&paths("a"), None)
        );
    }
}
