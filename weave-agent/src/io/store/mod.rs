//! What an agent keeps between runs: one database in the state directory, every change one durable transaction.
//!
//! A power cut at any point leaves the last transaction or the one before. A file that cannot be understood is set aside, never
//! overwritten. Beside it, in the run directory, a note says what was stored last in this boot, so that an old copy put back in
//! its place is known for what it is ([`Store::trusted`]).

mod file;
mod keep;
mod latest;
mod legacy;
mod state;

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, bail};
use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rand::{Rng, RngExt};

use self::file::{Contents, Mark, Unusable};
pub use self::keep::{Snapshot, keep, keep_ipam, keep_names};
use self::latest::Latest;
pub use self::state::State;
use super::notices::Notices;
use super::paths::Paths;

/// What is to be kept from now on, in place of what was; `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// What the agent itself keeps.
    pub state: Option<State>,
    /// A snapshot of who owns which addresses, opaque here.
    pub ipam: Option<Bytes>,
    /// Names given by hand.
    pub names: Option<Vec<(String, IpAddr)>>,
}

/// The database of a running agent. Copies are the same database, which is closed with the last of them.
#[derive(Clone, Debug)]
pub struct Store {
    open: Arc<Mutex<Open>>,
    notices: Notices,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    /// `None` after a failure: opened again before the next change.
    database: Option<redb::Database>,
    mark: Mark,
    latest: Latest,
    trusted: bool,
    /// Of the state directory: two agents with one name would be worse than one that does not start.
    _lock: Option<Flock<File>>,
}

impl Store {
    /// What the state directory holds; a fresh database with a new name if there is none. One that cannot be understood is set aside.
    ///
    /// # Errors
    /// The directory is another agent's, or cannot be read or written. The run directory must exist.
    pub fn open(paths: &Paths, rng: &mut impl Rng) -> anyhow::Result<(Self, State)> {
        fs::create_dir_all(&paths.state).with_context(|| format!("cannot create {}", paths.state.display()))?;
        let lock = lock(&paths.state)?;
        let path = paths.state_file();
        let notices = Notices::default();
        let ((database, contents), is_new) = match there(&path, &notices)? {
            Some(there) => (there, false),
            None => (make(paths, rng, &notices)?, true),
        };
        legacy::remove(&paths.old_state_file(), contents.state.name);
        let latest = Latest::new(paths.latest());
        let trusted = !is_new && latest.proves(&contents.mark);
        let mut open = Open { path, database: Some(database), mark: contents.mark, latest, trusted, _lock: lock };
        if !trusted && !is_new {
            open.leave_the_copies_behind(rng.random())?;
        }
        open.latest.stored(&open.mark)?;
        Ok((Self { open: Arc::new(Mutex::new(open)), notices }, contents.state))
    }

    /// Is what was opened known to be what was stored last, in this boot of the host? Then nothing was promised that it does not
    /// know of. False says only that nobody knows: after a reboot, for an old copy, for a fresh file.
    pub fn trusted(&self) -> bool {
        self.locked().trusted
    }

