//! `weave-agent odp`: the kernel's openvswitch module by hand, with or without an agent.

use std::net::Ipv4Addr;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use super::render;
use super::show::{print, print_json};
use crate::addr::Mac;
use crate::io::datapath::odp::kernel::Kernel;
use crate::io::datapath::odp::wire::{Act, Datapath, Fields, Flow, Tunnel, VportKind};

/// `odp`
#[derive(Debug, Subcommand)]
pub enum Odp {
    /// Datapaths: the module's switches
    #[command(subcommand, after_help = "Example: weave-agent odp datapath list")]
    Datapath(Datapaths),
    /// Ports of a datapath
    #[command(subcommand, after_help = "Example: weave-agent odp vport add lab eth1")]
    Vport(Vports),
    /// Flows of a datapath
    #[command(subcommand, after_help = "Example: weave-agent odp flow list weave-odp")]
    Flow(Flows),
}

/// `odp datapath`
#[derive(Debug, Subcommand)]
pub enum Datapaths {
    /// List all of them
    #[command(after_help = "Example: weave-agent odp datapath list --json")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make one
    #[command(after_help = "Example: weave-agent odp datapath add lab")]
    Add {
        /// Its name, and that of its own interface
        name: String,
    },
    /// Delete one with all its ports and flows, whoever made it
    #[command(after_help = "Example: weave-agent odp datapath delete lab")]
    Delete {
        /// Its name
        name: String,
    },
}

/// `odp vport`
#[derive(Debug, Subcommand)]
pub enum Vports {
    /// List those of a datapath, or all
    #[command(after_help = "Example: weave-agent odp vport list weave-odp")]
    List {
        /// Name of the datapath
        datapath: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make one
    #[command(
        after_help = "Frames that no flow matches are dropped.\n\nExample: weave-agent odp vport add lab vxlan0 --type vxlan --port 4789"
    )]
    Add {
        /// Name of the datapath
        datapath: String,
        /// Name of the interface: one that is there, for `netdev`, else a new one
        name: String,
        /// What it is
        #[arg(long = "type", value_name = "netdev|internal|vxlan", default_value = "netdev", value_parser = kind)]
        kind: VportKind,
        /// UDP port of a tunnel
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        port: Option<u16>,
    },
    /// Delete one
    #[command(after_help = "Example: weave-agent odp vport delete lab eth1")]
    Delete {
        /// Name of the datapath
        datapath: String,
        /// Name of its interface
        name: String,
    },
}

/// `odp flow`
#[derive(Debug, Subcommand)]
pub enum Flows {
    /// List those of a datapath
    #[command(after_help = "Example: weave-agent odp flow list weave-odp --json")]
    List {
        /// Name of the datapath
        datapath: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make one
    #[command(
        after_help = "ACTION is `output:PORT`, or `tunnel:ID,SRC,DST[,TTL]`, which says what the next output to a tunnel writes. Without one the frames \
        are dropped.\n\nExample: weave-agent odp flow add lab --in-port eth1 --src 02:00:00:00:00:01 --dst 02:00:00:00:00:02 output:eth2"
    )]
    Add {
        /// Name of the datapath
        datapath: String,
        /// What it matches.
        #[command(flatten)]
        matches: Match,
        /// What it does
        #[arg(value_name = "ACTION")]
        actions: Vec<String>,
    },
    /// Delete those that match exactly this
    #[command(after_help = "Example: weave-agent odp flow delete lab --in-port eth1 --src 02:00:00:00:00:01 --dst 02:00:00:00:00:02")]
    Delete {
        /// Name of the datapath
        datapath: String,
        /// What they match.
        #[command(flatten)]
        matches: Match,
    },
}

