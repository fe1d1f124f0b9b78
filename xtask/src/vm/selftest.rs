//! Things broken on purpose: each must be reported as what it is, or a matrix that is all green says nothing.

use anyhow::Result;
use vm_tests::vm::console::{Ending, Verdict};
use vm_tests::vm::matrix::Kernel;
use vm_tests::vm::orders::{Task, Work};

use super::Bench;
use super::kernels;
use super::machine::Heard;
use crate::progress::step;

/// What is broken, how, and whether it was seen.
type Case = (&'static str, Vec<Task>, fn(&Heard) -> bool);

/// Boots the kernel once for each thing that can go wrong.
pub(super) fn run(bench: &Bench<'_>, kernels: &[Kernel], anew: bool) -> Result<bool> {
    let mut good = true;
    for kernel in kernels {
        println!();
        let unpacked = step(&format!("kernel {}", kernel.name), || kernels::find(bench.workspace, kernel, anew))?;
        let accelerator = bench.accelerator(&unpacked)?;
        let invalid = bench.tests.iter().map(|test| bench.task(test)).collect();
        let broken = |work| vec![Task { work, limit: 5, alone: true }];
        let cases: [Case; 3] = [
            ("a program that the verifier refuses", invalid, is_refused),
            ("a kernel that panics", broken(Work::Panic), |heard| matches!(&heard.ending, Ending::Panic(_))),
            ("a guest that hangs", broken(Work::Hang), |heard| matches!(&heard.ending, Ending::Hang(_))),
        ];
        for (what, tasks, expected) in cases {
            good &= step(what, || {
                let name = format!("{}-self-test", kernel.name);
                let (heard, logs) = bench.boot(&name, &unpacked, accelerator, tasks, |tasks, said| bench.progress(&name, tasks, said))?;
                let seen = expected(&heard);
                let told = format!("{}: {:?}, {:?}", if seen { "seen" } else { "NOT SEEN" }, heard.ending, heard.transcript.verdict(0));
                if seen {
                    logs.remove();
                }
                Ok((seen, told))
            })?;
        }
    }
    Ok(good)
}

/// The test failed, and says with the verifier's words why.
fn is_refused(heard: &Heard) -> bool {
    let why = matches!(heard.transcript.verdict(0), Verdict::Failed(_));
    why && heard.ending == Ending::Done && heard.transcript.lines(0).iter().any(|line| line.contains("!read_ok"))
}
