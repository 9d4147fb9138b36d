//! `test`: all tests, by tier.
//!
//! | tier | what | needs |
//! |---|---|---|
//! | `unit` | unit tests and documentation of all host crates | nothing |
//! | `control` | manifests to plans; integration tests that fit no other tier | root for those on maps |
//! | `packet` | packet cases on the host and in the kernel | root |
//! | `netns` | end to end between network namespaces | root |
//! | `kube` | the same, with objects from a real API server | root, Go |
//!
//! `--nightly` makes the random tests long and ends with each fuzz target for ten minutes.
//!
//! The binaries are compiled as the user and run as root where their tier needs it, with
//! `GATEWAY_REQUIRE_KERNEL=1`, so that no test skips itself for want of a privilege. The very last
//! line is `N passed, N failed, N skipped`.

pub(crate) mod binaries;

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use self::binaries::Binary;
use crate::console::{self, Colour, Steps};
use crate::libtest::{Reader, Tally};
use crate::privilege::{self, Privilege};
use crate::workspace::Workspace;
use crate::{Exit, build, fuzz, image, kube_assets, process, setup};

const STEPS: Steps = Steps::of("test");

/// A binary that runs longer than this hangs.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// At night.
const NIGHTLY_LIMIT: Duration = Duration::from_secs(3 * 3600);

/// Runs tests, builds what they need, and sums up.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Options {
    /// The tiers to run
    #[arg(value_enum, value_name = "TIER", default_value = "all")]
    tiers: Vec<Tier>,
    /// Run only tests whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Lengths for a night: a million random packets and races, then each fuzz target for a while
    #[arg(long)]
    nightly: bool,
}

/// What the long tests read their lengths from, and what is right for a night.
const NIGHTLY: [(&str, &str); 4] = [
    ("DIFFERENTIAL_PACKETS", "1000000"),
    ("RACE_TRIES", "1000000"),
    ("MODEL_STEPS", "1000000"),
    ("EXEC_RULES", "10000"),
];

/// How long each fuzz target runs at night.
const NIGHTLY_FUZZ_SECONDS: u32 = 600;

/// A group of tests with the same needs, cheapest first.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Tier {
    /// Unit tests and documentation of all host crates
    Unit,
    /// Manifests to plans
    Control,
    /// Packet cases on the host and in the kernel
    Packet,
    /// End to end between network namespaces
    Netns,
    /// End to end, with objects from a real API server
    Kube,
    /// All of them
    All,
}

impl Tier {
    /// The tiers in the order they run.
    const ORDER: [Self; 5] = [Self::Unit, Self::Control, Self::Packet, Self::Netns, Self::Kube];

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Control => "control",
            Self::Packet => "packet",
            Self::Netns => "netns",
            Self::Kube => "kube",
            Self::All => "all",
        }
    }

    /// Whether a tier makes no sense without loading programs.
    fn needs_kernel(self) -> bool {
        match self {
            Self::Packet | Self::Netns | Self::Kube | Self::All => true,
            Self::Unit | Self::Control => false,
        }
    }
}

struct Row {
    tier: Tier,
    tally: Tally,
    elapsed: Duration,
    broken: Vec<String>,
}

