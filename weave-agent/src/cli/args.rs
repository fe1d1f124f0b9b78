//! What was typed. What is meant by it is in [`super::meant`], [`crate::config`] and [`crate::io::api::body`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{ArgAction, Parser, Subcommand, ValueEnum};

use super::odp::Odp;
use super::secret::PasswordFlags;
use crate::config::{CONN_LIMIT, Choice, LEAST_REKEY_INTERVAL, MESH_PORT, Settings, Xdp};
use crate::dns::{DEFAULT_DOMAIN, Domain};
use crate::io::paths::Paths;
use crate::ipam::DEFAULT_RANGE;
use crate::peer::PeerName;

const STYLES: Styles = Styles::styled().header(AnsiColor::Green.on_default()).usage(AnsiColor::Green.on_default());

/// A container network for any set of Linux hosts: one agent per host, no central store.
#[derive(Debug, Parser)]
#[command(name = "weave-agent", styles = STYLES, disable_version_flag = true, arg_required_else_help = true, subcommand_required = true)]
#[command(after_help = "Example: on the first host `weave-agent launch`, on the others `weave-agent launch FIRST_HOST`, then\n  \
    weave-agent attach web")]
pub struct Args {
    /// Where the agent keeps its socket, pid, log and pins
    #[arg(long, global = true, env = "WEAVE_RUN_DIR", default_value = "/run/weave", value_name = "DIR", hide_env_values = true, value_parser = absolute())]
    pub run_dir: PathBuf,
    /// Where the agent keeps its name and targets
    #[arg(long, global = true, env = "WEAVE_STATE_DIR", default_value = "/var/lib/weave", value_name = "DIR", hide_env_values = true, value_parser = absolute())]
    pub state_dir: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Args {
    /// The directories meant.
    pub fn paths(&self) -> Paths {
        Paths { run: self.run_dir.clone(), state: self.state_dir.clone() }
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the agent of this host; returns when it is ready
    Launch(Box<Launch>),
    /// Stop the agent; containers keep their network
    #[command(after_help = "Example: weave-agent stop && weave-agent launch    # a restart that no container notices")]
    Stop,
    /// Stop the agent and remove every trace of it: interfaces, programs, files
    #[command(after_help = "Example: weave-agent reset    # works with the agent dead, too")]
    Reset,
    /// Connect to more peers, now and after every restart
    #[command(after_help = "Example: weave-agent connect 192.168.0.12 host3.example.com:6783")]
    Connect {
        /// Forget all earlier peers first
        #[arg(long)]
        replace: bool,
        /// Host name or address, with `:PORT` if it is not ours
        #[arg(required = true, value_name = "PEER")]
        peers: Vec<String>,
    },
    /// Do not connect to peers any more; connections that are up stay up
    #[command(after_help = "Example: weave-agent forget 192.168.0.12")]
    Forget {
        /// As it was given to `launch` or `connect`
        #[arg(required = true, value_name = "PEER")]
        peers: Vec<String>,
    },
    /// Change the passwords of a running network, host by host
    #[command(
        after_help = "The new list replaces the old one at once; containers notice nothing. Connections made with a password that is not in the new\n\
        list are closed and made anew. So that no host is ever alone, take three rounds, each on every host before the next:\n  \
        1. old, then new:  all dial with the old password, and accept both\n  \
        2. new, then old:  all dial with the new one\n  \
        3. new:            nobody accepts the old one any more\n\
        The agent keeps no password: the file that `launch` reads must change, too.\n\n\
        Example: weave-agent passwords --password-file /etc/weave/password"
    )]
    Passwords(PasswordFlags),
    /// Put a container on the network
    #[command(
        after_help = "TARGET is a process id, the path of a network namespace, the name of one under /run/netns, or a Docker container.\n\n\
        Example: weave-agent attach --name db net:10.32.2.0/24 web"
    )]
    Attach {
        /// What addresses (`10.32.1.1/16`, `net:10.32.2.0/24` for a free one, `net:default`; a free one if nothing is said), then
        /// the container
        #[arg(required = true, value_name = "[ADDRESS…] TARGET")]
        words: Vec<String>,
        /// Name in the network, with or without the domain
        #[arg(long)]
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take addresses from a container, or all of them and its interface
    #[command(after_help = "Example: weave-agent detach web")]
    Detach {
        /// [CIDR…] TARGET, as for `attach`; without a CIDR everything goes
        #[arg(required = true, value_name = "[CIDR…] TARGET")]
        words: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put this host itself on the network, and the network behind this host
    #[command(
        after_help = "Containers that use the address as their gateway reach whatever this host reaches, in its name; what this host routes to\n\
        them comes from its address. It takes `nft`, and turns on forwarding.\n\nExample: weave-agent expose"
    )]
    Expose {
        /// Name of this host in the network
        #[arg(long)]
        name: Option<String>,
        /// No NAT: the host has the addresses, and that is all
        #[arg(long)]
        no_masq: bool,
        /// What addresses, as for `attach`; a free one if nothing is said
        #[arg(value_name = "ADDRESS")]
        addresses: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take this host off the network
    #[command(after_help = "Example: weave-agent hide 10.32.0.1/16    # without an address: all of them")]
    Hide {
        /// Addresses as `10.32.0.1/16`; all of them if none is given
        #[arg(value_name = "CIDR")]
        addresses: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take over the addresses of a peer that is gone for good
    #[command(after_help = "Run it on one host only, and only if the peer will not come back.\n\nExample: weave-agent rmpeer host3")]
    Rmpeer {
        /// Names or nicknames, as `status ipam` shows them
        #[arg(required = true, value_name = "PEER")]
        peers: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give addresses a name; it stays until it is removed
    #[command(after_help = "Containers have the names that `attach --name` gave them.\n\nExample: weave-agent dns-add printer 192.168.0.9")]
    DnsAdd {
        /// A single word, or a name in the domain
        name: String,
        /// Its addresses
        #[arg(required = true, value_name = "ADDRESS")]
        addresses: Vec<IpAddr>,
    },
    /// Remove a name that this host gave: by `dns-add`, or to a container, which keeps its other names
    #[command(
        after_help = "Without an ADDRESS it is removed from all who have it on this host.\n\nExample: weave-agent dns-remove web 10.32.0.5"
    )]
    DnsRemove {
        /// As it was given to `dns-add`, or to `attach --name`
        name: String,
        /// Only these addresses
        #[arg(value_name = "ADDRESS")]
        addresses: Vec<IpAddr>,
    },
    /// Say which addresses a name has, or which names an address
    #[command(after_help = "Example: weave-agent dns-lookup web")]
    DnsLookup {
        /// A name, or an address
        #[arg(value_name = "NAME")]
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the flags that let a Docker container find names
    #[command(
        after_help = "To be used as in `docker run $(weave-agent dns-args) --name web nginx && weave-agent attach web`.\n\nExample: weave-agent dns-args"
    )]
    DnsArgs,
    /// Wait until addresses can be given out
    #[command(after_help = "Example: weave-agent launch host1 && weave-agent prime")]
    Prime,
    /// Show how the agent and its network are
    #[command(after_help = "Example: weave-agent status flows --json")]
    Status {
        /// What to show in detail
        #[arg(value_enum)]
        what: Option<What>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Look into the kernel's openvswitch module, and change what it has: datapaths, ports, flows
    #[command(
        subcommand,
        after_help = "It works with and without an agent, on anybody's datapaths; the agent's own is `weave-odp`.\n\n\
        Example: weave-agent odp flow list weave-odp"
    )]
    Odp(Odp),
    /// List the attached containers with their addresses
    #[command(after_help = "Example: weave-agent ps web")]
    Ps {
        /// Only these, as they were given to `attach`; `weave:expose` is this host
        #[arg(value_name = "TARGET")]
        targets: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print everything the agent knows, as JSON
    #[command(after_help = "Example: weave-agent report | jq .status.drops")]
    Report {
        /// Taken for granted: a report is JSON
        #[arg(long, hide = true)]
        json: bool,
    },
    /// Print the version of this program and of the agent that runs
    #[command(after_help = "Example: weave-agent version")]
    Version {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// The details of `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Mesh connections and the tunnels beside them
    Connections,
    /// All peers of the mesh, and how they are connected
    Peers,
    /// What this agent was told to connect to
    Targets,
    /// The kernel's flow cache
    Flows,
    /// Which MAC address is where
    Fdb,
    /// Who gives out which addresses
    Ipam,
    /// Names and their addresses
    Dns,
}

/// `launch`
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "What is not said (PEERs, --nickname, --port, --host, --no-discovery, --conn-limit, --mtu, --datapath, --xdp, --big-tcp, --trusted-subnets, --ipalloc-…) is as\n\
    it was said last, until `reset`; only then are the defaults meant. A password is not kept, only that there was one: say it each time.\n\n\
    Example: weave-agent launch --nickname web1 192.168.0.11 host3.example.com"
)]
pub struct Launch {
    /// Hosts to connect to: name or address, with `:PORT` if it is not ours
    #[arg(value_name = "PEER")]
    pub peers: Vec<String>,
    /// Stay in the foreground and log to standard error: for supervisors
    #[arg(long)]
    pub foreground: bool,
    /// Name of this peer, like a MAC address; random and kept if not given
    #[arg(long, value_name = "MAC")]
    pub name: Option<PeerName>,
    /// Name for people [default: the host's name]
    #[arg(long, value_name = "TEXT")]
    pub nickname: Option<String>,
    /// TCP port of the mesh; the tunnel uses UDP on the next one
    #[arg(long, help = format!("TCP port of the mesh; the tunnel uses UDP on the next one [default: {MESH_PORT}]"))]
    pub port: Option<u16>,
    /// Listen and dial with this address of ours only; 0.0.0.0 is all
    #[arg(long, value_name = "ADDRESS")]
    pub host: Option<Ipv4Addr>,
    /// Connect only to PEERs, not to those that they tell of
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub no_discovery: Option<bool>,
    /// Most mesh connections at a time; 0 is no limit
    #[arg(long, value_name = "N", help = format!("Most mesh connections at a time; 0 is no limit [default: {CONN_LIMIT}]"))]
    pub conn_limit: Option<usize>,
    /// MTU for containers; 0 is what the underlay allows
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// Who carries frames: eBPF programs in the kernel (`ebpf`), its openvswitch module (`odp`), the agent itself
    /// (`userspace`), or the best that this host lets it have [default: auto]
    #[arg(long, value_name = "auto|ebpf|odp|userspace", value_parser = datapath)]
    pub datapath: Option<Choice>,
    /// Where strangers' packets end before the kernel's stack sees them (XDP, native mode only): nowhere, on every underlay
    /// interface whose driver takes it (`filter`), or where that costs nothing [default: auto]
    #[arg(long, value_name = "off|filter|auto", value_parser = xdp)]
    pub xdp: Option<Xdp>,
    /// Let containers hand over TCP segments of up to 192 kB (BIG TCP, IPv4; Linux 6.3), which go whole to hosts that say this, too. Sets
    /// `gso_ipv4_max_size` of the underlay's interfaces
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub big_tcp: Option<bool>,
    /// The password.
    #[command(flatten)]
    pub passwords: PasswordFlags,
    /// The network has no password any more
    #[arg(long, conflicts_with_all = ["password", "password_file"])]
    pub no_password: bool,
    /// Networks that need no encryption: between two hosts that have each other's address in theirs, frames go as without a password
    #[arg(long, value_name = "CIDR[,CIDR…]")]
    pub trusted_subnets: Option<String>,
    /// Seconds after which encrypted tunnels get new keys [default: 3600]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(i64::from(LEAST_REKEY_INTERVAL)..))]
    pub rekey_interval: Option<u32>,
    /// What addresses containers get.
    #[command(flatten)]
    pub ipalloc: IpallocFlags,
    /// What names are answered.
    #[command(flatten)]
    pub dns: DnsFlags,
    /// How much to log: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = level)]
    pub log_level: tracing::Level,
    /// Become the leader of a session: what `launch` tells the agent in the background.
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    pub detached: bool,
}

