//! What a scenario gave: rows of figures, a column for each contender.

use std::ops::Range;

use serde_json::{Value, json};

/// A figure that a scenario measures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    /// What it is of, without its unit.
    pub(crate) label: &'static str,
    pub(crate) unit: &'static str,
    /// What is shown of it is half of what it is more than the first contender's: a round trip goes both ways.
    pub(crate) added_one_way: bool,
    pub(crate) gate: Option<Gate>,
}

/// What the project promises of its own column, the last one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gate {
    /// At least these ratios to the columns that the table refers to, in their order.
    Ratios(&'static [f64]),
    /// At most this ratio to the first of them.
    RatioAtMost(f64),
    AtMost(f64),
    AtLeast(f64),
}

/// One figure of all contenders.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    label: String,
    unit: String,
    gate: Option<Gate>,
    /// Every run, by column.
    runs: Vec<Vec<f64>>,
}

/// What a scenario gave.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) scenario: &'static str,
    pub(crate) columns: Vec<String>,
    /// The columns that others are compared with.
    pub(crate) references: Vec<usize>,
    pub(crate) rows: Vec<Row>,
    /// What has to be known to read it: whole sentences.
    pub(crate) notes: Vec<String>,
}

impl Figure {
    pub(crate) const fn new(label: &'static str, unit: &'static str) -> Self {
        Self { label, unit, added_one_way: false, gate: None }
    }

    pub(crate) const fn gate(self, gate: Gate) -> Self {
        Self { gate: Some(gate), ..self }
    }

    pub(crate) const fn added_one_way(self) -> Self {
        Self { added_one_way: true, ..self }
    }
}

impl Row {
    pub(crate) fn new(label: impl Into<String>, unit: impl Into<String>, runs: Vec<Vec<f64>>) -> Self {
        Self { label: label.into(), unit: unit.into(), gate: None, runs }
    }

    /// Runs of all contenders, round by round in the same order.
    pub(crate) fn of(figure: &Figure, mut runs: Vec<Vec<f64>>) -> Self {
        if let Some(first) = runs.first().filter(|_| figure.added_one_way).cloned() {
            for run in &mut runs {
                run.iter_mut().zip(&first).for_each(|(value, first)| *value = (*value - first) / 2.0);
            }
        }
        Self { gate: figure.gate, ..Self::new(figure.label, figure.unit, runs) }
    }

    pub(crate) fn gate(self, gate: Gate) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// As a table and a chart call it.
    pub(crate) fn title(&self) -> String {
        if self.unit.is_empty() { self.label.clone() } else { format!("{}, {}", self.label, self.unit) }
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn unit(&self) -> &str {
        &self.unit
    }

    pub(crate) fn runs(&self, column: usize) -> &[f64] {
        self.runs.get(column).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn median(&self, column: usize) -> f64 {
        median(self.runs(column))
    }

    /// The ratio to another column; none to nothing.
    pub(crate) fn ratio(&self, column: usize, to: usize) -> Option<f64> {
        let base = self.median(to);
        (base != 0.0 && column != to).then(|| self.median(column) / base).filter(|ratio| ratio.is_finite())
    }

    /// Half the distance between the best and the worst run, in percent of the median.
    pub(crate) fn spread(&self, column: usize) -> Option<f64> {
        let runs = self.runs(column);
        let (low, high) = runs.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &run| (low.min(run), high.max(run)));
        let spread = (high - low) / 2.0 / self.median(column).abs() * 100.0;
        (runs.len() > 1 && spread.is_finite()).then_some(spread)
    }
}

impl Table {
    /// The project's own columns: the last one, or all where nobody is there to be compared with.
    fn own(&self) -> Range<usize> {
        let count = self.columns.len();
        if self.references.is_empty() { 0..count } else { count.saturating_sub(1)..count }
    }

    /// The ratios that stand beside a column's figure: all of them, or nobody would know which is missing.
    pub(crate) fn ratios(&self, row: &Row, column: usize) -> Vec<f64> {
        let ratios = self.references.iter().filter(|to| **to < column).map(|to| row.ratio(column, *to));
        ratios.collect::<Option<_>>().unwrap_or_default()
    }