/// What the kernel tiers run with.
struct Kernel {
    privilege: Privilege,
    variables: Vec<(&'static str, OsString)>,
}

/// Runs the verb.
///
/// # Errors
///
/// This machine lacks something, something does not compile, or a test fails.
pub(crate) fn run(options: Options) -> Result<()> {
    let workspace = Workspace::locate()?;
    let everything = options.tiers.is_empty() || options.tiers.contains(&Tier::All);
    let chosen = |tier: &Tier| everything || options.tiers.contains(tier);
    let tiers: Vec<Tier> = Tier::ORDER.into_iter().filter(chosen).collect();
    let kernel = prepare(&workspace, &tiers, options.nightly)?;
    STEPS.say("compiling the tests ...");
    let binaries = binaries::compile(&workspace)?;
    let rows = tiers
        .into_iter()
        .map(|tier| run_tier(&workspace, tier, &binaries, kernel.as_ref(), &options))
        .collect::<Result<Vec<_>>>()?;
    let fuzzed = if options.nightly { fuzz(&workspace) } else { Ok(()) };
    summarise(&rows)?;
    fuzzed
}

/// Each fuzz target for a while; all of them, whatever one finds.
fn fuzz(workspace: &Workspace) -> Result<()> {
    let fuzzer = fuzz::build(workspace)?;
    let hunt = |target| fuzz::hunt(workspace, &fuzzer, target, NIGHTLY_FUZZ_SECONDS, false);
    let results = fuzz::Target::ALL.map(hunt);
    results.into_iter().collect()
}

/// Checks and builds what the kernel tiers need, first what takes no time.
fn prepare(workspace: &Workspace, tiers: &[Tier], nightly: bool) -> Result<Option<Kernel>> {
    let privilege = if tiers.iter().any(|tier| tier.needs_kernel()) {
        privilege::require_kernel(STEPS)?
    } else if tiers.contains(&Tier::Control) {
        match privilege::require_kernel(STEPS) {
            Ok(privilege) => privilege,
            Err(error) => {
                STEPS.say(format_args!("tests on maps skip themselves: {error:#}"));
                return Ok(None);
            }
        }
    } else {
        return Ok(None);
    };
    setup::ensure_programs()?;
    let products = build::products(workspace)?;
    let binary = products.binary.clone();
    let mut variables = products.variables();
    variables.push(("GATEWAY_REQUIRE_KERNEL", "1".into()));
    if tiers.contains(&Tier::Kube) {
        variables.push((kube_assets::VARIABLE, kube_assets::ensure()?.into()));
        variables.push((kube_assets::HELM_VARIABLE, kube_assets::helm()?.into()));
        let image = image::archive(workspace, &binary, "vpc-gateway:test")?;
        variables.push((image::VARIABLE, image.into()));
    }
    if nightly {
        variables.extend(NIGHTLY.map(|(name, value)| (name, value.into())));
    }
    Ok(Some(Kernel { privilege, variables }))
}

fn run_tier(
    workspace: &Workspace,
    tier: Tier,
    binaries: &[Binary],
    kernel: Option<&Kernel>,
    options: &Options,
) -> Result<Row> {
    let started = Instant::now();
    let limit = if options.nightly { NIGHTLY_LIMIT } else { LIMIT };
    let mut row = Row { tier, tally: Tally::default(), elapsed: Duration::ZERO, broken: vec![] };
    let mine: Vec<_> = binaries.iter().filter(|binary| binary.tier() == tier).collect();
    if mine.is_empty() {
        STEPS.say(format_args!("{}: there are no tests of this tier", tier.name()));
    }
    for binary in mine {
        STEPS.say(format_args!("{}: {}", tier.name(), binary.title()));
        let mut command = match kernel.filter(|_| tier != Tier::Unit) {
            Some(kernel) => kernel.privilege.command(&binary.executable, &kernel.variables),
            None => Command::new(&binary.executable),
        };
        command.current_dir(&binary.folder).args(&options.only);
        if tier != Tier::Unit {
            // Measurements, and why a test skipped itself.
            command.arg("--show-output");
        }
        if matches!(tier, Tier::Netns | Tier::Kube) {
            command.arg("--test-threads=1");
        }
        row.take(&binary.title(), execute(&mut command, limit, |line| println!("{line}"))?);
    }
    if tier == Tier::Unit {
        STEPS.say("unit: documentation");
        let mut command = workspace.cargo();
        command.args(["test", "--doc", "--quiet", "--"]).args(&options.only);
        row.take("documentation", execute(&mut command, limit, |line| println!("{line}"))?);
    }
    row.elapsed = started.elapsed();
    Ok(row)
}

impl Row {
    /// Adds what one binary said; one that died or hung counts as a failed test.
    fn take(&mut self, title: &str, ended: Ended) {
        let said = ended.tally.unwrap_or_default();
        self.tally += said;
        match ended.fault {
            Some(fault) if said.failed == 0 => {
                self.tally += Tally::ONE_FAILED;
                self.broken.push(format!("{title}: {fault}"));
            }
            Some(_) => self.broken.push(format!("{title}: {} failed", said.failed)),
            None => {}
        }
    }
}

/// How a test binary ended.
struct Ended {
    tally: Option<Tally>,
    fault: Option<String>,
}

/// Runs a test binary, passes its lines on, and reads the results in them.
fn execute(command: &mut Command, limit: Duration, pass_on: impl Fn(&str)) -> Result<Ended> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to start `{}`", process::line(command)))?;
    let output = child.stdout.take().context("a child without standard output")?;
    let (sender, lines) = mpsc::channel();
    // A thread of its own: a server that a killed test leaves behind keeps the pipe open for ever.
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let mut reader = Reader::default();
    let deadline = Instant::now() + limit;
    let mut ended = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => {
                pass_on(&line);
                reader.line(&line);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) if ended.is_some() => break,
            Err(mpsc::RecvTimeoutError::Timeout) if Instant::now() > deadline => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                ended = child.try_wait().context("failed to wait for a test binary")?;
            }
        }
    }
    let grace = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
    let fault = match process::wait_within(grace, &mut child)? {
        Some(status) if status.success() => None,
        Some(status) => Some(status.to_string()),
        None => Some(format!("killed after {}", console::seconds(limit))),
    };
    let tally = reader.tally();
    let silent = tally.is_none().then(|| "ended without a result".to_owned());
    Ok(Ended { tally, fault: fault.or(silent) })
}

