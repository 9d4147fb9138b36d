//! What was to be reached, and what was: ratios from one run on one machine.

use super::experiments::{
    bulk, capacity, established, exec, latency, memory, next_hops, opening, outage, rule_load,
    spaced,
};
use super::plan::Kind;
use super::report::Report;
use super::screen::grid;
use super::subject::Way;
use crate::lab::topology::External;

/// A line of the table.
#[derive(Clone, Debug)]
pub struct Target {
    /// What is compared with what.
    pub what: String,
    /// What is asked for.
    pub goal: Goal,
    /// What was measured, or why it was not.
    pub measured: Result<f64, String>,
    /// What the least that the same hook can do reaches in place of the gateway, where that was measured: a bare
    /// table of flows, for streams a bare redirect.
    pub limit: Option<f64>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// A ratio of at least this.
    AtLeast(f64),
    /// A number of at most this, in this unit.
    AtMost(f64, &'static str),
}

impl Target {
    /// Whether it is reached; `None` if nobody knows.
    pub fn is_met(&self) -> Option<bool> {
        let measured = *self.measured.as_ref().ok()?;
        Some(match self.goal {
            Goal::AtLeast(least) => measured >= least,
            Goal::AtMost(most, _) => measured <= most,
        })
    }

    /// What is asked for, in words.
    pub fn asked(&self) -> String {
        match self.goal {
            Goal::AtLeast(ratio) => format!("at least {ratio:.2}x"),
            Goal::AtMost(most, unit) => format!("at most {most} {unit}"),
        }
    }

    /// The limit, in words.
    pub fn reachable(&self) -> String {
        self.limit.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}x"))
    }

    /// What was measured, in words.
    pub fn found(&self) -> String {
        match (&self.measured, self.goal) {
            (Err(why), _) => format!("not measured ({why})"),
            (Ok(value), Goal::AtLeast(_)) => format!("{value:.2}x"),
            (Ok(value), Goal::AtMost(_, unit)) => {
                format!("{} {unit}", super::screen::number(*value))
            }
        }
    }
}

/// A cell of the report, by its three names.
type Place<'a> = (&'a str, &'a str, Way);

struct Targets<'a> {
    report: &'a Report,
    lines: Vec<Target>,
}

impl Targets<'_> {
    fn median(&self, (experiment, case, way): Place<'_>) -> Result<f64, String> {
        let (case, way) = (case, way.name());
        if let Some(value) = self.report.median(experiment, case, way) {
            return Ok(value);
        }
        let why = self.report.why_missing(experiment, case, way);
        Err(why.map_or_else(|| format!("{experiment} did not run"), str::to_owned))
    }

    fn ratio(&mut self, what: &str, least: f64, of: Place<'_>, to: Place<'_>) {
        let measured = self.divide(of, to);
        let goal = Goal::AtLeast(least);
        self.lines.push(Target { what: what.to_owned(), goal, measured, limit: None });
    }

    /// The same ratio with something in place of the gateway that does less.
    fn limit(&mut self, of: Place<'_>, to: Place<'_>) {
        let limit = self.divide(of, to).ok();
        if let Some(line) = self.lines.last_mut() {
            line.limit = limit;
        }
    }

    fn divide(&self, of: Place<'_>, to: Place<'_>) -> Result<f64, String> {
        Ok(self.median(of)? / self.median(to)?)
    }

    fn most(&mut self, what: &str, most: f64, unit: &'static str, of: Place<'_>) {
        let (goal, measured) = (Goal::AtMost(most, unit), self.median(of));
        self.lines.push(Target { what: what.to_owned(), goal, measured, limit: None });
    }
}

/// The table of goals, filled in from a report.
pub fn targets(report: &Report) -> Vec<Target> {
    let mut targets = Targets { report, lines: Vec::new() };
    forwarding(&mut targets);
    sessions(&mut targets);
    streams(&mut targets);
    control(&mut targets);
    targets.lines
}

fn forwarding(targets: &mut Targets<'_>) {
    let row = established::name(Kind::Snat, 1000, 60);
    let at = |way| (established::NAME, row.as_str(), way);
    for (what, least, way, to, table) in [
        ("TC / iptables", 1.6, Way::Tc, Way::Iptables, Way::TableTc),
        ("TC / bare TC redirect", 0.9, Way::Tc, Way::BareTc, Way::TableTc),
        ("TC / bare TC redirect to a neighbour", 0.9, Way::Tc, Way::BareNeighbor, Way::TableTc),
        ("XDP / iptables", 3.5, Way::Xdp, Way::Iptables, Way::TableXdp),
        ("XDP / bare XDP redirect", 0.9, Way::Xdp, Way::BareXdp, Way::TableXdp),
    ] {
        targets.ratio(&format!("open flows: {what}"), least, at(way), at(to));
        targets.limit(at(table), at(to));
    }
    let [one, million] = [1, 1_000_000].map(|flows| established::name(Kind::Snat, flows, 60));
    for (way, table) in [(Way::Tc, Way::TableTc), (Way::Xdp, Way::TableXdp)] {
        let what = format!("{}: 1 000 000 flows / one flow", way.name());
        let at = |row, way| (established::NAME, row, way);
        targets.ratio(&what, 0.5, at(million.as_str(), way), at(one.as_str(), way));
        targets.limit(at(million.as_str(), table), at(one.as_str(), table));
    }
}

