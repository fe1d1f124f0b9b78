//! What the first frame of a new pair of containers costs: it goes up to the agent, which makes a flow for it and sends it on.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use vm_tests::{Lab, LabConfig, Node, Place, Running, Underlay, process, wait_for};

use crate::bench::Bench;
use crate::bench::compare::interleaved;
use crate::bench::conditions::CPUS;
use crate::bench::measure::{agent_pid, number};
use crate::bench::scenario::{Scenario, Work};
use crate::bench::table::{Figure, Gate, Table, quantile};
use crate::workspace::Workspace;

pub(crate) const SCENARIO: Scenario =
    Scenario { name: "setup", what: "The first frame of a new pair of containers, and 10,000 new pairs at once", work: Work::Alone(run) };

const FIGURES: &[Figure] = &[
    Figure::new("first frame of a new pair, 1,000/s: p50 added", "µs").gate(Gate::AtMost(60.0)),
    Figure::new("first frame of a new pair, 1,000/s: p99 added", "µs").gate(Gate::AtMost(300.0)),
    Figure::new("first frames lost", "").gate(Gate::AtMost(0.0)),
    Figure::new("10,000 new pairs at once: answered", "thousand/s").gate(Gate::AtLeast(60.0)),
    Figure::new("10,000 new pairs at once: lost", "").gate(Gate::AtMost(0.0)),
    Figure::new("of them upcall-rate", ""),
    Figure::new("of them upcall-lost", ""),
];

/// New pairs per second of which the project promises how long their first frames take.
const RATE: u32 = 1_000;
/// A port may ask 4,000 times a second, so that many pairs at once are of several containers.
const SENDERS: u8 = 10;
const AT_ONCE: u32 = 1_000;
/// MACs behind the receiving container.
const DESTINATIONS: u32 = 100;
/// More sources than a container has in all rounds together.
const SOURCES: u32 = 1_000_000;
/// After the last frame: the agent has answered what it had by then.
const SILENCE: &str = "500";
/// Why a first frame may not get to the agent.
const REASONS: [&str; 2] = ["upcall-rate", "upcall-lost"];
/// Until a port may ask as often as ever.
const REST: Duration = Duration::from_millis(1_200);

/// Two hosts; the containers have MACs by number.
struct Bed {
    lab: Lab,
    traffic: PathBuf,
    /// Sources so far: each run wants new ones.
    used: u32,
}

/// Where the pairs meet, and the number of the first MAC there.
#[derive(Clone, Copy)]
struct Goal {
    place: Place,
    first: u32,
}

/// The receivers: on the senders' host, and on the other one.
const GOALS: [Goal; 2] =
    [Goal { place: Place::Container(1, SENDERS + 1), first: 0 }, Goal { place: Place::Container(2, 1), first: DESTINATIONS }];

fn run(bench: &Bench<'_>, scenario: &'static str) -> Result<Table> {
    let mut bed = Bed::make(bench.workspace)?;
    let columns = ["one host", "between hosts"].map(str::to_owned).to_vec();
    let rows = interleaved(bench.rounds, FIGURES, &columns, |column| {
        let first = bed.one_by_one(GOALS[column], (bench.seconds * f64::from(RATE)) as u32)?;
        Ok([first, bed.at_once(GOALS[column])?].concat())
    })?;
    let notes = vec![format!(
        "A new pair's frame is compared with the same pair's second one, everything on one CPU, as for latency. With many pairs at once both agents \
         run on one CPU and the containers on the other; they are of {SENDERS} containers, because one may ask 4,000 times a second."
    )];
    Ok(Table { scenario, columns, references: Vec::new(), rows, notes })
}

impl Bed {
    fn make(workspace: &Workspace) -> Result<Self> {
        process::run(workspace.cargo("build").args(["--release", "--package", "vm-tests", "--example", "traffic"]))?;
        let config = LabConfig { containers: SENDERS + 1, underlay: Underlay::Direct, ..LabConfig::named("setup") };
        let bed = Self { lab: Lab::scenario(config)?, traffic: workspace.agent().with_file_name("examples").join("traffic"), used: 0 };
        bed.lab.meshed()?;
        GOALS.iter().try_for_each(|goal| bed.learn(&bed.lab.node(goal.place)?, goal.first, DESTINATIONS))?;
        Ok(bed)
    }

    fn agents_on(&self, cpu: &str) -> Result<()> {
        for host in [1, 2] {
            let pid = agent_pid(&self.lab.host(host)?)?.to_string();
            self.lab.host(host)?.exec(["taskset", "-acp", cpu, &pid])?;
        }
        Ok(())
    }

