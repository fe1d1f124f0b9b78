//! `cargo xtask test`: all that CI checks, layer by layer.

mod attempts;
mod layers;

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;
use vm_tests::{is_ci, is_root};

use crate::packages;
use crate::progress::{seconds, step};
use crate::workspace::Workspace;
use layers::Layer;

const PROGRAMS: [&str; 10] = ["ip", "tc", "nft", "conntrack", "ping", "iperf3", "tcpdump", "dig", "musl-gcc", "busybox"];

/// What to test.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Layers to run, in their own order; all, if none is named
    layers: Vec<String>,

    /// Say what layers there are, and run none
    #[arg(long)]
    list: bool,
}

enum Verdict {
    /// Which tests only at their second attempt.
    Passed(Vec<String>),
    Failed(String),
    Skipped,
}

struct Outcome {
    layer: &'static Layer,
    verdict: Verdict,
    took: Duration,
}

/// Runs the layers that were asked for and says whether all of them passed.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    let layers = choose(&layers::there(workspace), &options.layers)?;
    if options.list {
        layers.iter().for_each(|layer| println!("{:<10} {}", layer.name, layer.what));
        return Ok(true);
    }
    if layers.iter().any(|layer| layer.root) {
        install_packages()?;
    }
    let outcomes: Vec<_> = layers.into_iter().map(|layer| try_layer(workspace, layer)).collect();
    Ok(report(&outcomes))
}

/// A layer that runs the agent brings the one that builds it.
fn choose(there: &[&'static Layer], names: &[String]) -> Result<Vec<&'static Layer>> {
    let known: Vec<_> = there.iter().map(|layer| layer.name).collect();
    for name in names {
        ensure!(known.contains(&name.as_str()), "there is no layer `{name}`, only {}", known.join(", "));
    }
    let asked = |layer: &Layer| names.is_empty() || names.iter().any(|name| name == layer.name);
    let programs = there.iter().any(|layer| asked(layer) && layer.programs);
    Ok(there.iter().copied().filter(|layer| asked(layer) || (programs && layer.builds_programs())).collect())
}

/// Before the first layer: a lack should not show after ten minutes.
fn install_packages() -> Result<()> {
    if !is_root() && is_ci() {
        bail!("CI=true, but not root: layers that make network namespaces would be left out; run as root");
    }
    if is_root() { step("programs that tests use", || packages::install_missing(&PROGRAMS)) } else { Ok(()) }
}

fn try_layer(workspace: &Workspace, layer: &'static Layer) -> Outcome {
    println!("\n==> layer {}: {}", layer.name, layer.what);
    let started = Instant::now();
    let verdict = match layer.root && !is_root() {
        true => Verdict::Skipped,
        false => layer.run(workspace).map_or_else(|error| Verdict::Failed(format!("{error:#}")), Verdict::Passed),
    };
    if let Verdict::Failed(why) = &verdict {
        eprintln!("error: {why}");
    }
    Outcome { layer, verdict, took: started.elapsed() }
}

/// The last line is for machines: `N passed, N failed`.
fn report(outcomes: &[Outcome]) -> bool {
    println!("\n{:<10} {:<28} {:>9}", "layer", "result", "time");
    for Outcome { layer, verdict, took } in outcomes {
        println!("{:<10} {:<28} {:>9}", layer.name, told(verdict), seconds(*took));
    }
    for (outcome, test) in outcomes.iter().flat_map(|outcome| outcome.verdict.late().iter().map(move |test| (outcome, test))) {
        println!("{:<10} passed at the second attempt: {test}", outcome.layer.name);
    }
    let count = |wanted: fn(&Verdict) -> bool| outcomes.iter().filter(|outcome| wanted(&outcome.verdict)).count();
    let failed = count(|verdict| matches!(verdict, Verdict::Failed(_)));
    println!("\n{} passed, {failed} failed", count(|verdict| matches!(verdict, Verdict::Passed(_))));
    failed == 0
}

impl Verdict {
    fn late(&self) -> &[String] {
        match self {
            Self::Passed(late) => late,
            Self::Failed(_) | Self::Skipped => &[],
        }
    }
}

fn told(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Passed(late) if late.is_empty() => "passed".to_owned(),
        Verdict::Passed(late) => format!("passed, {} at 2nd attempt", late.len()),
        Verdict::Failed(_) => "FAILED".to_owned(),
        Verdict::Skipped => "skipped: needs root".to_owned(),
    }
}
