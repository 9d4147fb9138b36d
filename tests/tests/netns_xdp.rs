//! XDP in front of TC as on hardware: native on both interfaces, senders that compute their checksums,
//! and peers that take redirected frames.

use std::fs;
use std::net::SocketAddrV4;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gateway_tests::lab::addresses::X;
use gateway_tests::lab::echo::ECHO_PORT;
use gateway_tests::lab::gateway::{Gateway, run_to_end};
use gateway_tests::lab::http::{self, HTTP_PORT, random_file};
use gateway_tests::lab::manifests::{DNAT_HTTP, EIP_FIP};
use gateway_tests::lab::pinger::Pinger;
use gateway_tests::lab::probe;

use gateway_tests::lab::running::ECHO_Y;
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::{Checksums, External, Options};
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::world::World;

const XDP: [&str; 2] = ["--mode", "xdp"];
const SOON: Duration = Duration::from_secs(10);

/// A world whose packets have whole checksums, and whose peers of the gateway take redirected frames.
fn world() -> Result<World> {
    let world = World::build(&Options { checksums: Checksums::AtSender, ..Options::default() })?;
    for (ns, interface) in [(&world.net.router, "to-gateway"), (&world.net.x.ns, "ext")] {
        ns.output(Command::new("ethtool").args(["-K", interface, "gro", "on"]))?;
    }
    Ok(world)
}

/// How many packets XDP has finished, and how many it has seen.
fn share(gateway: &Gateway) -> Result<(u64, u64)> {
    let status = gateway.json("status")?;
    let number = |index: usize| status["xdp"][index].as_u64().context("a share of XDP");
    Ok((number(0)?, number(1)?))
}

/// Waits until XDP finishes packets of B's: then it knows the neighbours.
fn wait_for_xdp(world: &World, gateway: &Gateway) -> Result<()> {
    wait_until("XDP to finish packets", SOON, || {
        let before = share(gateway)?;
        probe::udp(&world.net.b.ns, 0, ECHO_Y, b"hello")?;
        let after = share(gateway)?;
        ensure!(after.0 >= before.0 + 2, "{before:?}, then {after:?}");
        Ok(Some(()))
    })
}

#[test]
fn native_xdp_translates_and_finishes_what_is_established() {
    let Some(binary) = tier::gateway() else { return };
    let world = world().expect("a world");
    let gateway = world.start_gateway(&binary, &XDP).unwrap_or_else(|e| panic!("{e:#}"));
    let outcome = (|| -> Result<()> {
        // The first packet meets no neighbour: TC has the kernel resolve it.
        world.net.gateway.ip("neigh flush all")?;
        probe::udp(&world.net.b.ns, 0, ECHO_Y, b"first")?;
        wait_for_xdp(&world, &gateway)?;
        let before = share(&gateway)?;
        let (original, copy) = (world.net.scratch.join("original"), world.net.scratch.join("copy"));
        random_file(&original, 16)?;
        for (client, server, files) in [
            (&world.net.b.ns, SocketAddrV4::new(X, HTTP_PORT), world.nginx_x.files()),
            (&world.net.x.ns, DNAT_HTTP, world.nginx_b.files()),
        ] {
            fs::copy(&original, files.join("served"))?;
            http::download(client, server, "served", &original, &copy)?;
            http::upload(client, server, "uploaded", &original, &files.join("uploaded"))?;
        }
        for (ns, target) in [(&world.net.b.ns, X), (&world.net.x.ns, EIP_FIP)] {
            let target = target.to_string();
            ns.output(Command::new("ping").args(["-c20", "-i0.01", "-W1", "-q", &target]))?;
        }
        for _ in 0..100 {
            probe::udp(&world.net.b.ns, 0, ECHO_Y, b"again")?;
            probe::udp(&world.net.x.ns, 0, SocketAddrV4::new(EIP_FIP, ECHO_PORT), b"again")?;
        }
        let after = share(&gateway)?;
        let (finished, seen) = (after.0 - before.0, after.1 - before.1);
        let percent = finished as f64 * 100.0 / seen as f64;
        println!("measured: XDP finished {finished} of {seen} packets ({percent:.1} %)");
        ensure!(seen > 10_000 && percent > 90.0, "only {percent:.1} % of {seen}");
        Ok(())
    })();
    outcome.unwrap_or_else(|error| panic!("{error:#}\n{}", gateway.diagnostics()));
}

