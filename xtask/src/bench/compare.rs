//! The same traffic over each contender in turn: what else happens on the machine happens to all of them.

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::bed::Bed;
use super::conditions;
use super::scenario::Comparison;
use super::table::{Figure, Row, Table, shown};

/// Measures a scenario on the test bed.
pub(crate) fn run(bench: &Bench<'_>, bed: &Bed, scenario: &'static str, comparison: &Comparison) -> Result<Table> {
    conditions::prepare(bed, comparison.conditions)?;
    let contenders = bed.contenders(comparison.course);
    let columns: Vec<_> = contenders.iter().map(|contender| bed.title(comparison.course, *contender).to_owned()).collect();
    let mut rows = Vec::new();
    for traffic in comparison.traffic {
        rows.extend(interleaved(bench.rounds, traffic.figures, &columns, |column| {
            (traffic.measure)(&bed.path(comparison.course, contenders[column])?, bench.seconds)
        })?);
    }
    // Everybody but ourselves is somebody to be compared with.
    Ok(Table { scenario, references: (0..columns.len() - 1).collect(), columns, rows, notes: Vec::new() })
}

/// Each round measures every column once: a row for each figure.
pub(crate) fn interleaved(
    rounds: usize,
    figures: &[Figure],
    columns: &[String],
    mut measure: impl FnMut(usize) -> Result<Vec<f64>>,
) -> Result<Vec<Row>> {
    let mut runs = vec![vec![Vec::new(); columns.len()]; figures.len()];
    for round in 1..=rounds {
        for (column, title) in columns.iter().enumerate() {
            let values = measure(column).with_context(|| format!("over {title}"))?;
            ensure!(values.len() == figures.len(), "{} figures where {} were named", values.len(), figures.len());
            let said = figures.iter().zip(&values).map(|(figure, value)| format!("{} {} {}", figure.label, shown(*value), figure.unit));
            eprintln!("round {round}: {title}: {}", said.collect::<Vec<_>>().join("; "));
            runs.iter_mut().zip(values).for_each(|(runs, value)| runs[column].push(value));
        }
    }
    Ok(figures.iter().zip(runs).map(|(figure, runs)| Row::of(figure, runs)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_interleaved() {
        let (mut order, figures, columns) = (Vec::new(), [Figure::new("a", ""), Figure::new("b", "")], ["x".to_owned(), "y".to_owned()]);
        let rows = interleaved(2, &figures, &columns, |column| {
            order.push(column);
            Ok(vec![order.len() as f64, column as f64])
        })
        .unwrap();
        assert_eq!(order, [0, 1, 0, 1]);
        assert_eq!([rows[0].runs(0), rows[0].runs(1), rows[1].runs(0), rows[1].runs(1)], [[1.0, 3.0], [2.0, 4.0], [0.0, 0.0], [1.0, 1.0]]);
    }

    #[test]
    fn figures_without_a_name_are_refused() {
        assert!(interleaved(1, &[Figure::new("a", "")], &["x".to_owned()], |_| Ok(vec![1.0, 2.0])).is_err());
    }
}
