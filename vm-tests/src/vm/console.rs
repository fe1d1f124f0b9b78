//! What became of a guest, from what it said and from what its kernel wrote.

use std::time::Duration;

use super::orders::{End, Said};

/// What a test that cannot run here writes, before the reason.
pub const SKIPPED: &str = "skipped: ";

/// How a reason begins that is as good as a pass: a release that the kernel is older than. Everything else that a test may
/// lack a guest has.
pub const NEEDS: &str = "needs Linux ";

/// What a test that can run here only in part writes, before what it left out and why.
pub const LEFT_OUT: &str = "left out: ";

/// Why nothing more came from a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The machine ended.
    Ended,
    /// It said nothing for so long, and was ended.
    Silent(Duration),
    /// It was not done after so long, and was ended.
    Late(Duration),
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It said that all was done.
    Done,
    /// Its kernel gave up; the line that says why.
    Panic(String),
    /// It did not go on, for this reason.
    Hang(String),
    /// Its first process could not go on.
    Trouble(String),
    /// The machine ended without a word; its last ones.
    Died(String),
}

/// What came of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It said that it cannot run here, and why.
    Skipped(String),
    /// It failed.
    Failed(String),
    /// Its turn never came.
    NotRun,
}

/// Everything a guest said.
#[derive(Debug, Default)]
pub struct Transcript {
    /// `uname -r`.
    pub release: Option<String>,
    tasks: Vec<Heard>,
    trouble: Option<String>,
    done: bool,
}

#[derive(Debug, Clone, Default)]
struct Heard {
    begun: bool,
    lines: Vec<String>,
    end: Option<(End, f64)>,
}

impl Transcript {
    /// Of a guest with so many tasks.
    pub fn of(tasks: usize) -> Self {
        Self { tasks: vec![Heard::default(); tasks], ..Self::default() }
    }

    /// One more line.
    pub fn hear(&mut self, said: Said) {
        match said {
            Said::Up { release } => self.release = Some(release),
            Said::Ready => {}
            Said::Begun { task } => self.change(task, |heard| heard.begun = true),
            Said::Wrote { task, line } => self.change(task, |heard| heard.lines.push(line)),
            Said::Ended { task, end, seconds } => self.change(task, |heard| heard.end = Some((end, seconds))),
            Said::Trouble(trouble) => self.trouble = Some(trouble),
            Said::Done => self.done = true,
        }
    }

    fn change(&mut self, task: usize, change: impl FnOnce(&mut Heard)) {
        if let Some(heard) = self.tasks.get_mut(task) {
            change(heard);
        }
    }

    /// Whether it said that all is done.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Tasks that have begun and not ended.
    pub fn running(&self) -> Vec<usize> {
        let running = self.tasks.iter().enumerate().filter(|(_, heard)| heard.begun && heard.end.is_none());
        running.map(|(task, _)| task).collect()
    }

    /// What a task wrote.
    pub fn lines(&self, task: usize) -> &[String] {
        self.tasks.get(task).map_or(&[], |heard| &heard.lines)
    }

    /// What a task left out of itself.
    pub fn left_out(&self, task: usize) -> impl Iterator<Item = &str> {
        self.lines(task).iter().filter_map(|line| line.strip_prefix(LEFT_OUT))
    }

    /// How long a task took.
    pub fn seconds(&self, task: usize) -> f64 {
        self.tasks.get(task).and_then(|heard| heard.end.as_ref()).map_or(0.0, |(_, seconds)| *seconds)
    }

    /// What came of a task.
    pub fn verdict(&self, task: usize) -> Verdict {
        match self.tasks.get(task) {
            Some(Heard { begun: true, end: None, .. }) => Verdict::Failed("it had not ended when the guest did".to_owned()),
            Some(Heard { end: Some((end, seconds)), lines, .. }) => judge(end, *seconds, lines),
            _ => Verdict::NotRun,
        }
    }

