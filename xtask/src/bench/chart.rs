//! A bar chart of the comparisons, as SVG: each contender beside the first one.

use std::fmt::Write;

use super::table::{Row, Table, shown};

const WIDTH: usize = 900;
/// What the labels at the left take.
const LEFT: usize = 300;
/// What the figure behind the longest bar takes.
const RIGHT: usize = 130;
const BAR: usize = 16;
const GAP: usize = 14;
const TOP: usize = 20;
/// One for each contender, told apart by people who do not see red and green as well.
const COLOURS: [&str; 5] = ["#999999", "#e69f00", "#0072b2", "#56b4e9", "#009e73"];

/// Every row that has something to be compared with; longer bars are larger figures, not always better ones.
pub(crate) fn svg(tables: &[Table]) -> String {
    let (mut body, mut y) = (String::new(), TOP);
    for table in tables.iter().filter(|table| !table.references.is_empty()) {
        for row in &table.rows {
            body += &bars(table, row, &mut y);
        }
    }
    let head = format!(r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}""#);
    format!("{head} font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n")
}

/// One row: a label, and a bar for each contender. `y` is moved below it.
fn bars(table: &Table, row: &Row, y: &mut usize) -> String {
    let medians: Vec<_> = (0..table.columns.len()).map(|column| row.median(column)).collect();
    let longest = medians.iter().copied().filter(|median| median.is_finite()).fold(0.0, f64::max);
    let mut text = format!("<text x=\"8\" y=\"{}\" font-weight=\"bold\">{}</text>\n", *y + BAR - 4, escaped(&row.title()));
    *y += BAR + 2;
    for (column, (name, median)) in table.columns.iter().zip(medians).enumerate() {
        let room = (WIDTH - LEFT - RIGHT) as f64;
        let length = if longest > 0.0 && median.is_finite() { (median.max(0.0) / longest * room).round() } else { 0.0 };
        let (line, colour) = (*y + BAR - 4, COLOURS[column % COLOURS.len()]);
        let ratio = table.ratios(row, column).first().map(|ratio| format!(" ({ratio:.2})")).unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "<text x=\"{}\" y=\"{line}\" text-anchor=\"end\">{}</text>", LEFT - 8, escaped(name));
        let _ = writeln!(text, "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{length}\" height=\"{}\" fill=\"{colour}\"/>", BAR - 3);
        let _ = writeln!(text, "<text x=\"{}\" y=\"{line}\">{}{ratio}</text>", LEFT as f64 + length + 6.0, shown(median));
        *y += BAR;
    }
    *y += GAP;
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(references: Vec<usize>) -> Table {
        let row = Row::new("64 B < 65 B", "kpps", vec![vec![40.0], vec![30.0]]);
        Table { scenario: "x", columns: vec!["a & b".into(), "ours".into()], references, rows: vec![row], notes: Vec::new() }
    }

    #[test]
    fn a_bar_is_as_long_as_its_figure() {
        let text = svg(&[table(vec![0])]);
        assert!(text.contains("width=\"470\" height=\"13\" fill=\"#999999\""), "{text}");
        assert!(text.contains("width=\"353\" height=\"13\" fill=\"#e69f00\""), "{text}");
        assert!(text.contains(">30 (0.75)</text>"), "{text}");
    }

    #[test]
    fn it_is_well_formed() {
        let text = svg(&[table(vec![0])]);
        assert!(text.contains("64 B &lt; 65 B, kpps") && text.contains("a &amp; b"), "{text}");
        assert_eq!(text.matches("<text").count(), text.matches("</text>").count());
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
    }

    #[test]
    fn what_is_compared_with_nothing_is_not_drawn() {
        assert!(!svg(&[table(Vec::new())]).contains("kpps"));
    }
}
