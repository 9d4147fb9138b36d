//! Rules by a real API server: all of them, and one change among them.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use gateway_common::family::V4;
use gateway_common::records::DnatKey;
use serde_json::{Value, json};

use super::rule_load::{Dnats, open, until};
use super::{Bench, spaced};
use crate::bench::report::Unit;
use crate::bench::screen::progress;
use crate::kernel::maps::Raw;
use crate::lab::gateway::{Gateway, Settings};
use crate::lab::kube::ApiServer;
use crate::lab::tier;
use crate::lab::topology::{Options, Topology};

/// Its name.
pub const NAME: &str = "kube";

const WAY: &str = "vpc-gateway --kube";
const EIPS: u32 = 1_000;
const FIRST_EIP: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 0);
const FIRST_PORT: u32 = 10_000;
/// How long the daemon is left alone before it is measured.
const QUIET: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures.
///
/// # Errors
/// The API server or the gateway do not work.
pub fn run(bench: &mut Bench) -> Result<()> {
    let rules = bench.pick(2_000, 10_000);
    let changes = bench.pick(30, 200);
    let binary = tier::binary()?;
    let net = Topology::build(&Options::default())?;
    let api = ApiServer::start(&net.name, &binary)?;
    surroundings(&api, &net.name)?;
    progress(&format!("{NAME}: {} EIPs and {} rules", spaced(EIPS.into()), spaced(rules.into())));
    let mut stage = Stage::start(&net, &api, binary)?;
    stage.load(bench, rules)?;
    stage.load_again(bench, rules)?;
    stage.change(bench, rules, changes)
}

/// A gateway that watches an API server.
struct Stage<'a> {
    api: &'a ApiServer,
    name: String,
    state: PathBuf,
    gateway: Gateway,
}

fn surroundings(api: &ApiServer, gateway: &str) -> Result<()> {
    api.put("Vpc", "bench", &json!({}))?;
    let inside = json!({"vpc": "bench", "protocol": "IPv4", "cidrBlock": "10.0.1.0/24",
        "gateway": "10.0.1.1"});
    api.put("Subnet", "inside", &inside)?;
    let outside =
        json!({"protocol": "IPv4", "cidrBlock": "198.18.0.0/15", "gateway": "198.18.0.1"});
    api.put("Subnet", "outside", &outside)?;
    let spec = json!({"vpc": "bench", "subnet": "inside", "lanIp": "10.0.1.254",
        "externalSubnets": ["outside"]});
    api.put("VpcNatGateway", gateway, &spec)
}

fn eip(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_EIP.to_bits() + index)
}

fn rule(index: u32, internal_port: u32) -> Value {
    json!({"eip": format!("e{}", index % EIPS), "externalPort": (FIRST_PORT + index / EIPS).to_string(),
        "internalPort": internal_port.to_string(), "internalIp": "10.0.1.10", "protocol": "tcp"})
}