    /// What became of the guest. A kernel that gave up explains all else.
    pub fn ending(&self, stopped: Stopped, kernel: &str) -> Ending {
        if let Some(fault) = fault(kernel) {
            return Ending::Panic(fault);
        }
        match (self.done, &self.trouble, stopped) {
            (true, ..) => Ending::Done,
            (_, Some(trouble), _) => Ending::Trouble(trouble.clone()),
            (_, _, Stopped::Silent(limit)) => Ending::Hang(format!("nothing was heard for {} s", limit.as_secs())),
            (_, _, Stopped::Late(limit)) => Ending::Hang(format!("not done after {} s", limit.as_secs())),
            (_, _, Stopped::Ended) => Ending::Died(last_words(kernel)),
        }
    }
}

fn judge(end: &End, seconds: f64, lines: &[String]) -> Verdict {
    match end {
        End::Exit(0) => match lines.iter().find_map(|line| line.strip_prefix(SKIPPED)) {
            Some(why) if why.starts_with(NEEDS) => Verdict::Skipped(why.to_owned()),
            Some(why) => Verdict::Failed(format!("skipped, but not for the kernel's age: {why}")),
            None => Verdict::Passed,
        },
        End::Exit(status) => Verdict::Failed(complaint(lines).unwrap_or_else(|| format!("exit status {status}"))),
        End::Signal(signal) => Verdict::Failed(format!("ended by signal {signal}")),
        End::Limit => Verdict::Failed(format!("hung: killed after {seconds:.0} s")),
        End::NotStarted(why) => Verdict::Failed(format!("not started: {why}")),
    }
}

/// A panic's message stands on the line after the one that says where; an error's after the word.
fn complaint(lines: &[String]) -> Option<String> {
    let panic = lines.iter().position(|line| line.contains(" panicked at "));
    let message = panic.and_then(|at| lines.get(at + 1)).map(|line| line.trim().to_owned());
    message.or_else(|| lines.iter().find_map(|line| line.strip_prefix("Error: ")).map(str::to_owned))
}

/// The line in which a kernel says that it is broken. A processor that is late is not: machines are busy.
fn fault(kernel: &str) -> Option<String> {
    const FAULTS: [&str; 6] = ["BUG: ", "Oops: ", "Kernel panic", "kernel BUG at", "general protection fault", "Unable to handle kernel"];
    const LATE: [&str; 3] = ["soft lockup", "workqueue lockup", "rcu_"];
    let broken = |line: &&str| FAULTS.iter().any(|fault| line.contains(fault)) && !LATE.iter().any(|late| line.contains(late));
    kernel.lines().find(broken).map(|line| after_time(line).to_owned())
}

/// Lines in which a kernel says that something is odd.
pub fn warnings(kernel: &str) -> Vec<String> {
    kernel.lines().filter(|line| line.contains("WARNING: ")).map(|line| after_time(line).to_owned()).collect()
}

/// Whether a kernel died of a breakpoint that was not in its memory: before the byte at which it stood there is none (`0xcc`). A
/// processor does not do that. Emulated ones did on Linux 7.3, which changes its own code by way of breakpoints (`smp_text_poke_batch_finish`);
/// most likely QEMU 7.2 keeps a translation that it made of one while the other processor took it away.
pub fn stale_breakpoint(kernel: &str) -> bool {
    let code = kernel.lines().skip_while(|line| !line.contains("int3: 0000")).find_map(|line| after_time(line).strip_prefix("Code: "));
    let before = code.and_then(|code| code.split_once(" <")).and_then(|(before, _)| before.split_whitespace().next_back());
    before.is_some_and(|byte| byte != "cc")
}

fn last_words(kernel: &str) -> String {
    let last = kernel.lines().map(str::trim).rfind(|line| !line.is_empty());
    last.map_or_else(|| "the kernel wrote nothing".to_owned(), |line| format!("last heard: {}", after_time(line)))
}

