//! What is meant by what was typed.

use ipnet::{IpNet, Ipv4Net};

use super::args::Launch;
use crate::config::{CONN_LIMIT, Config, Dns, Ipalloc, MESH_PORT, REKEY_INTERVAL, Settings};
use crate::io::api::{self, Wanted, body};
use crate::io::targets::Typed;
use crate::ipam::{DEFAULT_RANGE, Init};
use crate::password::Password;

/// Words that mean nothing, and what would.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    /// Not an address.
    #[error(transparent)]
    Address(#[from] api::Unclear),
    /// A subnet where an address is meant.
    #[error("{0:?} is not an address with its subnet's prefix length: say for example 10.32.1.1/16")]
    Cidr(String),
    /// Not a network.
    #[error("{option} {given:?} is not a network: say for example 10.32.0.0/12, or 10.32.0.0/12,fd00:10:32::/64 for both families")]
    Network {
        /// Of which option.
        option: &'static str,
        /// What was said.
        given: String,
    },
    /// Not a way to begin.
    #[error("--ipalloc-init {0:?} will not do: say consensus, consensus=NUMBER_OF_HOSTS, seed=PEER_NAME,…, or observer")]
    Init(String),
    /// Not a list of IPv4 networks.
    #[error("--trusted-subnets {0:?} is not a list of IPv4 networks: say for example 10.0.0.0/8,192.168.0.0/16")]
    Trusted(String),
    /// The last agent had one, and this one would be in clear.
    #[error(
        "this agent had a password when it ran last, and passwords are not kept: say it again with --password-file, --password or \
         WEAVE_PASSWORD, or --no-password if the network has none any more"
    )]
    PasswordWanted,
    /// No container.
    #[error("{0:?} is an address: the container comes last, for example `weave-agent attach 10.32.1.1/16 web`")]
    NoTarget(String),
}

/// `[ADDRESS…] TARGET` of attach.
pub fn attach(words: &[String], name: Option<String>) -> Result<body::Attach, Unclear> {
    let (addresses, target) = before_target(words)?;
    Ok(body::Attach { target, addresses: wanted(addresses)?, name })
}

/// `[CIDR…] TARGET` of detach.
pub fn detach(words: &[String]) -> Result<body::Detach, Unclear> {
    let (addresses, target) = before_target(words)?;
    Ok(body::Detach { target, addresses: cidrs(addresses)? })
}

/// `ADDRESS…`
pub fn wanted(words: &[String]) -> Result<Vec<Wanted>, Unclear> {
    words.iter().map(|word| Ok(word.parse()?)).collect()
}

/// `CIDR…`
pub fn cidrs(words: &[String]) -> Result<Vec<IpNet>, Unclear> {
    words
        .iter()
        .map(|word| match word.parse()? {
            Wanted::This(address) => Ok(address),
            Wanted::Of(_) | Wanted::Default => Err(Unclear::Cidr(word.clone())),
        })
        .collect()
}

/// The settings of `launch`.
pub fn config(typed: &Launch, settings: &Settings, passwords: &[Password], hostname: &str) -> anyhow::Result<Config> {
    let port = settings.port.unwrap_or(MESH_PORT);
    for peer in &typed.peers {
        Typed::parse(peer, port)?;
    }
    if settings.password == Some(true) && passwords.is_empty() {
        return Err(Unclear::PasswordWanted.into());
    }
    let config = Config {
        name: typed.name,
        nickname: settings.nickname.clone().unwrap_or_else(|| hostname.to_owned()),
        port,
        host: settings.host.filter(|host| !host.is_unspecified()),
        discovery: !settings.no_discovery.unwrap_or_default(),
        conn_limit: settings.conn_limit.unwrap_or(CONN_LIMIT),
        mtu: settings.mtu.filter(|mtu| *mtu != 0),
        passwords: passwords.to_vec(),
        trusted_subnets: trusted(settings.trusted_subnets.as_deref().unwrap_or_default())?,
        rekey: settings.rekey_interval.unwrap_or(REKEY_INTERVAL),
        peers: (!typed.peers.is_empty()).then(|| typed.peers.clone()),
        ipalloc: ipalloc(settings)?,
        dns: dns(settings),
        datapath: settings.datapath.unwrap_or_default(),
        xdp: settings.xdp.unwrap_or_default(),
        big_tcp: settings.big_tcp.unwrap_or_default(),
    };
    Ok(config.checked()?)
}

