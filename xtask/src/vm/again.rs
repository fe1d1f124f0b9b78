//! A second guest, for what an emulated processor, and not the kernel or a test, may have spoilt in the first one.

use anyhow::Result;
use vm_tests::vm::console::{Ending, Verdict, stale_breakpoint};
use vm_tests::vm::matrix::Kernel;
use vm_tests::vm::orders::Task;

use super::Bench;
use super::accelerator::Accelerator;
use super::kernels::Unpacked;
use super::machine::Heard;

/// More failures than these are no fits and starts.
const SECOND_ATTEMPTS: usize = 5;
/// What QEMU 7.2 does now and then where a kernel changes its own code (static keys) while the other processor runs it.
const STALE: &str = "the emulator ran a breakpoint that was no longer in the kernel's memory, which a processor does not do, and ended the first guest: \
                     what was left ran in a second one";

/// What a second guest gave.
pub(super) struct Second {
    /// What it ran, by the numbers of the first one.
    tasks: Vec<usize>,
    pub(super) heard: Heard,
    /// The first one's end is no verdict.
    pub(super) stale: Option<&'static str>,
}

impl Second {
    /// What came of a test of the first guest; none, if it was not run again.
    pub(super) fn verdict(&self, index: usize) -> Option<Verdict> {
        Some(self.heard.transcript.verdict(self.task(index)?))
    }

    /// What such a test left out.
    pub(super) fn left_out(&self, index: usize) -> impl Iterator<Item = &str> {
        self.task(index).into_iter().flat_map(|task| self.heard.transcript.left_out(task))
    }

    fn task(&self, index: usize) -> Option<usize> {
        self.tasks.iter().position(|task| *task == index)
    }
}

impl Bench<'_> {
    /// Few tests that failed on emulated processors, which are slow by fits and starts, are run once more, one by one, in a guest of their
    /// own; and all that had not passed when the emulator itself ended the guest. The report says which.
    pub(super) fn again(&self, kernel: &Kernel, unpacked: &Unpacked, accelerator: Accelerator, heard: &Heard) -> Result<Option<Second>> {
        let stale = matches!(heard.ending, Ending::Panic(_)) && stale_breakpoint(&heard.kernel);
        let wanted = |verdict| matches!(verdict, Verdict::Failed(_)) || stale && verdict == Verdict::NotRun;
        let tasks: Vec<usize> = (0..self.tests.len()).filter(|index| wanted(heard.transcript.verdict(*index))).collect();
        let may = stale || heard.ending == Ending::Done && tasks.len() <= SECOND_ATTEMPTS;
        if accelerator != Accelerator::Tcg || !may || tasks.is_empty() {
            return Ok(None);
        }
        let why = if stale { STALE.to_owned() } else { format!("{} failed, once more in a guest of their own", tasks.len()) };
        println!("    {}: {why}", kernel.name);
        let orders = tasks.iter().map(|index| Task { alone: true, ..self.task(&self.tests[*index]) }).collect();
        let name = format!("{}-again", kernel.name);
        let (heard, logs) = self.boot(&name, unpacked, accelerator, orders, |tasks, said| self.progress(&name, tasks, said))?;
        let second = Second { tasks, heard, stale: stale.then_some(STALE) };
        if second.tasks.iter().all(|index| matches!(second.verdict(*index), Some(Verdict::Passed | Verdict::Skipped(_)))) && !self.keep_logs
        {
            logs.remove();
        }
        Ok(Some(second))
    }
}
