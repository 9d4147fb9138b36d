//! Sessions end while others are used: the daemon sweeps under traffic.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use gateway_tests::build_packet::udp;
use gateway_tests::lab::addresses::Y;
use gateway_tests::lab::flood::Flood;
use gateway_tests::lab::gateway::Gateway;
use gateway_tests::lab::probe::TcpProbe;
use gateway_tests::lab::running::ECHO_Y;
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::Options;
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::world::World;

/// Flows that are used again after a second at the latest, and others that are used once.
const LIVE: u32 = 2000;
const ONCE: u32 = 20_000;

/// When an unused session ends, in seconds.
const IDLE: &str = "udp-new=4,udp-stream=4";

/// Open sessions, and sessions ever opened, of all EIPs.
fn counts(gateway: &Gateway) -> Result<(u64, u64)> {
    let eips = gateway.json("eips")?;
    let eips = eips.as_array().context("no list of EIPs")?;
    let sum = |field: &str| eips.iter().filter_map(|eip| eip[field].as_u64()).sum::<u64>();
    Ok((sum("sessions"), sum("opened")))
}

#[test]
fn sessions_in_use_outlive_every_sweep_and_the_others_end() {
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(&Options::default()).expect("a world");
    let gateway = world.start_gateway(&binary, &["--timeouts", IDLE]).expect("a gateway");
    let net = &world.net;
    let check = |outcome: Result<()>| {
        outcome.unwrap_or_else(|e| panic!("{e:#}\n{}", gateway.diagnostics()));
    };
    let mut connection = TcpProbe::connect(&net.b.ns, 0, ECHO_Y).expect("a connection");
    let (before, opened_before) = counts(&gateway).expect("counts");
    let to = format!("{Y}:9");
    // Other hosts than those that send: each flow has a port of its own.
    let live = |flow: u32| udp(&format!("10.0.1.16:{}", 10_000 + flow), &to);
    let once = |flow: u32| udp(&format!("10.0.1.{}:{}", 17 + flow % 4, 1024 + flow / 4), &to);
    let long = Duration::from_secs(60);
    let used = Flood::start(&net.c.ns, 2 * LIVE, long, LIVE, live).expect("packets");
    let burst = Flood::start(&net.c.ns, ONCE, Duration::from_millis(900), ONCE, once);
    std::thread::sleep(Duration::from_secs(1));
    burst.expect("packets").finish().expect("packets sent");
    // By now every flow in use is open, however slow the machine is.
    std::thread::sleep(Duration::from_secs(2));
    let (open, opened) = counts(&gateway).expect("counts");
    check((|| {
        ensure!(open > before + u64::from(LIVE + ONCE / 4), "{open} sessions");
        Ok(())
    })());
    // The unused ones end. Whatever is in use stays: were one lost, its next packet would open another.
    let started = Instant::now();
    let left = wait_until("the unused sessions to end", Duration::from_secs(30), || {
        connection.echo("still there")?;
        let (open, _) = counts(&gateway)?;
        Ok((open <= before + u64::from(LIVE)).then_some(open))
    });
    let left = left.unwrap_or_else(|e| panic!("{e:#}\n{}", gateway.diagnostics()));
    // Some sweeps more.
    std::thread::sleep(Duration::from_secs(12));
    check((|| {
        connection.echo("still there")?;
        let (open, ever) = counts(&gateway)?;
        ensure!(open == before + u64::from(LIVE), "{open} sessions, then {left}");
        ensure!(ever == opened, "{} sessions were opened anew", ever - opened);
        Ok(())
    })());
    let sweep = gateway.json("status").expect("a status")["last_sweep"].clone();
    println!(
        "measured: {} unused sessions gone after {:.1?}, {LIVE} in use; last sweep {sweep}",
        open - left,
        started.elapsed()
    );
    used.finish().expect("packets sent");
    wait_until("the last sessions to end", Duration::from_secs(30), || {
        Ok((counts(&gateway)?.0 == before).then_some(()))
    })
    .unwrap_or_else(|e| panic!("{e:#}\n{}", gateway.diagnostics()));
    assert!(opened > opened_before);
    connection.echo("still there").expect("the connection");
}
