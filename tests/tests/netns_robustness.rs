//! What a network does to a gateway: full port ranges, reused ports, lost neighbours, links that flap.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use gateway_tests::lab::addresses::{B, ROUTER, X, Y, v6};
use gateway_tests::lab::capture::{Capture, Filter, summary};
use gateway_tests::lab::echo::ECHO_PORT;
use gateway_tests::lab::gateway::Gateway;
use gateway_tests::lab::manifests::{DNAT_ECHO, EIP_SNAT, EIP_SNAT_WIDE, Manifests};
use gateway_tests::lab::netns::Netns;
use gateway_tests::lab::pinger::Pinger;
use gateway_tests::lab::probe::{self, TcpProbe};
use gateway_tests::lab::running::{ECHO_Y, Running};
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::Options;
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::world::World;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);

/// Opens one UDP flow per source port, without waiting for answers.
fn flood(ns: &Netns, ports: std::ops::RangeInclusive<u16>, to: SocketAddrV4) -> Result<()> {
    ns.enter(|| -> Result<()> {
        for port in ports {
            let socket = std::net::UdpSocket::bind(("0.0.0.0", port))?;
            socket.send_to(b"flow", to).with_context(|| format!("port {port}"))?;
        }
        Ok(())
    })?
}

fn drops(gateway: &Gateway, reason: &str) -> Result<u64> {
    let drops = gateway.json("drops")?;
    let list = drops.as_array().context("no list of drops")?;
    let found = list.iter().find(|one| one["verdict"] == "drop" && one["reason"] == reason);
    found.and_then(|one| one["packets"].as_u64()).with_context(|| format!("no reason {reason}"))
}

/// The one entry of a list whose `field` is `value`.
fn one(gateway: &Gateway, verb: &str, field: &str, value: Ipv4Addr) -> Result<Value> {
    let list = gateway.json(verb)?;
    let entries = list.as_array().context("no list")?;
    let found = entries.iter().find(|entry| entry[field] == value.to_string());
    found.cloned().with_context(|| format!("no {value} in {list}"))
}

#[test]
fn a_port_range_fills_to_the_last_port_and_then_refuses_without_a_leak() {
    const RANGE: u64 = 2000;
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(&Options::default()).expect("a world");
    let mut manifests = Manifests::standard(&world.net.name);
    manifests.snats = vec![("snat".into(), "10.0.0.0/16".into())];
    let range = ["--ports", "30000-31999", "--host-sessions", "3000"];
    let gateway =
        world.start_gateway_with(&binary, &manifests, &range).unwrap_or_else(|e| panic!("{e:#}"));
    let leaks = Capture::start(&world.net.x.ns, "ext", Filter::PrivateSource).expect("a capture");
    // A port where nobody answers: the flows stay what they are.
    let sink = SocketAddrV4::new(Y, 9999);
    let sessions = |gateway: &Gateway| gateway.json("status")?["sessions"].as_u64().context("none");
    flood(&world.net.b.ns, 1024..=3023, sink).expect("flows of B");
    let opened = sessions(&gateway).expect("sessions");
    let refused = drops(&gateway, "ports_exhausted").expect("drops");
    println!(
        "measured: {opened} of {RANGE} ports used when {refused} of {RANGE} flows were refused"
    );
    flood(&world.net.c.ns, 1024..=2023, sink).expect("flows of C");
    let after = sessions(&gateway).expect("sessions");
    let refused = drops(&gateway, "ports_exhausted").expect("drops");
    assert!(after <= RANGE, "{after} flows share {RANGE} ports\n{}", gateway.diagnostics());
    assert_eq!(refused, RANGE + 1000 - after, "opened {opened}, then {after}");
    assert!(opened >= RANGE * 99 / 100, "only {opened} of {RANGE} ports are used");
    let eip = one(&gateway, "eips", "eip", EIP_SNAT).expect("eips");
    assert_eq!((&eip["sessions"], &eip["refused"]), (&after.into(), &refused.into()), "{eip}");
    // Another remote endpoint has the whole range to itself.
    let seen =
        probe::udp(&world.net.b.ns, 0, SocketAddrV4::new(X, ECHO_PORT), b"x").expect("UDP").seen;
    assert!(seen.ip() == EIP_SNAT && (30_000..32_000).contains(&seen.port()), "{seen}");
    // Many more than its share of the ports.
    flood(&world.net.b.ns, 1024..=3023, SocketAddrV4::new(Y, 9998)).expect("flows of B");
    let host = one(&gateway, "hosts", "host", B).expect("hosts");
    let limited = drops(&gateway, "host_sessions").expect("drops");
    assert_eq!((&host["sessions"], &host["refused"]), (&3000.into(), &limited.into()), "{host}");
    assert!(limited > 0);
    let leaked = leaks.packets();
    assert!(leaked.is_empty(), "{}", summary(&leaked));
}

#[test]
fn a_source_port_can_be_used_again_at_once() {
    let Some(binary) = tier::gateway() else { return };
    let lab = Running::start(&binary);
    let net = &lab.world.net;
    for round in 0..30 {
        for (what, ns, to) in [
            ("SNAT", &net.b.ns, ECHO_Y),
            ("DNAT", &net.y.ns, DNAT_ECHO),
            ("hairpin", &net.c.ns, DNAT_ECHO),
        ] {
            let mut probe = lab.must(what, TcpProbe::connect(ns, 5555, to));
            lab.must(what, probe.echo(&format!("round {round}")));
            probe.reset().expect("a reset");
        }
    }
}

