//! The daemon comes and goes, its manifests change; connections stay.

use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;

use gateway_tests::lab::addresses::{X, Y};
use gateway_tests::lab::echo::ECHO_PORT;
use gateway_tests::lab::gateway::{Gateway, run_to_end};
use gateway_tests::lab::manifests::{DNAT_ECHO, DNAT_ECHO_D, EIP_FIP, Manifests};
use gateway_tests::lab::pinger::Pinger;
use gateway_tests::lab::pins::{self, Kind};
use gateway_tests::lab::probe::{self, Refusal, TcpProbe};
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::Options;
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::world::World;

const SOON: Duration = Duration::from_secs(5);
const ECHO_Y: SocketAddrV4 = SocketAddrV4::new(Y, ECHO_PORT);
const ECHO_FIP: SocketAddrV4 = SocketAddrV4::new(EIP_FIP, ECHO_PORT);

struct Running {
    gateway: Gateway,
    world: World,
}

fn running(binary: &Path) -> Running {
    let world = World::build(&Options::default()).expect("a world");
    let gateway = world.start_gateway(binary, &[]).unwrap_or_else(|e| panic!("{e:#}"));
    Running { gateway, world }
}

impl Running {
    /// One open connection of each kind: SNAT, DNAT, floating IP in and out, hairpin.
    fn connections(&self) -> Vec<(&'static str, TcpProbe)> {
        let net = &self.world.net;
        [
            ("SNAT", &net.b, ECHO_Y),
            ("DNAT", &net.y, DNAT_ECHO),
            ("FIP in", &net.x, ECHO_FIP),
            ("FIP out", &net.a, ECHO_Y),
            ("hairpin", &net.c, DNAT_ECHO),
        ]
        .into_iter()
        .map(|(what, host, to)| (what, self.must(what, TcpProbe::connect(&host.ns, 0, to))))
        .collect()
    }

    fn must<T>(&self, what: &str, outcome: anyhow::Result<T>) -> T {
        outcome.unwrap_or_else(|e| panic!("{what}: {e:#}\n{}", self.gateway.diagnostics()))
    }

