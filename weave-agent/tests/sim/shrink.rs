//! Making a failing case smaller, and running many.

use std::fmt;

use crate::case::{Case, Ending};
use crate::kernel::Break;
use crate::properties::Violation;
use crate::run::{Summary, run};

/// Most runs spent on making a case smaller.
const ATTEMPTS: usize = 300;

/// A case that failed, as small as it could be made.
pub(crate) struct Failure {
    seed: u64,
    case: Case,
    violation: Violation,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.violation)?;
        writeln!(f, "replay: SIM_SEED={} (made smaller:)", self.seed)?;
        writeln!(f, "  {:?}", self.case.setting)?;
        for (pause, step) in &self.case.steps {
            writeln!(f, "  +{pause:?} {step:?}")?;
        }
        write!(f, "  ending: {:?}", self.case.ending)
    }
}

/// Runs the case of a seed; a failing one is made smaller.
pub(crate) fn check(seed: u64, fault: Option<Break>) -> Result<Summary, Box<Failure>> {
    let case = Case::generate(seed, fault);
    run(&case).map_err(|violation| {
        let mut failure = shrink(Failure { seed, case, violation });
        // Once more, to print the way of the frame that went wrong.
        failure.case.setting.watch = failure.violation.frame();
        _ = run(&failure.case);
        Box::new(failure)
    })
}

/// Leaves out steps, longest runs of them first, as long as the same property fails.
fn shrink(mut failure: Failure) -> Failure {
    if std::env::var_os("SIM_NO_SHRINK").is_some() {
        return failure;
    }
    let mut attempts = 0;
    let plain = Case { ending: Ending::Plain, ..failure.case.clone() };
    failure = better(failure, plain);
    let mut chunk = failure.case.steps.len().div_ceil(2);
    while chunk > 0 && attempts < ATTEMPTS {
        let mut start = 0;
        while start < failure.case.steps.len() && attempts < ATTEMPTS {
            attempts += 1;
            let before = failure.case.steps.len();
            let mut smaller = failure.case.clone();
            smaller.steps.drain(start..(start + chunk).min(before));
            failure = better(failure, smaller);
            if failure.case.steps.len() == before {
                start += chunk;
            }
        }
        chunk /= 2;
    }
    failure
}

/// The smaller case if it fails in the same way.
fn better(failure: Failure, smaller: Case) -> Failure {
    match run(&smaller) {
        Err(violation) if violation.property == failure.violation.property => Failure { case: smaller, violation, ..failure },
        _ => failure,
    }
}
