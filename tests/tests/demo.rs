//! The demo as a user runs it: it passes, it leaves nothing behind, it can be interrupted and kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use gateway_tests::demo::{egress, nat, stage};
use gateway_tests::lab::egress::SELECTOR_PINS;
use gateway_tests::lab::gateway::{PINS, run_to_end};
use gateway_tests::lab::netns::run;
use gateway_tests::lab::scratch::Scratch;
use gateway_tests::lab::tier;
use gateway_tests::lab::wait::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LONG: Duration = Duration::from_secs(60);

/// The example with another gateway name, so that nothing of this machine is in its way.
struct Example {
    gateway: String,
    config: Scratch,
    binary: PathBuf,
}

impl Example {
    fn new(name: &str) -> Option<Self> {
        let binary = tier::gateway()?;
        let gateway = format!("{name}-{}", std::process::id());
        let config = Scratch::create(&format!("vgw-demo-test-{gateway}")).expect("a directory");
        for entry in fs::read_dir(nat::example()).expect("the example") {
            let path = entry.expect("an entry").path();
            let text = fs::read_to_string(&path).expect("a manifest");
            let file = path.file_name().expect("a name").to_string_lossy().into_owned();
            config.write(&file, text.replace("gw1", &gateway)).expect("a copy");
        }
        Some(Self { gateway, config, binary })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway-demo"));
        command.args(arguments).args(["--gateway", &self.gateway]).arg("--config");
        command.arg(self.config.path()).env(tier::BINARY, &self.binary);
        command
    }

    fn pins(&self) -> PathBuf {
        Path::new(PINS).join(&self.gateway)
    }
}

fn namespaces_of(process: u32) -> Vec<String> {
    namespaces_with(&format!("{}-{process}-", stage::PREFIX))
}

fn namespaces_with(prefix: &str) -> Vec<String> {
    let list = run(Command::new("ip").args(["netns", "list"])).expect("a list");
    let names = list.lines().filter_map(|line| line.split(' ').next());
    names.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
}

fn finish(mut child: Child) -> Output {
    wait_until("the demo to end", LONG, || Ok(child.try_wait()?)).expect("an end");
    child.wait_with_output().expect("its output")
}

fn start(command: &mut Command, log: &Path) -> Child {
    let log = fs::File::create(log).expect("a log");
    command.stdin(Stdio::null()).stdout(log).stderr(Stdio::inherit());
    command.spawn().expect("a process")
}

