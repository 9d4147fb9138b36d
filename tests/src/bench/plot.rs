//! Plots as SVG, written by hand: groups of bars, each with its spread.

use std::fmt::Write as _;

use super::report::{Cell, Report, distinct};
use super::screen::number;

/// A plot: some rows of an experiment.
#[derive(Clone, Debug)]
pub struct Plot<'a> {
    /// Name of the file, without its end.
    pub file: &'a str,
    /// What it shows.
    pub title: &'a str,
    /// The experiment.
    pub experiment: &'a str,
    /// Rows that contain this.
    pub rows: &'a str,
    /// Ways to leave out.
    pub without: &'a [&'a str],
    /// Whether each line of the scale is ten times the one below.
    pub logarithmic: bool,
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 72.0;
const BOTTOM: f64 = 64.0;
const COLOURS: [&str; 10] = [
    "#1b7f4b", "#0b5fa5", "#c0392b", "#d98c1f", "#7f8c8d", "#8e6bbf", "#b9a7d6", "#34495e",
    "#8fcfa9", "#8fb8dc",
];

/// Where a value lies on the scale.
struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    fn of(values: impl Iterator<Item = f64> + Clone, logarithmic: bool) -> Self {
        let most = values.clone().fold(0.0, f64::max);
        let least = values.filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
        if logarithmic && least.is_finite() {
            let (low, high) = (least.log10().floor(), most.log10().ceil());
            return Self { low, high: high.max(low + 1.0), logarithmic };
        }
        Self { low: 0.0, high: if most > 0.0 { most * 1.08 } else { 1.0 }, logarithmic: false }
    }

    fn y(&self, value: f64) -> f64 {
        let value = if self.logarithmic { value.max(1e-9).log10() } else { value };
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            return (self.low as i32..=self.high as i32).map(|power| 10_f64.powi(power)).collect();
        }
        let rough = self.high / 5.0;
        let power = 10_f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|step| step * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        (0..12).map(|index| f64::from(index) * step).take_while(|tick| *tick <= self.high).collect()
    }
}

/// The plot as a file's text. `None` if nothing of it was measured.
pub fn svg(plot: &Plot<'_>, report: &Report, caption: &str) -> Option<String> {
    let cells: Vec<&Cell> = report
        .of(plot.experiment)
        .filter(|cell| cell.case.contains(plot.rows) && !plot.without.contains(&cell.way.as_str()))
        .filter(|cell| cell.spread().is_some())
        .collect();
    let unit = cells.first()?.unit.name();
    let cases = distinct(cells.iter().map(|cell| cell.case.as_str()));
    let ways = distinct(cells.iter().map(|cell| cell.way.as_str()));
    let spreads = cells.iter().filter_map(|cell| cell.spread());
    let scale = Scale::of(spreads.map(|(_, _, high)| high), plot.logarithmic);
    let mut out = head(plot.title, unit, caption);
    for tick in scale.ticks() {
        let y = scale.y(tick);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y + 4.0,
            number(tick).trim_end_matches(".00")
        );
    }
    let group = (WIDTH - LEFT - RIGHT) / cases.len() as f64;
    let bar = (group * 0.84) / ways.len() as f64;
    for (index, case) in cases.iter().enumerate() {
        let start = LEFT + group * index as f64 + group * 0.08;
        for (place, way) in ways.iter().enumerate() {
            let cell = cells.iter().find(|cell| cell.case == *case && cell.way == *way);
            if let Some(spread) = cell.and_then(|cell| cell.spread()) {
                draw(
                    &mut out,
                    &scale,
                    start + bar * place as f64,
                    bar,
                    spread,
                    COLOURS[place % COLOURS.len()],
                );
            }
        }
        label(&mut out, case, start + group * 0.42);
    }
    legend(&mut out, &ways);
    out += "</svg>\n";
    Some(out)
}

fn head(title: &str, unit: &str, caption: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"22\" font-size=\"16\">{} [{unit}]</text>\n\
         <text x=\"{LEFT}\" y=\"{}\" fill=\"#777\" font-size=\"11\">{}</text>\n",
        escaped(title),
        HEIGHT - 10.0,
        escaped(caption)
    )
}

fn draw(
    out: &mut String,
    scale: &Scale,
    x: f64,
    width: f64,
    spread: (f64, f64, f64),
    colour: &str,
) {
    let (median, low, high) = spread;
    let (y, base, middle) = (scale.y(median), HEIGHT - BOTTOM, x + width * 0.45);
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\
         <line x1=\"{middle:.1}\" x2=\"{middle:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"black\"/>\
         <text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"9\">{}</text>",
        width * 0.9,
        (base - y).max(0.0),
        scale.y(low),
        scale.y(high),
        scale.y(high) - 3.0,
        number(median)
    );
}

/// The name of a group, in as many lines as it has parts.
fn label(out: &mut String, case: &str, x: f64) {
    for (index, part) in case.split(", ").enumerate() {
        let y = HEIGHT - BOTTOM + 15.0 + 13.0 * index as f64;
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" font-size=\"11\">{}</text>",
            escaped(part)
        );
    }
}

fn legend(out: &mut String, ways: &[&str]) {
    for (index, way) in ways.iter().enumerate() {
        let x = LEFT + 100.0 * index as f64;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"34\" width=\"12\" height=\"12\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"45\">{}</text>",
            COLOURS[index % COLOURS.len()],
            x + 17.0,
            escaped(way)
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Unit;

    #[test]
    fn a_plot_has_a_bar_for_each_cell_and_none_without_values() {
        let mut report = Report::default();
        let plot = Plot {
            file: "x",
            title: "A <title>",
            experiment: "e",
            rows: "",
            without: &[],
            logarithmic: true,
        };
        assert_eq!(svg(&plot, &report, ""), None);
        report.add("e", "one", "TC", Unit::Mpps, 3.0);
        report.add("e", "two", "TC", Unit::Mpps, 0.03);
        report.miss("e", "two", "XDP", Unit::Mpps, "why");
        let text = svg(&plot, &report, "here").unwrap();
        assert_eq!(text.matches("stroke=\"black\"").count(), 2);
        assert!(text.contains("A &lt;title&gt;") && text.ends_with("</svg>\n"));
    }
}
