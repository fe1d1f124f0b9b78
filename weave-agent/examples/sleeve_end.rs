//! One end of a sleeve with one neighbour and fixed keys, in the namespace it is started in: to try and to measure the sleeve alone.
//!
//! `sleeve_end PORT-IFNAME NEIGHBOUR OWN-SESSION ITS-SESSION clear|chacha|aes [DATAGRAM [QUEUES]]`
//!
//! Two hosts are two namespaces with addresses on a veth pair between them, each with a container behind a veth of its own:
//! started in both with each other's address, sessions crosswise (`1 2` and `2 1`), the containers reach each other and iperf3
//! measures. Every second it says what was counted, unless QUIET is set.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU32;

use anyhow::Context;
use weave_agent::io::net::Netlink;
use weave_agent::io::sleeve::{Options, Sleeve};
use weave_agent::sleeve::{Cipher, Inbound, Key, Op, Outbound, SessionId};

#[path = "../tests/sleeve/plug.rs"]
mod plug;

const UDP_PORT: u16 = 6783;

fn session(text: &str) -> anyhow::Result<SessionId> {
    Ok(SessionId(text.parse::<NonZeroU32>()?))
}

fn key(session: SessionId) -> Key {
    Key([session.0.get() as u8; 32])
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, neighbour, own, its, cipher, rest @ ..] = &arguments[..] else { anyhow::bail!("too few arguments") };
    let neighbour: Ipv4Addr = neighbour.parse()?;
    let cipher = match &cipher[..] {
        "clear" => Cipher::Clear,
        "chacha" => Cipher::ChaCha20Poly1305,
        _ => Cipher::Aes256Gcm,
    };
    let datagram = rest.first().map_or(Ok(1472), |text| text.parse())?;
    let queues = rest.get(1).map(|text| text.parse()).transpose()?;
    let (sleeve, mut heard) = Sleeve::start(&Options { queues, ..Options::on_port(UDP_PORT) }).await?;
    let (own, its) = (session(own)?, session(its)?);
    sleeve.apply(&Op::Accept(Inbound { session: own, neighbour, cipher, key: key(own) }));
    let remote = SocketAddrV4::new(neighbour, UDP_PORT);
    sleeve.apply(&Op::Send { neighbour, session: Some(Outbound { session: its, cipher, key: key(its), remote }) });
    sleeve.apply(&Op::Path { neighbour, datagram });
    let port = Netlink::here()?.link_named(port).await?.context("no such port")?;
    let _plug = plug::Plug::new(port.index, sleeve.ifindex(), neighbour, 0x00_1002)?;
    println!("ready");
    let mut shown = sleeve.status();
    loop {
        let second = tokio::time::sleep(std::time::Duration::from_secs(1));
        tokio::select! {
            said = heard.recv() => eprintln!("{said:?}"),
            () = second => {}
        }
        let status = sleeve.status();
        if status != shown && std::env::var_os("QUIET").is_none() {
            let changed: Vec<_> = status.counters.iter().zip(&shown.counters).filter(|(now, then)| now != then).collect();
            eprintln!("{:?}", changed.iter().map(|(now, then)| (now.0, now.1 - then.1)).collect::<Vec<_>>());
        }
        shown = status;
    }
}