#[test]
fn the_demo_passes_and_leaves_nothing_behind() {
    let Some(example) = Example::new("pass") else { return };
    let log = example.config.join("output");
    let child = start(&mut example.command(&["nat"]), &log);
    let process = child.id();
    let ended = finish(child).status;
    let said = fs::read_to_string(&log).expect("its output");
    assert!(ended.success(), "{ended}\n{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("demo: ") && last.ends_with(" checks passed, 0 failed"), "{last}");
    assert_eq!(namespaces_of(process), Vec::<String>::new());
    assert!(!example.pins().exists());
}

#[test]
fn the_demo_of_an_egress_gateway_passes_and_leaves_nothing_behind() {
    let Some(binary) = tier::gateway() else { return };
    let scratch = Scratch::create(&format!("vgw-demo-egress-{}", std::process::id()));
    let log = scratch.as_ref().expect("a directory").join("output");
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway-demo"));
    let mut child = start(command.arg("egress").env(tier::BINARY, binary), &log);
    let process = child.id();
    let end = wait_until("the demo to end", LONG * 3, || Ok(child.try_wait()?));
    let said = fs::read_to_string(&log).expect("its output");
    assert!(end.as_ref().is_ok_and(std::process::ExitStatus::success), "{end:?}\n{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("demo: ") && last.ends_with(" checks passed, 0 failed"), "{last}");
    assert_eq!(namespaces_with(&format!("{}-{process}-", egress::PREFIX)), Vec::<String>::new());
}

#[test]
fn an_interrupted_demo_cleans_up() {
    let Some(example) = Example::new("interrupt") else { return };
    for (when, signal) in [("CASE", Signal::SIGINT), ("starting", Signal::SIGTERM)] {
        let log = example.config.join("output");
        let child = start(&mut example.command(&[]), &log);
        let process = child.id();
        let reached = || Ok(fs::read_to_string(&log)?.contains(when).then_some(()));
        wait_until("the demo to get going", LONG, reached).expect("progress");
        assert!(!namespaces_of(process).is_empty());
        kill(Pid::from_raw(process.cast_signed()), signal).expect("a process to interrupt");
        let ended = finish(child).status;
        assert_eq!(ended.code(), Some(128 + signal as i32));
        assert_eq!(namespaces_of(process), Vec::<String>::new());
        assert!(!example.pins().exists());
    }
}

#[test]
fn a_kept_demo_goes_on_until_it_is_cleaned_up() {
    let Some(example) = Example::new("keep") else { return };
    let log = example.config.join("output");
    let child = start(&mut example.command(&["--keep"]), &log);
    let process = child.id();
    assert!(finish(child).status.success());
    let said = fs::read_to_string(&log).expect("its output");
    assert!(said.contains("nsenter --net=/run/netns/"), "{said}");
    let kept = namespaces_of(process);
    let host = kept.iter().find(|name| name.ends_with("-b")).expect("a kept namespace");
    let path = format!("--net=/run/netns/{host}");
    let mut curl = Command::new("nsenter");
    curl.args([&path, "curl", "--silent", "--noproxy", "*", "--max-time", "5", "203.0.113.1"]);
    let answer = run(&mut curl);

    let mut clean = Command::new(env!("CARGO_BIN_EXE_gateway-demo"));
    let cleaned =
        run_to_end(clean.args(["clean", "--only", &process.to_string()])).expect("an end");
    assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
    assert!(answer.as_deref().is_ok_and(|seen| seen.contains("203.0.113.20")), "{answer:?}");
    assert_eq!(namespaces_of(process), Vec::<String>::new());
    assert!(!example.pins().exists());
}

#[test]
fn a_killed_demo_is_cleaned_up_later() {
    let Some(example) = Example::new("killed") else { return };
    let log = example.config.join("output");
    let mut child = start(&mut example.command(&[]), &log);
    let process = child.id();
    let reached = || Ok(fs::read_to_string(&log)?.contains("CASE").then_some(()));
    wait_until("the demo to get going", LONG, reached).expect("progress");
    child.kill().expect("a process to kill");
    child.wait().expect("an end");
    assert!(!namespaces_of(process).is_empty());
    let mut clean = Command::new(env!("CARGO_BIN_EXE_gateway-demo"));
    run_to_end(clean.args(["clean", "--only", &process.to_string()])).expect("an end");
    assert_eq!(namespaces_of(process), Vec::<String>::new());
    assert!(!example.pins().exists());
    let directory = format!("{}-{process}-", stage::PREFIX);
    let left = run(Command::new("ps").args(["-eo", "args"])).expect("processes");
    assert!(!left.contains(&directory), "{left}");
}

#[test]
fn a_killed_demo_of_an_egress_gateway_is_cleaned_up_later() {
    let Some(binary) = tier::gateway() else { return };
    let scratch = Scratch::create(&format!("vgw-demo-killed-egress-{}", std::process::id()));
    let log = scratch.as_ref().expect("a directory").join("output");
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway-demo"));
    let mut child = start(command.arg("egress").env(tier::BINARY, binary), &log);
    let process = child.id();
    let reached = || Ok(fs::read_to_string(&log)?.contains("CASE").then_some(()));
    wait_until("the demo to get going", LONG, reached).expect("progress");
    child.kill().expect("a process to kill");
    child.wait().expect("an end");
    let name = format!("{}-{process}-", egress::PREFIX);
    assert!(!namespaces_with(&name).is_empty());
    let mut clean = Command::new(env!("CARGO_BIN_EXE_gateway-demo"));
    run_to_end(clean.args(["clean", "--only", &process.to_string()])).expect("an end");
    assert_eq!(namespaces_with(&name), Vec::<String>::new());
    for pins in [PINS, SELECTOR_PINS] {
        let left = fs::read_dir(pins).into_iter().flatten().flatten();
        let mut left = left.map(|entry| entry.file_name().to_string_lossy().into_owned());
        assert!(left.all(|one| !one.starts_with(&name)), "{pins}");
    }
    let left = run(Command::new("ps").args(["-eo", "args"])).expect("processes");
    assert!(!left.contains(&name), "{left}");
}
