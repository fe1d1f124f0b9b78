//! Open vSwitch's own programs on a host.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

use crate::{Host, Running, wait_for};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Until the database listens.
const DATABASE: Duration = Duration::from_secs(20);
/// The daemon finds out what the module can do before it makes anything.
const DAEMON: Duration = Duration::from_secs(90);
/// Before, the daemon (3.1) counts no processors, because it believes that it just has, and nobody answers what comes up.
const UPTIME: Duration = Duration::from_secs(11);

/// Open vSwitch's database and daemon on a host; they end when this is dropped.
#[derive(Debug)]
pub struct OpenVswitch {
    dir: PathBuf,
    _database: Running,
    daemon: Option<Running>,
}

impl OpenVswitch {
    /// Starts both, with an empty database.
    ///
    /// # Errors
    /// When one of them is not installed, or does not start.
    pub fn start(host: &Host<'_>) -> Result<Self> {
        let dir = host.agent_dir().join("ovs");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let at = |name: &str| dir.join(name).display().to_string();
        host.exec(["ovsdb-tool", "create", &at("conf.db"), SCHEMA])?;
        let remote = format!("--remote=punix:{}", at("db.sock"));
        let control = format!("--unixctl={}", at("db.ctl"));
        let database = host.spawn(["ovsdb-server", &at("conf.db"), &remote, &control])?;
        wait_for("Open vSwitch's database", DATABASE, || Ok(dir.join("db.sock").exists()))?;
        let mut started = Self { dir, _database: database, daemon: None };
        started.start_daemon(host)?;
        Ok(started)
    }

    /// Starts the daemon; one that runs is killed first, and deletes nothing then.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_daemon(&mut self, host: &Host<'_>) -> Result<()> {
        let control = format!("--unixctl={}/vswitchd.ctl", self.dir.display());
        self.daemon = None;
        wait_for("the machine to be up for long enough", 2 * UPTIME, || {
            Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.tv_sec() >= UPTIME.as_secs() as i64)
        })?;
        self.daemon = Some(host.spawn(["env", &self.directory(), "ovs-vswitchd", &self.database(), &control])?);
        Ok(())
    }

    /// Runs `ovs-vsctl` with these words; returns when the daemon has done it.
    ///
    /// # Errors
    /// With what it complains of.
    pub fn set(&self, host: &Host<'_>, words: &[&str]) -> Result<String> {
        let fixed = ["ovs-vsctl".to_owned(), format!("--db={}", self.database()), format!("--timeout={}", DAEMON.as_secs())];
        host.exec(fixed.iter().map(String::as_str).chain(words.iter().copied()))
    }

    fn directory(&self) -> String {
        format!("OVS_RUNDIR={}", self.dir.display())
    }

    fn database(&self) -> String {
        format!("unix:{}/db.sock", self.dir.display())
    }
}
