//! Manifests change while the gateway runs, are broken, are many; and the maps they fill are readable.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use gateway_tests::lab::echo::ECHO_PORT;
use gateway_tests::lab::gateway::Gateway;
use gateway_tests::lab::manifests::{DNAT_ECHO, DNAT_ECHO_D, EIP_FIP, EIP_SNAT_WIDE, Manifests};
use gateway_tests::lab::pinger::Pinger;
use gateway_tests::lab::pins::{self, Kind};
use gateway_tests::lab::probe::{self, Refusal, TcpProbe};
use gateway_tests::lab::running::{ECHO_Y, Running};
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::Options;
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::world::World;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn an_edited_manifest_cuts_only_the_flows_of_the_removed_rule() {
    let Some(binary) = tier::gateway() else { return };
    let lab = Running::start(&binary);
    let manifests = Manifests::standard(lab.gateway.name());
    let mut open = lab.connections();
    let mut doomed = TcpProbe::connect(&lab.world.net.x.ns, 0, DNAT_ECHO_D).expect("a connection");
    let pinger = Pinger::start(&lab.world.net.b.ns, ECHO_Y).expect("a pinger");

    lab.world.configure(&manifests.without("echo-d").yaml()).expect("a change");
    let refused = || Ok(probe::tcp_refused(&lab.world.net.x.ns, DNAT_ECHO_D).ok());
    let refusal = lab.must("removal", wait_until("the rule to go", SOON, refused));
    assert_eq!(refusal, Refusal::Refused);
    lab.must("the flow of the removed rule", doomed.wait_for_end(SOON));
    lab.all_alive(&mut open, "after the removal");

    lab.world.configure(&manifests.yaml()).expect("a change");
    let accepted = || lab.accepts(DNAT_ECHO_D);
    lab.must("addition", wait_until("the rule to come back", SOON, accepted));
    lab.all_alive(&mut open, "after the addition");
    let tally = pinger.finish().expect("a tally");
    assert_eq!(tally.lost(), 0, "of {}", tally.sent);
}

#[test]
fn a_removed_snat_rule_and_a_removed_floating_ip_cut_their_flows_at_once() {
    let Some(binary) = tier::gateway() else { return };
    let lab = Running::start(&binary);
    let net = &lab.world.net;
    let mut manifests = Manifests::standard(lab.gateway.name());
    let mut dnat = TcpProbe::connect(&net.y.ns, 0, DNAT_ECHO).expect("a DNAT flow");
    let mut wide = TcpProbe::connect(&net.c.ns, 0, ECHO_Y).expect("a flow of the wide rule");
    let mut snat = TcpProbe::connect(&net.b.ns, 0, ECHO_Y).expect("a flow of the narrow rule");
    let mut fip = TcpProbe::connect(&net.a.ns, 0, ECHO_Y).expect("a flow of the floating IP");

    manifests.snats.retain(|(eip, _)| eip != "snat");
    manifests.fips.clear();
    manifests.eips.retain(|(name, _)| name != "fip");
    lab.world.configure(&manifests.yaml()).expect("a change");
    let wide_now = || {
        let seen = probe::udp(&net.b.ns, 0, ECHO_Y, b"who am I?")?.seen;
        anyhow::ensure!(seen.ip() == EIP_SNAT_WIDE, "B leaves as {seen}");
        Ok(Some(()))
    };
    lab.must("SNAT", wait_until("B to leave by the wide rule", SOON, wide_now));
    for (what, doomed) in [("SNAT", &mut snat), ("floating IP", &mut fip)] {
        lab.must(&format!("the flow of the removed {what}"), doomed.wait_for_end(SOON));
    }
    lab.must("the flow of another SNAT rule", wide.echo("still here"));
    lab.must("a DNAT flow", dnat.echo("still here"));
    let address = EIP_FIP.to_string();
    let gone = || Ok((!lab.external_addresses().contains(&address)).then_some(()));
    lab.must("the address", wait_until("the removed EIP to go", SOON, gone));
}

#[test]
fn a_broken_manifest_changes_nothing_and_is_reported() {
    let Some(binary) = tier::gateway() else { return };
    let lab = Running::start(&binary);
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
fn every_pinned_map_is_dumped_by_bpftool_with_field_names() {
    let (Some(binary), true) = (tier::gateway(), tier::bpftool()) else { return };
    let lab = Running::start(&binary);
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
    manifests.ipv6 = false;
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
    let started = Instant::now();
    manifests.forward("one-more", "tcp", external(30_000), world.net.b.v4, ECHO_PORT);
    world.configure(&manifests.yaml()).expect("a change");
    wait_until("the new rule", SOON, || probe::tcp(&world.net.x.ns, 0, external(30_000)).map(Some))
        .unwrap_or_else(|e| panic!("{e:#}\n{}", gateway.diagnostics()));
    println!("measured: one rule added among 10 000 works {:?} after saving", started.elapsed());
}