#[test]
fn nothing_is_lost_when_a_daemon_with_xdp_is_killed_and_started_again() {
    let Some(binary) = tier::gateway() else { return };
    let world = world().expect("a world");
    let mut gateway = world.start_gateway(&binary, &XDP).unwrap_or_else(|e| panic!("{e:#}"));
    let outcome = (|| -> Result<()> {
        wait_for_xdp(&world, &gateway)?;
        let before = share(&gateway)?;
        let pinger = Pinger::start(&world.net.b.ns, ECHO_Y)?;
        gateway.kill9()?;
        std::thread::sleep(Duration::from_millis(500));
        gateway.restart()?;
        gateway.terminate()?;
        gateway.restart()?;
        wait_for_xdp(&world, &gateway)?;
        let tally = pinger.finish()?;
        let after = share(&gateway)?;
        println!(
            "measured: {} datagrams across two restarts, lost {}; XDP finished {} of {}",
            tally.sent,
            tally.lost(),
            after.0 - before.0,
            after.1 - before.1
        );
        ensure!(tally.lost() == 0, "lost {} of {}", tally.lost(), tally.sent);
        Ok(())
    })();
    outcome.unwrap_or_else(|error| panic!("{error:#}\n{}", gateway.diagnostics()));
    gateway.terminate().expect("an end");
    gateway.detach().expect("a detached gateway");
    let links = world.net.gateway.ip("link show").expect("links");
    assert!(!links.contains("xdp"), "{links}");
}

#[test]
fn a_neighbour_that_changes_its_mac_address_is_found_again() {
    let Some(binary) = tier::gateway() else { return };
    let world = world().expect("a world");
    let gateway = world.start_gateway(&binary, &XDP).unwrap_or_else(|e| panic!("{e:#}"));
    let outcome = (|| -> Result<()> {
        wait_for_xdp(&world, &gateway)?;
        // The kernel probes what it has not heard of for half a minute; here it is less patient.
        for (name, value) in [("base_reachable_time_ms", "2000"), ("delay_first_probe_time", "1")] {
            world.net.gateway.sysctl(&format!("ipv4/neigh/net1/{name}"), value)?;
        }
        world.net.x.ns.ip("link set ext address 02:00:00:00:77:01")?;
        wait_until("the new address to be used", Duration::from_secs(60), || {
            probe::udp(&world.net.b.ns, 0, ECHO_Y, b"moved").map(Some)
        })?;
        wait_for_xdp(&world, &gateway)
    })();
    outcome.unwrap_or_else(|error| panic!("{error:#}\n{}", gateway.diagnostics()));
}

#[test]
fn a_forced_mode_that_cannot_work_is_refused_before_anything_is_touched() {
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(&Options { external: External::Macvlan, ..Options::default() })
        .expect("a world");
    let manifests = gateway_tests::lab::manifests::Manifests::standard(&world.net.name);
    let settings = world.settings(&binary, &manifests, &XDP).expect("settings");
    let gateway = Gateway::prepare(&world.net, settings).expect("a gateway");
    let output = run_to_end(&mut gateway.run_command("net1")).expect("an end");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "accepted: {said}");
    assert!(said.contains("--mode xdp for net1: macvlan: no native XDP"), "{said}");
    assert!(!gateway.pins().exists(), "{said}");
    let plain = SocketAddrV4::new(X, ECHO_PORT);
    probe::udp(&world.net.b.ns, 0, plain, b"untouched").expect("plain forwarding");
}
