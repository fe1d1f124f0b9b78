//! What is tried: a setting and a list of steps, made up from one seed.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weave_agent::Time;

use crate::frame::{FrameId, Payload};
use crate::kernel::Break;
use crate::wire::{HostId, Noise};

/// What does not change during a run.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// Of everything random in the run.
    pub(crate) seed: u64,
    /// The hosts have a password; their tunnels are in clear all the same.
    pub(crate) secret: bool,
    pub(crate) hosts: usize,
    /// Pairs of hosts without a wire.
    pub(crate) absent: BTreeSet<(HostId, HostId)>,
    /// Whom each host is told to connect to.
    pub(crate) targets: Vec<BTreeSet<HostId>>,
    /// Largest IP packet on the underlay; hosts believe in 1,500.
    pub(crate) mtu: usize,
    pub(crate) latency: Time,
    /// Hosts whose next hops never resolve: everything leaves by the vxlan device.
    pub(crate) via_stack: BTreeSet<HostId>,
    /// Short ids are drawn from the first so many (few make collisions), but for those given.
    pub(crate) short_ids: u16,
    pub(crate) shorts: Vec<u16>,
    /// With a password: they trust no network, and what they send each other is sealed.
    pub(crate) sealed: bool,
    /// Hosts whose kernels can do that, with IPsec.
    pub(crate) esp: BTreeSet<HostId>,
    pub(crate) fault: Option<Break>,
    /// A frame whose way is printed.
    pub(crate) watch: Option<FrameId>,
}

/// One thing that happens. Containers are counted round the attached ones, so that any sublist of steps makes sense.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Launch(HostId),
    Crash(HostId),
    Connect(HostId, HostId),
    Cut(HostId, HostId),
    /// One direction only.
    CutOneWay(HostId, HostId),
    Mend(HostId, HostId),
    /// VXLAN is dropped between two hosts, or (`false`) no longer.
    Block(HostId, HostId, bool),
    /// A host alone.
    Isolate(HostId),
    /// The hosts below this one alone, and the others.
    Split(HostId),
    Heal,
    Noise(Noise),
    Attach(HostId),
    Detach(usize),
    Move(usize, HostId),
    /// A second container with the same MAC; both send for a while.
    Twin(usize, HostId),
    Unicast(usize, usize, Payload),
    Broadcast(usize, Payload),
    Multicast(usize),
    /// A host's clock jumps by so many seconds.
    Jump(HostId, u64),
    /// VXLAN from an address that is no neighbour's, or with a VNI that is nobody's.
    Stranger(HostId, Forgery),
    /// Bytes from a stranger on a TCP connection.
    Garbage(HostId),
    /// A neighbour's TCP connection breaks with the wire whole.
    Reset(HostId),
    /// So many frames from and to random addresses.
    RandomMacs(usize, u32),
    /// Time to settle; then all that was promised must hold.
    Settle,
}

/// How a stranger's packet looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forgery {
    /// A VNI as a peer would use it.
    RightVni,
    /// A VNI of nobody.
    WrongVni,
    /// From a neighbour's address, but with our own short id as the sender's.
    OwnVni,
    /// From a neighbour's address, of a peer that nobody knows.
    Spoofed,
    /// A heartbeat request.
    Heartbeat,
}

/// How a run ends, once everything works again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Plain,
    /// Property 8.
    Move,
    /// Property 10.
    Crash,
    /// Property 14.
    Failover,
    /// Property 15.
    Flood,
}

/// A run to be made.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) setting: Setting,
    /// Each after a pause.
    pub(crate) steps: Vec<(Time, Step)>,
    pub(crate) ending: Ending,
}

impl Case {
    /// The case of a seed.
    pub(crate) fn generate(seed: u64, fault: Option<Break>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let setting = setting(seed, fault, &mut rng);
        let mut steps = opening(&setting, &mut rng);
        for _ in 0..rng.random_range(4..24) {
            let pause = Time::from_millis(*pick(&mut rng, &[0, 1, 10, 100, 700, 3000]));
            steps.push((pause, step(&mut rng, setting.hosts)));
        }
        let ending = *pick(&mut rng, &[Ending::Plain, Ending::Move, Ending::Crash, Ending::Failover, Ending::Flood]);
        Self { setting, steps, ending }
    }
}

