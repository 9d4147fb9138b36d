//! Floods, while connections that were there before go on with their content intact.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use gateway_tests::build_packet::{Draft, SYN, tcp, udp};
use gateway_tests::lab::addresses::Y;
use gateway_tests::lab::capture::{Capture, Filter, summary};
use gateway_tests::lab::flood::Flood;
use gateway_tests::lab::gateway::Gateway;
use gateway_tests::lab::manifests::{DNAT_ECHO, DNAT_HTTP, Manifests};
use gateway_tests::lab::netns::Netns;
use gateway_tests::lab::probe::{self, TcpProbe};
use gateway_tests::lab::running::{ECHO_FIP, ECHO_Y};
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::Options;
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::world::World;

/// How long a flood lasts, and how many packets it sends in a second.
const LASTS: Duration = Duration::from_secs(3);
const PER_SECOND: u32 = 20_000;

/// How many different flows it has.
const FLOWS: u32 = 30_000;

/// A port of Y where nobody listens.
const SINK: SocketAddrV4 = SocketAddrV4::new(Y, 9);

fn start(arguments: &[&str]) -> Option<(Gateway, World)> {
    let binary = tier::gateway()?;
    let world = World::build(&Options::default()).expect("a world");
    let gateway = world.start_gateway(&binary, arguments).unwrap_or_else(|e| panic!("{e:#}"));
    Some((gateway, world))
}

/// Sources of the VPC that a SNAT rule covers, with all their ports.
fn inside(flow: u32) -> String {
    format!("10.0.1.{}:{}", 16 + flow % 15, 1024 + flow % 60_000)
}

/// Sources anywhere outside.
fn outside(flow: u32) -> String {
    format!("198.51.{}.{}:{}", 101 + flow % 100, 1 + flow % 250, 1024 + flow % 60_000)
}

/// Bytes that an open connection carried there and back while the flood went on.
fn carried(connection: &mut TcpProbe, until: Instant) -> Result<u64> {
    let mut bytes = 0;
    for round in 0_u64.. {
        if Instant::now() > until {
            break;
        }
        // Each line is another, so that one from before does not pass for it.
        let line = format!("{round:x}-").repeat(2000);
        connection.echo(&line).with_context(|| format!("after {bytes} bytes"))?;
        bytes += line.len() as u64;
    }
    Ok(bytes)
}

/// Opens a connection out and one in, floods, and has both carry content meanwhile. `meanwhile` runs
/// in the last third of the flood.
fn flood(
    what: &str,
    gateway: &Gateway,
    world: &World,
    from: &Netns,
    packet: impl Fn(u32) -> Draft,
    meanwhile: impl FnOnce() -> Result<()>,
) {
    let net = &world.net;
    let must = |outcome: Result<()>| {
        outcome.unwrap_or_else(|e| panic!("{what}: {e:#}\n{}", gateway.diagnostics()));
    };
    let mut out = TcpProbe::connect(&net.b.ns, 0, ECHO_Y).expect("a connection out");
    let mut back = TcpProbe::connect(&net.y.ns, 0, DNAT_ECHO).expect("a connection in");
    let leaks = Capture::start(&net.x.ns, "ext", Filter::PrivateSource).expect("a capture");
    let flood = Flood::start(from, PER_SECOND, LASTS * 4, FLOWS, packet).expect("a flood");
    let (started, until) = (Instant::now(), Instant::now() + LASTS);
    let results = std::thread::scope(|scope| {
        let threads = [&mut out, &mut back].map(|one| scope.spawn(|| carried(one, until)));
        std::thread::sleep(LASTS * 2 / 3);
        must(meanwhile());
        threads.map(|thread| thread.join().expect("no panic"))
    });
    let took = started.elapsed();
    let sent = flood.finish().expect("packets sent");
    let [there, here] = results.map(|carried| {
        let mut bytes = 0;
        must(carried.map(|count| bytes = count));
        bytes
    });
    println!(
        "measured: {what}: {sent} packets in {took:.1?}; meanwhile {there} bytes out and {here} in"
    );
    assert!(there > 100_000 && here > 100_000, "{there} out, {here} in\n{}", gateway.diagnostics());
    assert!(sent > u64::from(PER_SECOND), "{sent} packets are no flood");
    let leaked = leaks.packets();
    assert!(leaked.is_empty(), "{what}: {}", summary(&leaked));
}

fn sessions(gateway: &Gateway) -> Result<u64> {
    gateway.json("status")?["sessions"].as_u64().context("no number of sessions")
}

fn drops(gateway: &Gateway, reason: &str) -> Result<u64> {
    counted(gateway, "drop", reason)
}

