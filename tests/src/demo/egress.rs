//! `gateway-demo egress`: three replicas of an egress gateway, one of which dies under load.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::leftovers::{self, Record};
use super::screen::Screen;
use crate::lab::checks::{Checks, Observation};
use crate::lab::echo::{ECHO_PORT, EchoServers};
use crate::lab::egress::{
    EgressLab, OBJECT, PLAIN, REPLICAS, TENANT, external, replica_of, server, way_back,
};
use crate::lab::gateway::first_lines;
use crate::lab::load::{History, Load};
use crate::lab::probe::{self, TcpProbe};

/// First part of the names of the namespaces.
pub const PREFIX: &str = "vgwdemo-egress";

/// How many flows there are at once.
const FLOWS: u16 = 150;
/// How long flows go on before and after something happens.
const WHILE: Duration = Duration::from_millis(1500);
/// The detection time that the manifest asks for.
const DETECTION: Duration = Duration::from_millis(300);
/// How much later than that the last flow may have moved: this machine has other things to do.
const TOLERANCE: Duration = Duration::from_millis(2000);
/// The replica that dies.
const VICTIM: usize = 1;

const FAMILY: [&str; 2] = ["IPv4", "IPv6"];

/// How to run it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Print JSON instead of the table.
    pub json: bool,
}

type Check<'c> = &'c mut dyn FnMut(&str, &mut dyn FnMut() -> Result<Observation>);

