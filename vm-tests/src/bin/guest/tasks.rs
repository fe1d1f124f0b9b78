//! Carrying out what was ordered, several things at once if they may be.

use std::fs;
use std::io::{self, BufRead, BufReader, PipeReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use vm_tests::vm::orders::{End, Orders, Said, Task, Work};

use crate::say::Voice;

const PAUSE: Duration = Duration::from_millis(5);
/// What a task that has ended left behind may still have its pipe: so long is waited for the last lines.
const LAST_LINES: Duration = Duration::from_millis(300);

/// Runs everything, first what may be run beside other things.
pub(crate) fn run_all(orders: &Orders, voice: &'static Voice) {
    let (alone, beside): (Vec<_>, Vec<_>) = orders.tasks.iter().enumerate().partition(|(_, task)| task.alone);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..orders.workers.max(1) {
            scope.spawn(|| {
                while let Some((index, task)) = beside.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run(*index, task, orders, voice);
                }
            });
        }
    });
    alone.into_iter().for_each(|(index, task)| run(index, task, orders, voice));
}

fn run(index: usize, task: &Task, orders: &Orders, voice: &'static Voice) {
    voice.say(&Said::Begun { task: index });
    let begun = Instant::now();
    let end = match &task.work {
        Work::Run { program, arguments } => {
            let mut command = Command::new(program);
            command.args(arguments).envs(orders.env.iter().cloned());
            start(command, index, voice).map(|started| started.watch(begun + Duration::from_secs(task.limit)))
        }
        Work::Panic => panic_now().map(|()| End::Exit(0)),
        Work::Hang => loop {
            thread::park();
        },
    };
    let end = end.unwrap_or_else(|error| End::NotStarted(error.to_string()));
    voice.say(&Said::Ended { task: index, end, seconds: begun.elapsed().as_secs_f64() });
}

/// The kernel's own way to try it out (`sysrq.rst`).
fn panic_now() -> io::Result<()> {
    fs::write("/proc/sysrq-trigger", "c")
}

/// A process, and the thread that reads what it writes.
struct Started {
    child: Child,
    reader: JoinHandle<()>,
}

fn start(mut command: Command, index: usize, voice: &'static Voice) -> io::Result<Started> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    // A group of its own, so that at its limit all of it goes.
    command.process_group(0);
    let child = command.spawn()?;
    Ok(Started { child, reader: thread::spawn(move || pass_on(reader, index, voice)) })
}

impl Started {
    fn watch(mut self, limit: Instant) -> End {
        let end = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break end_of(status),
                Ok(None) if Instant::now() < limit => thread::sleep(PAUSE),
                Ok(None) => {
                    self.kill();
                    break End::Limit;
                }
                Err(error) => break End::NotStarted(error.to_string()),
            }
        };
        let patience = Instant::now() + LAST_LINES;
        while !self.reader.is_finished() && Instant::now() < patience {
            thread::sleep(PAUSE);
        }
        end
    }

    fn kill(&mut self) {
        let group = Pid::from_raw(self.child.id().cast_signed());
        if let Err(error) = killpg(group, Signal::SIGKILL) {
            eprintln!("guest: cannot kill {group}: {error}");
        }
        let _ = self.child.wait();
    }
}

fn end_of(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exit(code),
        (None, signal) => End::Signal(signal.unwrap_or_default()),
    }
}

fn pass_on(reader: PipeReader, index: usize, voice: &Voice) {
    let mut lines = BufReader::new(reader);
    let mut bytes = Vec::new();
    while lines.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        voice.say(&Said::Wrote { task: index, line });
        bytes.clear();
    }
}