/// What a flow matches; what is not said may be anything.
#[derive(Clone, Debug, Args)]
pub struct Match {
    /// Port that it comes in by: its interface, or number
    #[arg(long, value_name = "PORT")]
    pub in_port: String,
    /// Source address
    #[arg(long, value_name = "MAC")]
    pub src: Option<Mac>,
    /// Destination address
    #[arg(long, value_name = "MAC")]
    pub dst: Option<Mac>,
    /// Number of the tunnel
    #[arg(long, value_name = "N", requires = "tunnel_dst")]
    pub tunnel_id: Option<u64>,
    /// Outer source address
    #[arg(long, value_name = "ADDRESS", requires = "tunnel_dst")]
    pub tunnel_src: Option<Ipv4Addr>,
    /// Outer destination address
    #[arg(long, value_name = "ADDRESS")]
    pub tunnel_dst: Option<Ipv4Addr>,
}

/// Carries out one of these.
///
/// # Errors
/// What the kernel says; without the module, that.
pub(super) fn carry_out(command: &Odp) -> Result<()> {
    let kernel = Kernel::open().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow::anyhow!("the kernel has no openvswitch module: `modprobe openvswitch` says why"),
        _ => anyhow::Error::from(error).context("the openvswitch module does not answer"),
    })?;
    match command {
        Odp::Datapath(command) => datapaths(&kernel, command),
        Odp::Vport(command) => vports(&kernel, command),
        Odp::Flow(command) => flows(&kernel, command),
    }
}

fn datapaths(kernel: &Kernel, command: &Datapaths) -> Result<()> {
    match command {
        Datapaths::List { json } => {
            let all = kernel.datapaths()?;
            if *json { print_json(&all) } else { print(&render::odp::datapaths(&all)) }
        }
        Datapaths::Add { name } => {
            let made = kernel.add_datapath(name).map(drop).map_err(|error| refused(error.into(), NO_NAME));
            made.with_context(|| format!("cannot make {name}"))
        }
        Datapaths::Delete { name } => {
            if !kernel.delete_datapath(name).with_context(|| format!("cannot delete {name}"))? {
                bail!("there is no datapath {name}: `weave-agent odp datapath list` lists them");
            }
            Ok(())
        }
    }
}

fn vports(kernel: &Kernel, command: &Vports) -> Result<()> {
    match command {
        Vports::List { datapath, json } => {
            let wanted = |found: &Datapath| datapath.as_ref().is_none_or(|name| *name == found.name);
            let datapaths: Vec<_> = kernel.datapaths()?.into_iter().filter(wanted).collect();
            if let (Some(name), []) = (datapath, datapaths.as_slice()) {
                bail!("there is no datapath {name}: `weave-agent odp datapath list` lists them");
            }
            let mut all = Vec::new();
            for datapath in &datapaths {
                all.extend(kernel.vports(datapath.ifindex)?);
            }
            if *json { print_json(&all) } else { print(&render::odp::vports(&datapaths, &all)) }
        }
        Vports::Add { datapath, name, kind, port } => {
            if matches!(kind, VportKind::Vxlan) && port.is_none() {
                bail!("a vxlan port has a UDP port: say --port");
            }
            let datapath = find(kernel, datapath)?;
            // Nobody is told of misses.
            let made = kernel.add_vport(datapath.ifindex, *kind, name, *port, &[0]).map(drop);
            let made = made.map_err(|error| without_tunnels(error, name, *port));
            made.map_err(|error| refused(error, NO_PORT)).with_context(|| format!("cannot make {name}"))
        }
        Vports::Delete { datapath, name } => {
            let datapath = find(kernel, datapath)?;
            let number = port(kernel, &datapath, name)?;
            let deleted = kernel.delete_vport(datapath.ifindex, number).map(drop).map_err(|error| refused(error.into(), OWN_PORT));
            deleted.with_context(|| format!("cannot delete {name}"))
        }
    }
}

/// What the module means by `EINVAL`, by what it was asked for.
const NO_NAME: &str = "the name of an interface has 1 to 15 letters, without spaces and slashes";
const NO_PORT: &str = "a port is an Ethernet interface that has no other master: not the loopback, not a datapath's own one; a new one's name has 1 to 15 letters";
const OWN_PORT: &str = "a datapath's own port goes with the datapath: `weave-agent odp datapath delete`";
const NO_FLOW: &str = "ports are numbers below 65536, as `weave-agent odp vport list` shows them";

