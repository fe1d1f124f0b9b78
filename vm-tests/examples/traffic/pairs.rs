//! Frames between pairs of MACs that nobody has seen together yet, and when they arrive: what the first frame of a pair costs.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimestampns};
use nix::sys::socket::{AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt, socket};
use serde_json::json;
use weave_agent::datapath::Frame;
use weave_agent::io::net::RawSender;

use crate::{ETHERTYPE, PATIENCE, ethernet, index};

/// What a pair's frame has behind its Ethernet header; then which time it is sent, and when: nanoseconds since 1970.
const MAGIC: &[u8; 4] = b"PAIR";
const HEADER: usize = 14;
/// Between a pair's first frame and its second one, which meets what the first one made.
const AGAIN_AFTER: Duration = Duration::from_millis(20);
/// Between two broadcasts: far less than the datapath lets a port ask.
const LEARNING: Duration = Duration::from_micros(500);
/// Room for frames that wait to be looked at: tens of thousands.
const ROOM: usize = 64 << 20;
/// The receiver only counts; the kernel notes when a frame came.
const NAP: Duration = Duration::from_millis(5);

/// MACs by number
#[derive(Args)]
pub(crate) struct Learn {
    #[arg(long, default_value = "ethwe")]
    interface: String,
    /// Of the first
    #[arg(long)]
    first: u32,
    #[arg(long)]
    count: u32,
}

/// Which pairs, and how fast
#[derive(Args)]
pub(crate) struct Pairs {
    #[arg(long, default_value = "ethwe")]
    interface: String,
    /// Number of the first source
    #[arg(long)]
    from: u32,
    /// Number of the first destination
    #[arg(long)]
    to: u32,
    /// How many destinations each source has
    #[arg(long)]
    destinations: u32,
    /// How many pairs
    #[arg(long)]
    count: u32,
    /// As fast as they go, if it is not said
    #[arg(long)]
    per_second: Option<u32>,
    /// Send each pair a second frame
    #[arg(long)]
    again: bool,
}

fn mac(number: u32) -> [u8; 6] {
    let [a, b, c, d] = number.to_be_bytes();
    [2, 0xbe, a, b, c, d]
}

fn nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// Broadcasts from each MAC, so that the switch knows where they are.
pub(crate) fn learn(learn: &Learn) -> Result<()> {
    let (ifindex, sender) = (index(&learn.interface)?, RawSender::new()?);
    for number in learn.first..learn.first + learn.count {
        sender.send(ifindex, None, &Frame { bytes: Bytes::from(ethernet([0xff; 6], mac(number))), gso_size: 0 })?;
        thread::sleep(LEARNING);
    }
    Ok(())
}

/// Sends a frame, or two, for each pair; prints how many pairs there were as JSON.
pub(crate) fn pairs(pairs: &Pairs) -> Result<()> {
    let (ifindex, sender) = (index(&pairs.interface)?, RawSender::new()?);
    let send = |number: u32, second: bool| -> Result<()> {
        let (source, destination) = (number / pairs.destinations, number % pairs.destinations);
        let mut frame = ethernet(mac(pairs.to + destination), mac(pairs.from + source));
        let stamp = [&MAGIC[..], &[u8::from(second)], &nanos().to_be_bytes()].concat();
        frame[HEADER..HEADER + stamp.len()].copy_from_slice(&stamp);
        Ok(sender.send(ifindex, None, &Frame { bytes: Bytes::from(frame), gso_size: 0 })?)
    };
    let step = pairs.per_second.map_or(Duration::ZERO, |rate| Duration::from_secs(1) / rate.max(1));
    let behind = if step.is_zero() { 0 } else { (AGAIN_AFTER.as_nanos() / step.as_nanos()) as u32 };
    let start = Instant::now();
    for turn in 0..pairs.count + behind {
        thread::sleep((step * turn).saturating_sub(start.elapsed()));
        if turn < pairs.count {
            send(turn, false)?;
        }
        if let Some(second) = turn.checked_sub(behind).filter(|_| pairs.again) {
            send(second, true)?;
        }
    }
    println!("{}", json!({ "pairs": pairs.count }));
    Ok(())
}

/// What came of the frames of one kind.
#[derive(Default)]
struct Came {
    /// From the sender's clock to the receiving kernel's.
    micros: Vec<f64>,
    first: Option<u64>,
    last: u64,
}

/// Notes when pairs' frames come until none comes for so long; prints what that gave as JSON.
pub(crate) fn meet(silence: Duration) -> Result<()> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll)?;
    setsockopt(&socket, RcvBufForce, &ROOM).context("a larger receive buffer")?;
    setsockopt(&socket, ReceiveTimestampns, &true)?;
    println!("listening");
    let (start, mut came, mut last) = (Instant::now(), [Came::default(), Came::default()], None::<Instant>);
    while last.map_or(start.elapsed() < PATIENCE, |last| last.elapsed() < silence) {
        while let Some((second, sent, at)) = next(&socket)? {
            last = Some(Instant::now());
            let came = &mut came[usize::from(second)];
            came.micros.push(at.saturating_sub(sent) as f64 / 1e3);
            came.first.get_or_insert(at);
            came.last = at;
        }
        thread::sleep(NAP);
    }
    let [first, again] = came.map(|came| {
        let seconds = came.first.map_or(0.0, |first| (came.last - first) as f64 / 1e9);
        json!({ "received": came.micros.len(), "seconds": seconds, "micros": came.micros })
    });
    println!("{}", json!({ "first": first, "again": again }));
    Ok(())
}

/// The next pair's frame that waits: whether it is a second one, when it was sent, when it came.
fn next(socket: &OwnedFd) -> Result<Option<(bool, u64, u64)>> {
    let (mut frame, mut control) = ([0; 64], nix::cmsg_space!(nix::sys::time::TimeSpec));
    loop {
        let mut parts = [IoSliceMut::new(&mut frame)];
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty()) {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let stamp = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmTimestampns(time) => Some(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64),
            _ => None,
        });
        if let (Some(at), Some((second, sent))) = (stamp, read(&frame)) {
            return Ok(Some((second, sent, at)));
        }
    }
}

/// Of any frame: whether it is a pair's, which time, and when it was sent.
fn read(frame: &[u8]) -> Option<(bool, u64)> {
    let rest = frame.get(12..)?.strip_prefix(&ETHERTYPE)?.strip_prefix(MAGIC)?;
    Some((rest.first()? == &1, u64::from_be_bytes(rest.get(1..9)?.try_into().ok()?)))
}