/// What addresses containers get.
#[derive(Clone, Debug, clap::Args)]
pub struct IpallocFlags {
    /// Range of the addresses that are given out, or one of each family; the same on all hosts. Empty: none are
    #[arg(
        long,
        value_name = "CIDR[,CIDR]",
        help = format!("Range of the addresses that are given out, or one of each family; the same on all hosts. Empty: none are [default: {DEFAULT_RANGE}]")
    )]
    pub ipalloc_range: Option<String>,
    /// Subnet that is meant when none is said [default: the range]
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pub ipalloc_default_subnet: Option<String>,
    /// Who shares the range out at first: `consensus` of a majority of the hosts known, or of `consensus=N`, hosts of a list
    /// `seed=NAME,…`, or not this one (`observer`) [default: consensus]
    #[arg(long, value_name = "HOW")]
    pub ipalloc_init: Option<String>,
}

impl Launch {
    /// What is kept for the next launch.
    pub fn settings(&self) -> Settings {
        let (ipalloc, dns) = (self.ipalloc.clone(), self.dns.clone());
        Settings {
            nickname: self.nickname.clone(),
            port: self.port,
            host: self.host,
            no_discovery: self.no_discovery,
            conn_limit: self.conn_limit,
            mtu: self.mtu,
            password: self.no_password.then_some(false),
            trusted_subnets: self.trusted_subnets.clone(),
            rekey_interval: self.rekey_interval,
            ipalloc_range: ipalloc.ipalloc_range,
            ipalloc_default_subnet: ipalloc.ipalloc_default_subnet,
            ipalloc_init: ipalloc.ipalloc_init,
            no_dns: dns.no_dns,
            dns_domain: dns.dns_domain,
            dns_ttl: dns.dns_ttl,
            dns_listen_address: dns.dns_listen_address,
            resolv_conf: dns.resolv_conf,
            datapath: self.datapath,
            xdp: self.xdp,
            big_tcp: self.big_tcp,
        }
    }
}

