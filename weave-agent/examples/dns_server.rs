//! The name server alone, with 1,000 names, for `cargo xtask bench dns`: prints where it listens (an argument, or
//! some port of 127.0.0.1), ends with its standard input.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::sync::watch;
use weave_agent::dns::{Domain, Zone};
use weave_agent::io::dns::{Config, Server};

const NAMES: u32 = 1000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let domain = Domain::default();
    let mut entries = Vec::new();
    for n in 0..NAMES {
        entries.push((domain.qualify(&format!("c{n}"))?, Ipv4Addr::from(0x0a20_0001 + n).into()));
    }
    let (_zone, zones) = watch::channel(Arc::new(Zone::new(domain, 1, entries)));
    let server = Server::new(zones, Config { resolv_conf: "/nonexistent".into(), ..Config::default() });
    let address = match std::env::args().nth(1) {
        Some(address) => address.parse()?,
        None => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    };
    println!("{}", server.listen(address).await?);
    let end = || std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new());
    tokio::task::spawn_blocking(end).await??;
    Ok(())
}
