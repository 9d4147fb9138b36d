//! What stays of a run: JSON, plots, and the block of the README that nobody writes by hand.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::experiments::{bulk, established, latency, opening};
use super::plan::Kind;
use super::plot::{Plot, svg};
use super::report::Report;
use super::screen::{grid, number};
use super::subject::Way;
use super::targets::Target;
use crate::lab::topology::External;

/// Where the results of a published run are kept, from the root of the repository.
pub const FOLDER: &str = "docs/bench";

const BEGIN: &str = "<!-- bench: written by `cargo xtask bench --publish` -->\n";
const END: &str = "<!-- end of bench -->\n";

/// Machine, kernel and commit.
pub fn about(quick: bool) -> BTreeMap<String, String> {
    let first = |command: &mut Command| -> Option<String> {
        let output = command.output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let commit = first(git().args(["rev-parse", "--short=12", "HEAD"]));
    let dirty = first(git().args(["status", "--porcelain", "--untracked-files=no"]));
    let dirty = if dirty.is_some_and(|text| !text.is_empty()) { ", changed" } else { "" };
    let date = first(Command::new("date").args(["-u", "+%Y-%m-%d"]));
    let unknown = || "unknown".to_owned();
    [
        ("machine", format!("{}, {cores} cores", model.map_or("unknown CPU", |(_, name)| name))),
        ("kernel", kernel.trim().to_owned()),
        ("commit", format!("{}{dirty}", commit.unwrap_or_else(unknown))),
        ("date", date.unwrap_or_else(unknown)),
        ("run", if quick { "quick" } else { "full" }.to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// git, also where the repository is another user's than root's.
fn git() -> Command {
    let mut command = Command::new("git");
    command.args(["-c", "safe.directory=*"]);
    command
}

/// One line of it.
pub fn caption(report: &Report) -> String {
    let of = |key: &str| report.about.get(key).map_or("unknown", String::as_str);
    format!(
        "{} run on {}, kernel {}, commit {}, {}",
        of("run"),
        of("machine"),
        of("kernel"),
        of("commit"),
        of("date")
    )
}

/// Writes JSON.
///
/// # Errors
/// The file system refuses it.
pub fn write_json(report: &Report, file: &Path) -> Result<()> {
    write(file, &format!("{:#}\n", report.to_json()))
}

/// Reads JSON that an earlier run wrote.
///
/// # Errors
/// There is no such file, or it holds something else.
pub fn read_json(file: &Path) -> Result<Report> {
    let text = std::fs::read(file).with_context(|| format!("failed to read {}", file.display()))?;
    let value: Value = serde_json::from_slice(&text)?;
    Report::from_json(&value).with_context(|| format!("{} is no result", file.display()))
}

/// Every median as a multiple of an earlier run's.
pub fn comparison(report: &Report, earlier: &Report) -> String {
    let mut rows =
        vec![["measurement", "way", "earlier", "now", "ratio"].map(str::to_owned).to_vec()];
    for cell in &report.cells {
        let Some((now, _, _)) = cell.spread() else { continue };
        let name = format!("{}: {} [{}]", cell.experiment, cell.case, cell.unit.name());
        let Some(before) = earlier.median(&cell.experiment, &cell.case, &cell.way) else {
            continue;
        };
        let ratio = if before == 0.0 { "-".to_owned() } else { format!("{:.2}", now / before) };
        rows.push(vec![name, cell.way.clone(), number(before), number(now), ratio]);
    }
    format!("against: {}\n{}", caption(earlier), grid(&rows))
}

/// Writes results, plots, and the block of the README.
///
/// # Errors
/// The file system refuses it, or the README has no place for the block.
pub fn publish(report: &Report, targets: &[Target]) -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = root.join(FOLDER);
    std::fs::create_dir_all(&folder)?;
    write_json(report, &folder.join("results.json"))?;
    for plot in plots() {
        if let Some(text) = svg(&plot, report, &caption(report)) {
            write(&folder.join(format!("{}.svg", plot.file)), &text)?;
        }
    }
    let readme = root.join("README.md");
    let text = std::fs::read_to_string(&readme)?;
    write(&readme, &replace_block(&text, &block(report, targets))?)
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("failed to write {}", file.display()))
}

fn plots() -> [Plot<'static>; 4] {
    let plot = |file, title, experiment, rows, without, logarithmic| Plot {
        file,
        title,
        experiment,
        rows,
        without,
        logarithmic,
    };
    [
        plot(
            "established",
            "Packets of open SNAT flows, 60 bytes, generator and sink on the same core",
            established::NAME,
            "flows, 60 bytes",
            &["bare neigh"],
            false,
        ),
        plot("new-sessions", "New sessions beside DNAT rules", opening::NAME, "rules", &[], true),
        plot("tcp-bulk", "TCP bulk, offloads on", bulk::NAME, "net1", &[], false),
        plot("latency", "UDP request and answer", latency::NAME, "p", &[], false),
    ]
}

/// The text with the block between its marks replaced.
fn replace_block(text: &str, block: &str) -> Result<String> {
    let begin = text.find(BEGIN).context("README.md has no mark where the bench begins")?;
    let end = text.find(END).context("README.md has no mark where the bench ends")?;
    Ok(format!("{}{block}{}", &text[..begin + BEGIN.len()], &text[end..]))
}

/// The headline table, and the goals.
fn block(report: &Report, targets: &[Target]) -> String {
    let mut out = format!("{}.\n\n", caption(report));
    out += "| this gateway, by TC, against | Kube-OVN's iptables chains | nftables map | kernel forwarding, no NAT |\n";
    out += "|---|---|---|---|\n";
    for (what, experiment, case, inverse) in headlines() {
        let ratio = |way: Way| -> String {
            let at = |way: Way| report.median(experiment, &case, way.name());
            match (at(Way::Tc), at(way)) {
                (Some(ours), Some(theirs)) if ours > 0.0 && theirs > 0.0 => {
                    format!("{:.2}x", if inverse { theirs / ours } else { ours / theirs })
                }
                _ => "-".to_owned(),
            }
        };
        let [iptables, nftables, kernel] = [Way::Iptables, Way::Nftables, Way::Kernel].map(ratio);
        let _ = writeln!(out, "| {what} | {iptables} | {nftables} | {kernel} |");
    }
    out += "\n| goal | asked | measured | met | limit |\n|---|---|---|---|---|\n";
    for target in targets {
        let met = match target.is_met() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "-",
        };
        let Target { what, .. } = target;
        let (asked, found, limit) = (target.asked(), target.found(), target.reachable());
        let _ = writeln!(out, "| {what} | {asked} | {found} | {met} | {limit} |");
    }
    out
}

/// Lines of the headline table: what, experiment, row, and whether less is better.
fn headlines() -> Vec<(&'static str, &'static str, String, bool)> {
    let open = |kind, flows| established::name(kind, flows, 60);
    vec![
        ("packets per second, 1 000 SNAT flows", established::NAME, open(Kind::Snat, 1000), false),
        (
            "packets per second, 1 000 DNAT flows",
            established::NAME,
            open(Kind::Dnat(1), 1000),
            false,
        ),
        ("packets per second, floating IP", established::NAME, open(Kind::Fip, 1000), false),
        (
            "packets per second, 100 000 SNAT flows",
            established::NAME,
            open(Kind::Snat, 100_000),
            false,
        ),
        ("new sessions per second, no DNAT rule", opening::NAME, opening::name(0), false),
        ("new sessions per second, 5 000 DNAT rules", opening::NAME, opening::name(5000), false),
        ("one TCP stream, veth", bulk::NAME, bulk::name(External::Veth, 1), false),
        ("one TCP stream, macvlan", bulk::NAME, bulk::name(External::Macvlan, 1), false),
        ("request latency, median", latency::NAME, latency::ROWS[0].0.to_owned(), true),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Unit;

    #[test]
    fn the_block_is_replaced_and_nothing_else() {
        let text = format!("before\n{BEGIN}old\n{END}after\n");
        let new = replace_block(&text, "new\n").unwrap();
        assert_eq!(new, format!("before\n{BEGIN}new\n{END}after\n"));
        assert!(replace_block("nothing", "new").is_err());
    }

    #[test]
    fn a_comparison_has_the_ratio_of_medians() {
        let mut earlier = Report::default();
        earlier.add("e", "c", "TC", Unit::Mpps, 2.0);
        let mut now = Report::default();
        now.add("e", "c", "TC", Unit::Mpps, 3.0);
        now.add("e", "new", "TC", Unit::Mpps, 3.0);
        let text = comparison(&now, &earlier);
        assert!(text.contains("1.50") && !text.contains("new"), "{text}");
    }
}
