//! `cargo xtask vm`: the tests that depend on the kernel, on each of several kernels, in virtual machines.

mod accelerator;
mod again;
mod image;
mod kernels;
mod machine;
mod program;
mod report;
mod selftest;
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;
use vm_tests::is_root;
use vm_tests::vm::console::{LEFT_OUT, SKIPPED, Verdict, warnings};
use vm_tests::vm::matrix::{Group, Kernel, Matrix};
use vm_tests::vm::orders::{Orders, Said, Task, Work};

use self::accelerator::Accelerator;
use self::again::Second;
use self::image::Contents;
use self::kernels::Unpacked;
use self::machine::{Heard, Limits, Logs, Machine, PROCESSORS};
pub(crate) use self::program::Program;
use self::report::{Cell, Report};
use self::tests::Test;
use crate::build_ebpf;
use crate::packages;
use crate::progress::step;
use crate::readme;
use crate::workspace::Workspace;

/// What the command itself calls.
const PROGRAMS: [&str; 7] = ["qemu-system-x86_64", "depmod", "dpkg-deb", "xz", "zstd", "strip", "ldd"];
/// Tests that a guest runs at the same time: most of their time they wait for the kernel to notice that an interface is up.
const AT_ONCE: usize = 2 * PROCESSORS;
/// One kernel: what hangs must not hold the others up for ever.
const WHOLE: Duration = Duration::from_secs(1500);
/// A guest says when a test begins and ends, so it is silent for no longer than the longest test; and a bit.
const SILENCE: Duration = Duration::from_secs(45);

/// What to boot, and what to run there.
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Kernels to boot; all, if none is named
    kernels: Vec<String>,

    /// Say what kernels and groups of tests there are, and boot none
    #[arg(long)]
    list: bool,

    /// Only this group of tests; can be given several times
    #[arg(long, value_name = "GROUP")]
    only: Vec<String>,

    /// Only tests with this in their names
    #[arg(long, value_name = "TEXT")]
    test: Option<String>,

    /// Machines that run at the same time; as many as keep the processors busy, if it is not said
    #[arg(long, value_name = "N")]
    guests: Option<NonZero<usize>>,

    /// Look for newer packages of the kernels that are unpacked already
    #[arg(long)]
    update: bool,

    /// Break things on purpose (a program, the kernel, the guest) and see that each is reported as what it is
    #[arg(long, conflicts_with_all = ["list", "only", "test"])]
    self_test: bool,

    /// Everything again as one line of JSON, the last one
    #[arg(long)]
    json: bool,

    /// Put the table of this run, if all kernels passed everything, into README.md
    #[arg(long, conflicts_with_all = ["kernels", "only", "test", "self_test"])]
    readme: bool,

    /// Keep the logs of kernels on which everything passed, too
    #[arg(long)]
    keep_logs: bool,
}

impl Options {
    /// These groups, on all kernels.
    pub(crate) fn only(groups: &[&str]) -> Self {
        Self { only: groups.iter().map(|group| (*group).to_owned()).collect(), ..Self::default() }
    }
}

/// Everything that the guests have in common.
struct Bench<'a> {
    workspace: &'a Workspace,
    matrix: Matrix,
    tests: Vec<Test>,
    base: PathBuf,
    dir: PathBuf,
    keep_logs: bool,
}

/// Runs what was asked for, and says whether all of it passed.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<bool> {
    let matrix = Matrix::read()?;
    let kernels: Vec<Kernel> = matrix.kernels(&options.kernels)?.into_iter().cloned().collect();
    if options.list {
        list(&matrix);
        return Ok(true);
    }
    let _alone = alone(&workspace.own("vm"))?;
    if is_root() {
        install(&matrix)?;
    }
    let agent = wanted(&matrix, options)?.iter().any(|(_, group)| group.agent);
    match agent {
        true => build_ebpf::run(workspace, &build_ebpf::Options { no_install: true, ..Default::default() })?,
        false => build_ebpf::programs(workspace, false)?,
    }
    let bench = Bench::prepare(workspace, matrix, options)?;
    if options.self_test {
        return selftest::run(&bench, &kernels, options.update);
    }
    let reports = bench.all(&kernels, options)?;
    let table = report::table(&reports);
    println!("\n{table}");
    if options.json {
        println!("{}", Value::from(reports.iter().map(Report::json).collect::<Vec<_>>()));
    }
    let good = reports.iter().all(Report::is_good);
    if options.readme && good {
        readme::put(workspace, "vm", &report::readme(&table))?;
    }
    Ok(good)
}

/// What is missing of all programs that are called here and in guests.
fn install(matrix: &Matrix) -> Result<()> {
    let wanted = PROGRAMS.iter().copied().chain(matrix.programs.iter().map(String::as_str));
    step("programs that guests and their tests use", || packages::install_missing(&wanted.collect::<Vec<_>>()))
}

/// A guest for each of this machine's processors, which is what its tests take of them on average.
fn guests_at_once() -> NonZero<usize> {
    thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN)
}

/// Two at once would write the same files: the second one waits.
fn alone(dir: &Path) -> Result<File> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

