//! `cargo xtask lab`: hosts made of network namespaces, to try weave-agent on one machine.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use vm_tests::{Lab, LabConfig, Place, Underlay, process};

use crate::build_ebpf;
use crate::progress::step;
use crate::workspace::Workspace;

const DEFAULT_NAME: &str = "lab";

/// What to do with a lab.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Which lab: several can be up at once
    #[arg(long, default_value = DEFAULT_NAME, global = true)]
    name: String,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make hosts, start an agent on each and attach containers
    #[command(after_help = "Example:\n  cargo xtask lab up --hosts 3\n  cargo xtask lab exec h1c1 -- ping -c3 10.32.3.1")]
    Up(Up),

    /// Say what hosts and containers there are, and how their agents do
    #[command(after_help = "Example:\n  cargo xtask lab status")]
    Status,

    /// Run a command on a host or in a container; `weave-agent` there is that host's
    #[command(after_help = "Example:\n  cargo xtask lab exec h1 -- weave-agent status\n  \
                      cargo xtask lab exec h1c1 -- ping -c3 10.32.2.1")]
    Exec {
        /// A host (h1) or a container (h1c1)
        place: Place,
        /// The command and its arguments
        #[arg(required = true, last = true)]
        command: Vec<OsString>,
    },

    /// Cut two hosts off from each other: the underlay drops what they send each other
    #[command(after_help = "Example:\n  cargo xtask lab cut h1 h2\n  cargo xtask lab cut h1 h2 --udp 6784")]
    Cut(Pair),

    /// Undo `cut`
    #[command(after_help = "Example:\n  cargo xtask lab mend h1 h2")]
    Mend(Pair),

    /// Take everything down again
    #[command(after_help = "Example:\n  cargo xtask lab down")]
    Down,
}

#[derive(Debug, Args)]
struct Up {
    /// How many hosts
    #[arg(long, default_value_t = 3)]
    hosts: u8,

    /// How many containers on each
    #[arg(long, default_value_t = 2)]
    containers: u8,

    /// Put every host in a network of its own behind a router; h2 gets two uplinks
    #[arg(long)]
    routed: bool,

    /// Join two hosts by one cable, as `bench` does: nothing stands between, and nothing can be cut
    #[arg(long, conflicts_with = "routed")]
    direct: bool,

    /// The underlay's MTU; the overlay's is 50 less
    #[arg(long, default_value_t = 1550)]
    mtu: u16,

    /// Leave the hosts bare: no agents, containers attached to nothing
    #[arg(long)]
    no_agents: bool,
}

#[derive(Debug, Args)]
struct Pair {
    /// A host
    a: Place,
    /// Another host
    b: Place,
    /// Only UDP to this port, as a firewall would
    #[arg(long, value_name = "PORT")]
    udp: Option<u16>,
}

/// Does what was asked.
pub(crate) fn run(workspace: &Workspace, options: Options) -> Result<()> {
    let name = &options.name;
    match options.verb {
        Verb::Up(up) => make(workspace, name, &up),
        Verb::Status => status(&Lab::open(name)?),
        Verb::Exec { place, command } => exec(&Lab::open(name)?, place, &command).map(|never| match never {}),
        Verb::Cut(Pair { a, b, udp: Some(port) }) => Lab::open(name)?.block(host(a)?, host(b)?, port),
        Verb::Mend(Pair { a, b, udp: Some(port) }) => Lab::open(name)?.unblock(host(a)?, host(b)?, port),
        Verb::Cut(Pair { a, b, udp: None }) => Lab::open(name)?.cut(host(a)?, host(b)?),
        Verb::Mend(Pair { a, b, udp: None }) => Lab::open(name)?.mend(host(a)?, host(b)?),
        Verb::Down => Lab::open(name)?.down(),
    }
}

fn make(workspace: &Workspace, name: &str, up: &Up) -> Result<()> {
    let config = config(name, up);
    if config.agent.as_deref() == Some(&workspace.agent()) && !workspace.agent().exists() {
        build_ebpf::run(workspace, &build_ebpf::Options { no_install: true, ..Default::default() })?;
    }
    let lab = step("lab", || Ok((Lab::up(config)?, "up".to_owned())))?;
    status(&lab)?;
    println!("\nTry: {}", suggestion(&lab));
    Ok(())
}

fn config(name: &str, up: &Up) -> LabConfig {
    let underlay = match (up.routed, up.direct) {
        (true, _) => Underlay::Routed,
        (_, true) => Underlay::Direct,
        _ => Underlay::Flat,
    };
    let (hosts, containers, mtu) = (up.hosts, up.containers, up.mtu);
    let config = LabConfig { hosts, containers, underlay, mtu, ..LabConfig::named(name) };
    if up.no_agents { config.without_agents() } else { config }
}

fn suggestion(lab: &Lab) -> String {
    let config = lab.config();
    let last = config.hosts;
    match (&config.agent, config.containers) {
        (Some(_), 1..) => typed(lab, &format!("exec h1c1 -- ping -c3 10.32.{last}.1")),
        (Some(_), 0) => typed(lab, "exec h1 -- weave-agent status"),
        (None, _) => typed(lab, &format!("exec h1 -- ping -c3 {}", config.underlay_address(last))),
    }
}

/// A command for this lab, as one would type it.
fn typed(lab: &Lab, verb: &str) -> String {
    match lab.config().name.as_str() {
        DEFAULT_NAME => format!("cargo xtask lab {verb}"),
        name => format!("cargo xtask lab --name {name} {verb}"),
    }
}

fn status(lab: &Lab) -> Result<()> {
    let config = lab.config();
    println!("{:<8} {:<16} {:<24} agent", "place", "address", "namespace");
    for place in config.places() {
        let node = lab.node(place)?;
        let (address, agent) = match place {
            Place::Host(number) => (config.underlay_address(number), agent_state(lab, number)?),
            Place::Container(..) => (lab.overlay_address(&place.to_string())?, String::new()),
        };
        println!("{:<8} {:<16} {:<24} {agent}", place.to_string(), address.to_string(), node.netns());
    }
    for (a, b) in &lab.record().cuts {
        let mend = typed(lab, &format!("mend h{a} h{b}"));
        println!("h{a} and h{b} are cut off from each other: `{mend}`");
    }
    Ok(())
}

fn agent_state(lab: &Lab, number: u8) -> Result<String> {
    if lab.config().agent.is_none() {
        return Ok("none".to_owned());
    }
    let mut command = lab.host(number)?.agent()?;
    if process::captured(command.args(["status", "--json"]))?.status.success() {
        return Ok("running".to_owned());
    }
    let start = typed(lab, &format!("exec h{number} -- weave-agent launch"));
    Ok(format!("not running: `{start}` starts it"))
}

/// Becomes the command, so that it has the terminal, the signals and the last word.
fn exec(lab: &Lab, place: Place, words: &[OsString]) -> Result<Infallible> {
    let (program, arguments) = words.split_first().context("no command given")?;
    let mut command = lab.node(place)?.command(program)?;
    let error = command.args(arguments).exec();
    Err(process::not_started(&command, error))
}

fn host(place: Place) -> Result<u8> {
    match place {
        Place::Host(number) => Ok(number),
        Place::Container(number, _) => {
            anyhow::bail!("{place} is a container: cuts are between hosts, like h{number}")
        }
    }
}
