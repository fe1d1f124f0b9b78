//! What an agent is told at its start, after defaults and checks.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::dns::Domain;
use crate::ipam::{self, Init};
use crate::password::Password;
use crate::peer::PeerName;

/// TCP port of the mesh, as Weave Net has it.
pub const MESH_PORT: u16 = 6783;
/// Most links at a time, as Weave Net has it; 0 is no limit.
pub const CONN_LIMIT: usize = 200;
/// Smallest MTU for containers: IPv6 needs it (RFC 8200 5).
pub const LEAST_MTU: u32 = 1280;
/// After so many seconds the keys of sealed tunnels are followed by others, if nobody says otherwise.
pub const REKEY_INTERVAL: u32 = 3600;
/// The shortest that can be had: an old key is accepted for a minute besides, and not more than eight at once.
pub const LEAST_REKEY_INTERVAL: u32 = 10;
/// Most bytes of a nickname: it travels in every topology message.
const LONGEST_NICKNAME: usize = 64;

/// What `launch` was told, as it was said; what was not said is as it was said last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// `--nickname`
    pub nickname: Option<String>,
    /// `--port`
    pub port: Option<u16>,
    /// `--host`; 0.0.0.0 is none.
    pub host: Option<Ipv4Addr>,
    /// `--no-discovery`
    pub no_discovery: Option<bool>,
    /// `--conn-limit`
    pub conn_limit: Option<usize>,
    /// `--mtu`; 0 is none.
    pub mtu: Option<u32>,
    /// Whether there was a password; which one is not kept.
    pub password: Option<bool>,
    /// `--trusted-subnets`
    pub trusted_subnets: Option<String>,
    /// `--rekey-interval`, seconds
    pub rekey_interval: Option<u32>,
    /// `--ipalloc-range`
    pub ipalloc_range: Option<String>,
    /// `--ipalloc-default-subnet`
    pub ipalloc_default_subnet: Option<String>,
    /// `--ipalloc-init`
    pub ipalloc_init: Option<String>,
    /// `--no-dns`
    pub no_dns: Option<bool>,
    /// `--dns-domain`
    pub dns_domain: Option<Domain>,
    /// `--dns-ttl`, seconds
    pub dns_ttl: Option<u32>,
    /// `--dns-listen-address`; none said if empty.
    pub dns_listen_address: Vec<SocketAddr>,
    /// `--resolv-conf`
    pub resolv_conf: Option<PathBuf>,
    /// `--datapath`
    pub datapath: Option<Choice>,
    /// `--xdp`
    pub xdp: Option<Xdp>,
    /// `--big-tcp`
    pub big_tcp: Option<bool>,
}

/// Who is to carry frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// The best that this host lets us have.
    #[default]
    Auto,
    /// eBPF programs in the kernel.
    Ebpf,
    /// The kernel's openvswitch module.
    Odp,
    /// The agent itself.
    Userspace,
}

impl Choice {
    /// As it is said.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Ebpf => "ebpf",
            Self::Odp => "odp",
            Self::Userspace => "userspace",
        }
    }
}

/// Where strangers' packets are to end before the kernel's stack sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Xdp {
    /// Nowhere: they end after it.
    Off,
    /// Wherever the driver lets us, at any cost.
    Filter,
    /// Where it costs nothing.
    #[default]
    Auto,
}

impl Xdp {
    /// All there are to choose from.
    pub const ALL: [Self; 3] = [Self::Off, Self::Filter, Self::Auto];

    /// As it is said.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Filter => "filter",
            Self::Auto => "auto",
        }
    }
}

