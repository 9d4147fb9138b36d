//! What Prometheus would see: pages of metrics over HTTP, by curl.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gateway_userspace::metrics::catalog::{Metric, Type};

/// The samples of a page, by name and labels as they are written.
#[derive(Clone, Debug, Default)]
pub struct Page {
    samples: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
}

/// A port of this host that nobody listens on.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Asks with curl; returns the status and the body.
///
/// # Errors
/// Nobody answers within five seconds.
pub fn ask(server: SocketAddr, path: &str, options: &[&str]) -> Result<(u16, String)> {
    let mut command = Command::new("curl");
    command.args(["-sS", "--noproxy", "*", "--max-time", "5", "-w", "\n%{http_code}"]);
    command.args(options).arg(format!("http://{server}{path}"));
    let output = command.output().context("failed to run curl")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{path}: {said}");
    let text = String::from_utf8(output.stdout)?;
    let (body, status) = text.rsplit_once('\n').context("curl printed no status")?;
    Ok((status.parse()?, body.to_owned()))
}

/// Reads `/metrics`.
///
/// # Errors
/// The answer is not 200, or not in the format.
pub fn scrape(server: SocketAddr) -> Result<Page> {
    let (status, body) = ask(server, "/metrics", &[])?;
    ensure!(status == 200, "{status}: {body}");
    Page::parse(&body)
}

impl Page {
    /// Reads the text format strictly.
    ///
    /// # Errors
    /// A line is not in the format; a metric has no type, or comes twice.
    pub fn parse(text: &str) -> Result<Self> {
        let mut page = Self::default();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').context("a type")?;
                ensure!(name == current, "TYPE {name} after HELP {current}");
                let before = page.types.insert(name.to_owned(), kind.to_owned());
                ensure!(before.is_none(), "{name} is there twice");
                continue;
            }
            if let Some(rest) = line.strip_prefix("# HELP ") {
                current = rest.split(' ').next().unwrap_or_default().to_owned();
                continue;
            }
            let (series, value) =
                line.rsplit_once(' ').with_context(|| format!("line {line:?}"))?;
            ensure!(series.starts_with(&current), "{series} among the samples of {current}");
            let value = value.parse().with_context(|| format!("line {line:?}"))?;
            let before = page.samples.insert(series.to_owned(), value);
            ensure!(before.is_none(), "{series} is there twice");
        }
        Ok(page)
    }

    /// The sample of a series, written as `name{label="value"}` without the common beginning.
    ///
    /// # Errors
    /// There is no such series.
    pub fn get(&self, series: &str) -> Result<f64> {
        let found = self.samples.get(&format!("vpc_gateway_{series}"));
        found.copied().with_context(|| {
            let name = format!("vpc_gateway_{}", series.split('{').next().unwrap_or_default());
            let near: Vec<_> = self.samples.keys().filter(|key| key.starts_with(&name)).collect();
            format!("there is no {series}, but {near:?}")
        })
    }

    /// How many series there are of a metric, and their sum.
    pub fn sum(&self, name: &str) -> (usize, f64) {
        let name = format!("vpc_gateway_{name}");
        let of = |series: &str| series.split('{').next() == Some(&name);
        let all = self.samples.iter().filter(|(series, _)| of(series));
        all.fold((0, 0.0), |(count, sum), (_, value)| (count + 1, sum + value))
    }

    /// Checks that exactly these metrics are there, with their types and labels.
    ///
    /// # Errors
    /// One is missing, is unknown or has other labels.
    pub fn agrees_with(&self, metrics: &[&[Metric]]) -> Result<()> {
        let known: BTreeMap<_, _> =
            metrics.iter().copied().flatten().map(|metric| (metric.name, metric)).collect();
        for (name, metric) in &known {
            let said = self.types.get(*name).map(String::as_str);
            ensure!(said == Some(metric.kind.as_str()), "{name} has the type {said:?}");
        }
        ensure!(self.types.len() == known.len(), "unknown metrics among {:?}", self.types.keys());
        for series in self.samples.keys() {
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let stem = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let metric = known.get(name).or_else(|| known.get(stem?)).context(name.to_owned())?;
            let pairs = labels.trim_end_matches('}').split("\",").filter(|pair| !pair.is_empty());
            let names: Vec<_> = pairs.filter_map(|pair| Some(pair.split_once('=')?.0)).collect();
            let wanted = if metric.kind == Type::Histogram && name.ends_with("_bucket") {
                &["le"]
            } else {
                metric.labels
            };
            ensure!(names == wanted, "{series}: labels {names:?}, not {wanted:?}");
        }
        Ok(())
    }
}
