//! Traffic that no packaged tool makes, for the scenario tests: run in a lab's namespaces, bounded in count and time.

mod pairs;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Parser;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::json;
use weave_agent::datapath::Frame;
use weave_agent::io::net::RawSender;

/// For the first datagram of a group.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to send, or to listen for
#[derive(Parser)]
enum Traffic {
    /// Ethernet frames from and to random MACs
    Flood {
        #[arg(long, default_value = "ethwe")]
        interface: String,
        #[arg(long)]
        per_second: u32,
        #[arg(long)]
        seconds: u32,
    },
    /// One frame from a MAC, to all
    Frame {
        #[arg(long, default_value = "ethwe")]
        interface: String,
        #[arg(long)]
        source: weave_agent::addr::Mac,
    },
    /// Numbered datagrams to a multicast group
    Send {
        #[arg(long)]
        group: Ipv4Addr,
        #[arg(long)]
        from: Ipv4Addr,
        #[arg(long)]
        count: u32,
    },
    /// Listens to a group until nothing more comes for so long, and prints how many datagrams came and how many different ones, as JSON
    Listen {
        #[arg(long)]
        group: Ipv4Addr,
        #[arg(long)]
        on: Ipv4Addr,
        #[arg(long)]
        silence: u64,
    },
    /// VXLAN with a range of VNIs around an inner broadcast
    Vxlan {
        #[arg(long)]
        to: SocketAddrV4,
        #[arg(long, value_delimiter = ',')]
        vni: Vec<u32>,
        #[arg(long)]
        count: u32,
    },
    /// Broadcasts from MACs, so that the switch knows them
    Learn(pairs::Learn),
    /// Frames between pairs of MACs that have not met
    Pairs(pairs::Pairs),
    /// Notes when frames of `pairs` come until nothing more comes for so many milliseconds, as JSON
    Meet {
        #[arg(long)]
        silence: u64,
    },
    /// Random bytes to a TCP or UDP port
    Garbage {
        #[arg(long)]
        tcp: Option<SocketAddr>,
        #[arg(long)]
        udp: Option<SocketAddr>,
        #[arg(long)]
        count: u32,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

const PORT: u16 = 5007;
/// IEEE local experimental: nobody answers it.
const ETHERTYPE: [u8; 2] = [0x88, 0xb6];

fn main() -> Result<()> {
    match Traffic::parse() {
        Traffic::Flood { interface, per_second, seconds } => flood(&interface, per_second, seconds),
        Traffic::Frame { interface, source } => frame(&interface, source.0),
        Traffic::Send { group, from, count } => send(group, from, count),
        Traffic::Listen { group, on, silence } => listen(group, on, Duration::from_millis(silence)),
        Traffic::Vxlan { to, vni, count } => vxlan(to, &vni, count),
        Traffic::Learn(what) => pairs::learn(&what),
        Traffic::Pairs(what) => pairs::pairs(&what),
        Traffic::Meet { silence } => pairs::meet(Duration::from_millis(silence)),
        Traffic::Garbage { tcp, udp, count, seed } => garbage(tcp, udp, count, seed),
    }
}

fn index(interface: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(interface).with_context(|| format!("no interface {interface}"))
}

fn ethernet(dst: [u8; 6], src: [u8; 6]) -> Vec<u8> {
    let mut frame = [&dst[..], &src, &ETHERTYPE].concat();
    frame.resize(60, 0);
    frame
}

fn flood(interface: &str, per_second: u32, seconds: u32) -> Result<()> {
    let (ifindex, sender) = (index(interface)?, RawSender::new()?);
    let mut rng = StdRng::seed_from_u64(7);
    let (start, mut sent) = (Instant::now(), 0_u64);
    while start.elapsed() < Duration::from_secs(seconds.into()) {
        let due = (start.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
        while sent < due {
            let mut macs = [0; 12];
            rng.fill_bytes(&mut macs);
            let [dst, src] = [0, 6].map(|at| std::array::from_fn(|i| if i == 0 { macs[at] & 0xfe | 2 } else { macs[at + i] }));
            // A full queue loses a frame, as a flood may.
            let _ = sender.send(ifindex, None, &Frame { bytes: Bytes::from(ethernet(dst, src)), gso_size: 0 });
            sent += 1;
        }
        thread::sleep(Duration::from_micros(500));
    }
    println!("{}", json!({ "sent": sent }));
    Ok(())
}

fn frame(interface: &str, source: [u8; 6]) -> Result<()> {
    let frame = Frame { bytes: Bytes::from(ethernet([0xff; 6], source)), gso_size: 0 };
    Ok(RawSender::new()?.send(index(interface)?, None, &frame)?)
}

fn send(group: Ipv4Addr, from: Ipv4Addr, count: u32) -> Result<()> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.set_multicast_ttl_v4(4)?;
    for number in 0..count {
        socket.send_to(&number.to_be_bytes(), (group, PORT))?;
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn listen(group: Ipv4Addr, on: Ipv4Addr, silence: Duration) -> Result<()> {
    let socket = UdpSocket::bind((group, PORT))?;
    socket.join_multicast_v4(&group, &on)?;
    println!("listening");
    std::io::stdout().flush()?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let (start, mut last, mut seen, mut buffer) = (Instant::now(), None::<Instant>, BTreeMap::<[u8; 4], u32>::new(), [0; 4]);
    while last.map_or(start.elapsed() < PATIENCE, |last| last.elapsed() < silence) {
        if socket.recv(&mut buffer).is_ok() {
            last = Some(Instant::now());
            *seen.entry(buffer).or_default() += 1;
        }
    }
    println!("{}", json!({ "received": seen.values().sum::<u32>(), "different": seen.len() }));
    Ok(())
}

fn vxlan(to: SocketAddrV4, vnis: &[u32], count: u32) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    for number in 0..count {
        for vni in vnis {
            let [_, a, b, c] = vni.to_be_bytes();
            let inner = ethernet([0xff; 6], [2, 0, 0, 0xee, (number >> 8) as u8, number as u8]);
            socket.send_to(&[&[8, 0, 0, 0, a, b, c, 0], inner.as_slice()].concat(), to)?;
        }
        thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

fn garbage(tcp: Option<SocketAddr>, udp: Option<SocketAddr>, count: u32, seed: u64) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    for _ in 0..count {
        let mut bytes = vec![0; rng.random_range(0..1400)];
        rng.fill_bytes(&mut bytes);
        if let Some(to) = udp {
            // Half of it looks like VXLAN at first sight.
            if bytes.len() > 8 && rng.random_bool(0.5) {
                bytes[..4].copy_from_slice(&[8, 0, 0, 0]);
            }
            let _ = socket.send_to(&bytes, to);
        }
        if let Some(to) = tcp {
            // Half of it begins as a link does; refusals are part of the game.
            if bytes.len() > 6 && rng.random_bool(0.5) {
                bytes[..6].copy_from_slice(b"WVAG\x01\x01");
            }
            let _ = TcpStream::connect_timeout(&to, Duration::from_secs(1)).and_then(|mut stream| stream.write_all(&bytes));
        }
    }
    Ok(())
}
