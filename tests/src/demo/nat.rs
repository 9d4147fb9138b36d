//! `gateway-demo nat`: the rules of the example manifests, one connection after the other.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Result;
use serde_json::json;

use super::cases;
use super::leftovers;
use super::screen::Screen;
use super::stage::Stage;
use crate::lab::capture::{Capture, Filter};
use crate::lab::checks::{Checks, Observation};
use crate::lab::gateway::first_lines;
use crate::lab::netns::run as run_command;
use crate::lab::pins;
use crate::lab::table_run::no_leak;

/// How many lines of a verb or a map are shown.
const EXCERPT: usize = 24;
/// The map that is shown.
const SHOWN_MAP: &str = "DNATS_V4";

/// How to run it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Leave everything running.
    pub keep: bool,
    /// Print JSON instead of the table.
    pub json: bool,
    /// The manifests to apply.
    pub config: PathBuf,
    /// The gateway among them.
    pub gateway: String,
}

/// The manifests that come with the project.
pub fn example() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("examples");
    beside.join("nat-gateway")
}

/// Builds the stage, runs all cases, shows rules, sessions, drops and a map, and sums up.
///
/// # Errors
/// The stage cannot be built. A case that fails is no error but the exit code 1.
pub fn run(options: &Options) -> Result<ExitCode> {
    let screen = Screen::new(options.json);
    for name in leftovers::remove(false, None)? {
        screen.step(&format!("removed {name}, which was killed"));
    }
    let mut stage = Stage::build(&options.config, &options.gateway, &screen)?;
    let mut checks = Checks::default();
    let leaks = Capture::start(&stage.net.x.ns, "ext", Filter::PrivateSource);
    screen.head();
    let mut check = |name: &str, body: &mut dyn FnMut() -> Result<Observation>| {
        screen.outcome(checks.check(name, body));
    };
    cases::traffic(&stage, &mut check);
    cases::refusals(&stage, &mut check);
    cases::changes(&mut stage, &mut check);
    let mut leaks = Some(leaks);
    check("nothing leaked untranslated", &mut || {
        leaks.take().map_or_else(|| anyhow::bail!("no capture"), no_leak)
    });
    show(&stage, &screen);
    let (passed, failed) = checks.counts();
    if failed > 0 {
        screen.section("the log of the gateway", &stage.gateway.log());
    }
    if options.json {
        let document = json!({
            "checks": checks.to_json(), "passed": passed, "failed": failed,
            "rules": stage.gateway.json("rules").ok(),
            "sessions": stage.gateway.json("sessions").ok(),
            "drops": stage.gateway.json("drops").ok(),
        });
        println!("{document:#}");
    }
    if options.keep {
        let record = stage.keep()?;
        screen.line(&format!("\n{}", record.directions()));
    } else {
        screen.step("removing the namespaces");
        drop(stage);
    }
    let last = format!("demo: {passed} checks passed, {failed} failed");
    if options.json {
        eprintln!("{last}");
    } else {
        screen.line(&last);
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the operator's own tools say.
fn show(stage: &Stage, screen: &Screen) {
    let gateway = &stage.gateway;
    for verb in ["rules", "sessions", "drops"] {
        let text = gateway.verb(verb, &[]).unwrap_or_else(|error| format!("{error:#}"));
        let title = format!("vpc-gateway {verb} --gateway {}", gateway.name());
        screen.section(&title, &first_lines(&text, EXCERPT));
    }
    if run_command(Command::new("bpftool").arg("version")).is_err() {
        screen.step("bpftool is not installed: no map is dumped");
        return;
    }
    // The rules of one kind: small, and never empty in the example.
    let path = gateway.pins().join(SHOWN_MAP);
    let text = pins::dump(&path).unwrap_or_else(|error| format!("{error:#}"));
    let title = format!("bpftool map dump pinned {}", path.display());
    screen.section(&title, &first_lines(&text, EXCERPT));
}