impl Settings {
    /// These; where nothing is said, those of `before`.
    #[must_use]
    pub fn or(self, before: Self) -> Self {
        Self {
            nickname: self.nickname.or(before.nickname),
            port: self.port.or(before.port),
            host: self.host.or(before.host),
            no_discovery: self.no_discovery.or(before.no_discovery),
            conn_limit: self.conn_limit.or(before.conn_limit),
            mtu: self.mtu.or(before.mtu),
            password: self.password.or(before.password),
            trusted_subnets: self.trusted_subnets.or(before.trusted_subnets),
            rekey_interval: self.rekey_interval.or(before.rekey_interval),
            // A subnet of another range means nothing.
            ipalloc_default_subnet: self.ipalloc_default_subnet.or(before.ipalloc_default_subnet.filter(|_| self.ipalloc_range.is_none())),
            ipalloc_range: self.ipalloc_range.or(before.ipalloc_range),
            ipalloc_init: self.ipalloc_init.or(before.ipalloc_init),
            no_dns: self.no_dns.or(before.no_dns),
            dns_domain: self.dns_domain.or(before.dns_domain),
            dns_ttl: self.dns_ttl.or(before.dns_ttl),
            dns_listen_address: if self.dns_listen_address.is_empty() { before.dns_listen_address } else { self.dns_listen_address },
            resolv_conf: self.resolv_conf.or(before.resolv_conf),
            datapath: self.datapath.or(before.datapath),
            xdp: self.xdp.or(before.xdp),
            big_tcp: self.big_tcp.or(before.big_tcp),
        }
    }
}

/// One agent's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The name to use instead of the one in the state directory.
    pub name: Option<PeerName>,
    /// Free text, for people.
    pub nickname: String,
    /// TCP port of the mesh; the tunnel's UDP port is the next one.
    pub port: u16,
    /// Listen and dial with this address only.
    pub host: Option<Ipv4Addr>,
    /// Dial peers that other peers tell of.
    pub discovery: bool,
    /// Most links at a time; 0 is no limit.
    pub conn_limit: usize,
    /// MTU for containers; `None`: what the underlay allows.
    pub mtu: Option<u32>,
    /// The network's passwords: the first is dialled with, all are accepted. Without any, links are in clear.
    pub passwords: Vec<Password>,
    /// Neighbours in these may be sent frames in clear.
    pub trusted_subnets: Vec<Ipv4Net>,
    /// Keys of sealed tunnels are followed by others after so many seconds.
    pub rekey: u32,
    /// Whom to connect to. `None`: those of last time.
    pub peers: Option<Vec<String>>,
    /// What addresses are given out; `None`: none, all are somebody's own choice.
    pub ipalloc: Option<Ipalloc>,
    /// What names are answered; `None`: none.
    pub dns: Option<Dns>,
    /// Who carries frames.
    pub datapath: Choice,
    /// Where strangers' packets end before the stack.
    pub xdp: Xdp,
    /// Whether containers may send segments longer than an IPv4 packet can be.
    pub big_tcp: bool,
}

/// What names are answered, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// What names are in.
    pub domain: Domain,
    /// How long resolvers may keep an answer, seconds.
    pub ttl: u32,
    /// Where to answer on the host, besides where containers ask.
    pub listen: Vec<SocketAddr>,
    /// Where the servers are named that are asked about everything else.
    pub resolv_conf: PathBuf,
}

/// What addresses are given out, and who begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipalloc {
    /// One range, or one of each family; the same on all hosts.
    pub ranges: Vec<IpNet>,
    /// What is meant if no subnet is said; the ranges if empty.
    pub subnets: Vec<IpNet>,
    /// How the first ring comes to be.
    pub init: Init,
}

impl Ipalloc {
    /// As the replica wants it.
    ///
    /// # Errors
    /// See [`ipam::ConfigError`].
    pub fn config(&self, name: PeerName, nickname: String, trusted: bool) -> Result<ipam::Config, ipam::ConfigError> {
        let Self { ranges, subnets, init } = self.clone();
        ipam::Config { name, nickname, ranges, subnets, init, trusted }.checked()
    }
}

