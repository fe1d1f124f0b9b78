//! One of this program's own commands in a machine, in the place of tests.

use std::collections::BTreeSet;
use std::env;

use anyhow::{Context, Result, ensure};
use vm_tests::vm::console::{Ending, Verdict};
use vm_tests::vm::matrix::Matrix;
use vm_tests::vm::orders::{Said, Task, Work};

use super::image::{self, Contents};
use super::{Bench, WHOLE, alone, install, kernels, tests};
use crate::progress::step;
use crate::workspace::Workspace;

/// What to run, and what it needs besides what tests need.
#[derive(Debug)]
pub(crate) struct Program {
    /// The command of this program.
    pub(crate) words: Vec<String>,
    pub(crate) programs: &'static [&'static str],
    pub(crate) modules: &'static [&'static str],
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Done {
    /// Of the kernel.
    pub(crate) release: String,
    pub(crate) accelerator: &'static str,
    /// What it wrote.
    pub(crate) lines: Vec<String>,
}

impl Program {
    /// Boots this kernel of the matrix, with the agent that is built, and runs the program there and nothing else.
    pub(crate) fn run(&self, workspace: &Workspace, kernel: &str) -> Result<Done> {
        let _alone = alone(&workspace.own("vm"))?;
        let mut matrix = Matrix::read()?;
        matrix.programs.extend(self.programs.iter().map(ToString::to_string));
        matrix.modules.extend(self.modules.iter().map(ToString::to_string));
        install(&matrix)?;
        let kernel = matrix.kernels(&[kernel.to_owned()])?.into_iter().next().context("no such kernel")?.clone();
        let unpacked = step(&format!("kernel {}", kernel.name), || kernels::find(workspace, &kernel, false))?;
        let bench = self.prepare(workspace, matrix)?;
        let accelerator = bench.accelerator(&unpacked)?;
        let program = image::in_guest(&env::current_exe()?).display().to_string();
        let task = Task { work: Work::Run { program, arguments: self.words.clone() }, limit: WHOLE.as_secs(), alone: true };
        let (heard, logs) = bench.boot(&format!("{}-program", kernel.name), &unpacked, accelerator, vec![task], |_, said| {
            if let Said::Wrote { line, .. } = said {
                eprintln!("    {}: {line}", kernel.name);
            }
        })?;
        let verdict = heard.transcript.verdict(0);
        ensure!(heard.ending == Ending::Done && verdict == Verdict::Passed, "{:?}, {verdict:?}: {}", heard.ending, logs.guest.display());
        logs.remove();
        Ok(Done { release: unpacked.release, accelerator: accelerator.name(), lines: heard.transcript.lines(0).to_vec() })
    }

    fn prepare<'a>(&self, workspace: &'a Workspace, matrix: Matrix) -> Result<Bench<'a>> {
        let dir = workspace.own("vm");
        let base = dir.join("program.cpio");
        let contents = Contents {
            init: &tests::guest(workspace)?,
            tests: BTreeSet::from([env::current_exe()?, workspace.agent()]),
            examples: Vec::new(),
            programs: &matrix.programs,
            files: &matrix.files,
        };
        image::write_base(&base, &contents)?;
        Ok(Bench { workspace, matrix, tests: Vec::new(), base, dir, keep_logs: false })
    }
}
