//! Network namespaces: finding one, telling them apart, working inside one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};

use super::docker::Docker;
use super::socket::{Error, Netlink, Result};

/// The file that names the calling thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";
/// Where `ip netns add` puts names; the second is the first on most systems, not on all.
const NAMED: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// Where Docker mounts the namespaces of its containers.
const DOCKER_NAMED: &str = "/var/run/docker/netns";

/// Which namespace: device and inode of its file. Unique among the living.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NetnsId {
    /// Device of the nsfs.
    pub dev: u64,
    /// Inode of the namespace.
    pub ino: u64,
}

impl NetnsId {
    /// Of the namespace that `path` is the file of.
    pub fn of(path: &Path) -> io::Result<Self> {
        path.metadata().map(|m| Self { dev: m.dev(), ino: m.ino() })
    }

    /// Of the calling thread's namespace.
    pub fn own() -> io::Result<Self> {
        Self::of(Path::new(OWN))
    }
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.dev, self.ino)
    }
}

/// An open network namespace. It keeps the namespace alive: drop it when the verb is done.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    id: NetnsId,
    path: PathBuf,
    name: String,
}

impl Netns {
    /// The calling thread's own.
    pub fn own() -> Result<Self> {
        Self::open(Path::new(OWN)).map(|netns| netns.named("the host"))
    }

    /// The one that `path` is the file of.
    pub fn open(path: &Path) -> Result<Self> {
        let what = || format!("{} as a network namespace", path.display());
        let file = File::open(path).map_err(|e| Error::new(what(), e))?;
        let kind = fstatfs(&file).map_err(|e| Error::new(what(), e.into()))?.filesystem_type();
        if kind != NSFS_MAGIC {
            return Err(Error::invalid(what(), "it is not the file of a namespace"));
        }
        let meta = file.metadata().map_err(|e| Error::new(what(), e))?;
        let netns = Self {
            file: Arc::new(file),
            id: NetnsId { dev: meta.dev(), ino: meta.ino() },
            path: path.to_owned(),
            name: path.display().to_string(),
        };
        // Entering is the only question that tells a network namespace from the other kinds without an ioctl.
        netns.run_blocking(|| ())?;
        Ok(netns)
    }

    /// The one that a process is in.
    pub fn of_process(pid: u32) -> Result<Self> {
        Self::open(Path::new(&format!("/proc/{pid}/ns/net"))).map(|netns| netns.named(format!("process {pid}")))
    }

    /// Call it so in messages.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which one it is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Is it the namespace of the calling thread?
    pub fn is_own(&self) -> bool {
        NetnsId::own().is_ok_and(|own| own == self.id)
    }

    /// Run `work` on a thread of its own inside; the caller's thread stays where it is.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let netns = self.clone();
        let joined = tokio::task::spawn_blocking(move || netns.run_blocking(work)).await;
        joined.unwrap_or_else(|e| Err(Error::new(format!("working inside {}", self.name), io::Error::other(e))))
    }

    /// The same for those who may block.
    pub fn run_blocking<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let enter = || setns(&*self.file, CloneFlags::CLONE_NEWNET).map(|()| work());
        let joined = std::thread::scope(|scope| scope.spawn(enter).join());
        let what = || format!("entering {}", self.name);
        match joined {
            Ok(done) => done.map_err(|e| Error::new(what(), e.into())),
            Err(_) => Err(Error::new(what(), io::Error::other("the thread inside it panicked"))),
        }
    }

    /// A netlink socket inside. It keeps the namespace alive: drop it when the verb is done.
    pub async fn netlink(&self) -> Result<Netlink> {
        let runtime = tokio::runtime::Handle::current();
        let open = move || {
            let _inside_the_runtime = runtime.enter();
            Netlink::here()
        };
        self.run(open).await?
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Where each of these namespaces can be opened, as far as a process in it or a mounted name tells.
pub(super) async fn find(ids: BTreeSet<NetnsId>) -> BTreeMap<NetnsId, PathBuf> {
    // A failed join means that the runtime is going down: nothing is found any more.
    tokio::task::spawn_blocking(move || find_blocking(&ids)).await.unwrap_or_default()
}

fn find_blocking(ids: &BTreeSet<NetnsId>) -> BTreeMap<NetnsId, PathBuf> {
    let mut found = BTreeMap::new();
    let mounted = NAMED.iter().chain(&[DOCKER_NAMED]).flat_map(|folder| entries(folder));
    let processes = entries("/proc").filter(|path| is_process(path)).map(|path| path.join("ns/net"));
    for path in mounted.chain(processes) {
        if found.len() == ids.len() {
            break;
        }
        match NetnsId::of(&path) {
            Ok(id) if ids.contains(&id) => _ = found.entry(id).or_insert(path),
            _ => {}
        }
    }
    found
}

fn entries(folder: &str) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn is_process(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
}

/// What names a container on the command line.
///
/// | text | read as |
/// |---|---|
/// | with a `/` | the file of a namespace (absolute: the agent's folder is not its caller's) |
/// | digits | a process, if there is such a one, else what any other word is |
/// | any other word | a name under /run/netns or /var/run/netns; failing that a Docker container, by name or id |
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The file of a namespace.
    Path(PathBuf),
    /// A process id, or a word made of digits.
    Number(u32, String),
    /// A named namespace, or a Docker container.
    Word(String),
}