/// Builds the stage, runs all cases, shows the next hops and sums up.
///
/// # Errors
/// The stage cannot be built. A case that fails is no error but the exit code 1.
pub fn run(options: &Options) -> Result<ExitCode> {
    let screen = Screen::new(options.json);
    for name in leftovers::remove(false, None)? {
        screen.step(&format!("removed {name}, which was killed"));
    }
    screen.step("building the namespaces: tenant, selector, three replicas, router, server");
    let mut lab = EgressLab::build(PREFIX)?;
    Record::of_egress(&lab).write()?;
    let _outside = EchoServers::start(&lab.server, ECHO_PORT)?;
    let _inside = EchoServers::start(&lab.tenant, ECHO_PORT)?;
    screen.step("starting vpc-gateway: run and bfdd for each replica, select for the tenants");
    lab.start().with_context(|| lab.diagnostics())?;
    let mut checks = Checks::default();
    screen.head();
    let mut check = |name: &str, body: &mut dyn FnMut() -> Result<Observation>| {
        screen.outcome(checks.check(name, body));
    };
    spread(&lab, &mut check);
    unchanged(&lab, &mut check);
    own(&lab, &mut check);
    weights(&lab, &mut check);
    death(&mut lab, &mut check);
    let (passed, failed) = checks.counts();
    let nexthops = lab.nexthops(&[]).unwrap_or_else(|error| format!("{error:#}"));
    screen.section("vpc-gateway nexthops", &nexthops);
    let gateway = &lab.replicas[0].gateway;
    let rules = gateway.verb("rules", &[]).unwrap_or_else(|error| format!("{error:#}"));
    screen.section("vpc-gateway rules (replica 0)", &first_lines(&rules, 12));
    if failed > 0 {
        screen.section("logs", &lab.diagnostics());
    }
    if options.json {
        let document = json!({"checks": checks.to_json(), "passed": passed, "failed": failed});
        println!("{document:#}");
    }
    screen.step("removing the namespaces");
    drop(lab);
    let last = format!("demo: {passed} checks passed, {failed} failed");
    if options.json {
        eprintln!("{last}");
    } else {
        screen.line(&last);
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn spread(lab: &EgressLab, check: Check<'_>) {
    for (family, name) in FAMILY.iter().enumerate() {
        check(&format!("{name}: flows spread"), &mut || {
            let shares = shares(&load(lab, family)?)?;
            let fair = usize::from(FLOWS) / REPLICAS;
            let even = |share: &usize| (fair / 2..=fair * 3 / 2).contains(share);
            ensure!(shares.iter().all(even), "shares {shares:?}");
            Ok(Observation::new(flows(family), show(&shares, family)))
        });
    }
}

fn unchanged(lab: &EgressLab, check: Check<'_>) {
    for family in 0..2 {
        let source = PLAIN[family];
        check(&format!("{}: forwarded unchanged", FAMILY[family]), &mut || {
            let seen =
                Load::during(&lab.tenant, source, server(family, ECHO_PORT), (30, WHILE / 3))?;
            let own: IpAddr = source.parse()?;
            for (port, history) in &seen {
                let last = history.last().context("no answer")?;
                let same = last.seen.ip() == own && last.seen.port() == *port;
                ensure!(same, "port {port} was seen as {}", last.seen);
            }
            Ok(Observation::new(format!("30 flows from {source}"), format!("{own}, ports kept")))
        });
        check(&format!("{}: a connection from outside", FAMILY[family]), &mut || {
            let target = (source.parse::<IpAddr>()?, ECHO_PORT);
            let exchange = TcpProbe::connect(&lab.server, 0, target)?.exchange;
            let seen = exchange.seen.ip();
            ensure!(exchange.seen == exchange.local, "{} was seen as {seen}", exchange.local);
            Ok(Observation::new(format!("the server to {source}"), format!("the server: {seen}")))
        });
    }
}

fn own(lab: &EgressLab, check: Check<'_>) {
    check("the replica's own address", &mut || {
        let [v4, v6] = external(VICTIM);
        for address in [&v4, &v6] {
            lab.server.output(Command::new("ping").args(["-c1", "-W2", address]))?;
        }
        Ok(Observation::new("a ping from the server", format!("answers of {v4}, {v6}")))
    });
    check("straight to a hidden tenant", &mut || {
        lab.router.ip("route replace 10.0.1.0/24 via 203.0.113.11")?;
        let refused = probe::udp_refused(&lab.server, (TENANT[0].parse::<IpAddr>()?, ECHO_PORT))?;
        Ok(Observation::new(format!("the server to {}", TENANT[0]), refused))
    });
}

fn weights(lab: &EgressLab, check: Check<'_>) {
    check("weights 2,1,1", &mut || {
        lab.change(|text| {
            let annotation = "  annotations:\n    vpc-gateway.io/weights: 2,1,1\n";
            text.replace("  namespace: default\n", &format!("  namespace: default\n{annotation}"))
        })?;
        thread::sleep(WHILE);
        let shares = shares(&load(lab, 0)?)?;
        lab.change(|text| text)?;
        thread::sleep(WHILE);
        let half = usize::from(FLOWS) / 2;
        ensure!(shares[0].abs_diff(half) < half / 3, "shares {shares:?}");
        Ok(Observation::new(flows(0), show(&shares, 0)))
    });
}

/// What a change did to flows that went on meanwhile.
struct Moves {
    /// Those that the victim had, and how many of them another one has now.
    hit: (usize, usize),
    /// Those of the others, and how many of them are elsewhere or were seen from another port.
    spared: (usize, usize),
    /// From the change until the last flow had an answer by another replica.
    took: Duration,
    /// The longest time that one of those had no answer.
    gap: Duration,
}

fn moves(seen: &BTreeMap<u16, History>, at: Instant) -> Result<Moves> {
    let mut moves =
        Moves { hit: (0, 0), spared: (0, 0), took: Duration::ZERO, gap: Duration::ZERO };
    for (port, history) in seen {
        let before = history.iter().rfind(|sighting| sighting.first < at);
        let before = before.with_context(|| format!("port {port}: no answer before"))?;
        let after = history.last().context("no answer")?;
        if replica_of(before.seen.ip()) == Some(VICTIM) {
            moves.hit.0 += 1;
            if replica_of(after.seen.ip()).is_some_and(|replica| replica != VICTIM) {
                moves.hit.1 += 1;
                moves.took = moves.took.max(after.first.saturating_duration_since(at));
                moves.gap = moves.gap.max(after.first - before.last);
            }
        } else {
            moves.spared.0 += 1;
            moves.spared.1 += usize::from(after.seen != before.seen);
        }
    }
    Ok(moves)
}

fn death(lab: &mut EgressLab, check: Check<'_>) {
    let loads = (0..2)
        .map(|family| Load::start(&lab.tenant, TENANT[family], server(family, ECHO_PORT), FLOWS));
    let mut loads: Vec<Result<Load>> = loads.collect();
    thread::sleep(WHILE);
    let at = Instant::now();
    let killed = lab.kill(VICTIM);
    thread::sleep(DETECTION + TOLERANCE + WHILE);
    for family in (0..2).rev() {
        let load = loads.pop().context("a load").and_then(|load| load);
        let mut seen = Some(load.and_then(Load::stop));
        check(&format!("{}: replica {VICTIM} dies", FAMILY[family]), &mut || {
            let seen = seen.take().context("a load")??;
            ensure!(killed.is_ok(), "{killed:?}");
            let moves = moves(&seen, at)?;
            let (hit, moved) = moves.hit;
            let (spared, disturbed) = moves.spared;
            ensure!(hit > 0 && moved == hit, "{moved} of its {hit} flows moved");
            ensure!(disturbed == 0, "{disturbed} of the {spared} other flows were disturbed");
            ensure!(moves.took < DETECTION + TOLERANCE, "it took {:?}", moves.took);
            let (took, gap) = (moves.took.as_millis(), moves.gap.as_millis());
            Ok(Observation::new(
                format!("{FLOWS} flows, {hit} by it; BFD 3 x 100 ms"),
                format!("{moved} moved in {took} ms (gap {gap} ms), {spared} stayed"),
            ))
        });
    }
    check("connections from outside go on", &mut || {
        let target = (PLAIN[0].parse::<IpAddr>()?, ECHO_PORT);
        way_back(&lab.router, 0)?;
        TcpProbe::connect(&lab.server, 0, target)?;
        Ok(Observation::new(format!("the server to {} by replica 0", PLAIN[0]), "the server"))
    });
    back(lab, check);
}

fn back(lab: &mut EgressLab, check: Check<'_>) {
    check(&format!("replica {VICTIM} comes back"), &mut || {
        let load = Load::start(&lab.tenant, TENANT[0], server(0, ECHO_PORT), FLOWS)?;
        thread::sleep(WHILE);
        lab.revive(VICTIM)?;
        lab.wait_serving(&[0, 1, 2])?;
        thread::sleep(WHILE);
        let seen = load.stop()?;
        let (mut returned, mut elsewhere) = (0, 0);
        for history in seen.values() {
            let first = history.first().context("no answer")?.seen;
            let last = history.last().context("no answer")?.seen;
            match replica_of(last.ip()) {
                Some(VICTIM) => returned += 1,
                _ if first != last => elsewhere += 1,
                _ => {}
            }
        }
        let fair = usize::from(FLOWS) / REPLICAS;
        ensure!((fair / 2..=fair * 3 / 2).contains(&returned), "{returned} flows came to it");
        ensure!(elsewhere == 0, "{elsewhere} other flows moved");
        let stayed = usize::from(FLOWS) - returned;
        Ok(Observation::new(flows(0), format!("its share, {returned}, came; {stayed} stayed")))
    });
}

fn load(lab: &EgressLab, family: usize) -> Result<BTreeMap<u16, History>> {
    let to = server(family, ECHO_PORT);
    Load::during(&lab.tenant, TENANT[family], to, (FLOWS, WHILE / 3))
}

/// How many flows each replica has.
fn shares(seen: &BTreeMap<u16, History>) -> Result<[usize; REPLICAS]> {
    let mut shares = [0; REPLICAS];
    for (port, history) in seen {
        let last = history.last().with_context(|| format!("port {port}: no answer"))?;
        let replica = replica_of(last.seen.ip());
        shares[replica.with_context(|| format!("{} is {OBJECT}'s nowhere", last.seen))?] += 1;
    }
    Ok(shares)
}

fn flows(family: usize) -> String {
    format!("{FLOWS} flows from {}", TENANT[family])
}

fn show(shares: &[usize; REPLICAS], family: usize) -> String {
    let last = |address: &str| address.rsplit(['.', ':']).next().unwrap_or_default().to_owned();
    let one = |(index, share): (usize, &usize)| {
        format!(
            "{}{}: {share}",
            if family == 0 { "." } else { "::" },
            last(&external(index)[family])
        )
    };
    shares.iter().enumerate().map(one).collect::<Vec<_>>().join("  ")
}
