//! What the init script reported, and whether it is what it should be.

use std::collections::BTreeMap;

use serde_json::Value;

use super::machine::last_lines;

/// The source that the outside must see: the address of `eip-snat` in the example manifests.
const EXPECTED: &str = "203.0.113.1:7 saw 203.0.113.20:";

/// The rule that has to count the packets.
const RULE: &str = "snat-first-hosts";

/// From this kernel on programs are attached by TCX, before by clsact.
const TCX_SINCE: (u32, u32) = (6, 6);

/// The end of the log that is repeated, long enough for the last words of the verifier.
const LAST_LINES: usize = 25;

/// One kernel's line in the table, and what was wrong there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Report {
    /// The release that ran.
    pub(super) release: String,
    /// Each expected program, and how many instructions the verifier looked at if it is loaded.
    pub(super) programs: Vec<(String, Option<u64>)>,
    /// How the programs are attached.
    pub(super) attach: String,
    /// What the outside saw.
    pub(super) packet: String,
    /// How many packet cases ran, both families together.
    pub(super) cases: String,
    /// What is not as it should be.
    pub(super) faults: Vec<String>,
}

impl Report {
    /// Reads the sections that the machine wrote.
    pub(super) fn parse(text: &str, expected: &[String]) -> Self {
        let sections = sections(text);
        let section = |name: &str| sections.get(name).map_or("", String::as_str);
        let mut report = Self { release: section("kernel").trim().to_owned(), ..Self::default() };
        report.programs = programs(section("programs"), section("fdinfo"), expected);
        if sections.contains_key("answer") {
            report.check_programs();
            report.check_packet(section("answer"), section("rules"));
            report.check_status(section("status"));
            report.check(section("detach").contains("detached"), || {
                format!("detach failed: {}", section("detach").trim())
            });
        } else {
            let words = last_lines(&format!("{}{}", section("setup"), section("log")), LAST_LINES);
            report.faults.push(format!("the gateway did not start:\n{words}"));
        }
        report.check_cases(section("cases"));
        report.check(sections.contains_key("end"), || "the machine stopped early".to_owned());
        report
    }

    /// How many programs are loaded.
    pub(super) fn loaded(&self) -> usize {
        self.programs.iter().filter(|(_, instructions)| instructions.is_some()).count()
    }

    fn check(&mut self, good: bool, fault: impl FnOnce() -> String) {
        if !good {
            self.faults.push(fault());
        }
    }

    fn check_programs(&mut self) {
        let missing: Vec<_> = self.programs.iter().filter(|(_, found)| found.is_none()).collect();
        let names: Vec<_> = missing.into_iter().map(|(name, _)| name.as_str()).collect();
        let names = names.join(", ");
        self.check(names.is_empty(), || format!("not loaded: {names}"));
    }

    fn check_packet(&mut self, answer: &str, rules: &str) {
        let answer = answer.trim();
        let (_, seen) = answer.split_once(" saw ").unwrap_or_default();
        self.packet = if seen.is_empty() { "-".to_owned() } else { format!("from {seen}") };
        self.check(answer.starts_with(EXPECTED), || {
            format!("the round trip ended with `{answer}`, not with `{EXPECTED}...`")
        });
        let packets = packets_of(rules, RULE);
        self.check(packets.is_some_and(|packets| packets > 0), || {
            format!("the rule {RULE} counted no packets: {}", rules.trim())
        });
    }

    /// The cases print `N cases over IPv4 on tc in 1.2s`, once for each family and size of the maps.
    fn check_cases(&mut self, text: &str) {
        let counts = text.lines().filter_map(|line| line.split_once(" cases over "));
        let sum: u64 = counts.filter_map(|(count, _)| count.parse::<u64>().ok()).sum();
        self.cases = if sum == 0 { "-".to_owned() } else { sum.to_string() };
        let passed = text.contains("test result: ok. 1 passed") && text.contains("exit code 0");
        self.check(passed && sum > 0, || {
            format!("the packet cases failed:\n{}", last_lines(text, LAST_LINES))
        });
    }

    fn check_status(&mut self, status: &str) {
        let status: Value = serde_json::from_str(status).unwrap_or_default();
        let interfaces = status["interfaces"].as_array().cloned().unwrap_or_default();
        let mut kinds: Vec<_> = interfaces.iter().filter_map(|i| i["attach"].as_str()).collect();
        kinds.dedup();
        self.attach = kinds.join(", ");
        let (attach, release) = (self.attach.clone(), self.release.clone());
        let expected = expected_attach(&release);
        self.check(attach == expected, || format!("attached by `{attach}`, not by {expected}"));
        self.check(status["ready"] == Value::Bool(true), || "the gateway is not ready".to_owned());
        for problem in status["problems"].as_array().into_iter().flatten() {
            self.faults.push(problem.as_str().unwrap_or_default().to_owned());
        }
    }
}

/// The texts after each line `@@ NAME`; the last section of a name counts.
fn sections(text: &str) -> BTreeMap<&str, String> {
    let mut sections = BTreeMap::new();
    let mut name = "";
    for line in text.lines() {
        if let Some(next) = line.strip_prefix("@@ ") {
            name = next.trim();
            sections.insert(name, String::new());
        } else if let Some(section) = sections.get_mut(name) {
            section.push_str(line);
            section.push('\n');
        }
    }
    sections
}