fn key(eip: Ipv4Addr, port: u32) -> Result<Raw<DnatKey<V4>>> {
    Ok(Raw(DnatKey { eip: eip.into(), port: u16::try_from(port)?, protocol: 6, zero: 0 }))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// How long a change took.
struct Change {
    /// Until the API server had answered.
    answer: Duration,
    /// Until the map had it.
    total: Duration,
    /// Until the map had it after the daemon had heard of it, in milliseconds.
    delay: f64,
}

/// Makes one change after the other, each after a pause.
fn measure(
    bench: &mut Bench,
    case: &str,
    changes: u32,
    change: impl Fn(u32) -> Result<Change>,
) -> Result<()> {
    let (mut answers, mut totals, mut delays) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..changes {
        thread::sleep(Duration::from_millis(120));
        let Change { answer, total, delay } = change(turn)?;
        answers.push(millis(answer));
        totals.push(millis(total));
        delays.push(delay);
    }
    for (what, mut values) in [
        ("the API server's answer", answers),
        ("from the request to the map", totals),
        ("from the event to the map", delays),
    ] {
        values.sort_by(f64::total_cmp);
        let last = values[values.len() * 99 / 100];
        for value in values {
            bench.report.add(NAME, &format!("{case}: {what}"), WAY, Unit::Millis, value);
        }
        bench.report.add(NAME, &format!("{case}: {what}, p99"), WAY, Unit::Millis, last);
    }
    Ok(())
}

impl<'a> Stage<'a> {
    fn start(net: &Topology, api: &'a ApiServer, binary: PathBuf) -> Result<Self> {
        let name = net.name.clone();
        let (object, config, arguments) = (None, PathBuf::new(), api.arguments(true)?);
        let settings = Settings { binary, name: name.clone(), object, config, arguments };
        let state = net.scratch.join(&format!("state-{name}")).join(&name).join("status.json");
        let gateway = Gateway::start(net, settings)?;
        Ok(Self { api, name, state, gateway })
    }

    /// The daemon's own record: reading it costs less than asking for it.
    fn status(&self) -> Result<Value> {
        let text = fs::read(&self.state).with_context(|| format!("no {}", self.state.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }

    fn active(&self) -> Result<u64> {
        self.status()?["rules"]["dnat"].as_u64().context("no rules in the status")
    }

    fn await_rules(&self, count: u32) -> Result<()> {
        until(PATIENCE, "the rules to be active", || Ok(self.active()? == u64::from(count)))
    }

    /// Creates everything while the daemon runs.
    fn load(&self, bench: &mut Bench, rules: u32) -> Result<()> {
        let named = |index| {
            let spec =
                json!({"natGwDp": self.name, "externalSubnet": "outside", "v4ip": eip(index)});
            (format!("e{index}"), spec)
        };
        let eips: Vec<_> = (0..EIPS).map(named).collect();
        let dnats: Vec<_> =
            (0..rules).map(|index| (format!("d{index}"), rule(index, 80))).collect();
        let cpu = self.cpu()?;
        let began = Instant::now();
        self.api.create_many("IptablesEIP", &eips)?;
        self.api.create_many("IptablesDnatRule", &dnats)?;
        let created = began.elapsed();
        self.await_rules(rules)?;
        let active = began.elapsed();
        thread::sleep(QUIET);
        let spent = self.cpu()? - cpu;
        let all = spaced(rules.into());
        let mut add = |case: &str, unit, value| {
            bench.report.add(NAME, &format!("{all} rules: {case}"), WAY, unit, value);
        };
        add("created one by one", Unit::Millis, millis(created));
        add(
            "active after the last was created",
            Unit::Millis,
            millis(active.saturating_sub(created)),
        );
        add("CPU time of the daemon meanwhile", Unit::Millis, millis(spent));
        add("resident memory of the daemon", Unit::Megabytes, self.memory()?);
        Ok(())
    }

    /// Starts the daemon where everything is there, with empty maps.
    fn load_again(&mut self, bench: &mut Bench, rules: u32) -> Result<()> {
        self.gateway.detach()?;
        let took = self.gateway.restart()?;
        self.await_rules(rules)?;
        thread::sleep(QUIET);
        let case = format!("{} rules: ready after the start", spaced(rules.into()));
        bench.report.add(NAME, &case, WAY, Unit::Millis, millis(took));
        let case = format!("{} rules: CPU time of the start", spaced(rules.into()));
        bench.report.add(NAME, &case, WAY, Unit::Millis, millis(self.cpu()?));
        let case = format!("{} rules: resident memory after the start", spaced(rules.into()));
        bench.report.add(NAME, &case, WAY, Unit::Megabytes, self.memory()?);
        Ok(())
    }

    /// Changes one rule after the other and then one EIP after the other, each after a pause.
    fn change(&self, bench: &mut Bench, rules: u32, changes: u32) -> Result<()> {
        let map = open(&self.gateway.pins().join("DNATS_V4"))?;
        let all = spaced(rules.into());
        let case = format!("one of {all} rules changed");
        measure(bench, &case, changes, |turn| {
            self.change_rule(&map, turn * 37 % rules, 1000 + turn)
        })?;
        let case = format!("an EIP of {} of {all} rules moved", rules / EIPS);
        measure(bench, &case, changes, |turn| self.move_eip(&map, turn % EIPS, eip(EIPS + turn)))
    }

    /// Changes the inside port of a rule.
    fn change_rule(&self, map: &Dnats, index: u32, port: u32) -> Result<Change> {
        let wanted = u16::try_from(port)?;
        let key = key(eip(index % EIPS), FIRST_PORT + index / EIPS)?;
        self.watch(
            || self.api.put("IptablesDnatRule", &format!("d{index}"), &rule(index, port)),
            || map.get(&key, 0).is_ok_and(|dnat| dnat.0.port == wanted),
        )
    }

    /// Gives an EIP another address.
    fn move_eip(&self, map: &Dnats, index: u32, address: Ipv4Addr) -> Result<Change> {
        let spec = json!({"natGwDp": self.name, "externalSubnet": "outside", "v4ip": address});
        let key = key(address, FIRST_PORT)?;
        self.watch(
            || self.api.put("IptablesEIP", &format!("e{index}"), &spec),
            || map.get(&key, 0).is_ok(),
        )
    }

    /// Asks for a change, and waits until it is seen.
    fn watch(
        &self,
        request: impl FnOnce() -> Result<()> + Send,
        seen: impl Fn() -> bool,
    ) -> Result<Change> {
        let before = self.status()?["generation"].clone();
        let began = Instant::now();
        let (answer, total) = thread::scope(|scope| {
            let request = scope.spawn(|| {
                request()?;
                Ok::<_, anyhow::Error>(began.elapsed())
            });
            let seen = until(PATIENCE, "the change", || Ok(seen()));
            let total = began.elapsed();
            let answer = request.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            seen.map(|()| (answer, total))
        })?;
        until(PATIENCE, "the status", || Ok(self.status()?["generation"] != before))?;
        let micros = self.status()?["last_apply"]["event_to_map_us"].as_f64();
        let delay = micros.context("no event in the status")? / 1e3;
        Ok(Change { answer, total, delay })
    }

    fn pid(&self) -> Result<u32> {
        self.gateway.pid().context("the daemon does not run")
    }

    /// CPU time of the daemon so far.
    fn cpu(&self) -> Result<Duration> {
        let mut total = 0_u64;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid()?))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            let first = text.split(' ').next().context("no schedstat")?;
            total += first.parse::<u64>()?;
        }
        ensure!(total > 0, "the kernel keeps no schedstat");
        Ok(Duration::from_nanos(total))
    }

    /// Resident memory of the daemon in megabytes.
    fn memory(&self) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib / 1024.0)
    }
}
