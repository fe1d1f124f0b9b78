//! A note in the run directory of what was stored last in this boot.
//!
//! It says "`stored` is the latest" or "`stored` is the latest, or the next". Before a transaction it says the latter, after it the
//! former, and only then does anybody hear of the transaction. So whenever an agent dies, what is in its file is what the note
//! allows; and a copy from before anything that somebody has heard of is not. A reboot makes every note void: the note is not
//! synced, so after a power cut it may be older than the file, or newer.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;

use anyhow::Context;

use super::file::Mark;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Debug)]
pub(super) struct Latest {
    path: PathBuf,
    /// Another in each boot; `None` if the kernel does not say.
    boot: Option<String>,
}

impl Latest {
    pub(super) fn new(path: PathBuf) -> Self {
        let boot = fs::read_to_string(BOOT_ID).ok().map(|text| text.trim().to_owned()).filter(|boot| !boot.is_empty());
        Self { path, boot }
    }

    /// Does the note say that a file with this mark is the latest?
    pub(super) fn proves(&self, mark: &Mark) -> bool {
        let Some(note) = fs::read_to_string(&self.path).ok().filter(|_| self.boot.is_some()) else { return false };
        let before = mark.generation.checked_sub(1).map(|generation| Mark { generation, ..*mark });
        note == self.note(mark, mark.generation)
            || note == self.note(mark, mark.generation + 1)
            || before.is_some_and(|before| note == self.note(&before, mark.generation))
    }

    /// A transaction upon `mark` begins.
    pub(super) fn storing(&self, mark: &Mark) -> anyhow::Result<()> {
        self.write(mark, mark.generation + 1)
    }

    /// A transaction has made it `mark`.
    pub(super) fn stored(&self, mark: &Mark) -> anyhow::Result<()> {
        self.write(mark, mark.generation)
    }

    /// Nothing is known to be the latest.
    pub(super) fn forget(&self) -> anyhow::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// A note that cannot be written must not go on saying what is no longer so.
    fn write(&self, mark: &Mark, last: u64) -> anyhow::Result<()> {
        let Some(_) = self.boot else { return self.forget() };
        self.replace(&self.note(mark, last)).or_else(|error| {
            tracing::warn!(%error, "cannot write {}: a restarted agent will not trust its state", self.path.display());
            self.forget()
        })
    }

    /// Notes are equally long, so one write replaces one by another: no kill comes between.
    fn replace(&self, note: &str) -> io::Result<()> {
        OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?.write_all(note.as_bytes())
    }

    fn note(&self, stored: &Mark, last: u64) -> String {
        let boot = self.boot.as_deref().unwrap_or_default();
        format!("{boot} {:016x} {:020} {last:020}\n", stored.lineage, stored.generation)
    }
}