/// The agent works elsewhere than whoever starts it: what it is told must mean the same there.
fn absolute() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(std::path::absolute)
}

/// What names are answered.
#[derive(Clone, Debug, clap::Args)]
pub struct DnsFlags {
    /// Keep no names and answer no queries
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub no_dns: Option<bool>,
    /// Domain of the containers' names; the same on all hosts
    #[arg(long, value_name = "DOMAIN", help = format!("Domain of the containers' names; the same on all hosts [default: {DEFAULT_DOMAIN}]"))]
    pub dns_domain: Option<Domain>,
    /// Seconds that resolvers may keep an answer [default: 1]
    #[arg(long, value_name = "SECONDS")]
    pub dns_ttl: Option<u32>,
    /// Answer here on the host, too; containers ask at 169.254.83.53
    #[arg(long, value_name = "ADDRESS:PORT", value_delimiter = ',')]
    pub dns_listen_address: Vec<SocketAddr>,
    /// File that names the servers that are asked about everything else [default: /etc/resolv.conf]
    #[arg(long, value_name = "FILE", value_parser = absolute())]
    pub resolv_conf: Option<PathBuf>,
}

fn datapath(text: &str) -> Result<Choice, String> {
    let all = [Choice::Auto, Choice::Ebpf, Choice::Odp, Choice::Userspace];
    all.into_iter().find(|choice| choice.name() == text).ok_or_else(|| "say auto, ebpf, odp or userspace".to_owned())
}

