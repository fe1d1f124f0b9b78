//! A lab from up to down.

use std::fs;
use std::net::Ipv4Addr;
use std::process;
use std::time::Duration;
use std::{env, thread};

use anyhow::{Context, Result, anyhow, ensure};
use nix::mount::{MntFlags, umount2};

use crate::node::Node;
use crate::place::overlay_address;
use crate::{Host, LabConfig, Place, Record, agent, cut, is_root, lab_dir, nat, underlay, wait_for};

/// What takes milliseconds may take seconds on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);

/// Hosts on an underlay, agents on them, containers attached to those.
#[derive(Debug)]
pub struct Lab {
    record: Record,
}

impl Lab {
    /// Makes a lab that stays until [`Lab::down`]. If that fails nothing stays behind.
    pub fn up(config: LabConfig) -> Result<Self> {
        let lab = Self::build(config)?;
        if lab.config().agent.is_some() {
            lab.meshed()?;
        }
        lab.settle()
    }

    /// Waits until every host's agent knows of working tunnels between all hosts.
    pub fn meshed(&self) -> Result<()> {
        let hosts = self.config().hosts;
        wait_for("tunnels between all hosts", PATIENCE, || {
            (1..=hosts).try_fold(true, |all, host| Ok(all && self.host(host)?.sees_all(hosts.into())?))
        })?;
        // Routes and trees follow the last edge within 50 ms.
        thread::sleep(Duration::from_millis(100));
        Ok(())
    }

    /// Makes a lab for a test: it goes when this value is dropped, also by a panic, and the next scenario of this
    /// workspace clears it away if the process was killed. Its name is made unique. With `WEAVE_LAB_KEEP` set it stays.
    pub fn scenario(config: LabConfig) -> Result<Self> {
        clear_orphans()?;
        let name = format!("{}{}", config.name, process::id());
        Self::build(LabConfig { name, ..config })
    }

    /// Finds a lab that another process made.
    pub fn open(name: &str) -> Result<Self> {
        Ok(Self { record: Record { owner: None, ..Record::read(name)? } })
    }

    /// What is written down about it.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What it was made from.
    pub fn config(&self) -> &LabConfig {
        &self.record.config
    }