fn sessions(targets: &mut Targets<'_>) {
    let names = [0, 5000, 100_000].map(opening::name);
    let at = |index: usize, way| (opening::NAME, names[index].as_str(), way);
    let prealloc = "TC, preallocated / iptables";
    for (index, rules, least, what, way, table) in [
        (0, "no DNAT rule", 2.0, "TC / iptables", Way::Tc, Way::TableTc),
        (0, "no DNAT rule", 2.0, prealloc, Way::TcPreallocated, Way::TableTcPreallocated),
        (0, "no DNAT rule", 3.0, "XDP / iptables", Way::Xdp, Way::TableXdp),
        (
            0,
            "no DNAT rule",
            3.0,
            "XDP, preallocated / iptables",
            Way::XdpPreallocated,
            Way::TableXdpPreallocated,
        ),
        (1, "5 000 DNAT rules", 20.0, "TC / iptables", Way::Tc, Way::TableTc),
        (1, "5 000 DNAT rules", 20.0, prealloc, Way::TcPreallocated, Way::TableTcPreallocated),
    ] {
        let what = format!("new flows, {rules}: {what}");
        targets.ratio(&what, least, at(index, way), at(index, Way::Iptables));
        // It has no rules, so one row says it for all.
        targets.limit(at(0, table), at(index, Way::Iptables));
    }
    targets.ratio("new flows, TC: 100 000 DNAT rules / none", 0.9, at(2, Way::Tc), at(0, Way::Tc));
    targets.most(
        "memory per session",
        300.0,
        "bytes",
        (memory::NAME, memory::PER_SESSION, Way::Tc),
    );
    let row = format!("{} sessions: refused", spaced(1 << 20));
    targets.most(
        "1 048 576 sessions in a table for as many: refused",
        0.0,
        "packets",
        (capacity::NAME, &row, Way::Tc),
    );
}

fn streams(targets: &mut Targets<'_>) {
    for external in [External::Veth, External::Macvlan] {
        let row = bulk::name(external, 1);
        for (way, least) in [(Way::Iptables, 1.1), (Way::Kernel, 1.0)] {
            let what =
                format!("one TCP stream, {row}: TC / {}", way.name()).replace(", 1 stream", "");
            let at = |way| (bulk::NAME, row.as_str(), way);
            targets.ratio(&what, least, at(Way::Tc), at(way));
            targets.limit(at(Way::BareNeighbor), at(way));
        }
    }
    let at = |way| (latency::NAME, latency::ROWS[0].0, way);
    targets.ratio("request latency, median: iptables / TC", 1.0, at(Way::Iptables), at(Way::Tc));
}

fn control(targets: &mut Targets<'_>) {
    let rows = rule_load::rows(10_000);
    let at = |index: usize| (rule_load::NAME, rows[index].as_str(), Way::Tc);
    targets.most("10 000 DNAT rules from YAML to active", 1000.0, "ms", at(0));
    targets.most("one rule changed among 10 000", 10.0, "ms", at(1));
    for (what, row) in [
        ("exec of one dnat-add with 10 000 present", exec::DNAT_ADD),
        ("exec of one eip-add", exec::EIP_ADD),
    ] {
        targets.most(what, 10.0, "ms", (exec::NAME, row, Way::Tc));
    }
    targets.most(
        "daemon killed and started under load: packets lost",
        0.0,
        "packets",
        (outage::NAME, outage::ROWS[0], Way::Tc),
    );
    targets.most(
        "daemon killed and started under load: sessions lost",
        0.0,
        "sessions",
        (outage::NAME, outage::ROWS[1], Way::Tc),
    );
    let last = targets.median((next_hops::NAME, next_hops::ROWS[1], Way::Tc));
    targets.lines.push(Target {
        what: "next hop lost: flows moved in BFD's time".to_owned(),
        goal: Goal::AtMost(1.0, "detection times"),
        measured: last.map(|millis| millis / f64::from(next_hops::DETECTION_MS)),
        limit: None,
    });
}

/// The table on the terminal.
pub fn table(targets: &[Target]) -> String {
    let mut rows =
        vec![["target", "asked", "measured", "met", "limit"].map(str::to_owned).to_vec()];
    for target in targets {
        let met = match target.is_met() {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "-",
        };
        let met = met.to_owned();
        rows.push(vec![
            target.what.clone(),
            target.asked(),
            target.found(),
            met,
            target.reachable(),
        ]);
    }
    grid(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Unit;

    #[test]
    fn every_goal_is_there_even_if_nothing_ran() {
        let lines = targets(&Report::default());
        assert!(lines.len() >= 20);
        assert!(lines.iter().all(|line| line.is_met().is_none()));
        assert!(lines.iter().all(|line| line.found().starts_with("not measured (")));
    }

    #[test]
    fn a_ratio_is_that_of_the_medians() {
        let mut report = Report::default();
        let row = established::name(Kind::Snat, 1000, 60);
        report.add(established::NAME, &row, Way::Tc.name(), Unit::Mpps, 3.0);
        report.add(established::NAME, &row, Way::Iptables.name(), Unit::Mpps, 2.0);
        let lines = targets(&report);
        assert_eq!(lines[0].found(), "1.50x");
        assert_eq!(lines[0].is_met(), Some(false));
        assert_eq!(lines[0].reachable(), "-");
        report.add(established::NAME, &row, Way::TableTc.name(), Unit::Mpps, 5.0);
        assert_eq!(targets(&report)[0].reachable(), "2.50x");
    }
}