/// A setting that cannot work, and what would.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// There is no port after it.
    #[error("--port {0} is out of range: the tunnel uses the port after it, so say 1 to 65534 (the default is {MESH_PORT})")]
    Port(u16),
    /// No packet would fit.
    #[error("--mtu {0} is out of range: say {LEAST_MTU} to 65485, or 0 for what the underlay allows")]
    Mtu(u32),
    /// Too long, or not to be shown.
    #[error("--nickname {0:?} will not do: say 1 to {LONGEST_NICKNAME} bytes without control characters")]
    Nickname(String),
    /// Of the range, its subnets, or the seeds.
    #[error(transparent)]
    Ipalloc(#[from] ipam::ConfigError),
    /// A name must be a unicast address.
    #[error("--name {0} will not do: a peer's name is a unicast address other than zero, for example 02:00:00:00:00:01")]
    Name(PeerName),
}

impl Config {
    /// Whether addresses are given out.
    pub const fn allocates(&self) -> bool {
        self.ipalloc.is_some()
    }

    /// The UDP port of the tunnel.
    pub const fn tunnel_port(&self) -> u16 {
        self.port + 1
    }

    /// Itself, if it can work.
    pub fn checked(self) -> Result<Self, ConfigError> {
        if matches!(self.port, 0 | u16::MAX) {
            return Err(ConfigError::Port(self.port));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !(LEAST_MTU..=65_485).contains(mtu)) {
            return Err(ConfigError::Mtu(mtu));
        }
        if let Some(name) = self.name.filter(|name| name.0[0] & 1 == 1 || name.0 == [0; 6]) {
            return Err(ConfigError::Name(name));
        }
        if let Some(ipalloc) = &self.ipalloc {
            ipalloc.config(PeerName([2; 6]), String::new(), true)?;
        }
        let showable = (1..=LONGEST_NICKNAME).contains(&self.nickname.len()) && !self.nickname.chars().any(char::is_control);
        if showable { Ok(self) } else { Err(ConfigError::Nickname(self.nickname)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_counts_and_then_what_was_said_before() {
        let range = |range: Option<&str>| range.map(str::to_owned);
        let before = Settings {
            nickname: Some("h1".into()),
            no_discovery: Some(true),
            ipalloc_range: range(Some("10.32.0.0/12")),
            ipalloc_default_subnet: range(Some("10.32.1.0/24")),
            ..Settings::default()
        };
        assert_eq!(Settings::default().or(before.clone()), before);
        let said = Settings { no_discovery: Some(false), mtu: Some(0), ipalloc_range: range(Some("")), ..Settings::default() };
        let now = said.or(before);
        assert_eq!((now.nickname.as_deref(), now.no_discovery, now.mtu), (Some("h1"), Some(false), Some(0)));
        assert_eq!((now.ipalloc_range.as_deref(), now.ipalloc_default_subnet), (Some(""), None));
    }

    fn config() -> Config {
        Config {
            name: None,
            nickname: "h1".into(),
            port: MESH_PORT,
            host: None,
            discovery: true,
            conn_limit: CONN_LIMIT,
            mtu: None,
            passwords: vec![],
            trusted_subnets: vec![],
            rekey: REKEY_INTERVAL,
            peers: None,
            ipalloc: Some(Ipalloc { ranges: vec!["10.32.0.0/12".parse().unwrap()], subnets: vec![], init: Init::Consensus }),
            dns: None,
            datapath: Choice::Auto,
            xdp: Xdp::Auto,
            big_tcp: false,
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        assert_eq!(config().checked(), Ok(config()));
        let refused = |change: fn(&mut Config)| {
            let mut config = config();
            change(&mut config);
            config.checked().unwrap_err().to_string()
        };
        assert!(refused(|c| c.port = 0).contains("--port"));
        assert!(refused(|c| c.port = 65_535).contains("65534"));
        assert!(refused(|c| c.mtu = Some(100)).contains("--mtu 100"));
        assert!(refused(|c| c.nickname = String::new()).contains("--nickname"));
        assert!(refused(|c| c.nickname = "a\nb".into()).contains("--nickname"));
        assert!(refused(|c| c.name = Some(PeerName([1; 6]))).contains("--name 01:01"));
        assert!(refused(|c| c.ipalloc.as_mut().unwrap().ranges.clear()).contains("--ipalloc-range"));
    }
}
