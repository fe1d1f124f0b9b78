//! Figures that tests print and `cargo xtask bench`, which runs those tests, reads.

/// Stands before a figure; libtest may have begun the line.
const MARK: &str = "figure: ";

/// What a test measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What it is of.
    pub label: String,
    /// Of the value.
    pub unit: String,
    /// The median, if it was measured more than once.
    pub value: f64,
}

/// Prints a figure.
pub fn say(label: &str, value: f64, unit: &str) {
    println!("{}", line(label, value, unit));
}

/// The figures in what a test printed, in their order.
pub fn heard(text: &str) -> Vec<Figure> {
    text.lines().filter_map(parse).collect()
}

fn line(label: &str, value: f64, unit: &str) -> String {
    format!("{MARK}{label} = {value} {unit}")
}

fn parse(line: &str) -> Option<Figure> {
    let (_, figure) = line.split_once(MARK)?;
    let (label, figure) = figure.rsplit_once(" = ")?;
    let (value, unit) = figure.split_once(' ')?;
    Some(Figure { label: label.to_owned(), unit: unit.to_owned(), value: value.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let text =
            format!("test a ... {}\nnothing\n{}\nok", line("from_port, a = b", 38.5, "ns"), line("b", 3.0, "instructions processed"));
        let figure = |label: &str, value, unit: &str| Figure { label: label.to_owned(), unit: unit.to_owned(), value };
        assert_eq!(heard(&text), [figure("from_port, a = b", 38.5, "ns"), figure("b", 3.0, "instructions processed")]);
    }
}
