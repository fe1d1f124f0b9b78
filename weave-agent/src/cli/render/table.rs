//! Columns that are as wide as they must be.

/// Rows under a head; the last column is not padded. Numbers go to the right.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(head[column].len());
    let widths: [usize; N] = std::array::from_fn(width);
    let to_the_right: [bool; N] = std::array::from_fn(|column| rows.iter().all(|row| is_number(&row[column])));
    let mut text = line(&head.map(str::to_owned), &widths, &to_the_right);
    for row in rows {
        text += &line(row, &widths, &to_the_right);
    }
    text
}

fn line(cells: &[String], widths: &[usize], to_the_right: &[bool]) -> String {
    let mut text = String::new();
    for ((cell, width), right) in cells.iter().zip(widths).zip(to_the_right) {
        let padding = " ".repeat(width - cell.chars().count());
        let padded = if *right { padding + cell } else { cell.clone() + &padding };
        text += &padded;
        text += "  ";
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn is_number(cell: &str) -> bool {
    cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit()) && cell.chars().all(|c| c.is_ascii_digit() || c == '.')
}

/// `-` for nothing.
pub(super) fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}

/// Seconds as people say them: `0.3s`, `42s`, `5m`, `3h`, `2d`.
pub(super) fn ago(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1}s"),
        s if s < 120.0 => format!("{s:.0}s"),
        s if s < 7200.0 => format!("{:.0}m", s / 60.0),
        s if s < 172_800.0 => format!("{:.0}h", s / 3600.0),
        s => format!("{:.0}d", s / 86_400.0),
    }
}

/// `name(nickname)`, as Weave Net writes peers.
pub(super) fn peer(name: &str, nickname: Option<&str>) -> String {
    nickname.map_or_else(|| name.to_owned(), |nickname| format!("{name}({nickname})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [["a", "7", "x"], ["longer", "1234", "y"]].map(|row| row.map(str::to_owned));
        insta::assert_snapshot!(table(["NAME", "N", "LAST"], &rows), @r"
        NAME       N  LAST
        a          7  x
        longer  1234  y
        ");
    }

    #[test]
    fn times_are_short() {
        let said: Vec<String> = [0.04, 42.0, 300.0, 10_000.0, 1e6].into_iter().map(ago).collect();
        assert_eq!(said, ["0.0s", "42s", "5m", "3h", "12d"]);
    }
}