    /// The snapshot of addresses that was stored last.
    pub fn ipam(&self) -> anyhow::Result<Option<Bytes>> {
        let mut open = self.locked();
        let path = open.path.clone();
        file::ipam(open.database()?).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The names given by hand.
    pub fn names(&self) -> anyhow::Result<Vec<(String, IpAddr)>> {
        let mut open = self.locked();
        let path = open.path.clone();
        file::names(open.database()?).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Keep all of these or, after an error or a crash, none. On disk when it returns, which takes milliseconds: not for the loop.
    pub fn commit(&self, changes: &Changes) -> anyhow::Result<()> {
        let mut open = self.locked();
        let written = open.commit(changes);
        if written.is_err() {
            // A database that has failed to write takes no further orders: it is read anew.
            open.database = None;
        }
        let written = written.with_context(|| format!("cannot write {}", open.path.display()));
        match &written {
            Ok(()) => self.notices.clear("store"),
            Err(error) => self.notices.set("store", format!("{error:#}: what has changed since will be lost with a restart of the agent")),
        }
        written
    }

    /// What is the matter with what is kept; others may add theirs.
    pub fn notices(&self) -> &Notices {
        &self.notices
    }

    fn locked(&self) -> MutexGuard<'_, Open> {
        // Whoever panicked has changed nothing that a transaction would not undo.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn database(&mut self) -> anyhow::Result<&redb::Database> {
        if self.database.is_none() {
            let (database, contents) = file::open(&self.path).map_err(Unusable::into_error)?;
            let is_ours = contents.mark.lineage == self.mark.lineage && contents.mark.generation >= self.mark.generation;
            anyhow::ensure!(is_ours, "an older file has taken its place: remove it and start the agent again");
            self.mark = contents.mark;
            self.database = Some(database);
        }
        self.database.as_ref().context("it is closed")
    }

    fn commit(&mut self, changes: &Changes) -> anyhow::Result<()> {
        self.database()?;
        let next = Mark { generation: self.mark.generation + 1, ..self.mark };
        self.latest.storing(&self.mark)?;
        file::write(self.database()?, &next, changes)?;
        self.mark = next;
        // Before anybody hears of it: from here on the generation before must not pass for the latest.
        self.latest.stored(&next)
    }

    /// Copies of this file may go on from the same generation and count the same numbers: they are of another lineage.
    fn leave_the_copies_behind(&mut self, lineage: u64) -> anyhow::Result<()> {
        self.latest.forget()?;
        let next = Mark { lineage, generation: self.mark.generation + 1, ..self.mark };
        file::write(self.database()?, &next, &Changes::default()).with_context(|| format!("cannot write {}", self.path.display()))?;
        self.mark = next;
        Ok(())
    }
}

fn lock(folder: &Path) -> anyhow::Result<Option<Flock<File>>> {
    let file = File::open(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => bail!(
            "another agent keeps its state in {}: end it with `weave-agent stop` and its --run-dir, or say another --state-dir",
            folder.display()
        ),
        // Some filesystems lock no directories. The database has a lock of its own.
        Err((_, errno)) => {
            tracing::debug!(%errno, "cannot lock the state directory");
            Ok(None)
        }
    }
}

fn there(path: &Path, notices: &Notices) -> anyhow::Result<Option<(redb::Database, Contents)>> {
    match file::open(path) {
        Ok(opened) => Ok(Some(opened)),
        Err(Unusable::Missing) => Ok(None),
        Err(Unusable::Damaged(why)) => {
            let aside = set_aside(path)?;
            let text = format!(
                "{} is damaged ({why}): kept as {}; this agent gets a new name, and what it knew of addresses and names is only there",
                path.display(),
                aside.display()
            );
            tracing::warn!("{text}");
            notices.set("damaged", text);
            Ok(None)
        }
        Err(Unusable::Failed(error)) => Err(error.context(format!("cannot open {}", path.display()))),
    }
}

/// Written before it is used: a name that others have heard of must be the same after a crash.
fn make(paths: &Paths, rng: &mut impl Rng, notices: &Notices) -> anyhow::Result<(redb::Database, Contents)> {
    let state = match legacy::read(&paths.old_state_file(), notices)? {
        Some(state) => state,
        None => State::fresh(rng),
    };
    let contents = Contents { mark: Mark::new(rng.random()), state };
    let path = paths.state_file();
    let database = file::create(&path, &contents).with_context(|| format!("cannot write {}", path.display()))?;
    Ok((database, contents))
}

fn set_aside(path: &Path) -> anyhow::Result<PathBuf> {
    for number in 1..1000 {
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".damaged-{number}"));
        let aside = PathBuf::from(aside);
        if !aside.exists() {
            fs::rename(path, &aside).with_context(|| format!("cannot set aside {}", path.display()))?;
            return Ok(aside);
        }
    }
    bail!("{} is damaged and there are 999 others beside it: remove them", path.display())
}

#[cfg(test)]
mod faults;
#[cfg(test)]
mod power_cut;
#[cfg(test)]
mod tests;