fn trusted(text: &str) -> Result<Vec<Ipv4Net>, Unclear> {
    let parsed = |net: &str| net.parse().map_err(|_| Unclear::Trusted(net.to_owned()));
    text.split(',').filter(|net| !net.is_empty()).map(parsed).collect()
}

/// The `--dns-…` flags.
fn dns(said: &Settings) -> Option<Dns> {
    if said.no_dns.unwrap_or_default() {
        return None;
    }
    Some(Dns {
        domain: said.dns_domain.clone().unwrap_or_default(),
        ttl: said.dns_ttl.unwrap_or(1),
        listen: said.dns_listen_address.clone(),
        resolv_conf: said.resolv_conf.clone().unwrap_or_else(|| "/etc/resolv.conf".into()),
    })
}

/// The `--ipalloc-…` flags; an empty range is none.
fn ipalloc(said: &Settings) -> Result<Option<Ipalloc>, Unclear> {
    let ranges = networks("--ipalloc-range", said.ipalloc_range.as_deref().unwrap_or(DEFAULT_RANGE))?;
    let subnets = networks("--ipalloc-default-subnet", said.ipalloc_default_subnet.as_deref().unwrap_or_default())?;
    let init = init(said.ipalloc_init.as_deref().unwrap_or("consensus"))?;
    Ok((!ranges.is_empty()).then_some(Ipalloc { ranges, subnets, init }))
}

fn networks(option: &'static str, text: &str) -> Result<Vec<IpNet>, Unclear> {
    let parsed = |net: &str| net.parse().map_err(|_| Unclear::Network { option, given: net.to_owned() });
    text.split(',').filter(|net| !net.is_empty()).map(parsed).collect()
}

fn init(text: &str) -> Result<Init, Unclear> {
    let unclear = || Unclear::Init(text.to_owned());
    Ok(match text.split_once('=') {
        None if text == "consensus" => Init::Consensus,
        None if text == "observer" => Init::Observer,
        Some(("consensus", count)) => Init::ConsensusOf(count.parse().ok().filter(|count| *count > 0).ok_or_else(unclear)?),
        Some(("seed", names)) => {
            let names: Result<Vec<_>, _> = names.split(',').map(str::parse).collect();
            Init::Seed(names.map_err(|_| unclear())?)
        }
        _ => return Err(unclear()),
    })
}

fn before_target(words: &[String]) -> Result<(&[String], String), Unclear> {
    let Some((target, addresses)) = words.split_last() else { return Err(Unclear::NoTarget(String::new())) };
    if target.parse::<Wanted>().is_ok() || target.starts_with("ip:") || target.starts_with("net:") {
        return Err(Unclear::NoTarget(target.clone()));
    }
    Ok((addresses, absolute(target)))
}

