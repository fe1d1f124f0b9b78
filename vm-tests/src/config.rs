//! What a lab is to be.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::record::workspace_target;

/// What connects the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Underlay {
    /// One Ethernet: 10.99.0.0/24, host n is 10.99.0.n.
    Flat,
    /// Two hosts on one cable: host n is 10.99.0.n/24. For measuring, because nothing stands between.
    Direct,
    /// Every host in a network of its own behind a router: host n is 10.99.n.2/24. Host 2 has a second uplink,
    /// 10.98.2.2/24, which the routes fall back to.
    Routed,
}

/// What a lab is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabConfig {
    /// Part of every namespace's name: lower-case letters and digits.
    pub name: String,
    /// How many hosts.
    pub hosts: u8,
    /// How many containers on each host.
    pub containers: u8,
    /// What connects the hosts.
    pub underlay: Underlay,
    /// The underlay's MTU; the overlay's is 50 less.
    pub mtu: u16,
    /// The containers are attached, with the addresses of the plan. Otherwise the agents run and nothing is attached yet.
    #[serde(default = "yes")]
    pub attached: bool,
    /// Every host is told of the first one only and links to no other; otherwise of all, and links to all.
    #[serde(default)]
    pub star: bool,
    /// More words for `weave-agent launch`.
    #[serde(default)]
    pub launch: Vec<String>,
    /// More of them for single hosts.
    #[serde(default)]
    pub launch_on: BTreeMap<u8, Vec<String>>,
    /// Environment of the agents.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// The `weave-agent` to run on every host; none for a lab of bare hosts.
    pub agent: Option<PathBuf>,
}

impl LabConfig {
    /// Two hosts with two containers each on one Ethernet, with agents.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            hosts: 2,
            containers: 2,
            underlay: Underlay::Flat,
            mtu: 1550,
            attached: true,
            star: false,
            launch: Vec::new(),
            env: Vec::new(),
            launch_on: BTreeMap::new(),
            agent: Some(default_agent()),
        }
    }

    /// Agents with these flags, and containers that are not attached yet.
    pub fn unattached(self, launch: &[&str]) -> Self {
        Self { attached: false, launch: launch.iter().map(ToString::to_string).collect(), ..self }
    }

    /// With these flags for the agent of one host.
    pub fn launching(mut self, host: u8, launch: &[&str]) -> Self {
        self.launch_on.entry(host).or_default().extend(launch.iter().map(ToString::to_string));
        self
    }

    /// Bare hosts: for what is about the underlay only. Containers are there, attached to nothing.
    pub fn without_agents(self) -> Self {
        Self { agent: None, ..self }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let name = &self.name;
        let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        ensure!(plain && (1..=24).contains(&name.len()), "lab name `{name}`: use 1 to 24 of a-z and 0-9");
        ensure!(self.underlay != Underlay::Direct || self.hosts == 2, "{} hosts: one cable connects two", self.hosts);
        ensure!((1..=200).contains(&self.hosts), "{} hosts: a lab has 1 to 200", self.hosts);
        ensure!(self.containers <= 200, "{} containers: a host has 200 at most", self.containers);
        ensure!(self.mtu >= 1280, "MTU {}: 1280 is the least (IPv6)", self.mtu);
        self.agent.as_deref().map_or(Ok(()), agent_is_built)
    }
}

fn yes() -> bool {
    true
}

fn agent_is_built(agent: &Path) -> Result<()> {
    let path = agent.display();
    ensure!(agent.is_file(), "no agent at {path}: run `cargo xtask build-ebpf --no-install`, or set WEAVE_AGENT");
    Ok(())
}

/// `WEAVE_AGENT`, or the agent that `cargo xtask build-ebpf` built.
fn default_agent() -> PathBuf {
    env::var_os("WEAVE_AGENT").map_or_else(|| workspace_target().join("release/weave-agent"), PathBuf::from)
}