    fn all_alive(&self, connections: &mut [(&'static str, TcpProbe)], when: &str) {
        for (what, connection) in connections {
            self.must(&format!("{what} {when}"), connection.echo(when));
        }
    }

    fn accepts(&self, to: SocketAddrV4) -> anyhow::Result<Option<()>> {
        probe::tcp(&self.world.net.x.ns, 0, to).map(|_| Some(()))
    }

    fn external_addresses(&self) -> String {
        self.world.net.gateway.ip("-4 address show dev net1").expect("addresses")
    }
}

#[test]
fn killing_the_daemon_leaves_traffic_flowing_and_a_restart_adopts_everything() {
    let Some(binary) = tier::gateway() else { return };
    let mut lab = running(&binary);
    let mut open = lab.connections();
    let before = lab.must("pins", pins::pinned(&lab.gateway.pins()));
    let pinger = Pinger::start(&lab.world.net.b.ns, ECHO_Y).expect("a pinger");

    lab.gateway.kill9().expect("a daemon to kill");
    lab.all_alive(&mut open, "after kill -9");
    let mut opened_without_daemon = lab.connections();

    let took = lab.gateway.restart();
    let took = lab.must("restart", took);
    println!("measured: ready again {took:?} after kill -9");
    lab.all_alive(&mut open, "after the restart");
    lab.all_alive(&mut opened_without_daemon, "after the restart");
    lab.connections();
    let tally = pinger.finish().expect("a tally");
    println!(
        "measured: {} UDP datagrams across kill and restart, lost {}",
        tally.sent,
        tally.lost()
    );
    assert_eq!(tally.lost(), 0, "of {}", tally.sent);

    let after = lab.must("pins", pins::pinned(&lab.gateway.pins()));
    for (path, object) in before.iter().filter(|(_, object)| object.kind != Kind::Program) {
        assert_eq!(after.get(path), Some(object), "{} was replaced", path.display());
    }
    let links = before.values().filter(|object| object.kind == Kind::Link).count();
    println!("{links} links and {} pins in all are still the same", before.len());
}

#[test]
fn a_graceful_end_keeps_the_data_plane_and_detach_removes_it() {
    let Some(binary) = tier::gateway() else { return };
    let mut lab = running(&binary);
    let mut open = lab.connections();
    let pinned = lab.must("pins", pins::pinned(&lab.gateway.pins()));

    let ended = lab.gateway.terminate().expect("an end");
    assert!(ended.success(), "SIGTERM ended it with {ended}\n{}", lab.gateway.log());
    lab.all_alive(&mut open, "after SIGTERM");
    lab.connections();
    assert!(lab.external_addresses().contains("203.0.113.10/"), "EIPs went away on SIGTERM");

    let detached = lab.gateway.detach();
    lab.must("detach", detached);
    assert!(!lab.gateway.pins().exists(), "{} is still there", lab.gateway.pins().display());
    let gone = || -> anyhow::Result<Option<()>> {
        let left: Vec<_> = pinned.iter().filter(|(_, object)| pins::exists(object)).collect();
        anyhow::ensure!(left.is_empty(), "still in the kernel: {left:?}");
        Ok(Some(()))
    };
    wait_until("the objects to go", SOON, gone).unwrap_or_else(|e| panic!("{e:#}"));
    let addresses = lab.external_addresses();
    assert_eq!(addresses.matches("inet ").count(), 1, "EIP addresses left:\n{addresses}");
    let plain = probe::udp(&lab.world.net.b.ns, 4555, ECHO_Y, b"plain").expect("plain forwarding");
    assert_eq!(plain.seen, plain.local, "something still translates");
}

#[test]
fn an_edited_manifest_cuts_only_the_flows_of_the_removed_rule() {
    let Some(binary) = tier::gateway() else { return };
    let lab = running(&binary);
    let manifests = Manifests::standard(lab.gateway.name());
    let mut open = lab.connections();
    let mut doomed = TcpProbe::connect(&lab.world.net.x.ns, 0, DNAT_ECHO_D).expect("a connection");
    let pinger = Pinger::start(&lab.world.net.b.ns, ECHO_Y).expect("a pinger");

    lab.world.configure(&manifests.without("echo-d").yaml()).expect("a change");
    let refused = || Ok(probe::tcp_refused(&lab.world.net.x.ns, DNAT_ECHO_D).ok());
    let refusal = lab.must("removal", wait_until("the rule to go", SOON, refused));
    assert_eq!(refusal, Refusal::Refused);
    doomed.set_patience(Duration::from_millis(500)).expect("a timeout");
    assert!(doomed.echo("am I alive?").is_err(), "the flow of the removed rule lives on");
    lab.all_alive(&mut open, "after the removal");

    lab.world.configure(&manifests.yaml()).expect("a change");
    let accepted = || lab.accepts(DNAT_ECHO_D);
    lab.must("addition", wait_until("the rule to come back", SOON, accepted));
    lab.all_alive(&mut open, "after the addition");
    let tally = pinger.finish().expect("a tally");
    assert_eq!(tally.lost(), 0, "of {}", tally.sent);
}

#[test]
fn a_broken_manifest_changes_nothing_and_is_reported() {
    let Some(binary) = tier::gateway() else { return };
    let lab = running(&binary);
    let mut manifests = Manifests::standard(lab.gateway.name());
    let mut open = lab.connections();
    let said = lab.gateway.log().len();

    lab.world.configure(&(manifests.yaml() + "---\nkind: [unclosed\n")).expect("a change");
    let reported = || Ok(lab.gateway.log()[said..].contains("gateway.yaml").then_some(()));
    lab.must("report", wait_until("the broken file to be reported", SOON, reported));
    lab.all_alive(&mut open, "after a broken file was saved");
    lab.connections();
    lab.must("a rule", lab.accepts(DNAT_ECHO_D));

    manifests.dnats[0].protocol = "sctp";
    manifests.dnats[0].name = "not-a-protocol".into();
    let new_rule = SocketAddrV4::new(*DNAT_ECHO.ip(), 7100);
    manifests.forward("added", "tcp", new_rule, lab.world.net.b.v4, ECHO_PORT);
    lab.world.configure(&manifests.yaml()).expect("a change");
    let accepted = || lab.accepts(new_rule);
    lab.must("good object", wait_until("the good object beside a bad one", SOON, accepted));
    let log = lab.gateway.log();
    assert!(log.contains("not-a-protocol") && log.contains("sctp"), "not reported:\n{log}");
}

#[test]
fn a_second_daemon_and_a_missing_interface_are_refused_in_one_line() {
    let Some(binary) = tier::gateway() else { return };
    let lab = running(&binary);
    let mut open = lab.connections();
    for (command, wanted) in [
        (&mut lab.gateway.run_command("net1"), "already"),
        (&mut lab.gateway.run_command("net7"), "net7"),
    ] {
        let output = run_to_end(command).expect("an end");
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        assert!(!output.status.success(), "accepted: {said}");
        if wanted == "already" {
            assert_eq!(said.lines().count(), 1, "not one line:\n{said}");
            assert!(said.contains(wanted), "{said}");
        }
    }
    lab.all_alive(&mut open, "after a second daemon was refused");
    lab.connections();
}

#[test]
fn an_interface_that_does_not_exist_is_refused() {
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(&Options::default()).expect("a world");
    let manifests = Manifests::standard(&world.net.name);
    let settings = world.settings(&binary, &manifests, &[]).expect("settings");
    let gateway = Gateway::prepare(&world.net, settings).expect("a gateway");
    let output = run_to_end(&mut gateway.run_command("net7")).expect("an end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "accepted: {said}");
    assert!(said.contains("net7"), "{said}");
    let plain = SocketAddrV4::new(X, ECHO_PORT);
    probe::udp(&world.net.b.ns, 0, plain, b"untouched").expect("plain forwarding");
}

#[test]
fn every_pinned_map_is_dumped_by_bpftool_with_field_names() {
    let Some(binary) = tier::gateway() else { return };
    let lab = running(&binary);
    let _open = lab.connections();
    let _ = probe::udp_refused(&lab.world.net.d.ns, ECHO_Y);
    let pinned = lab.must("pins", pins::pinned(&lab.gateway.pins()));
    let maps: Vec<_> = pinned.iter().filter(|(_, object)| object.kind == Kind::Map).collect();
    assert!(!maps.is_empty(), "no map is pinned: {pinned:?}");
    for (path, _) in maps {
        let text = pins::dump(path).unwrap_or_else(|e| panic!("{e:#}"));
        println!("{}: {} lines", path.display(), text.lines().count());
    }
}

#[test]
fn ten_thousand_dnat_rules_load_and_the_last_one_works() {
    const FIRST: u16 = 20_000;
    const LAST: u16 = 29_999;
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(&Options::default()).expect("a world");
    let mut manifests = Manifests::standard(&world.net.name);
    let external = |port| SocketAddrV4::new(*DNAT_ECHO.ip(), port);
    for port in FIRST..=LAST {
        let name = format!("rule-{port}");
        manifests.forward(&name, "tcp", external(port), world.net.b.v4, ECHO_PORT);
    }
    let settings = world.settings(&binary, &manifests, &[]).expect("settings");
    let mut gateway = Gateway::prepare(&world.net, settings).expect("a gateway");
    let took = gateway.restart().unwrap_or_else(|e| panic!("{e:#}"));
    println!("measured: 10 000 DNAT rules from start to ready in {took:?}");
    for port in [FIRST, LAST] {
        probe::tcp(&world.net.x.ns, 0, external(port))
            .unwrap_or_else(|e| panic!("{e:#}\n{}", gateway.diagnostics()));
    }
    let started = std::time::Instant::now();
    manifests.forward("one-more", "tcp", external(30_000), world.net.b.v4, ECHO_PORT);
    world.configure(&manifests.yaml()).expect("a change");
    wait_until("the new rule", SOON, || probe::tcp(&world.net.x.ns, 0, external(30_000)).map(Some))
        .unwrap_or_else(|e| panic!("{e:#}\n{}", gateway.diagnostics()));
    println!("measured: one rule added among 10 000 works {:?} after saving", started.elapsed());
}
