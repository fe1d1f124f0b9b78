//! `cargo xtask bench`: the same traffic over each contender in turn, interleaved in one run, medians and ratios.

mod contender;
mod dns;
mod measure;
pub(crate) mod node;
mod packets;
mod report;
mod sleeve;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use self::contender::{Bed, Contender};
use self::report::Report;
use crate::workspace::Workspace;

/// What to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// Only these; all by default
    scenarios: Vec<Scenario>,
    /// How often each contender runs each scenario
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long one run takes
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Write every run and the medians to this file
    #[arg(long, value_name = "FILE")]
    json: Option<std::path::PathBuf>,
}

/// One kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Scenario {
    /// One TCP stream, both ends on one CPU, offloads on: Gbit/s
    Bulk,
    /// The same, segmented before it enters the underlay: Gbit/s
    Wire,
    /// One byte there and back over TCP, both ends on one CPU: round trips per second
    PingPong,
    /// 64-byte UDP datagrams received, sender and receiver on two CPUs: thousands per second
    Packets,
    /// The encrypted tunnel in user space next to host to host, kernel vxlan and wireguard-go: Gbit/s and CPU per Gbit,
    /// 64-byte UDP, ping-pong (not among the default ones)
    Sleeve,
    /// 20,000 queries per second from one client to the name server: how long they take (not among the default ones)
    Dns,
}

impl Scenario {
    const ALL: [Self; 4] = [Self::Bulk, Self::Wire, Self::PingPong, Self::Packets];

    const fn title(self) -> &'static str {
        match self {
            Self::Bulk => "TCP bulk, Gbit/s",
            Self::Wire => "TCP bulk, wire mode, Gbit/s",
            Self::PingPong => "TCP ping-pong, thousand/s",
            Self::Packets => "UDP 64 B, two cores, kpps",
            Self::Sleeve => "sleeve",
            Self::Dns => "DNS queries",
        }
    }
}

/// Measures and prints the table.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    ensure!(options.rounds >= 1 && options.seconds >= 1, "--rounds and --seconds: at least 1");
    let mut scenarios = if options.scenarios.is_empty() { Scenario::ALL.to_vec() } else { options.scenarios.clone() };
    let mut report = Report::default();
    if scenarios.contains(&Scenario::Dns) {
        report.add_rows(dns::run(workspace, options.seconds, options.rounds)?);
        scenarios.retain(|scenario| *scenario != Scenario::Dns);
    }
    if scenarios.contains(&Scenario::Sleeve) {
        report.add_rows(sleeve::run(options.seconds, options.rounds)?);
        scenarios.retain(|scenario| *scenario != Scenario::Sleeve);
    }
    if !scenarios.is_empty() {
        compare(&scenarios, options, &mut report)?;
    }
    options.json.as_deref().map_or(Ok(()), |file| report.write(file))
}

/// The same traffic over each contender.
fn compare(scenarios: &[Scenario], options: &Options, report: &mut Report) -> Result<()> {
    let bed = Bed::make()?;
    for &scenario in scenarios {
        bed.prepare(scenario)?;
        for round in 1..=options.rounds {
            for contender in Contender::ALL {
                let value = measure::run(&bed.path(contender)?, scenario, options.seconds)?;
                eprintln!("{} round {round}: {}: {value:.2}", scenario.title(), contender.title());
                report.add(scenario, contender, value);
            }
        }
    }
    print!("{}", report.table());
    Ok(())
}
