//! Removing every trace of an agent that has ended. Each step is tried, whatever became of those before.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::bpffs;
use super::datapath::userspace::shield;
use super::datapath::{ebpf, odp};
use super::esp;
use super::net::{self, EXPOSE_PORT, Link, Netlink, PORT_PREFIX, nat, ports};
use super::paths::Paths;

/// What became of it.
#[derive(Debug, Default)]
pub struct Removed {
    /// What is gone.
    pub removed: Vec<String>,
    /// What is not, and why.
    pub failures: Vec<String>,
}

/// Datapaths, interfaces, NAT, IPsec, programs, pins, files.
pub async fn remove_everything(paths: &Paths) -> Removed {
    let mut done = Removed::default();
    // Its ports are interfaces again.
    done.openvswitch();
    done.interfaces().await;
    done.segments().await;
    done.nat().await;
    done.esp().await;
    done.shield();
    done.pins(&paths.pins());
    done.files(&paths.run, |name| {
        matches!(name, "agent.sock" | "agent.pid" | "agent.log" | "agent.log.1" | "agent.latest" | "agent.odp" | "agent.new")
    });
    done.files(&paths.state, is_kept);
    done
}

/// Of this version or an earlier one, whole or set aside.
fn is_kept(name: &str) -> bool {
    let ours = |kept: &str| name.strip_prefix(kept).is_some_and(|rest| matches!(rest, "" | ".new") || rest.starts_with(".damaged-"));
    ours("agent.redb") || ours("agent.json")
}

impl Removed {
    async fn interfaces(&mut self) {
        let links = async {
            let host = Netlink::here()?;
            let mut ours = host.links().await?;
            ours.retain(is_ours);
            ours.extend(net::our_vxlans(&host).await?);
            Ok::<_, net::Error>((ours, host))
        };
        match links.await {
            Err(error) => self.failures.push(error.to_string()),
            Ok((ours, host)) => {
                for link in &ours {
                    let deleted = host.delete_link(link.index).await;
                    // The name server's end goes by itself once the agent has ended.
                    let is_gone = deleted.is_err() && host.links().await.is_ok_and(|now| now.iter().all(|other| other.index != link.index));
                    self.note(format!("interface {}", link.name), if is_gone { Ok(()) } else { deleted });
                }
            }
        }
    }

    async fn segments(&mut self) {
        let left = async { net::leave_big_tcp(&Netlink::here()?).await };
        if let Err(error) = left.await {
            self.failures.push(error.to_string());
        }
    }

    async fn nat(&mut self) {
        match nat::remove().await {
            Ok(true) => self.removed.push(format!("nftables table {}", nat::TABLE)),
            Ok(false) => {}
            Err(error) => self.failures.push(format!("nftables table {}: {error}", nat::TABLE)),
        }
    }

    async fn esp(&mut self) {
        match esp::leave().await {
            Ok(removed) => self.removed.extend(removed),
            Err(error) => self.failures.push(format!("IPsec: {error:#}")),
        }
    }

    fn shield(&mut self) {
        let table = format!("nftables table netdev {}", shield::TABLE);
        match shield::remove() {
            Ok(true) => self.removed.push(table),
            Ok(false) => {}
            Err(error) => self.failures.push(format!("{table}: {error}")),
        }
    }

    fn openvswitch(&mut self) {
        let datapath = format!("openvswitch datapath {}", odp::DATAPATH);
        match odp::leave() {
            Ok(true) => self.removed.push(datapath),
            Ok(false) => {}
            Err(error) => self.failures.push(format!("{datapath}: {error}")),
        }
    }

    fn pins(&mut self, pins: &Path) {
        if !pins.exists() {
            return;
        }
        if let Err(error) = ebpf::leave(pins) {
            self.failures.push(format!("{error:#}"));
        }
        self.note(format!("BPF programs and maps in {}", pins.display()), bpffs::remove(pins));
    }

    fn files(&mut self, folder: &Path, is_ours: impl Fn(&str) -> bool) {
        for path in entries(folder) {
            if path.file_name().and_then(|name| name.to_str()).is_some_and(&is_ours) {
                self.note(path.display().to_string(), fs::remove_file(&path));
            }
        }
        match fs::remove_dir(folder) {
            Ok(()) => self.removed.push(folder.display().to_string()),
            // Somebody else's files are in it, or it is a mount: theirs to keep.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy) => {}
            Err(error) => self.failures.push(format!("{}: {error}", folder.display())),
        }
    }

    fn note<E: std::fmt::Display>(&mut self, what: String, result: Result<(), E>) {
        match result {
            Ok(()) => self.removed.push(what),
            Err(error) => self.failures.push(format!("{what}: {error:#}")),
        }
    }
}

fn entries(folder: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Of ports one end is enough: the other goes with it.
fn is_ours(link: &Link) -> bool {
    let named = link.kind == "veth" && (link.name.starts_with(PORT_PREFIX) || link.name == EXPOSE_PORT);
    named || ports::is_port(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_files_go_and_the_folder_with_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        fs::create_dir(&folder).unwrap();
        for name in ["agent.pid", "agent.log", "other"] {
            fs::write(folder.join(name), "").unwrap();
        }
        let mut done = Removed::default();
        done.files(&folder, |name| name.starts_with("agent."));
        assert_eq!((done.removed.len(), done.failures.len(), folder.join("other").exists()), (2, 0, true));
        fs::remove_file(folder.join("other")).unwrap();
        done.files(&folder, |_| true);
        assert!(!folder.exists() && done.failures.is_empty());
    }

    #[test]
    fn what_was_kept_goes_whatever_version_kept_it() {
        for name in ["agent.redb", "agent.redb.new", "agent.redb.damaged-1", "agent.json", "agent.json.new", "agent.json.damaged-12"] {
            assert!(is_kept(name), "{name}");
        }
        assert!(!is_kept("agent.redb.copy") && !is_kept("agent.yaml"));
    }

    #[test]
    fn interfaces_of_others_stay() {
        let link = |name: &str, kind: &str| Link { name: name.into(), kind: kind.into(), ..Link::default() };
        for (name, kind, ours) in [
            ("vethwepl0000001", "veth", true),
            ("vethwe-host", "veth", true),
            ("vxlan-42", "vxlan", false),
            ("weave", "bridge", false),
            ("vethwe-bridge", "veth", false),
            ("eth0", "", false),
        ] {
            assert_eq!(is_ours(&link(name, kind)), ours, "{name}");
        }
        let renamed = Link { alias: "weave-agent 4:5 ethwe vethwepl0000001".into(), ..link("mine", "veth") };
        assert!(is_ours(&renamed));
    }
}