fn setting(seed: u64, fault: Option<Break>, rng: &mut StdRng) -> Setting {
    let hosts = *pick(rng, &[3, 3, 3, 4, 4, 5, 6, 8]);
    let mut absent = BTreeSet::new();
    let mut targets = vec![BTreeSet::new(); hosts];
    let sparse = rng.random_range(0..2) == 0;
    let chatty = rng.random_range(0..2) == 0;
    for (host, own) in targets.iter_mut().enumerate().skip(1) {
        // Whatever else is missing, these wires and targets join all.
        let first = rng.random_range(0..host);
        own.insert(first);
        for other in (0..host).filter(|other| *other != first) {
            if sparse && rng.random_range(0..3) == 0 {
                absent.insert((other, host));
            } else if chatty {
                own.insert(other);
            }
        }
    }
    // Of its own: what else a seed means stays as it was.
    let mut own = StdRng::seed_from_u64(seed);
    Setting {
        seed,
        secret: seed.is_multiple_of(2),
        hosts,
        absent,
        targets,
        mtu: *pick(rng, &[1500, 1500, 1400]),
        latency: Time::from_micros(*pick(rng, &[50, 500, 5_000, 20_000])),
        via_stack: (0..hosts).filter(|_| rng.random_range(0..4) == 0).collect(),
        short_ids: *pick(rng, &[4096, 4096, 16]),
        shorts: Vec::new(),
        sealed: rng.random_range(0..4) == 0,
        fault,
        watch: None,
        esp: (0..hosts).filter(|_| own.random_range(0..4) != 0).collect(),
    }
}

/// Agents start and containers are attached.
fn opening(setting: &Setting, rng: &mut StdRng) -> Vec<(Time, Step)> {
    let mut steps: Vec<(Time, Step)> = Vec::new();
    // Two networks that know nothing of each other may well use the same short ids.
    if rng.random_range(0..8) == 0 {
        steps.push((Time::ZERO, Step::Split(setting.hosts / 2)));
    }
    for host in 0..setting.hosts {
        steps.push((Time::from_millis(rng.random_range(0..300)), Step::Launch(host)));
        for _ in 0..rng.random_range(1..=2) {
            steps.push((Time::from_millis(1), Step::Attach(host)));
        }
    }
    if rng.random_range(0..2) == 0 {
        steps.push((Time::from_secs(5), Step::Settle));
    }
    steps
}

fn step(rng: &mut StdRng, hosts: usize) -> Step {
    let host = rng.random_range(0..hosts);
    let other = rng.random_range(0..hosts);
    let (from, to) = (rng.random_range(0..64), rng.random_range(0..64));
    let payload = *pick(rng, &[Payload::Ipv4, Payload::Ipv6, Payload::Other]);
    match rng.random_range(0..100) {
        0..=3 => Step::Launch(host),
        4..=9 => Step::Crash(host),
        10..=12 => Step::Connect(host, other),
        13..=16 => Step::Cut(host, other),
        17..=19 => Step::Block(host, other, rng.random_range(0..3) > 0),
        20..=23 => Step::CutOneWay(host, other),
        24..=27 => Step::Mend(host, other),
        28..=29 => Step::Isolate(host),
        30 => Step::Split(host),
        31..=34 => Step::Heal,
        35..=38 => Step::Noise(noise(rng)),
        39..=42 => Step::Attach(host),
        43..=45 => Step::Detach(from),
        46..=49 => Step::Move(from, host),
        50..=51 => Step::Twin(from, host),
        52..=65 => Step::Unicast(from, to, payload),
        66..=73 => Step::Broadcast(from, payload),
        74..=77 => Step::Multicast(from),
        78..=80 => Step::Jump(host, *pick(rng, &[1, 10, 100, 1000])),
        81..=86 => {
            Step::Stranger(host, *pick(rng, &[Forgery::RightVni, Forgery::WrongVni, Forgery::OwnVni, Forgery::Spoofed, Forgery::Heartbeat]))
        }
        87..=89 => Step::Garbage(host),
        90..=93 => Step::Reset(host),
        94..=95 => Step::RandomMacs(from, rng.random_range(10..500)),
        _ => Step::Settle,
    }
}

fn noise(rng: &mut StdRng) -> Noise {
    Noise { loss: *pick(rng, &[0, 10, 100, 300]), duplication: *pick(rng, &[0, 10, 100]), reordering: *pick(rng, &[0, 10, 200]) }
}

fn pick<'a, T>(rng: &mut StdRng, choices: &'a [T]) -> &'a T {
    &choices[rng.random_range(0..choices.len())]
}