fn summarise(rows: &[Row]) -> Result<()> {
    println!();
    println!("{:<10}{:>8}{:>8}{:>9}  time", "tier", "passed", "failed", "skipped");
    let mut sum = Tally::default();
    for Row { tier, tally, elapsed, .. } in rows {
        let Tally { passed, failed, skipped } = tally;
        let time = console::seconds(*elapsed);
        println!("{:<10}{passed:>8}{failed:>8}{skipped:>9}  {time}", tier.name());
        sum += *tally;
    }
    for fault in rows.iter().flat_map(|row| &row.broken) {
        println!("{} {fault}", console::paint(Colour::Red, "FAILED"));
    }
    println!("{sum}");
    // The sum stays the very last line: a failure adds an exit code, no message.
    if sum.failed > 0 { Err(Exit::FAILURE.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Ended {
        // Printed, the result in it would count as one of the tests here.
        execute(Command::new("sh").args(["-c", script]), LIMIT, |_| {}).unwrap()
    }

    const RESULT: &str = "echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured'";

    #[test]
    fn a_binary_that_passes_has_no_fault() {
        let ended = shell(RESULT);
        assert_eq!(ended.tally, Some(Tally { passed: 2, failed: 0, skipped: 0 }));
        assert_eq!(ended.fault, None);
    }

    #[test]
    fn a_binary_that_dies_counts_as_one_failed_test() {
        let mut row = Row {
            tier: Tier::Netns,
            tally: Tally::default(),
            elapsed: Duration::ZERO,
            broken: vec![],
        };
        row.take("netns", shell("kill -9 $$"));
        row.take("silent", shell("true"));
        assert_eq!(row.tally.failed, 2);
        assert!(row.broken[0].contains("signal: 9"), "{:?}", row.broken);
        assert!(row.broken[1].contains("ended without a result"), "{:?}", row.broken);
        assert!(summarise(&[row]).is_err());
    }

    #[test]
    fn a_server_left_behind_does_not_hold_up_the_tests() {
        let started = Instant::now();
        let ended = shell(&format!("sleep 20 & {RESULT}"));
        assert_eq!(ended.fault, None);
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