/// Without the `[    1.234567] ` before it.
fn after_time(line: &str) -> &str {
    let line = line.trim();
    match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((_, text)) => text.trim_start(),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn transcript(said: &[Said]) -> Transcript {
        let mut transcript = Transcript::of(2);
        said.iter().for_each(|said| transcript.hear(said.clone()));
        transcript
    }

    fn wrote(line: &str) -> Said {
        Said::Wrote { task: 0, line: line.to_owned() }
    }

    fn ended(end: End) -> Said {
        Said::Ended { task: 0, end, seconds: 1.5 }
    }

    #[test]
    fn a_breakpoint_is_the_emulators_only_if_the_kernel_has_none_there() {
        let oops = |code: &str| {
            format!("[    1.0] x\n[  371.4] Oops: int3: 0000 [#1] SMP NOPTI\n[  371.5] RIP: 0010:f+0xe5/0x1090\n[  371.6] Code: {code}\n")
        };
        assert!(stale_breakpoint(&oops("00 fb 0f <1f> 44 00 00")));
        assert!(!stale_breakpoint(&oops("00 fb cc <1f> 44 00 00")));
        assert!(!stale_breakpoint(&oops("")) && !stale_breakpoint("Oops: 0002 [#1]\nCode: 0f <1f> 44\n"));
    }

    #[test]
    fn what_a_test_complains_of_is_why_it_failed() {
        let panic = [wrote("thread 'x' (7) panicked at a.rs:1:2:"), wrote("R9 !read_ok"), ended(End::Exit(101))];
        assert_eq!(transcript(&panic).verdict(0), Verdict::Failed("R9 !read_ok".to_owned()));
        let error = [wrote("Error: no such thing"), ended(End::Exit(1))];
        assert_eq!(transcript(&error).verdict(0), Verdict::Failed("no such thing".to_owned()));
        assert_eq!(transcript(&[ended(End::Exit(3))]).verdict(0), Verdict::Failed("exit status 3".to_owned()));
        assert_eq!(transcript(&[ended(End::Limit)]).verdict(0), Verdict::Failed("hung: killed after 2 s".to_owned()));
    }

    #[test]
    fn a_skip_is_no_pass_and_silence_is_neither() {
        let skip = [wrote("skipped: needs Linux 6.6 (TCX)"), ended(End::Exit(0))];
        assert_eq!(transcript(&skip).verdict(0), Verdict::Skipped("needs Linux 6.6 (TCX)".to_owned()));
        assert_eq!(transcript(&skip).verdict(1), Verdict::NotRun);
        let lack = [wrote("skipped: this kernel has no openvswitch module"), ended(End::Exit(0))];
        assert!(matches!(transcript(&lack).verdict(0), Verdict::Failed(why) if why.ends_with("no openvswitch module")));
        let part = [wrote("left out: IPv6: needs Linux 6.3"), ended(End::Exit(0))];
        assert_eq!(transcript(&part).left_out(0).collect::<Vec<_>>(), ["IPv6: needs Linux 6.3"]);
        assert_eq!(transcript(&[ended(End::Exit(0))]).verdict(0), Verdict::Passed);
    }

    #[test]
    fn a_kernel_that_gives_up_explains_all_else() {
        let log = "[    1.0] booting\n[    2.5] Kernel panic - not syncing: sysrq\n[    2.6] CPU: 0\n";
        let expected = Ending::Panic("Kernel panic - not syncing: sysrq".to_owned());
        assert_eq!(transcript(&[]).ending(Stopped::Ended, log), expected);
        assert_eq!(transcript(&[Said::Done]).ending(Stopped::Ended, log), expected);
    }

    #[test]
    fn a_guest_that_does_not_go_on_hangs_and_one_that_is_gone_died() {
        let begun = [Said::Begun { task: 1 }];
        let hang = transcript(&begun).ending(Stopped::Silent(LIMIT), "[1.0] watchdog: BUG: soft lockup - CPU#0\n");
        assert_eq!(hang, Ending::Hang("nothing was heard for 60 s".to_owned()));
        assert_eq!(transcript(&begun).running(), [1]);
        let died = transcript(&begun).ending(Stopped::Ended, "[    0.1] Command line: x\n");
        assert_eq!(died, Ending::Died("last heard: Command line: x".to_owned()));
        assert_eq!(transcript(&[Said::Done]).ending(Stopped::Ended, ""), Ending::Done);
    }
}
