//! What was measured: rows of values, and what could not be measured, with the reason.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// What a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Millions of packets per second.
    Mpps,
    /// Thousands per second.
    Kilo,
    /// Gbit/s of TCP payload.
    Gbps,
    /// Microseconds.
    Micros,
    /// Milliseconds.
    Millis,
    /// Nanoseconds.
    Nanos,
    /// Bytes.
    Bytes,
    /// Megabytes.
    Megabytes,
    /// A count of packets.
    Packets,
}

impl Unit {
    const ALL: [Self; 9] = [
        Self::Mpps,
        Self::Kilo,
        Self::Gbps,
        Self::Micros,
        Self::Millis,
        Self::Nanos,
        Self::Bytes,
        Self::Megabytes,
        Self::Packets,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mpps => "Mpps",
            Self::Kilo => "k/s",
            Self::Gbps => "Gbit/s",
            Self::Micros => "us",
            Self::Millis => "ms",
            Self::Nanos => "ns",
            Self::Bytes => "bytes",
            Self::Megabytes => "MB",
            Self::Packets => "packets",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|unit| unit.name() == name)
    }
}

/// What became of a measurement.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// One value for each repeat.
    Measured(Vec<f64>),
    /// Why there is none.
    Missing(String),
}

/// One cell of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Name of the experiment.
    pub experiment: String,
    /// The row: what was done.
    pub case: String,
    /// The column: what it was done with.
    pub way: String,
    /// What the values mean.
    pub unit: Unit,
    /// The values.
    pub outcome: Outcome,
}

impl Cell {
    /// Median, lowest and highest value.
    pub fn spread(&self) -> Option<(f64, f64, f64)> {
        match &self.outcome {
            Outcome::Measured(values) if !values.is_empty() => {
                let mut sorted = values.clone();
                sorted.sort_by(f64::total_cmp);
                let middle = sorted.len() / 2;
                let median = if sorted.len() % 2 == 1 {
                    sorted[middle]
                } else {
                    f64::midpoint(sorted[middle - 1], sorted[middle])
                };
                Some((median, sorted[0], sorted[sorted.len() - 1]))
            }
            Outcome::Measured(_) | Outcome::Missing(_) => None,
        }
    }
}

/// Everything that a run measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Where and how: machine, kernel, commit.
    pub about: BTreeMap<String, String>,
    /// In the order in which they were measured.
    pub cells: Vec<Cell>,
}

impl Report {
    /// Adds a value to a cell, which is made if it is not there.
    pub fn add(&mut self, experiment: &str, case: &str, way: &str, unit: Unit, value: f64) {
        if let Some(Cell { outcome: Outcome::Measured(values), .. }) =
            self.cells.iter_mut().find(|cell| is(cell, experiment, case, way))
        {
            values.push(value);
            return;
        }
        self.put(experiment, case, way, unit, Outcome::Measured(vec![value]));
    }

    /// Says why there is no value.
    pub fn miss(&mut self, experiment: &str, case: &str, way: &str, unit: Unit, why: &str) {
        self.put(experiment, case, way, unit, Outcome::Missing(why.to_owned()));
    }

    fn put(&mut self, experiment: &str, case: &str, way: &str, unit: Unit, outcome: Outcome) {
        self.cells.push(Cell {
            experiment: experiment.to_owned(),
            case: case.to_owned(),
            way: way.to_owned(),
            unit,
            outcome,
        });
    }

    /// The median of a cell.
    pub fn median(&self, experiment: &str, case: &str, way: &str) -> Option<f64> {
        let cell = self.cells.iter().find(|cell| is(cell, experiment, case, way))?;
        cell.spread().map(|(median, _, _)| median)
    }

    /// Why a cell has no value.
    pub fn why_missing(&self, experiment: &str, case: &str, way: &str) -> Option<&str> {
        match &self.cells.iter().find(|cell| is(cell, experiment, case, way))?.outcome {
            Outcome::Missing(why) => Some(why),
            Outcome::Measured(_) => None,
        }
    }

    /// The experiments, in their order.
    pub fn experiments(&self) -> Vec<&str> {
        distinct(self.cells.iter().map(|cell| cell.experiment.as_str()))
    }

    /// The cells of an experiment.
    pub fn of<'a>(&'a self, experiment: &'a str) -> impl Iterator<Item = &'a Cell> {
        self.cells.iter().filter(move |cell| cell.experiment == experiment)
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        let cells: Vec<Value> = self.cells.iter().map(cell_to_json).collect();
        json!({ "about": self.about, "cells": cells })
    }

    /// Reads what [`Report::to_json`] wrote.
    ///
    /// # Errors
    /// It is something else.
    pub fn from_json(value: &Value) -> Result<Self> {
        let about = value["about"].as_object().context("no `about`")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let cells = value["cells"].as_array().context("no `cells`")?;
        Ok(Self {
            about: about.iter().map(|(key, value)| (key.clone(), text(value))).collect(),
            cells: cells.iter().map(cell_from_json).collect::<Result<_>>()?,
        })
    }
}

fn is(cell: &Cell, experiment: &str, case: &str, way: &str) -> bool {
    cell.experiment == experiment && cell.case == case && cell.way == way
}

/// Each value once, in the order of its first appearance.
pub fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

fn cell_to_json(cell: &Cell) -> Value {
    let mut value = json!({
        "experiment": cell.experiment, "case": cell.case, "way": cell.way, "unit": cell.unit.name(),
    });
    match &cell.outcome {
        Outcome::Measured(values) => {
            let (median, low, high) = cell.spread().unwrap_or_default();
            value["median"] = json!(median);
            value["low"] = json!(low);
            value["high"] = json!(high);
            value["values"] = json!(values);
        }
        Outcome::Missing(why) => value["missing"] = json!(why),
    }
    value
}

fn cell_from_json(value: &Value) -> Result<Cell> {
    let text = |key: &str| -> Result<String> {
        Ok(value[key].as_str().with_context(|| format!("no `{key}` in {value}"))?.to_owned())
    };
    let unit = text("unit")?;
    let outcome = match value["values"].as_array() {
        Some(values) => Outcome::Measured(values.iter().filter_map(Value::as_f64).collect()),
        None => Outcome::Missing(text("missing")?),
    };
    Ok(Cell {
        experiment: text("experiment")?,
        case: text("case")?,
        way: text("way")?,
        unit: Unit::named(&unit).with_context(|| format!("unknown unit {unit}"))?,
        outcome,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Report {
        let mut report = Report::default();
        for value in [3.0, 1.0, 2.0] {
            report.add("established", "SNAT", "TC", Unit::Mpps, value);
        }
        report.miss("established", "SNAT", "XDP", Unit::Mpps, "not there");
        report
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let mut report = sample();
        assert_eq!(report.median("established", "SNAT", "TC"), Some(2.0));
        report.add("established", "SNAT", "TC", Unit::Mpps, 10.0);
        assert_eq!(report.median("established", "SNAT", "TC"), Some(2.5));
        assert_eq!(report.median("established", "SNAT", "XDP"), None);
    }

    #[test]
    fn json_keeps_everything() {
        let report = sample();
        assert_eq!(Report::from_json(&report.to_json()).unwrap(), report);
    }
}
