//! The terminal: progress while it works, a table for each experiment.

use std::fmt::Write as _;

use super::report::{Cell, Outcome, Report, distinct};

/// Says what is being measured.
pub fn progress(text: &str) {
    eprintln!("[bench] {text}");
}

/// A number with as many digits as it is worth.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// One table: cases down, ways across, each with median and spread.
pub fn table(report: &Report, experiment: &str) -> String {
    let cells: Vec<&Cell> = report.of(experiment).collect();
    let ways = distinct(cells.iter().map(|cell| cell.way.as_str()));
    let cases = distinct(cells.iter().map(|cell| cell.case.as_str()));
    let mut rows = vec![vec![experiment.to_owned()]];
    rows[0].extend(ways.iter().map(|way| (*way).to_owned()));
    let mut notes: Vec<String> = Vec::new();
    for case in &cases {
        let unit = cells.iter().find(|cell| cell.case == *case).map_or("", |cell| cell.unit.name());
        let mut row = vec![format!("{case} [{unit}]")];
        for way in &ways {
            let cell = cells.iter().find(|cell| cell.case == *case && cell.way == *way);
            row.push(cell.map_or_else(|| "-".to_owned(), |cell| shown(cell, &mut notes)));
        }
        rows.push(row);
    }
    let mut out = grid(&rows);
    for (index, note) in notes.iter().enumerate() {
        let _ = writeln!(out, "  ({}) not measured: {note}", index + 1);
    }
    out
}

fn shown(cell: &Cell, notes: &mut Vec<String>) -> String {
    match &cell.outcome {
        Outcome::Measured(_) => cell.spread().map_or_else(String::new, |(median, low, high)| {
            let spread = if median == 0.0 { 0.0 } else { (high - low) / 2.0 / median * 100.0 };
            format!("{} ±{spread:.0}%", number(median))
        }),
        Outcome::Missing(why) => {
            let index = notes.iter().position(|note| note == why).unwrap_or_else(|| {
                notes.push(why.clone());
                notes.len() - 1
            });
            format!("({})", index + 1)
        }
    }
}

/// Columns of equal width, the first to the left and the others to the right.
pub fn grid(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|text| text.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, text) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if column == 0 {
                write!(out, "{text:<width$}")
            } else {
                write!(out, "  {text:>width$}")
            };
        }
        out.push('\n');
        if index == 0 {
            let total = widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1);
            let _ = writeln!(out, "{}", "-".repeat(total));
        }
    }
    out
}
