//! What came of the kernels: lines as they come, and the table at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use vm_tests::vm::console::{Ending, Verdict};

use crate::progress::seconds;

/// One kernel.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) name: String,
    pub(super) release: String,
    pub(super) ending: Ending,
    pub(super) took: Duration,
    pub(super) cells: Vec<Cell>,
    pub(super) warnings: Vec<String>,
    /// What the emulator did to it.
    pub(super) emulator: Option<&'static str>,
    pub(super) logs: Option<[PathBuf; 2]>,
}

/// One group of tests on it.
#[derive(Debug, Default)]
pub(super) struct Cell {
    pub(super) group: String,
    pub(super) passed: usize,
    /// How many for each reason.
    pub(super) skipped: BTreeMap<String, usize>,
    /// Name and reason.
    pub(super) failed: Vec<(String, String)>,
    /// The same of those that passed at their second attempt; they count as passed.
    pub(super) late: Vec<(String, String)>,
    pub(super) not_run: usize,
    /// Parts of tests that cannot run there, and why.
    pub(super) left_out: BTreeSet<String>,
}

impl Cell {
    pub(super) fn of(group: &str) -> Self {
        Self { group: group.to_owned(), ..Self::default() }
    }

    pub(super) fn add(&mut self, test: &str, verdict: Verdict) {
        match verdict {
            Verdict::Passed => self.passed += 1,
            Verdict::Skipped(why) => *self.skipped.entry(why).or_default() += 1,
            Verdict::Failed(why) => self.failed.push((test.to_owned(), why)),
            Verdict::NotRun => self.not_run += 1,
        }
    }

    /// A test failed, and passed when it was run again.
    pub(super) fn add_late(&mut self, test: &str, why: String) {
        self.passed += 1;
        self.late.push((test.to_owned(), why));
    }

    fn is_good(&self) -> bool {
        self.failed.is_empty() && self.not_run == 0
    }

    /// As the table has it.
    fn told(&self) -> String {
        let skipped: usize = self.skipped.values().sum();
        let needs = || self.skipped.keys().map(String::as_str).collect::<Vec<_>>().join("; ");
        let mut parts = Vec::new();
        if !self.failed.is_empty() {
            parts.push(format!("**{} FAILED**", self.failed.len()));
        }
        if self.passed > 0 {
            parts.push(format!("{} passed", self.passed));
        }
        if !self.late.is_empty() {
            parts.push(format!("{} of them at the second attempt", self.late.len()));
        }
        match skipped {
            0 => {}
            _ if parts.is_empty() => parts.push(format!("skipped: {}", needs())),
            _ => parts.push(format!("{skipped} skipped")),
        }
        if self.not_run > 0 {
            parts.push(format!("{} not run", self.not_run));
        }
        parts.join(", ")
    }
}

impl Report {
    pub(super) fn is_good(&self) -> bool {
        self.ending == Ending::Done && self.cells.iter().all(Cell::is_good)
    }

    /// How the machine ended, if not as it should.
    pub(super) fn trouble(&self) -> Option<String> {
        match &self.ending {
            Ending::Done => None,
            Ending::Panic(line) => Some(format!("kernel panic: {line}")),
            Ending::Hang(why) => Some(format!("hang: {why}")),
            Ending::Trouble(why) => Some(format!("the guest could not go on: {why}")),
            Ending::Died(why) => Some(format!("the machine ended without a verdict; {why}")),
        }
    }

    /// The line under a kernel's progress.
    pub(super) fn line(&self) -> String {
        let sum = |count: fn(&Cell) -> usize| self.cells.iter().map(count).sum::<usize>();
        let (passed, failed) = (sum(|cell| cell.passed), sum(|cell| cell.failed.len()));
        let (skipped, not_run) = (sum(|cell| cell.skipped.values().sum()), sum(|cell| cell.not_run));
        let not_run = if not_run > 0 { format!(", {not_run} not run") } else { String::new() };
        let trouble = self.trouble().map(|trouble| format!("; {trouble}")).unwrap_or_default();
        format!("{passed} passed, {skipped} skipped, {failed} failed{not_run}{trouble} [{}]", seconds(self.took))
    }

    fn row(&self) -> Vec<String> {
        let mut row = vec![self.release.clone()];
        row.extend(self.cells.iter().map(Cell::told));
        row.push(seconds(self.took));
        row
    }

    pub(super) fn json(&self) -> Value {
        let cells: serde_json::Map<_, _> = self.cells.iter().map(|cell| (cell.group.clone(), cell_json(cell))).collect();
        json!({
            "kernel": self.name, "release": self.release, "passed": self.is_good(), "trouble": self.trouble(),
            "seconds": self.took.as_secs_f64(), "groups": cells, "warnings": self.warnings, "emulator": self.emulator, "logs": self.logs,
        })
    }
}