    /// A host, from 1.
    pub fn host(&self, number: u8) -> Result<Host<'_>> {
        self.node(Place::Host(number)).map(Host)
    }

    /// A container by its name, `h1c2`.
    pub fn container(&self, name: &str) -> Result<Node<'_>> {
        self.node(name.parse()?)
    }

    /// A host or container.
    pub fn node(&self, place: Place) -> Result<Node<'_>> {
        let config = self.config();
        ensure!(
            config.places().contains(&place),
            "there is no {place}: lab `{}` has h1 to h{}, each with {} containers",
            config.name,
            config.hosts,
            config.containers
        );
        Ok(Node { config, place })
    }

    /// A container's address on the overlay, by its name.
    pub fn overlay_address(&self, name: &str) -> Result<Ipv4Addr> {
        match self.container(name)?.place {
            Place::Container(host, container) => Ok(overlay_address(host, container)),
            Place::Host(_) => Err(anyhow!("{name} is a host: it has no address on the overlay")),
        }
    }

    /// Cuts two hosts off from each other: IPv4 and ARP between them are dropped on the wire, both ways.
    pub fn cut(&mut self, a: u8, b: u8) -> Result<()> {
        let pair = self.pair(a, b)?;
        if self.record.cuts.insert(pair) {
            cut::cut(self.config(), a, b)?;
        }
        self.record.write()
    }

    /// Undoes [`Lab::cut`]. A host that had lost the other's Ethernet address asks for it once a second: that is how
    /// long the first packet may take.
    pub fn mend(&mut self, a: u8, b: u8) -> Result<()> {
        let pair = self.pair(a, b)?;
        if self.record.cuts.remove(&pair) {
            cut::mend(self.config(), a, b)?;
        }
        self.record.write()
    }

    /// Drops UDP to this port between two hosts on the wire, both ways, as a firewall would.
    pub fn block(&self, a: u8, b: u8, port: u16) -> Result<()> {
        let (a, b) = self.pair(a, b)?;
        cut::block(self.config(), a, b, port)
    }

    /// Undoes [`Lab::block`].
    pub fn unblock(&self, a: u8, b: u8, port: u16) -> Result<()> {
        let (a, b) = self.pair(a, b)?;
        cut::unblock(self.config(), a, b, port)
    }

    /// Puts a host of a routed underlay behind a NAT: it reaches the others by the router's address and by these ports of
    /// it, and is reached by what answers it. Saying it again with other ports rebinds what there is.
    pub fn masquerade(&self, host: u8, ports: std::ops::RangeInclusive<u16>) -> Result<()> {
        nat::masquerade(self.config(), host, ports)
    }

    /// Runs a command where the wires meet: on the switch or router.
    pub fn on_wire<S: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Result<String> {
        self.config().wire().output(words)
    }

    /// Pulls a host's cable out at the far end: the host sees the carrier go.
    pub fn unplug(&self, host: u8, uplink: u8) -> Result<()> {
        self.set_port(host, uplink, "down")
    }

    /// Undoes [`Lab::unplug`].
    pub fn plug(&self, host: u8, uplink: u8) -> Result<()> {
        self.set_port(host, uplink, "up")
    }

    /// Takes everything down: agents and whatever else runs in its namespaces, the namespaces, and its files.
    pub fn down(mut self) -> Result<()> {
        self.record.owner = None;
        take_down(self.config())
    }

    /// Starts agents in a lab that was made without, and attaches the containers.
    pub fn start_agents(&mut self, agent: Option<std::path::PathBuf>) -> Result<()> {
        let named = LabConfig::named(&self.config().name);
        self.record.config.agent = agent.or(named.agent);
        self.config().check()?;
        self.record.write()?;
        agent::start_all(self.config())
    }

    fn build(config: LabConfig) -> Result<Self> {
        config.check()?;
        ensure!(is_root(), "a lab needs root: it makes network namespaces");
        refuse_existing(&config)?;
        // From here on dropping the lab takes it down, whatever fails.
        let lab = Self { record: Record { config, cuts: Default::default(), owner: Some(process::id()) } };
        lab.record.write()?;
        underlay::build(lab.config())?;
        cut::prepare(lab.config())?;
        if lab.config().agent.is_some() {
            agent::start_all(lab.config())?;
        }
        Ok(lab)
    }

    fn settle(mut self) -> Result<Self> {
        let settled = Record { owner: None, ..self.record.clone() };
        settled.write()?;
        self.record = settled;
        Ok(self)
    }

    fn pair(&self, a: u8, b: u8) -> Result<(u8, u8)> {
        ensure!(a != b, "h{a} and h{b} are one host: name two");
        let (a, b) = (self.host(a)?, self.host(b)?);
        Ok((a.number().min(b.number()), a.number().max(b.number())))
    }

    fn set_port(&self, host: u8, uplink: u8, state: &str) -> Result<()> {
        let cables = self.config().uplinks_of(self.host(host)?.number());
        let cable = cables.get(usize::from(uplink)).with_context(|| format!("h{host} has no uplink {uplink}"))?;
        self.config().wire().ip(&format!("link set {} {state}\n", cable.port()))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let name = &self.config().name;
        if self.record.owner.is_none() {
            return;
        }
        if env::var_os("WEAVE_LAB_KEEP").is_some() {
            eprintln!("lab {name} stays: `cargo xtask lab down --name {name}` takes it down");
        } else if let Err(error) = take_down(self.config()) {
            eprintln!("lab {name} is not wholly down: {error:#}");
            assert!(thread::panicking(), "a lab must leave nothing behind");
        }
    }
}

fn refuse_existing(config: &LabConfig) -> Result<()> {
    let name = &config.name;
    let dir = lab_dir(name);
    ensure!(!dir.exists(), "lab `{name}` is there already: `cargo xtask lab down --name {name}` takes it down");
    match config.namespaces().find(|netns| netns.exists()) {
        Some(netns) => Err(anyhow!("namespace {} belongs to another workspace's lab: give this one a --name", netns.name())),
        None => Ok(()),
    }
}

fn clear_orphans() -> Result<()> {
    let orphans = Record::all().into_iter().filter(Record::is_orphan);
    orphans.into_iter().try_for_each(|record| take_down(&record.config))
}

/// Does all it can, and reports all that failed.
fn take_down(config: &LabConfig) -> Result<()> {
    let mut failures: Vec<_> = config.namespaces().filter_map(|netns| netns.remove().err()).collect();
    failures.extend(unmount(config).err());
    if failures.is_empty() {
        let dir = lab_dir(&config.name);
        return fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()));
    }
    let failures: Vec<_> = failures.iter().map(|failure| format!("{failure:#}")).collect();
    Err(anyhow!("{}", failures.join("; ")))
}

/// Pins live in a bpffs under the agent's run directory; they would hold programs and maps for ever.
fn unmount(config: &LabConfig) -> Result<()> {
    let dir = lab_dir(&config.name);
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let points = mounts.lines().filter_map(|mount| mount.split_whitespace().nth(1));
    for point in points.filter(|point| std::path::Path::new(point).starts_with(&dir)) {
        umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {point}"))?;
    }
    Ok(())
}