fn xdp(text: &str) -> Result<Xdp, String> {
    Xdp::ALL.into_iter().find(|xdp| xdp.name() == text).ok_or_else(|| "say off, filter or auto".to_owned())
}

/// Weave Net says `warning`, Rust says `warn`.
fn level(text: &str) -> Result<tracing::Level, String> {
    let text = if text.eq_ignore_ascii_case("warning") { "warn" } else { text };
    text.parse().map_err(|_| "say error, warn, info, debug or trace".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound_and_every_help_ends_with_an_example() {
        let mut command = Args::command();
        command.clone().debug_assert();
        command.build();
        for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
            let help = sub.render_long_help().to_string();
            assert!(help.trim_end().lines().last().unwrap().starts_with("Example: weave-agent "), "{help}");
        }
        assert!(command.render_help().to_string().contains("Example: "));
    }

    #[test]
    fn directories_may_be_said_before_or_after_the_command() {
        for words in [["weave-agent", "--run-dir", "/r", "stop"], ["weave-agent", "stop", "--run-dir", "/r"]] {
            assert_eq!(Args::try_parse_from(words).unwrap().paths().socket(), PathBuf::from("/r/agent.sock"));
        }
    }

    #[test]
    fn directories_are_absolute_whatever_was_said() {
        let args = Args::try_parse_from(["weave-agent", "--run-dir", "r1", "stop", "--state-dir=./s1"]).unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!(args.paths(), Paths { run: here.join("r1"), state: here.join("s1") });
    }

    #[test]
    fn log_levels_are_those_of_weave_and_of_rust() {
        let parsed = |text| Args::try_parse_from(["weave-agent", "launch", "--log-level", text]);
        assert!(parsed("warning").is_ok() && parsed("warn").is_ok() && parsed("DEBUG").is_ok());
        assert!(parsed("loud").unwrap_err().to_string().contains("say error, warn, info"));
    }
}
