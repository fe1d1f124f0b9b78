//! Where the log goes: standard error, which `launch` makes the log file. That is kept small, and opened again on request.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing_subscriber::EnvFilter;

/// A run directory is memory, most often: the log and the one before it take twice this at most.
const LARGEST: u64 = 8 << 20;

/// The file behind standard error, if it is ours.
static LOG: Mutex<Option<LogFile>> = Mutex::new(None);

/// Start to log what is at least as bad as `level`; `RUST_LOG` says it in detail. If standard error is the log file at `own`,
/// that is renamed before it grows too large.
///
/// # Errors
/// When something logs already.
pub fn start(level: tracing::Level, own: Option<&Path>) -> anyhow::Result<()> {
    *log() = own.map(LogFile::new);
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level.as_str()));
    let ansi = io::stderr().is_terminal();
    let started = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Output).with_ansi(ansi).try_init();
    started.map_err(|e| anyhow::anyhow!("cannot start to log: {e}"))
}

/// Somebody has renamed the log file: begin a new one. `false` if the log is somebody else's.
pub fn reopen() -> bool {
    log().as_mut().is_some_and(|file| {
        write_to(file.open());
        true
    })
}

fn log() -> MutexGuard<'static, Option<LogFile>> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Standard error. What cannot be written (a full disk, a terminal that is gone) is lost: an agent does not end for that.
struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = log();
        if let Some(file) = log.as_mut()
            && file.is_too_large_with(bytes.len() as u64)
        {
            write_to(file.replaced());
        }
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The file that standard output and error go to.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    size: u64,
}

impl LogFile {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), size: size(path) }
    }

    const fn is_too_large_with(&mut self, bytes: u64) -> bool {
        self.size += bytes;
        self.size > LARGEST
    }

    /// If it cannot be renamed it grows on: a log that is too long is better than none.
    fn replaced(&mut self) -> io::Result<File> {
        let _ = fs::rename(&self.path, earlier(&self.path));
        let file = self.open();
        self.size = 0;
        file
    }

    fn open(&mut self) -> io::Result<File> {
        let file = OpenOptions::new().append(true).create(true).open(&self.path)?;
        self.size = size(&self.path);
        Ok(file)
    }
}

/// From now on. Panics and whatever libraries print go there, too; without a file all goes where it went.
fn write_to(file: io::Result<File>) {
    if let Ok(file) = file {
        let _ = (nix::unistd::dup2_stdout(&file), nix::unistd::dup2_stderr(&file));
    }
}

fn size(path: &Path) -> u64 {
    path.metadata().map_or(0, |meta| meta.len())
}

/// Where a log goes that has become too long.
fn earlier(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_too_long_is_renamed_and_the_one_before_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.log");
        fs::write(&path, "left by the agent before").unwrap();
        let mut log = LogFile::new(&path);
        assert!(!log.is_too_large_with(LARGEST - 24) && log.is_too_large_with(1));
        for text in ["first", "second"] {
            fs::write(&path, text).unwrap();
            log.replaced().unwrap().write_all(b"new").unwrap();
            assert!(!log.is_too_large_with(LARGEST));
            let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
            assert_eq!((read("agent.log"), read("agent.log.1")), ("new".into(), text.into()));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_log_that_somebody_has_renamed_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.log");
        let mut log = LogFile::new(&path);
        assert!(!log.is_too_large_with(LARGEST));
        drop(log.open().unwrap());
        assert!(path.exists() && !log.is_too_large_with(LARGEST));
    }
}