    /// Pairs one after the other, each with a second frame: what is added to the first, at the median and for one in a hundred, and how many
    /// did not come. All on one CPU: to wake another that sleeps takes longer than all the rest, in a virtual machine above all.
    fn one_by_one(&mut self, goal: Goal, count: u32) -> Result<Vec<f64>> {
        self.agents_on(CPUS[0])?;
        let rate = RATE.to_string();
        let result = self.meet(goal, 1, count, &["--per-second", &rate, "--again"])?;
        let [first, again] = ["/first/micros", "/again/micros"].map(|of| sorted(&result, of));
        let (first, again) = (first?, again?);
        let added = |share| quantile(&first, share) - quantile(&again, share);
        Ok(vec![added(0.5), added(0.99), f64::from(count) - first.len() as f64])
    }

    /// As many pairs as the senders can make at once: thousands per second that arrived, how many did not, and how many of those the datapaths
    /// say they dropped: because a port or neighbour asked too often, and because the agent was late.
    fn at_once(&mut self, goal: Goal) -> Result<Vec<f64>> {
        self.agents_on(CPUS[1])?;
        let before = self.dropped()?;
        let result = self.meet(goal, SENDERS, AT_ONCE, &[])?;
        let [received, seconds] = [number(&result, "/first/received")?, number(&result, "/first/seconds")?];
        let lost = f64::from(AT_ONCE * u32::from(SENDERS)) - received;
        let dropped = self.dropped()?.into_iter().zip(before).map(|(after, before)| after - before);
        Ok([received / seconds / 1e3, lost].into_iter().chain(dropped).collect())
    }

    /// By [`REASONS`], of both hosts together.
    fn dropped(&self) -> Result<Vec<f64>> {
        let drops = [self.lab.host(1)?.status()?["drops"].take(), self.lab.host(2)?.status()?["drops"].take()];
        // A reason that never was is not said.
        Ok(REASONS.iter().map(|reason| drops.iter().filter_map(|drops| drops[*reason].as_f64()).sum()).collect())
    }

    /// New pairs of so many senders, `count` of each.
    fn meet(&mut self, goal: Goal, senders: u8, count: u32, options: &[&str]) -> Result<Value> {
        let sources = count.div_ceil(DESTINATIONS);
        let first = |sender: u8, used| u32::from(sender) * SOURCES + used;
        let nodes = (1..=senders).map(|sender| Ok((sender, self.lab.node(Place::Container(1, sender))?))).collect::<Result<Vec<_>>>()?;
        nodes.iter().try_for_each(|(sender, node)| self.learn(node, first(*sender, self.used), sources))?;
        std::thread::sleep(REST);
        let receiver = self.start(&self.lab.node(goal.place)?, &["meet", "--silence", SILENCE])?;
        wait_for("the receiver to listen", Duration::from_secs(5), || Ok(receiver.written()?.contains("listening")))?;
        let [to, destinations, count] = [goal.first, DESTINATIONS, count].map(|number| number.to_string());
        let words = ["pairs", "--to", &to, "--destinations", &destinations, "--count", &count];
        let running = nodes.iter().map(|(sender, node)| {
            let from = first(*sender, self.used).to_string();
            self.start(node, &[&words[..], &["--from", &from], options].concat())
        });
        let running = running.collect::<Result<Vec<_>>>()?;
        running.into_iter().try_for_each(|sender| sender.finish().map(drop))?;
        let said = receiver.finish()?;
        self.used += sources;
        serde_json::from_str(said.lines().last().unwrap_or_default()).context("the receiver wrote no JSON")
    }

    fn learn(&self, node: &Node<'_>, first: u32, count: u32) -> Result<()> {
        self.start(node, &["learn", "--first", &first.to_string(), "--count", &count.to_string()])?.finish().map(drop)
    }

    fn start(&self, node: &Node<'_>, words: &[&str]) -> Result<Running> {
        let program = self.traffic.to_str().context("the path of the traffic generator is no UTF-8")?;
        node.spawn([&["taskset", "-c", CPUS[0], program], words].concat())
    }
}

fn sorted(result: &Value, pointer: &str) -> Result<Vec<f64>> {
    let all = result.pointer(pointer).and_then(Value::as_array).with_context(|| format!("no {pointer}"))?;
    let mut numbers: Vec<_> = all.iter().filter_map(Value::as_f64).collect();
    numbers.sort_unstable_by(f64::total_cmp);
    Ok(numbers)
}
