//! A host's agent.

use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::node::{Node, Running};
use crate::place::overlay_address;
use crate::process::output;
use crate::{LabConfig, Place};

/// The kernel allows 108 bytes for a socket's path; this leaves the agent some for the file's name.
const LONGEST_RUN_DIR: usize = 80;

/// A host of a lab: a [`Node`], and the verbs of the agent that runs on it.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a>(pub(crate) Node<'a>);

impl<'a> Deref for Host<'a> {
    type Target = Node<'a>;

    fn deref(&self) -> &Node<'a> {
        &self.0
    }
}

impl Host<'_> {
    /// Which host this is, from 1.
    pub fn number(&self) -> u8 {
        self.place.host()
    }

    /// The address other hosts know it by.
    pub fn address(&self) -> Ipv4Addr {
        self.config.underlay_address(self.number())
    }

    /// Starts its agent and returns when that is ready.
    pub fn launch(&self, peers: &[Ipv4Addr]) -> Result<()> {
        let dir = self.agent_dir();
        let length = dir.join("run").as_os_str().len();
        ensure!(length <= LONGEST_RUN_DIR, "{} is too long for a socket: set WEAVE_LAB_DIR=/run/lab", dir.display());
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let mut launch = self.agent()?;
        launch
            .args(["launch", "--nickname", &self.place.to_string()])
            .envs(self.config.env.iter().map(|(name, value)| (name, value)))
            .args(self.config.star.then_some("--no-discovery"))
            .args(&self.config.launch)
            .args(self.config.launch_on.get(&self.number()).into_iter().flatten())
            .args(peers.iter().map(Ipv4Addr::to_string));
        // Not through a pipe: the agent that stays would hold its end, and reading it would never end.
        Running::start(launch, dir.join("launch.log"))?.finish().map(drop)
    }

    /// Runs `weave-agent` with these arguments against its agent.
    pub fn weave<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        output(self.agent()?.args(arguments)).with_context(|| format!("on {}", self.place))
    }

    /// `weave-agent` on this host, still without arguments.
    pub fn agent(&self) -> Result<Command> {
        let missing = || format!("lab `{}` was made without agents", self.config.name);
        self.command(self.config.agent.as_deref().with_context(missing)?)
    }

    /// `weave-agent status --json`.
    pub fn status(&self) -> Result<serde_json::Value> {
        let text = self.weave(["status", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("status of {} is no JSON: {text}", self.place))
    }

    /// Whether it knows of `hosts` peers, each with a working tunnel to every other: then broadcasts reach all.
    pub fn sees_all(&self, hosts: usize) -> Result<bool> {
        let text = self.weave(["status", "peers", "--json"])?;
        let peers: Vec<serde_json::Value> = serde_json::from_str(&text).with_context(|| format!("peers of {}: {text}", self.place))?;
        let edges = |peer: &serde_json::Value| {
            peer["connections"].as_array().map_or(0, |all| all.iter().filter(|edge| edge["established"] == true).count())
        };
        Ok(peers.len() == hosts && peers.iter().all(|peer| edges(peer) + 1 == hosts))
    }

    /// Attaches one of its containers under the address the plan gives it.
    pub fn attach(&self, container: u8) -> Result<()> {
        let netns = self.config.netns(Place::Container(self.number(), container));
        let cidr = format!("{}/16", overlay_address(self.number(), container));
        self.weave(["attach", &cidr, netns.name()]).map(drop)
    }

    /// Attaches one of its containers under free addresses, and says which.
    pub fn attach_free(&self, container: u8, more: &[&str]) -> Result<Vec<IpAddr>> {
        let netns = self.config.netns(Place::Container(self.number(), container));
        let said = self.weave(["attach"].iter().chain(more).chain(&[netns.name()]))?;
        said.lines().map(|line| line.parse().with_context(|| format!("attach said {line:?}"))).collect()
    }

    /// Takes one of its containers off the network.
    pub fn detach(&self, container: u8) -> Result<()> {
        let netns = self.config.netns(Place::Container(self.number(), container));
        self.weave(["detach", netns.name()]).map(drop)
    }
}

/// Starts an agent on every host, each told of those before it, and attaches all containers.
pub(crate) fn start_all(config: &LabConfig) -> Result<()> {
    let hosts = (1..=config.hosts).map(|number| Host(Node { config, place: Place::Host(number) }));
    let mut started = Vec::new();
    for host in hosts {
        host.launch(if config.star { &started[..started.len().min(1)] } else { &started })?;
        if config.attached {
            (1..=config.containers).try_for_each(|container| host.attach(container))?;
        }
        started.push(host.address());
    }
    Ok(())
}