fn counted(gateway: &Gateway, verdict: &str, reason: &str) -> Result<u64> {
    let drops = gateway.json("drops")?;
    let list = drops.as_array().context("no list of drops")?;
    let found = list.iter().find(|one| one["verdict"] == verdict && one["reason"] == reason);
    found.and_then(|one| one["packets"].as_u64()).with_context(|| format!("no reason {reason}"))
}

#[test]
fn a_syn_flood_from_inside_hurts_neither_open_nor_new_connections() {
    let Some((gateway, world)) = start(&[]) else { return };
    let net = &world.net;
    let packet = |flow| tcp(&inside(flow), &SINK.to_string(), SYN);
    flood("a SYN flood from inside", &gateway, &world, &net.c.ns, packet, || {
        probe::tcp(&net.b.ns, 0, ECHO_Y)?;
        probe::tcp(&net.x.ns, 0, DNAT_ECHO)?;
        probe::tcp(&net.x.ns, 0, ECHO_FIP).map(drop)
    });
    assert!(sessions(&gateway).expect("a status") > 10_000, "{}", gateway.diagnostics());
}

#[test]
fn a_syn_flood_from_outside_hurts_neither_open_nor_new_connections() {
    let Some((gateway, world)) = start(&[]) else { return };
    let net = &world.net;
    // Answers to these sources go back to where the flood comes from.
    net.x.ns.ip("route add blackhole 198.51.0.0/16").expect("a route");
    let packet = |flow| tcp(&outside(flow), &DNAT_HTTP.to_string(), SYN);
    flood("a SYN flood from outside", &gateway, &world, &net.x.ns, packet, || {
        probe::tcp(&net.b.ns, 0, ECHO_Y)?;
        probe::tcp(&net.x.ns, 0, DNAT_ECHO)?;
        probe::tcp(&net.x.ns, 0, ECHO_FIP).map(drop)
    });
    assert!(sessions(&gateway).expect("a status") > 10_000, "{}", gateway.diagnostics());
}

#[test]
fn a_full_session_table_refuses_new_flows_and_hurts_no_open_connection() {
    const MOST: u64 = 4096;
    let Some((gateway, world)) = start(&["--max-sessions", "4096"]) else { return };
    let net = &world.net;
    let packet = |flow| udp(&inside(flow), &SINK.to_string());
    flood("a flood of flows", &gateway, &world, &net.c.ns, packet, || {
        let (now, refused) = (sessions(&gateway)?, drops(&gateway, "sessions_full")?);
        anyhow::ensure!(now <= MOST && now > MOST * 9 / 10, "{now} sessions of {MOST}");
        anyhow::ensure!(refused > 10_000, "only {refused} packets refused");
        anyhow::ensure!(probe::tcp(&net.b.ns, 0, ECHO_Y).is_err(), "there is room for a new one");
        // A floating IP needs no session.
        probe::tcp(&net.x.ns, 0, ECHO_FIP)?;
        probe::tcp(&net.a.ns, 0, ECHO_Y).map(drop)
    });
}

#[test]
fn a_flood_of_fragments_hurts_no_whole_packets() {
    let Some((gateway, world)) = start(&[]) else { return };
    let net = &world.net;
    // Half of them come before a first one that never comes, the others are first ones that stay alone.
    let packet = |flow: u32| {
        let whole = udp(&inside(flow), &SINK.to_string()).with_identification(flow as u16);
        let pieces = whole.with_payload(&[0x5a; 64]).pieces(24);
        pieces[flow as usize % 2].clone()
    };
    flood("a flood of fragments", &gateway, &world, &net.c.ns, packet, || {
        probe::tcp(&net.b.ns, 0, ECHO_Y)?;
        probe::tcp(&net.x.ns, 0, DNAT_ECHO)?;
        probe::tcp(&net.x.ns, 0, ECHO_FIP).map(drop)
    });
    let held = drops(&gateway, "fragment_held").expect("drops");
    assert!(held > 10_000, "only {held} fragments held\n{}", gateway.diagnostics());
}

#[test]
fn a_flood_of_packets_to_be_fragmented_leaves_the_daemon_its_turns() {
    let Some((gateway, world)) = start(&[]) else { return };
    let net = &world.net;
    net.gateway.ip("link set net1 mtu 600").expect("an MTU");
    let packet = |flow| udp(&inside(flow), &SINK.to_string()).with_payload(&[0x5a; 1000]);
    let generation = || gateway.status().map(|status| status["generation"].as_u64());
    let before = generation().expect("a status");
    flood("a flood of large packets", &gateway, &world, &net.c.ns, packet, || {
        world.configure(&Manifests { ipv6: true, ..Manifests::standard(&net.name) }.yaml())?;
        let changed = || Ok((generation()? != before).then_some(()));
        wait_until("the change of the rules", Duration::from_secs(3), changed)
    });
    let fragmented = counted(&gateway, "pass", "fragmented").expect("drops");
    assert!(fragmented > 10_000, "only {fragmented} packets for the daemon");
}
