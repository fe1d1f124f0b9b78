//! What is meant by what was typed.

use ipnet::IpNet;

use super::args::Launch;
use crate::config::Config;
use crate::io::api::body;
use crate::io::targets::Typed;

/// Words that mean nothing, and what would.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unclear {
    /// Not an address with a prefix.
    #[error("{0:?} is not an address with its subnet's prefix length: say for example 10.32.1.1/16")]
    Cidr(String),
    /// Asks for a free address.
    #[error("{0:?} asks for a free address of a subnet: this version does not allocate, so say which, for example ip:10.32.1.1/16")]
    Allocation(String),
    /// No address.
    #[error(
        "no address for {0:?}: this version does not allocate addresses, so say which one, for example \
         `weave-agent attach 10.32.1.1/16 {0}`"
    )]
    NoAddress(String),
    /// No container.
    #[error("{0:?} is an address: the container comes last, for example `weave-agent attach 10.32.1.1/16 web`")]
    NoTarget(String),
}

/// `[CIDR…] TARGET` of attach.
pub fn attach(words: &[String]) -> Result<body::Attach, Unclear> {
    let (addresses, target) = cidrs_and_target(words)?;
    if addresses.is_empty() {
        return Err(Unclear::NoAddress(target));
    }
    Ok(body::Attach { target, addresses })
}

/// `[CIDR…] TARGET` of detach.
pub fn detach(words: &[String]) -> Result<body::Detach, Unclear> {
    let (addresses, target) = cidrs_and_target(words)?;
    Ok(body::Detach { target, addresses })
}

/// `CIDR…`
pub fn cidrs(words: &[String]) -> Result<Vec<IpNet>, Unclear> {
    words.iter().map(|word| cidr(word)).collect()
}

/// The settings of `launch`.
pub fn config(typed: &Launch, hostname: String) -> anyhow::Result<Config> {
    for peer in &typed.peers {
        Typed::parse(peer, typed.port)?;
    }
    let config = Config {
        name: typed.name,
        nickname: typed.nickname.clone().unwrap_or(hostname),
        port: typed.port,
        host: typed.host,
        discovery: !typed.no_discovery,
        conn_limit: typed.conn_limit,
        mtu: (typed.mtu != 0).then_some(typed.mtu),
        peers: (!typed.peers.is_empty()).then(|| typed.peers.clone()),
    };
    Ok(config.checked()?)
}

fn cidrs_and_target(words: &[String]) -> Result<(Vec<IpNet>, String), Unclear> {
    let Some((target, addresses)) = words.split_last() else { return Err(Unclear::NoTarget(String::new())) };
    if cidr(target).is_ok() || target.starts_with("ip:") || target.starts_with("net:") {
        return Err(Unclear::NoTarget(target.clone()));
    }
    Ok((cidrs(addresses)?, target.clone()))
}

fn cidr(word: &str) -> Result<IpNet, Unclear> {
    if word.starts_with("net:") {
        return Err(Unclear::Allocation(word.to_owned()));
    }
    let address = word.strip_prefix("ip:").unwrap_or(word);
    address.parse().map_err(|_| Unclear::Cidr(word.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn addresses_come_first_and_the_container_last() {
        let attach = attach(&words("10.32.1.1/16 ip:10.40.0.1/24 fd00::1/64 web")).unwrap();
        assert_eq!(attach.target, "web");
        assert_eq!(attach.addresses, cidrs(&words("10.32.1.1/16 10.40.0.1/24 fd00::1/64")).unwrap());
        assert_eq!(detach(&words("1234")).unwrap(), body::Detach { target: "1234".into(), addresses: vec![] });
    }

    #[test]
    fn what_cannot_be_meant_is_answered_with_what_can() {
        insta::assert_snapshot!(attach(&words("web")).unwrap_err(), @r#"no address for "web": this version does not allocate addresses, so say which one, for example `weave-agent attach 10.32.1.1/16 web`"#);
        insta::assert_snapshot!(attach(&words("10.32.1.1/16")).unwrap_err(), @r#""10.32.1.1/16" is an address: the container comes last, for example `weave-agent attach 10.32.1.1/16 web`"#);
        insta::assert_snapshot!(attach(&words("10.32.1.1 web")).unwrap_err(), @r#""10.32.1.1" is not an address with its subnet's prefix length: say for example 10.32.1.1/16"#);
        insta::assert_snapshot!(attach(&words("net:10.32.1.0/24 web")).unwrap_err(), @r#""net:10.32.1.0/24" asks for a free address of a subnet: this version does not allocate, so say which, for example ip:10.32.1.1/16"#);
        insta::assert_snapshot!(attach(&words("net:default")).unwrap_err(), @r#""net:default" is an address: the container comes last, for example `weave-agent attach 10.32.1.1/16 web`"#);
        insta::assert_snapshot!(cidrs(&words("10.32.1.1/33")).unwrap_err(), @r#""10.32.1.1/33" is not an address with its subnet's prefix length: say for example 10.32.1.1/16"#);
    }
}