    /// Promises that these medians do not keep.
    pub(crate) fn missed(&self) -> Vec<String> {
        let gates = self.rows.iter().filter_map(|row| Some((row, row.gate?)));
        let cells = gates.flat_map(|(row, gate)| self.own().map(move |column| (row, gate, column)));
        cells.filter_map(|(row, gate, column)| Some(format!("{}: {}", row.title(), self.miss(row, gate, column)?))).collect()
    }

    fn miss(&self, row: &Row, gate: Gate, column: usize) -> Option<String> {
        let (median, name) = (row.median(column), &self.columns[column]);
        match gate {
            Gate::AtMost(most) => (median > most).then(|| format!("{} of {name}, promised are at most {most}", shown(median))),
            Gate::AtLeast(least) => (median < least).then(|| format!("{} of {name}, promised are at least {least}", shown(median))),
            Gate::RatioAtMost(most) => {
                let to = *self.references.first()?;
                let ratio = row.ratio(column, to).filter(|ratio| *ratio > most)?;
                Some(format!("{ratio:.2} of {}, promised is at most {most}", self.columns[to]))
            }
            Gate::Ratios(least) => {
                let all = self.references.iter().zip(least).filter_map(|(to, least)| Some((to, row.ratio(column, *to)?, least)));
                let short = all.filter(|(_, ratio, least)| ratio < *least);
                let words: Vec<_> =
                    short.map(|(to, ratio, least)| format!("{ratio:.2} of {}, promised is {least}", self.columns[*to])).collect();
                (!words.is_empty()).then(|| words.join("; "))
            }
        }
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "scenario": self.scenario, "rows": self.rows.iter().map(|row| self.row_json(row)).collect::<Vec<_>>(), "notes": self.notes })
    }

    fn row_json(&self, row: &Row) -> Value {
        let contenders = self.columns.iter().enumerate().map(|(column, name)| {
            let ratios: serde_json::Map<_, _> =
                self.references.iter().filter_map(|to| Some((self.columns[*to].clone(), json!(row.ratio(column, *to)?)))).collect();
            json!({ "name": name, "median": row.median(column), "spread_percent": row.spread(column), "ratio_to": ratios, "runs": row.runs(column) })
        });
        json!({ "label": row.label, "unit": row.unit, "contenders": contenders.collect::<Vec<_>>() })
    }
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(runs: &[f64]) -> f64 {
    let mut sorted = runs.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The value that this share of all (0.99: 99 %) does not exceed.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1)) as f64 * share;
    sorted.get(index as usize).copied().unwrap_or(f64::NAN)
}

/// A figure with about three digits; what is whole, such as a count, stays so.
pub(crate) fn shown(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || size.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(gate: Gate, figures: [f64; 3]) -> Table {
        let row = Row::new("TCP", "Gbit/s", figures.iter().map(|figure| vec![*figure]).collect()).gate(gate);
        let columns = ["host", "bridge", "ours"].map(str::to_owned).to_vec();
        Table { scenario: "x", columns, references: vec![0, 1], rows: vec![row], notes: Vec::new() }
    }

    #[test]
    fn the_middle_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 0.5), 2.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_promise_that_is_not_kept_is_named() {
        assert_eq!(table(Gate::Ratios(&[0.97, 1.18]), [40.0, 20.0, 39.0]).missed(), [""; 0]);
        assert_eq!(table(Gate::Ratios(&[0.97, 1.18]), [40.0, 20.0, 38.0]).missed(), ["TCP, Gbit/s: 0.95 of host, promised is 0.97"]);
        assert_eq!(table(Gate::AtMost(0.8), [0.0, 0.0, 0.9]).missed(), ["TCP, Gbit/s: 0.90 of ours, promised are at most 0.8"]);
    }

    #[test]
    fn what_is_added_one_way_is_half_of_the_difference() {
        let row = Row::of(&Figure::new("p50", "µs").added_one_way(), vec![vec![10.0, 12.0], vec![12.0, 16.0]]);
        assert_eq!([row.runs(0), row.runs(1)], [[0.0, 0.0], [1.0, 2.0]]);
        assert_eq!(row.ratio(1, 0), None, "no ratio to nothing");
    }
}
