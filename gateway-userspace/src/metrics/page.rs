//! The text exposition format of Prometheus, version 0.0.4.

use std::fmt::{Display, Write as _};

use super::catalog::{Metric, Type};
use super::histogram::Histogram;
use super::include;

/// What the format is called over HTTP.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page that is being written: metric by metric, each with all its samples.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    others: Vec<(String, Labels)>,
}

/// Labels and their values.
pub type Labels = Vec<(&'static str, String)>;

impl Page {
    /// Begins a metric.
    pub fn metric(&mut self, metric: Metric) -> Samples<'_> {
        let Metric { name, kind, help, .. } = metric;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str());
        Samples { text: &mut self.text, metric }
    }

    /// A metric with one sample and no labels.
    pub fn single(&mut self, metric: Metric, value: impl Display) {
        self.metric(metric).sample([], value);
    }

    /// A histogram without labels.
    pub fn histogram(&mut self, metric: Metric, histogram: &Histogram) {
        debug_assert_eq!(metric.kind, Type::Histogram);
        let text = self.metric(metric).text;
        let name = metric.name;
        for (bound, count) in histogram.cumulative() {
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}");
        }
        let (sum, count) = (histogram.sum_seconds(), histogram.count());
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum {sum}\n{name}_count {count}");
    }

    /// Adds the page of another process, all of whose samples get these labels as well.
    pub fn include(&mut self, page: String, labels: Labels) {
        self.others.push((page, labels));
    }

    /// The text.
    #[must_use]
    pub fn into_text(self) -> String {
        match self.others.as_slice() {
            [] => self.text,
            others => include::merged(&self.text, others),
        }
    }
}

/// The samples of a metric.
pub struct Samples<'p> {
    text: &'p mut String,
    metric: Metric,
}

impl Samples<'_> {
    /// One sample, with a value for each label of the metric.
    pub fn sample<const N: usize>(&mut self, values: [&str; N], value: impl Display) {
        debug_assert_eq!(self.metric.labels.len(), N, "{}", self.metric.name);
        self.text.push_str(self.metric.name);
        for (index, (label, text)) in self.metric.labels.iter().zip(values).enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            let _ = write!(self.text, "{label}=\"");
            escape(self.text, text);
            self.text.push('"');
        }
        let close = if N == 0 { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }
}

pub(super) fn escape(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalog;
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_page_is_in_the_format_of_prometheus() {
        let mut page = Page::default();
        page.single(catalog::SESSIONS, 7_u64);
        page.metric(catalog::PROBLEMS).sample(["a\"b\\c\nd"], 1);
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_micros(200));
        histogram.record(Duration::from_secs(100));
        page.histogram(catalog::APPLY, &histogram);
        let text = page.into_text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            &lines[..6],
            [
                "# HELP vpc_gateway_sessions Open sessions, both families.",
                "# TYPE vpc_gateway_sessions gauge",
                "vpc_gateway_sessions 7",
                "# HELP vpc_gateway_problems What is wrong at the moment, as in vpc-gateway status.",
                "# TYPE vpc_gateway_problems gauge",
                "vpc_gateway_problems{step=\"a\\\"b\\\\c\\nd\"} 1",
            ]
        );
        assert!(lines.contains(&"vpc_gateway_apply_duration_seconds_bucket{le=\"0.0005\"} 1"));
        assert!(lines.contains(&"vpc_gateway_apply_duration_seconds_bucket{le=\"10\"} 1"));
        assert!(lines.contains(&"vpc_gateway_apply_duration_seconds_bucket{le=\"+Inf\"} 2"));
        assert!(lines.contains(&"vpc_gateway_apply_duration_seconds_sum 100.0002"));
        assert_eq!(lines.last(), Some(&"vpc_gateway_apply_duration_seconds_count 2"));
    }
}