fn cell_json(cell: &Cell) -> Value {
    let failed: serde_json::Map<_, _> = cell.failed.iter().map(|(test, why)| (test.clone(), json!(why))).collect();
    json!({ "passed": cell.passed, "skipped": cell.skipped, "failed": failed, "late": cell.late, "not_run": cell.not_run, "left_out": cell.left_out })
}

/// The table, and below it all that it has no room for.
pub(super) fn table(reports: &[Report]) -> String {
    let Some(first) = reports.first() else {
        return String::new();
    };
    let mut head = vec!["kernel".to_owned()];
    head.extend(first.cells.iter().map(|cell| cell.group.clone()));
    head.push("time".to_owned());
    let columns = head.len();
    let mut rows = vec![head, vec!["---".to_owned(); columns]];
    rows.extend(reports.iter().map(Report::row));
    let mut text: String = rows.iter().map(|row| format!("| {} |\n", row.join(" | "))).collect();
    reports.iter().for_each(|report| notes(report, &mut text));
    text
}

/// The table as the README has it: what is below it is shown as it was printed.
pub(super) fn readme(table: &str) -> String {
    let (rows, notes): (Vec<_>, Vec<_>) = table.lines().filter(|line| !line.is_empty()).partition(|line| line.starts_with('|'));
    let lines = |lines: Vec<&str>| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let notes = if notes.is_empty() { String::new() } else { format!("\n```\n{}```\n", lines(notes)) };
    format!("{}{notes}", lines(rows))
}

fn notes(report: &Report, text: &mut String) {
    let mut note = |line: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}: {line}", report.name);
    };
    report.trouble().into_iter().for_each(&mut note);
    for cell in &report.cells {
        cell.failed.iter().for_each(|(test, why)| note(format!("FAILED {test}: {why}")));
        cell.late.iter().for_each(|(test, why)| note(format!("passed at the second attempt: {test}, which first failed: {why}")));
        cell.left_out.iter().for_each(|what| note(format!("left out of {}: {what}", cell.group)));
        let partly = cell.passed + cell.failed.len() > 0;
        cell.skipped.iter().filter(|_| partly).for_each(|(why, count)| note(format!("{count} of {} skipped: {why}", cell.group)));
    }
    report.warnings.iter().for_each(|warning| note(format!("the kernel warned: {warning}")));
    report.emulator.into_iter().for_each(|what| note(what.to_owned()));
    if let Some([guest, kernel]) = &report.logs {
        note(format!("logs: {} {}", guest.display(), kernel.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(cells: Vec<Cell>, ending: Ending) -> Report {
        let (name, release) = ("6.1".to_owned(), "6.1.0-50".to_owned());
        Report { name, release, ending, took: Duration::from_secs(9), cells, warnings: Vec::new(), emulator: None, logs: None }
    }

    #[test]
    fn nothing_is_skipped_without_a_reason_in_the_table_or_below_it() {
        let (mut some, mut all) = (Cell::of("ebpf"), Cell::of("tcx"));
        let skipped = || Verdict::Skipped("needs Linux 6.6 (TCX)".to_owned());
        some.add("a", Verdict::Passed);
        some.add("b", skipped());
        all.add("c", skipped());
        let text = table(&[report(vec![some, all], Ending::Done)]);
        assert!(text.contains("| 6.1.0-50 | 1 passed, 1 skipped | skipped: needs Linux 6.6 (TCX) | 9.0 s |\n"), "{text}");
        assert!(text.ends_with("6.1: 1 of ebpf skipped: needs Linux 6.6 (TCX)\n"), "{text}");
    }

    #[test]
    fn a_second_attempt_is_told_in_the_table_and_below_it() {
        let mut cell = Cell::of("odp");
        cell.add("a", Verdict::Passed);
        cell.add_late("b", "late".to_owned());
        let report = report(vec![cell], Ending::Done);
        let text = table(&[report]);
        assert!(text.contains("| 6.1.0-50 | 2 passed, 1 of them at the second attempt | 9.0 s |"), "{text}");
        assert!(text.ends_with("6.1: passed at the second attempt: b, which first failed: late\n"), "{text}");
    }

    #[test]
    fn what_is_below_the_table_stays_as_it_was_printed() {
        assert_eq!(readme("| x |\n| - |\n5.10: left out\n"), "| x |\n| - |\n\n```\n5.10: left out\n```\n");
        assert_eq!(readme("| y |\n"), "| y |\n");
    }

    #[test]
    fn a_kernel_is_good_only_if_everything_was_run_and_it_came_to_its_end() {
        let mut cell = Cell::of("ebpf");
        cell.add("a", Verdict::Passed);
        assert!(report(vec![cell], Ending::Done).is_good());
        let mut cell = Cell::of("ebpf");
        cell.add("a", Verdict::NotRun);
        assert!(!report(vec![cell], Ending::Done).is_good());
        let panic = report(Vec::new(), Ending::Panic("BUG: x".to_owned()));
        assert!(!panic.is_good() && panic.line().contains("kernel panic: BUG: x"), "{}", panic.line());
    }
}