/// A target that is no container we may attach.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Not even a word.
    #[error("{0:?} names no container: say a process id, the path of a namespace, a name under /run/netns, or a Docker container")]
    Syntax(String),
    /// Nothing of that name.
    #[error("no container {text:?}: {}. Say a process id, the path of a namespace, a name under /run/netns, or a Docker container", tried.join("; "))]
    Unknown {
        /// As typed.
        text: String,
        /// Each place that was asked and what it said.
        tried: Vec<String>,
    },
    /// The container has no namespace of its own.
    #[error("{text:?} shares the host's network: it has nothing of its own to attach")]
    HostNamespace {
        /// As typed.
        text: String,
    },
}

impl Target {
    /// What `text` names, not whether it is there.
    pub fn parse(text: &str) -> std::result::Result<Self, TargetError> {
        if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(TargetError::Syntax(text.to_owned()));
        }
        if text.contains('/') {
            return Ok(Self::Path(text.into()));
        }
        let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        Ok(number.map_or_else(|| Self::Word(text.to_owned()), |pid| Self::Number(pid, text.to_owned())))
    }

    /// Find the namespace. The host's own is refused.
    pub async fn resolve(&self, docker: &Docker) -> std::result::Result<Netns, TargetError> {
        let mut tried = Vec::new();
        let found = match self {
            Self::Path(path) => noted(Netns::open(path), &mut tried),
            Self::Number(pid, word) => match noted(Netns::of_process(*pid), &mut tried) {
                None => find_word(word, docker, &mut tried).await,
                found => found,
            },
            Self::Word(word) => find_word(word, docker, &mut tried).await,
        };
        let text = self.to_string();
        let netns = found.ok_or_else(|| TargetError::Unknown { text: text.clone(), tried })?;
        if netns.is_own() {
            return Err(TargetError::HostNamespace { text });
        }
        Ok(netns.named(text))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Number(_, text) | Self::Word(text) => f.write_str(text),
        }
    }
}

async fn find_word(word: &str, docker: &Docker, tried: &mut Vec<String>) -> Option<Netns> {
    for folder in NAMED {
        let path = Path::new(folder).join(word);
        // `.` and `..` are words too: only a file can be a namespace, and `open` says so.
        if let Some(netns) = noted(Netns::open(&path), tried) {
            return Some(netns);
        }
    }
    let pid = noted(docker.pid_of(word).await, tried)?;
    noted(Netns::of_process(pid), tried)
}

fn noted<T, E: fmt::Display>(result: std::result::Result<T, E>, tried: &mut Vec<String>) -> Option<T> {
    result.map_err(|e| tried.push(e.to_string())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_means_a_path_and_digits_mean_a_process_first() {
        assert_eq!(Target::parse("/proc/7/ns/net").unwrap(), Target::Path("/proc/7/ns/net".into()));
        assert_eq!(Target::parse("12").unwrap(), Target::Number(12, "12".into()));
        assert_eq!(Target::parse("123456789012").unwrap(), Target::Word("123456789012".into()));
        assert_eq!(Target::parse("web").unwrap(), Target::Word("web".into()));
        for bad in ["", "a b", "a\n"] {
            assert!(Target::parse(bad).unwrap_err().to_string().contains("names no container"));
        }
    }

    #[test]
    fn our_own_namespace_is_known_as_such_and_other_files_are_refused() {
        let own = Netns::own().unwrap();
        assert!(own.is_own());
        assert_eq!(own.run_blocking(NetnsId::own).unwrap().unwrap(), own.id());
        assert!(Netns::open(Path::new("/proc/self/status")).unwrap_err().to_string().contains("not the file of a namespace"));
        assert!(Netns::open(Path::new("/proc/self/ns/uts")).is_err());
    }
}