/// The kernel only says that something is invalid: also what may be.
fn refused(error: anyhow::Error, meaning: &'static str) -> anyhow::Error {
    let code = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    if code == Some(libc::EINVAL) { error.context(meaning) } else { error }
}

/// Linux 7.3 has no vports for tunnels any more.
fn without_tunnels(error: std::io::Error, name: &str, port: Option<u16>) -> anyhow::Error {
    match (error.raw_os_error(), port) {
        (Some(libc::EAFNOSUPPORT), Some(port)) => anyhow::anyhow!(
            "this kernel's openvswitch module makes no vxlan ports: before Linux 7.3 `modprobe vport-vxlan` helps; else make the device yourself \
             (`ip link add {name} type vxlan external dstport {port}`, `ip link set {name} up`) and add it with --type netdev"
        ),
        (Some(libc::EAFNOSUPPORT), None) => anyhow::anyhow!("this kernel's openvswitch module makes no ports of this type"),
        _ => error.into(),
    }
}

fn flows(kernel: &Kernel, command: &Flows) -> Result<()> {
    match command {
        Flows::List { datapath, json } => {
            let datapath = find(kernel, datapath)?;
            let all = kernel.flows(datapath.ifindex, false)?;
            if *json { print_json(&all.iter().map(render::odp::flow_value).collect::<Vec<_>>()) } else { print(&render::odp::flows(&all)) }
        }
        Flows::Add { datapath, matches, actions } => {
            let datapath = find(kernel, datapath)?;
            let (key, mask) = fields(kernel, &datapath, matches)?;
            let actions = actions.iter().map(|text| action(kernel, &datapath, text)).collect::<Result<Vec<_>>>()?;
            let made = kernel.add_plain_flow(datapath.ifindex, &key, &mask, &actions).map_err(|error| refused(error.into(), NO_FLOW));
            made.context("cannot make the flow")
        }
        Flows::Delete { datapath, matches } => {
            let datapath = find(kernel, datapath)?;
            let (key, _) = fields(kernel, &datapath, matches)?;
            let found: Vec<_> = kernel.flows(datapath.ifindex, false)?.into_iter().filter(|flow| is_meant(flow, &key)).collect();
            if found.is_empty() {
                bail!("no flow matches exactly this: `weave-agent odp flow list {}` lists them", datapath.name);
            }
            found.iter().try_for_each(|flow| kernel.delete_flow(datapath.ifindex, flow).map(drop)).context("cannot delete the flow")
        }
    }
}

fn find(kernel: &Kernel, name: &str) -> Result<Datapath> {
    let found = kernel.find_datapath(name)?;
    found.with_context(|| format!("there is no datapath {name}: `weave-agent odp datapath list` lists them"))
}

/// A port's number, by it or by the interface.
fn port(kernel: &Kernel, datapath: &Datapath, text: &str) -> Result<u32> {
    let ports = kernel.vports(datapath.ifindex)?;
    let found = ports.iter().find(|port| port.name == text).map(|port| port.number);
    found.or_else(|| text.parse().ok()).with_context(|| format!("{} has no port {text}", datapath.name))
}

fn fields(kernel: &Kernel, datapath: &Datapath, matches: &Match) -> Result<(Fields, Fields)> {
    let (none, all) = (Mac([0; 6]), Mac([0xff; 6]));
    let bits = |mac: Option<Mac>| mac.map_or(none, |_| all);
    let mut key = Fields { in_port: Some(port(kernel, datapath, &matches.in_port)?), ..Fields::default() };
    let mut mask = Fields { in_port: Some(u32::MAX), ..Fields::default() };
    key.ethernet = Some([matches.src.unwrap_or(none), matches.dst.unwrap_or(none)]);
    mask.ethernet = Some([bits(matches.src), bits(matches.dst)]);
    if let Some(dst) = matches.tunnel_dst {
        let every = Some(Ipv4Addr::BROADCAST);
        let (id, src) = (matches.tunnel_id, matches.tunnel_src);
        // The module wants a TTL in the key.
        key.tunnel = Some(Tunnel { id, src, dst: Some(dst), ttl: Some(64), ..Tunnel::default() });
        mask.tunnel = Some(Tunnel { id: id.map(|_| u64::MAX), src: src.and(every), dst: every, ttl: Some(0), ..Tunnel::default() });
    }
    Ok((key, mask))
}