#[test]
fn traffic_goes_on_when_neighbours_and_links_are_lost_and_come_back() {
    let Some(binary) = tier::gateway() else { return };
    let lab = Running::start(&binary);
    let net = &lab.world.net;
    let mut open = lab.connections();
    let pinger = Pinger::start(&net.b.ns, ECHO_Y).expect("a pinger");
    for _ in 0..20 {
        net.gateway.fail_neighbours().expect("neighbours that fail");
        lab.all_alive(&mut open, "after the neighbours failed");
        std::thread::sleep(Duration::from_millis(20));
    }
    let tally = pinger.finish().expect("a tally");
    println!(
        "measured: {} datagrams while the neighbours failed twenty times, lost {}",
        tally.sent,
        tally.lost()
    );
    assert_eq!(tally.lost(), 0, "of {}", tally.sent);

    for interface in ["net1", "eth0"] {
        net.gateway.ip(&format!("link set {interface} down")).expect("down");
        net.gateway.ip(&format!("link set {interface} up")).expect("up");
        let since = Instant::now();
        let back = || probe::udp(&net.b.ns, 0, ECHO_Y, b"back?").map(Some);
        lab.must(interface, wait_until("traffic to come back", SOON * 2, back));
        let back = || probe::tcp(&net.d.ns, 0, DNAT_ECHO).map(Some);
        lab.must(interface, wait_until("the second subnet to come back", SOON * 2, back));
        lab.all_alive(&mut open, "after a link was down");
        println!("measured: everything works {:?} after {interface} came back", since.elapsed());
    }
}

#[test]
fn ipv6_without_rules_goes_nowhere() {
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(&Options::default()).expect("a world");
    let mut manifests = Manifests::standard(&world.net.name);
    manifests.ipv6 = false;
    let settings = world.settings(&binary, &manifests, &[]).expect("settings");
    let mut gateway = Gateway::prepare(&world.net, settings).expect("a gateway");
    gateway.restart().expect("ready");
    let net = &world.net;
    net.gateway.ip(&format!("route replace fd00:10:2::/64 via {}", v6(ROUTER))).expect("a route");
    let leaks = Capture::start(&net.x.ns, "ext", Filter::PrivateSource).expect("a capture");
    for (from, to) in [(&net.b, &net.y), (&net.x, &net.b), (&net.d, &net.x), (&net.y, &net.d)] {
        let target = v6(to.v4).to_string();
        let ping = from.ns.output(Command::new("ping").args(["-6", "-c1", "-W1", "-q", &target]));
        assert!(ping.is_err(), "{} reached {} by IPv6", from.label, to.label);
    }
    let leaked = leaks.packets();
    assert!(leaked.is_empty(), "{} IPv6 packets leaked", leaked.len());
}

#[test]
fn two_gateways_on_one_machine_do_not_meet() {
    let Some(binary) = tier::gateway() else { return };
    let mut first = Running::start(&binary);
    let second = Running::start(&binary);
    let mut open = second.connections();
    first.connections();
    let detached = first.gateway.detach();
    first.must("detach", detached);
    second.all_alive(&mut open, "after the other gateway was detached");
    let outcome = (|| -> Result<()> {
        let seen = probe::udp(&second.world.net.c.ns, 0, ECHO_Y, b"mine")?.seen;
        ensure!(seen.ip() == EIP_SNAT_WIDE, "C leaves as {seen}");
        Ok(())
    })();
    second.must("a new flow", outcome);
}

/// Ids of rules that went are not given away before two sweeps have met no session of them. By its name the
/// last of this file: the kernel is busy for a while with what so many rules leave behind.
#[test]
fn when_rules_find_no_room_beside_those_that_just_went_they_get_it_soon() {
    const EACH: u16 = 40_000;
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(&Options::default()).expect("a world");
    let many = |generation: &str| {
        let mut manifests = Manifests { ipv6: false, ..Manifests::standard(&world.net.name) };
        manifests.dnats.clear();
        for port in 20_000..20_000 + EACH {
            for protocol in ["tcp", "udp"] {
                let name = format!("{generation}-{protocol}-{port}");
                let at = SocketAddrV4::new(*DNAT_ECHO.ip(), port);
                manifests.forward(&name, protocol, at, B, ECHO_PORT);
            }
        }
        manifests
    };
    let start = || world.start_gateway_with(&binary, &many("old"), &[]);
    let gateway = start().unwrap_or_else(|e| panic!("{e:#}"));
    world.configure(&many("new").yaml()).expect("manifests");
    // More than the 131 071 that there are, both together.
    let all_new = || -> Result<Option<()>> {
        let status = gateway.json("status")?;
        let active = status["rules"]["dnat"].as_u64().context("no number of rules")?;
        let problems = status["problems"].as_array().map_or(0, Vec::len);
        Ok((active == 2 * u64::from(EACH) && problems == 0).then_some(()))
    };
    let first = || SocketAddrV4::new(*DNAT_ECHO.ip(), 20_000);
    let last = || SocketAddrV4::new(*DNAT_ECHO.ip(), 20_000 + EACH - 1);
    wait_until("room for all new rules", 12 * SOON, all_new)
        .unwrap_or_else(|e| panic!("{e:#}\n{}", gateway.diagnostics()));
    for at in [first(), last()] {
        probe::tcp(&world.net.x.ns, 0, at).unwrap_or_else(|e| panic!("{at}: {e:#}"));
    }
}