fn list(matrix: &Matrix) {
    for kernel in &matrix.kernel {
        println!("kernel {:<10} the newest {}* of {}", kernel.name, kernel.version, kernel.suite);
    }
    for group in matrix.group.iter().filter(|group| !group.on_purpose) {
        println!("group  {:<10} {} {} {}", group.name, group.package, group.test, group.only.join(" "));
    }
}

impl<'a> Bench<'a> {
    fn prepare(workspace: &'a Workspace, matrix: Matrix, options: &Options) -> Result<Self> {
        let groups = wanted(&matrix, options)?;
        let mut tests = step("test programs", || {
            let tests = tests::find(workspace, &groups)?;
            let told = format!("{} tests", tests.len());
            Ok((tests, told))
        })?;
        if let Some(part) = &options.test {
            tests.retain(|test| test.name.contains(part));
            ensure!(!tests.is_empty(), "no test has `{part}` in its name");
        }
        let guest = tests::guest(workspace)?;
        let dir = workspace.own("vm");
        let base = dir.join("base.cpio");
        step("what guests have instead of a disk", || {
            let agent = groups.iter().any(|(_, group)| group.agent).then(|| workspace.agent());
            let contents = Contents {
                init: &guest,
                tests: tests.iter().map(|test| test.program.clone()).chain(agent).collect(),
                examples: matrix.examples.iter().map(|name| tests::example(workspace, name)).collect::<Result<_>>()?,
                programs: &matrix.programs,
                files: &matrix.files,
            };
            let size = image::write_base(&base, &contents)?;
            Ok(((), format!("{}, {} MB", base.display(), size >> 20)))
        })?;
        Ok(Self { workspace, matrix, tests, base, dir, keep_logs: options.keep_logs })
    }