/// Joins the names of `bpftool prog show` with the counts of `/proc/PID/fdinfo` by the program's id.
fn programs(shown: &str, fdinfo: &str, expected: &[String]) -> Vec<(String, Option<u64>)> {
    let shown: Value = serde_json::from_str(shown.trim()).unwrap_or_default();
    let counts = counts(fdinfo);
    let find = |name: &str| {
        let program = shown.as_array()?.iter().find(|program| program["name"] == name)?;
        // Kernels before 5.16 do not count: 0 stands for a program that is loaded all the same.
        Some(counts.get(&program["id"].as_u64()?).copied().unwrap_or(0))
    };
    expected.iter().map(|name| (name.clone(), find(name))).collect()
}

/// `prog_id` and `verified_insns`, which follow each other for each program, in either order.
fn counts(fdinfo: &str) -> BTreeMap<u64, u64> {
    let (mut counts, mut id, mut count) = (BTreeMap::new(), None, None);
    for line in fdinfo.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        match key {
            "prog_id" => id = value.trim().parse().ok(),
            _ => count = value.trim().parse().ok(),
        }
        if let (Some(program), Some(instructions)) = (id, count) {
            counts.insert(program, instructions);
            (id, count) = (None, None);
        }
    }
    counts
}

/// The packets of a rule, wherever `rules --json` has its object.
fn packets_of(rules: &str, name: &str) -> Option<u64> {
    fn search(value: &Value, name: &str) -> Option<u64> {
        match value {
            Value::Array(items) => items.iter().find_map(|item| search(item, name)),
            Value::Object(fields) if fields.values().any(|field| field == name) => {
                fields.get("packets")?.as_u64()
            }
            Value::Object(fields) => fields.values().find_map(|item| search(item, name)),
            _ => None,
        }
    }
    search(&serde_json::from_str(rules).ok()?, name)
}

fn expected_attach(release: &str) -> &'static str {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < TCX_SINCE => "clsact",
        _ => "tcx",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "@@ kernel\n6.1.0-56-cloud-amd64\n@@ setup\n\
        @@ answer\n203.0.113.1:7 saw 203.0.113.20:40000\n\
        @@ programs\n[{\"id\":4,\"type\":\"sched_cls\",\"name\":\"tc_internal\"}]\n\
        @@ fdinfo\nprog_id:\t4\nverified_insns:\t1234\n\
        @@ status\n{\"ready\":true,\"problems\":[],\"interfaces\":[{\"attach\":\"clsact\"},{\"attach\":\"clsact\"}]}\n\
        @@ rules\n{\"rules\":[{\"name\":\"snat-first-hosts\",\"packets\":2}]}\n\
        @@ detach\ndetached\n@@ log\n@@ cases\n9 cases over IPv4 on tc in 1s\n8 cases over IPv6 on tc in 1s\n\
        test result: ok. 1 passed; 0 failed\nexit code 0\n@@ end\n";

    fn parse(text: &str) -> Report {
        Report::parse(text, &["tc_internal".to_owned()])
    }

    #[test]
    fn a_good_report_has_no_faults() {
        let report = parse(GOOD);
        assert_eq!(report.faults, Vec::<String>::new());
        assert_eq!(report.programs, [("tc_internal".to_owned(), Some(1234))]);
        assert_eq!((report.attach.as_str(), report.loaded()), ("clsact", 1));
        assert_eq!(report.packet, "from 203.0.113.20:40000");
        assert_eq!(report.cases, "17");
    }

    #[test]
    fn every_deviation_is_a_fault() {
        for (from, to, fault) in [
            ("saw 203.0.113.20", "saw 10.0.1.10", "the round trip ended with"),
            ("tc_internal", "tc_interna1", "not loaded: tc_internal"),
            ("\"packets\":2", "\"packets\":0", "counted no packets"),
            ("clsact", "tcx", "attached by `tcx`, not by clsact"),
            ("\"ready\":true", "\"ready\":false", "not ready"),
            ("\"problems\":[]", "\"problems\":[\"sweep\"]", "sweep"),
            ("detached", "oh", "detach failed: oh"),
            ("exit code 0", "exit code 101", "the packet cases failed"),
            ("1 passed", "0 passed", "the packet cases failed"),
            (" cases over ", " cases under ", "the packet cases failed"),
            ("@@ end\n", "", "stopped early"),
        ] {
            let report = parse(&GOOD.replace(from, to));
            assert!(report.faults.iter().any(|text| text.contains(fault)), "{from}: {report:?}");
        }
    }

    #[test]
    fn a_gateway_that_does_not_start_says_why() {
        let report = parse("@@ kernel\n6.1.0\n@@ setup\n@@ log\nR1 invalid mem access\n@@ end\n");
        assert!(report.faults[0].ends_with("did not start:\nR1 invalid mem access"), "{report:?}");
        assert_eq!(report.loaded(), 0);
    }
}
