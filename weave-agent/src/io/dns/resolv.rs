//! `resolv.conf`: who is asked about everything else.

use std::fs::{self, Metadata};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

/// Between looks at the file.
const LOOK: Duration = Duration::from_secs(2);
/// More servers than anybody waits for.
const MAX_SERVERS: usize = 8;
const PORT: u16 = 53;

/// The file's servers, as of a moment ago.
#[derive(Debug)]
pub(super) struct Resolv {
    servers: watch::Receiver<Vec<SocketAddr>>,
    /// Dropping it ends the task that looks.
    _watching: JoinSet<()>,
}

impl Resolv {
    /// Reads the file, and again whenever it changes.
    pub(super) fn watch(path: PathBuf) -> Self {
        let mut seen = mark(&path);
        let (sender, servers) = watch::channel(read(&path));
        let mut watching = JoinSet::new();
        watching.spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let now = mark(&path);
                if now != seen {
                    seen = now;
                    sender.send_replace(read(&path));
                }
            }
        });
        Self { servers, _watching: watching }
    }

    pub(super) fn servers(&self) -> Vec<SocketAddr> {
        self.servers.borrow().clone()
    }
}

/// What tells one state of the file from another, whether it is written in place or replaced.
fn mark(path: &Path) -> Option<(u64, u64, i64, i64, u64)> {
    let of = |meta: Metadata| (meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size());
    fs::metadata(path).ok().map(of)
}

/// A file that is not there, or not readable, names no servers.
fn read(path: &Path) -> Vec<SocketAddr> {
    let text = fs::read_to_string(path).inspect_err(|error| tracing::warn!(path = %path.display(), %error, "no name servers to ask"));
    let servers = parse(&text.unwrap_or_default());
    tracing::debug!(?servers, "name servers to ask");
    servers
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "nameserver").then(|| server(words.next()?)).flatten()
    });
    servers.take(MAX_SERVERS).collect()
}

/// An address, perhaps with the interface that it is behind.
fn server(text: &str) -> Option<SocketAddr> {
    let (address, scope) = text.split_once('%').unwrap_or((text, ""));
    match address.parse().ok()? {
        IpAddr::V4(address) => Some((address, PORT).into()),
        IpAddr::V6(address) => Some(SocketAddrV6::new(address, PORT, 0, interface(scope)).into()),
    }
}

fn interface(scope: &str) -> u32 {
    scope.parse().or_else(|_| nix::net::if_::if_nametoindex(scope)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_whatever_else_is_in_the_file() {
        let text = "# nameserver 1.1.1.1\nsearch x\nnameserver 9.9.9.9 # quad\n nameserver\tfd00::53\nnameserver fe80::1%7\nnameserver\n\
                    nameserver x\noptions ndots:5\nnameservers 8.8.8.8";
        let servers: Vec<String> = parse(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(servers, ["9.9.9.9:53", "[fd00::53]:53", "[fe80::1%7]:53"]);
        assert_eq!(parse(&"nameserver 1.2.3.4\n".repeat(100)).len(), MAX_SERVERS);
    }
}