/// Whether a flow in the module matches what was typed, as far as it can be typed.
fn is_meant(flow: &Flow, key: &Fields) -> bool {
    let tunnel = |fields: &Fields| fields.tunnel.as_ref().map(|tunnel| (tunnel.id.unwrap_or_default(), tunnel.src, tunnel.dst));
    let src = |tunnel: Option<(u64, Option<Ipv4Addr>, Option<Ipv4Addr>)>| {
        tunnel.map(|(id, src, dst)| (id, src.unwrap_or(Ipv4Addr::UNSPECIFIED), dst.unwrap_or(Ipv4Addr::UNSPECIFIED)))
    };
    (flow.key.in_port, flow.key.ethernet) == (key.in_port, key.ethernet) && src(tunnel(&flow.key)) == src(tunnel(key))
}

fn action(kernel: &Kernel, datapath: &Datapath, text: &str) -> Result<Act> {
    match text.split_once(':') {
        Some(("output", name)) => port(kernel, datapath, name).map(Act::Output),
        Some(("tunnel", words)) => tunnel(words).with_context(|| format!("{text:?} is no tunnel: say tunnel:ID,SRC,DST[,TTL]")),
        _ => bail!("{text:?} is no action: say output:PORT or tunnel:ID,SRC,DST[,TTL]"),
    }
}

fn tunnel(words: &str) -> Result<Act> {
    let mut words = words.split(',');
    let mut word = || words.next().context("too short");
    let (id, src, dst) = (word()?.parse()?, word()?.parse()?, word()?.parse()?);
    let ttl = word().ok().map_or(Ok(64), u8::from_str)?;
    Ok(Act::SetTunnel(Tunnel { id: Some(id), src: Some(src), dst: Some(dst), ttl: Some(ttl), dont_fragment: true, ..Tunnel::default() }))
}

fn kind(text: &str) -> Result<VportKind, String> {
    let known = [VportKind::Netdev, VportKind::Internal, VportKind::Vxlan];
    VportKind::from_name(text).filter(|kind| known.contains(kind)).ok_or_else(|| "say netdev, internal or vxlan".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_module_calls_invalid_is_said_to_mean_something_and_nothing_else_is() {
        let told = |code| format!("{:#}", refused(std::io::Error::from_raw_os_error(code).into(), NO_NAME));
        assert!(told(libc::EINVAL).starts_with(NO_NAME), "{}", told(libc::EINVAL));
        assert!(!told(libc::EEXIST).contains(NO_NAME));
    }

    #[test]
    fn a_tunnel_is_said_in_three_words_or_four() {
        let Act::SetTunnel(said) = tunnel("4098,10.0.0.1,10.0.0.2").unwrap() else { panic!() };
        assert_eq!((said.id, said.src, said.ttl), (Some(4_098), Some(Ipv4Addr::new(10, 0, 0, 1)), Some(64)));
        assert!(matches!(tunnel("1,10.0.0.1,10.0.0.2,9").unwrap(), Act::SetTunnel(said) if said.ttl == Some(9)));
        for wrong in ["", "1", "1,10.0.0.1", "x,10.0.0.1,10.0.0.2", "1,10.0.0.1,10.0.0.2,300"] {
            assert!(tunnel(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_ports_that_can_be_made_are() {
        assert_eq!(kind("vxlan"), Ok(VportKind::Vxlan));
        assert!(kind("gre").is_err() && kind("").is_err());
    }
}
