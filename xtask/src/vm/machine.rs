//! One virtual machine, from power on to its last word.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vm_tests::process;
use vm_tests::vm::console::{Ending, Stopped, Transcript};
use vm_tests::vm::orders::Said;

use super::accelerator::Accelerator;

const EMULATOR: &str = "qemu-system-x86_64";
const MEMORY: &str = "1280M";
/// Processors: races between them are part of what is tested.
pub(super) const PROCESSORS: usize = 2;
/// A guest that has said its last word ends itself.
const FAREWELL: Duration = Duration::from_secs(10);
/// The kernel's messages on the first serial line; a fault is a panic, a panic ends the machine at once. What only slows
/// an emulated processor down is off; without random addresses QEMU runs for a process what it translated for an earlier one.
const COMMAND_LINE: &str = "console=ttyS0 loglevel=5 panic=-1 oops=panic reboot=t rdinit=/init mitigations=off audit=0 apparmor=0 init_on_alloc=0 \
                            nowatchdog random.trust_cpu=on rcupdate.rcu_cpu_stall_suppress=1 no_timer_check norandmaps";

/// What to boot, and where its logs go.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) accelerator: Accelerator,
    pub(super) image: PathBuf,
    pub(super) initrd: &'a Path,
    pub(super) logs: &'a Logs,
}

/// What a machine writes.
#[derive(Debug, Clone)]
pub(super) struct Logs {
    /// Its kernel.
    pub(super) kernel: PathBuf,
    /// Its first process.
    pub(super) guest: PathBuf,
}

impl Logs {
    /// Nobody needs them.
    pub(super) fn remove(&self) {
        for path in [&self.kernel, &self.guest, &self.emulator()] {
            // What is left behind does no harm.
            let _ = fs::remove_file(path);
        }
    }

    fn emulator(&self) -> PathBuf {
        self.guest.with_extension("qemu.log")
    }
}

/// How long to wait for a machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// In all.
    pub(super) whole: Duration,
    /// For the next line.
    pub(super) silence: Duration,
}

/// What a machine was heard to say, and how it ended.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) transcript: Transcript,
    pub(super) ending: Ending,
    pub(super) kernel: String,
}

impl Machine<'_> {
    /// Boots it and listens until it ends, or has to be ended.
    pub(super) fn run(&self, tasks: usize, limits: Limits, mut on_line: impl FnMut(&Said)) -> Result<Heard> {
        let mut log = File::create(&self.logs.guest).with_context(|| format!("cannot write {}", self.logs.guest.display()))?;
        let mut child = Owned(self.start()?);
        let lines = lines_of(&mut child.0)?;
        let (begun, mut transcript) = (Instant::now(), Transcript::of(tasks));
        let stopped = loop {
            let left = limits.whole.saturating_sub(begun.elapsed());
            match lines.recv_timeout(left.min(limits.silence)) {
                Ok(line) => {
                    writeln!(log, "{:8.3} {line}", begun.elapsed().as_secs_f64())?;
                    if let Some(said) = Said::parse(&line) {
                        on_line(&said);
                        transcript.hear(said);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break Stopped::Ended,
                Err(RecvTimeoutError::Timeout) if begun.elapsed() >= limits.whole => break Stopped::Late(limits.whole),
                Err(RecvTimeoutError::Timeout) => break Stopped::Silent(limits.silence),
            }
            if transcript.is_done() {
                // It only has to end itself now.
                while lines.recv_timeout(FAREWELL).is_ok() {}
                break Stopped::Ended;
            }
        };
        drop(child);
        let kernel = written(&self.logs.kernel);
        let ending = match transcript.ending(stopped, &kernel) {
            Ending::Died(last) => Ending::Died(self.emulator_complaint().unwrap_or(last)),
            ending => ending,
        };
        Ok(Heard { ending, transcript, kernel })
    }

    /// Why the emulator ended, if it said so.
    fn emulator_complaint(&self) -> Option<String> {
        let text = written(&self.logs.emulator());
        text.lines().find(|line| line.starts_with(EMULATOR)).map(str::to_owned)
    }

    fn start(&self) -> Result<Child> {
        // It does not outlive us, whoever kills us.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", EMULATOR]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35"]);
        command.args(self.accelerator.arguments()).args(["-m", MEMORY, "-smp", &PROCESSORS.to_string()]);
        command.arg("-kernel").arg(&self.image).arg("-initrd").arg(self.initrd).args(["-append", COMMAND_LINE]);
        command.arg("-serial").arg(format!("file:{}", self.logs.kernel.display()));
        command.args(["-chardev", "stdio,id=guest,signal=off", "-serial", "chardev:guest"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let errors = File::create(self.logs.emulator())?;
        command.stderr(errors).spawn().map_err(|error| process::not_started(&command, error))
    }
}

/// What is in a log; nothing, if it is not there.
fn written(log: &Path) -> String {
    fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// A machine that ends with us.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lines as they come; the channel closes with the machine.
fn lines_of(child: &mut Child) -> Result<Receiver<String>> {
    let output = child.stdout.take().context("the machine has no output")?;
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}
