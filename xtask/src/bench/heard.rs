//! Figures that tests print.

use anyhow::{Result, ensure};
use vm_tests::{figure, process};

use super::Bench;
use super::table::Row;

/// Runs the tests of the BPF programs with this in their names, built as the layers of `cargo xtask test` build them. What they print.
pub(crate) fn tests_of_programs(bench: &Bench<'_>, part: &str, env: &[(&str, &str)]) -> Result<String> {
    let mut cargo = bench.workspace.cargo("test");
    cargo.args(["--release", "--package", "weave-agent", "--test", "programs", "--", part, "--nocapture", "--test-threads=1"]);
    process::output(cargo.envs(env.iter().copied()))
}

/// Runs a test that prints figures so many times: a row of one column for each figure.
pub(crate) fn heard(rounds: usize, mut test: impl FnMut() -> Result<String>) -> Result<Vec<Row>> {
    let mut figures: Vec<(String, String, Vec<f64>)> = Vec::new();
    for _ in 0..rounds {
        for heard in figure::heard(&test()?) {
            match figures.iter_mut().find(|(label, unit, _)| *label == heard.label && *unit == heard.unit) {
                Some((_, _, runs)) => runs.push(heard.value),
                None => figures.push((heard.label, heard.unit, vec![heard.value])),
            }
        }
    }
    ensure!(!figures.is_empty(), "the test printed no figure");
    Ok(figures.into_iter().map(|(label, unit, runs)| Row::new(label, unit, vec![runs])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_figure_is_a_row_and_each_round_a_run() {
        let mut round = 0;
        let test = || {
            round += 1;
            Ok(format!("test x ... figure: a = {round} ns\nfigure: b = 7 bytes\nok"))
        };
        let rows = heard(2, test).unwrap();
        assert_eq!(rows.iter().map(Row::title).collect::<Vec<_>>(), ["a, ns", "b, bytes"]);
        assert_eq!([rows[0].runs(0), rows[1].runs(0)], [[1.0, 2.0], [7.0, 7.0]]);
        assert!(heard(1, || Ok("ok".to_owned())).is_err());
    }
}