    /// Fetches all kernels, and then boots several at a time: a guest's tests wait more than they work.
    fn all(&self, kernels: &[Kernel], options: &Options) -> Result<Vec<Report>> {
        let mut found = Vec::new();
        for kernel in kernels {
            println!();
            let unpacked = step(&format!("kernel {}", kernel.name), || kernels::find(self.workspace, kernel, options.update))?;
            let accelerator = self.accelerator(&unpacked)?;
            found.push((kernel, unpacked, accelerator));
        }
        println!();
        let (next, reports) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        thread::scope(|scope| {
            for _ in 0..options.guests.unwrap_or_else(guests_at_once).get().min(found.len()) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some((kernel, unpacked, accelerator)) = found.get(index) else { break };
                        let report = self.kernel(kernel, unpacked, *accelerator);
                        reports.lock().unwrap_or_else(PoisonError::into_inner).insert(index, report);
                    }
                });
            }
        });
        reports.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
    }

    /// Boots one kernel and runs everything on it.
    fn kernel(&self, kernel: &Kernel, unpacked: &Unpacked, accelerator: Accelerator) -> Result<Report> {
        let tasks = self.tests.iter().map(|test| self.task(test)).collect();
        let begun = Instant::now();
        let (heard, logs) =
            self.boot(&kernel.name, unpacked, accelerator, tasks, |tasks, said| self.progress(&kernel.name, tasks, said))?;
        let second = self.again(kernel, unpacked, accelerator, &heard)?;
        let report = self.report(kernel, unpacked, heard, second.as_ref(), &logs, begun.elapsed());
        println!("    {}: {}", kernel.name, report.line());
        Ok(report)
    }

    fn accelerator(&self, kernel: &Unpacked) -> Result<Accelerator> {
        step("accelerator", || {
            let initrd = self.dir.join("probe.cpio");
            image::write(&initrd, &self.base, kernel, &[], &Orders::default())?;
            let found = accelerator::find(&self.dir, &kernel.image(), &initrd);
            fs::remove_file(&initrd)?;
            found
        })
    }

    /// `hear` is told what the guest says, and what its tasks are.
    fn boot(
        &self,
        name: &str,
        kernel: &Unpacked,
        accelerator: Accelerator,
        tasks: Vec<Task>,
        mut hear: impl FnMut(&[Task], &Said),
    ) -> Result<(Heard, Logs)> {
        let longest = tasks.iter().map(|task| task.limit).max().unwrap_or_default();
        let orders = Orders { modules: Vec::new(), env: environment(accelerator), tasks, workers: AT_ONCE };
        let initrd = self.dir.join(format!("{name}.cpio"));
        image::write(&initrd, &self.base, kernel, &self.matrix.modules, &orders)?;
        let logs = Logs { kernel: self.dir.join(format!("{name}.kernel.log")), guest: self.dir.join(format!("{name}.log")) };
        let machine = Machine { accelerator, image: kernel.image(), initrd: &initrd, logs: &logs };
        let limits = Limits { whole: WHOLE, silence: SILENCE + Duration::from_secs(longest) };
        let heard = machine.run(orders.tasks.len(), limits, |said| hear(&orders.tasks, said));
        // A hundred megabytes that are made anew in a second.
        fs::remove_file(&initrd).with_context(|| format!("cannot remove {}", initrd.display()))?;
        Ok((heard?, logs))
    }

    fn task(&self, test: &Test) -> Task {
        let group = &self.matrix.group[test.group];
        let program = image::in_guest(&test.program).display().to_string();
        let words = ["--exact", "--nocapture", "--test-threads=1", "--format=terse"]
            .into_iter()
            .chain(group.on_purpose.then_some("--include-ignored"));
        let arguments = [test.name.as_str()].into_iter().chain(words).map(str::to_owned).collect();
        Task { work: Work::Run { program, arguments }, limit: group.limit, alone: group.alone }
    }

    /// What somebody who waits wants to see: what was skipped or failed, and figures.
    fn progress(&self, kernel: &str, tasks: &[Task], said: &Said) {
        let name = |task: usize| tasks.get(task).map_or("", test_of);
        match said {
            Said::Up { release } => println!("    {kernel}: {release} is up"),
            Said::Wrote { task, line } if self.shows(name(*task), line) => println!("    {kernel}: {line}"),
            Said::Ended { task, end, seconds } if *end != vm_tests::vm::orders::End::Exit(0) => {
                println!("    {kernel}: FAILED {} ({end:?}, {seconds:.1} s)", name(*task));
            }
            _ => {}
        }
    }

    fn shows(&self, test: &str, line: &str) -> bool {
        let Some(test) = self.tests.iter().find(|known| known.name == test) else {
            return false;
        };
        let figures = self.matrix.group[test.group].show.iter().any(|part| test.name.contains(part.as_str()));
        figures
            && !["", ".", "running 1 test"].contains(&line)
            && ![SKIPPED, LEFT_OUT, "test "].iter().any(|prefix| line.starts_with(prefix))
    }

    fn report(&self, kernel: &Kernel, unpacked: &Unpacked, heard: Heard, second: Option<&Second>, logs: &Logs, took: Duration) -> Report {
        let mut cells: Vec<_> = self.matrix.group.iter().map(|group| Cell::of(&group.name)).collect();
        for (index, test) in self.tests.iter().enumerate() {
            let cell = &mut cells[test.group];
            match (heard.transcript.verdict(index), second.and_then(|second| second.verdict(index))) {
                (Verdict::Failed(why), Some(Verdict::Passed)) => cell.add_late(&test.name, why),
                (Verdict::NotRun, Some(verdict)) | (verdict, _) => cell.add(&test.name, verdict),
            }
            let again = second.into_iter().flat_map(|second| second.left_out(index));
            cell.left_out.extend(heard.transcript.left_out(index).chain(again).map(str::to_owned));
        }
        let ran: BTreeSet<_> = self.tests.iter().map(|test| &self.matrix.group[test.group].name).collect();
        cells.retain(|cell| ran.contains(&cell.group));
        let stale = second.filter(|second| second.stale.is_some());
        let mut report = Report {
            name: kernel.name.clone(),
            release: unpacked.release.clone(),
            ending: stale.map_or(heard.ending, |second| second.heard.ending.clone()),
            took,
            cells,
            warnings: [&heard.kernel]
                .into_iter()
                .chain(second.map(|second| &second.heard.kernel))
                .flat_map(|kernel| warnings(kernel))
                .collect(),
            emulator: stale.and_then(|second| second.stale),
            logs: None,
        };
        if !report.is_good() || self.keep_logs {
            report.logs = Some([logs.guest.clone(), logs.kernel.clone()]);
        } else {
            logs.remove();
        }
        report
    }
}

/// The test that a task runs.
fn test_of(task: &Task) -> &str {
    match &task.work {
        Work::Run { arguments, .. } => arguments.first().map_or("", String::as_str),
        _ => "",
    }
}

/// The groups that were asked for, with their places in the matrix.
fn wanted<'a>(matrix: &'a Matrix, options: &Options) -> Result<Vec<(usize, &'a Group)>> {
    let known: Vec<_> = matrix.group.iter().map(|group| group.name.as_str()).collect();
    for name in &options.only {
        ensure!(known.contains(&name.as_str()), "there is no group `{name}`, only {}", known.join(", "));
    }
    let asked = |group: &Group| match options.only.is_empty() {
        true => group.on_purpose == options.self_test,
        false => options.only.contains(&group.name),
    };
    Ok(matrix.group.iter().enumerate().filter(|(_, group)| asked(group)).collect())
}

/// Of everything that runs in a guest.
fn environment(accelerator: Accelerator) -> Vec<(String, String)> {
    let agent = image::in_guest(Path::new("weave-agent")).display().to_string();
    let fixed = [("PATH", "/usr/bin"), ("HOME", "/root"), ("CI", "true"), ("RUST_BACKTRACE", "0"), ("LC_ALL", "C")];
    let slow = (accelerator == Accelerator::Tcg).then_some(("PROGRAMS_EMULATED", "1"));
    let fixed = fixed.into_iter().chain([("WEAVE_LAB_DIR", "/run/lab")]).chain(slow);
    let fixed = fixed.map(|(name, value)| (name.to_owned(), value.to_owned()));
    fixed.chain([("WEAVE_AGENT".to_owned(), agent)]).collect()
}