/// The path of a namespace means the same wherever the agent works; no other target has a slash.
fn absolute(target: &str) -> String {
    let path = target.contains('/').then(|| std::path::absolute(target).ok()).flatten();
    path.and_then(|path| path.into_os_string().into_string().ok()).unwrap_or_else(|| target.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn addresses_come_first_and_the_container_last() {
        let attach = |text| attach(&words(text), None).unwrap();
        let asked = attach("10.32.1.1/16 ip:10.40.0.1/24 net:10.50.0.0/24 web");
        assert_eq!(asked.target, "web");
        assert_eq!(asked.addresses, wanted(&words("10.32.1.1/16 10.40.0.1/24 net:10.50.0.0/24")).unwrap());
        assert_eq!(attach("web").addresses, []);
        assert_eq!(detach(&words("1234")).unwrap(), body::Detach { target: "1234".into(), addresses: vec![] });
    }

    #[test]
    fn a_path_is_the_same_wherever_the_agent_works() {
        let target = |word| attach(&words(word), None).unwrap().target;
        let here = std::env::current_dir().unwrap();
        assert_eq!(target("./ns/web"), here.join("ns/web").display().to_string());
        assert_eq!((target("/proc/1/ns/net").as_str(), target("web").as_str()), ("/proc/1/ns/net", "web"));
    }

    #[test]
    fn ranges_and_their_beginning_are_read_and_refused_by_name() {
        let flags = |range: &str, start: &str| Settings {
            ipalloc_range: Some(range.into()),
            ipalloc_init: Some(start.into()),
            ..Settings::default()
        };
        let read = |range, start| ipalloc(&flags(range, start));
        assert_eq!(read("", "consensus"), Ok(None));
        let both = read("10.32.0.0/12,fd00::/64", "consensus=3").unwrap().unwrap();
        assert_eq!((both.ranges.len(), both.init), (2, Init::ConsensusOf(3)));
        let seeds = read("10.32.0.0/12", "seed=02:00:00:00:00:01,02:00:00:00:00:02").unwrap().unwrap();
        assert!(matches!(seeds.init, Init::Seed(names) if names.len() == 2));
        assert!(read("10.32", "consensus").unwrap_err().to_string().contains("--ipalloc-range \"10.32\""));
        for bad in ["", "consensus=0", "consensus=x", "seed=h1", "observe", "observer=1"] {
            assert!(read("10.32.0.0/12", bad).unwrap_err().to_string().contains("--ipalloc-init"), "{bad}");
        }
    }

    #[test]
    fn a_network_that_had_a_password_is_not_started_in_clear_by_leaving_it_out() {
        use clap::Parser;

        use crate::cli::args::{Args, Command};
        let before = Settings { password: Some(true), ..Settings::default() };
        let config = |words: &[&str], passwords: &str| {
            let typed = match Args::try_parse_from([&["weave-agent", "launch"], words].concat()).unwrap().command {
                Command::Launch(launch) => *launch,
                other => panic!("{other:?}"),
            };
            let passwords = crate::password::lines(passwords).unwrap_or_default();
            config(&typed, &typed.settings().or(before.clone()), &passwords, "h1").map(|config| config.passwords.len())
        };
        assert_eq!(config(&[], "correct horse").unwrap(), 1);
        assert_eq!(config(&["--no-password"], "").unwrap(), 0);
        assert!(config(&[], "").unwrap_err().to_string().contains("this agent had a password when it ran last"));
    }

    #[test]
    fn trusted_subnets_are_ipv4_networks() {
        assert_eq!(trusted("").unwrap(), []);
        assert_eq!(trusted("10.0.0.0/8,192.168.0.0/16").unwrap().len(), 2);
        for bad in ["10.0.0.0", "fd00::/8", "10.0.0.0/8,x"] {
            assert!(trusted(bad).unwrap_err().to_string().contains("--trusted-subnets"), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_answered_with_what_can() {
        let attach = |text| attach(&words(text), None).unwrap_err();
        insta::assert_snapshot!(attach("10.32.1.1/16"), @r#""10.32.1.1/16" is an address: the container comes last, for example `weave-agent attach 10.32.1.1/16 web`"#);
        insta::assert_snapshot!(attach("net:default"), @r#""net:default" is an address: the container comes last, for example `weave-agent attach 10.32.1.1/16 web`"#);
        insta::assert_snapshot!(attach("10.32.1.1 web"), @r#""10.32.1.1" is not an address with its subnet's prefix length: say for example 10.32.1.1/16"#);
        insta::assert_snapshot!(cidrs(&words("10.32.1.1/33")).unwrap_err(), @r#""10.32.1.1/33" is not an address with its subnet's prefix length: say for example 10.32.1.1/16"#);
        insta::assert_snapshot!(detach(&words("net:10.32.1.0/24 web")).unwrap_err(), @r#""net:10.32.1.0/24" is not an address with its subnet's prefix length: say for example 10.32.1.1/16"#);
    }
}
