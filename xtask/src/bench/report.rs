//! Medians, spreads, ratios.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Scenario;
use super::contender::Contender;

/// All runs so far.
#[derive(Default)]
pub(crate) struct Report {
    runs: BTreeMap<(Scenario, Contender), Vec<f64>>,
    /// What is measured without contenders.
    rows: Vec<Value>,
}

impl Report {
    pub(crate) fn add(&mut self, scenario: Scenario, contender: Contender, value: f64) {
        self.runs.entry((scenario, contender)).or_default().push(value);
    }

    pub(crate) fn add_rows(&mut self, rows: Vec<Value>) {
        self.rows.extend(rows);
    }

    /// A Markdown table: medians, in brackets the ratio to host to host and the spread of the runs.
    pub(crate) fn table(&self) -> String {
        let mut text = String::from("| |");
        for contender in Contender::ALL {
            let _ = write!(text, " {} |", contender.title());
        }
        text += "\n|---|---|---|---|\n";
        for scenario in Scenario::ALL {
            if self.runs.contains_key(&(scenario, Contender::Host)) {
                text += &self.row(scenario);
            }
        }
        text + "\nMedians; in brackets the ratio to host to host, then the spread between the runs.\n"
    }

    /// Writes everything as JSON.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let rows: Vec<_> = self
            .runs
            .iter()
            .map(|((scenario, contender), runs)| {
                json!({ "scenario": scenario.title(), "contender": contender.title(), "median": median(runs), "runs": runs })
            })
            .chain(self.rows.iter().cloned())
            .collect();
        std::fs::write(file, serde_json::to_string_pretty(&rows)?).with_context(|| format!("cannot write {}", file.display()))
    }

    fn row(&self, scenario: Scenario) -> String {
        let host = self.runs.get(&(scenario, Contender::Host)).map_or(f64::NAN, |runs| median(runs));
        let mut text = format!("| {} |", scenario.title());
        for contender in Contender::ALL {
            let runs = self.runs.get(&(scenario, contender)).map_or(&[][..], Vec::as_slice);
            let middle = median(runs);
            let _ = write!(text, " {middle:.1} ({:.2}; ±{:.0} %) |", middle / host, spread(runs, middle));
        }
        text + "\n"
    }
}

pub(crate) fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Half the distance between the best and the worst run, in percent of the median.
fn spread(runs: &[f64], middle: f64) -> f64 {
    let (low, high) = runs.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &run| (low.min(run), high.max(run)));
    (high - low) / 2.0 / middle * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn a_row_shows_the_ratio_to_host_to_host() {
        let mut report = Report::default();
        report.add(Scenario::Bulk, Contender::Host, 40.0);
        report.add(Scenario::Bulk, Contender::Ours, 30.0);
        assert!(report.table().contains("30.0 (0.75;"), "{}", report.table());
    }
}
