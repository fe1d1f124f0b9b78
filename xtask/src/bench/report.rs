//! Everything that was measured, as Markdown and as JSON.

use std::fmt::Write;
use std::fs;

use serde_json::{Value, json};

use super::table::{Row, Table, shown};

/// Host to host spreads further than this only if something else runs on the machine.
const QUIET: f64 = 5.0;

/// The tables as Markdown; those with the same contenders are one.
pub(crate) fn markdown(tables: &[Table]) -> String {
    let groups = tables.chunk_by(|a, b| a.columns == b.columns && a.references == b.references);
    groups.map(group).collect::<Vec<_>>().join("\n")
}

fn group(tables: &[Table]) -> String {
    let Some(first) = tables.first() else { return String::new() };
    let mut text = format!("| | {} |\n|---|{}\n", first.columns.join(" | "), "---|".repeat(first.columns.len()));
    for (table, row) in tables.iter().flat_map(|table| table.rows.iter().map(move |row| (table, row))) {
        let cells: Vec<_> = (0..table.columns.len()).map(|column| cell(table, row, column)).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {} | {} |", row.title(), cells.join(" | "));
    }
    for note in legend(first).iter().chain(tables.iter().flat_map(|table| &table.notes)) {
        let _ = writeln!(text, "\n{note}");
    }
    text
}

/// The median; in brackets what it is of others, and how far the runs are apart.
fn cell(table: &Table, row: &Row, column: usize) -> String {
    let median = shown(row.median(column));
    let ratios: Vec<_> = table.ratios(row, column).into_iter().map(|ratio| format!("{ratio:.2}")).collect();
    let spread = row.spread(column).map(|spread| format!("±{spread:.0} %"));
    let beside: Vec<_> = (!ratios.is_empty()).then(|| ratios.join(" / ")).into_iter().chain(spread).collect();
    if beside.is_empty() { median } else { format!("{median} ({})", beside.join("; ")) }
}

fn legend(table: &Table) -> Option<String> {
    let names: Vec<_> = table.references.iter().map(|column| table.columns[*column].as_str()).collect();
    (!names.is_empty()).then(|| format!("Medians; in brackets the ratio to {}, then the spread between the runs.", names.join(" / to ")))
}

/// What a reader should know before believing the figures: promises missed, and a machine that was not quiet.
pub(crate) fn remarks(tables: &[Table]) -> Vec<String> {
    let missed = tables.iter().flat_map(Table::missed).map(|missed| format!("missed: {missed}"));
    let first = |table: &Table| table.references.first().copied();
    let restless = tables.iter().flat_map(|table| table.rows.iter().filter_map(move |row| Some((row, first(table)?, table))));
    let restless = restless.filter_map(|(row, column, table)| {
        let spread = row.spread(column).filter(|spread| *spread > QUIET)?;
        Some(format!("not quiet: {} of {} spreads by ±{spread:.0} %", row.title(), table.columns[column]))
    });
    missed.chain(restless).collect()
}

/// Everything, every run included.
pub(crate) fn json(tables: &[Table], options: Value) -> Value {
    json!({ "machine": machine(), "options": options, "scenarios": tables.iter().map(Table::json).collect::<Vec<_>>() })
}

/// What the figures are of, as far as the machine says.
fn machine() -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, model)| model);
    let (kernel, cpus) = kernel_and_cpus();
    json!({ "kernel": kernel, "cpu": model, "cpus": cpus })
}

/// The release that runs, and how many CPUs it has.
pub(crate) fn kernel_and_cpus() -> (String, usize) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    (release.trim().to_owned(), std::thread::available_parallelism().map_or(1, usize::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[&str], references: &[usize], figures: &[&[f64]]) -> Table {
        let row = Row::new("TCP", "Gbit/s", figures.iter().map(|runs| runs.to_vec()).collect());
        let columns = columns.iter().map(ToString::to_string).collect();
        Table { scenario: "x", columns, references: references.to_vec(), rows: vec![row], notes: Vec::new() }
    }

    fn three(host: &[f64]) -> Table {
        table(&["host", "bridge", "ours"], &[0, 1], &[host, &[20.0, 20.0], &[30.0, 30.0]])
    }

    #[test]
    fn a_row_shows_the_ratios_to_both() {
        let text = markdown(&[three(&[40.0, 40.0])]);
        assert!(text.contains("| TCP, Gbit/s | 40 (±0 %) | 20 (0.50; ±0 %) | 30 (0.75 / 1.50; ±0 %) |\n"), "{text}");
        assert!(text.contains("the ratio to host / to bridge, then"), "{text}");
    }

    #[test]
    fn scenarios_with_the_same_contenders_share_a_table() {
        let text = markdown(&[three(&[40.0]), three(&[30.0]), table(&["ours"], &[], &[&[1.0]])]);
        assert_eq!(text.lines().filter(|line| line.starts_with("|---")).count(), 2, "{text}");
        assert!(text.contains("| | ours |\n|---|---|\n| TCP, Gbit/s | 1 |\n"), "{text}");
    }

    #[test]
    fn a_machine_that_was_not_quiet_is_named() {
        assert_eq!(remarks(&[three(&[40.0, 40.0])]), [""; 0]);
        assert_eq!(remarks(&[three(&[30.0, 50.0])]), ["not quiet: TCP, Gbit/s of host spreads by ±25 %"]);
    }

    #[test]
    fn the_json_has_every_run_and_both_ratios() {
        let json = json(&[three(&[40.0, 40.0])], Value::Null);
        let ours = json.pointer("/scenarios/0/rows/0/contenders/2").unwrap();
        assert_eq!(ours.pointer("/ratio_to/host"), Some(&serde_json::json!(0.75)));
        assert_eq!(ours.pointer("/ratio_to/bridge"), Some(&serde_json::json!(1.5)));
        assert_eq!(ours.pointer("/runs"), Some(&serde_json::json!([30.0, 30.0])));
    }
}
