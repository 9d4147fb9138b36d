//! The daemon comes and goes; connections stay.

use std::net::{IpAddr, SocketAddrV4};
use std::time::Duration;

use gateway_tests::lab::addresses::{X, v6};
use gateway_tests::lab::echo::ECHO_PORT;
use gateway_tests::lab::gateway::{Gateway, run_to_end};
use gateway_tests::lab::manifests::{DNAT_ECHO_D, EIP_FIP, Manifests};
use gateway_tests::lab::pinger::Pinger;
use gateway_tests::lab::pins::{self, Kind};
use gateway_tests::lab::probe::{self, TcpProbe};
use gateway_tests::lab::running::{ECHO_Y, Running};
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::Options;
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::world::World;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn killing_the_daemon_leaves_traffic_flowing_and_a_restart_adopts_everything() {
    let (Some(binary), true) = (tier::gateway(), tier::bpftool()) else { return };
    let mut lab = Running::start(&binary);
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
    let (Some(binary), true) = (tier::gateway(), tier::bpftool()) else { return };
    let mut lab = Running::start(&binary);
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
fn a_second_daemon_and_a_missing_interface_are_refused_in_one_line() {
    let Some(binary) = tier::gateway() else { return };
    let lab = Running::start(&binary);
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
fn a_change_made_while_the_daemon_is_dead_is_applied_at_its_next_start() {
    let Some(binary) = tier::gateway() else { return };
    let mut lab = Running::start(&binary);
    let mut open = lab.connections();
    let mut doomed = TcpProbe::connect(&lab.world.net.x.ns, 0, DNAT_ECHO_D).expect("a connection");
    lab.gateway.kill9().expect("a daemon to kill");
    let manifests = Manifests::standard(lab.gateway.name());
    lab.world.configure(&manifests.without("echo-d").yaml()).expect("a change");
    doomed.echo("the rule is still in force").expect("an echo");

    let restarted = lab.gateway.restart();
    lab.must("restart", restarted);
    probe::tcp_refused(&lab.world.net.x.ns, DNAT_ECHO_D).expect("a refusal");
    lab.must("the flow of the removed rule", doomed.wait_for_end(SOON));
    lab.all_alive(&mut open, "after the restart");
}

#[test]
fn neighbours_learn_at_once_that_an_eip_moved_here() {
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(&Options::default()).expect("a world");
    let elsewhere = "02:00:00:00:00:99";
    let addresses = [IpAddr::V4(EIP_FIP), v6(EIP_FIP).into()];
    for eip in addresses {
        let entry = format!("neigh replace {eip} lladdr {elsewhere} dev ext nud stale");
        world.net.x.ns.ip(&entry).expect("a neighbour entry");
    }
    let _gateway = world.start_gateway(&binary, &[]).unwrap_or_else(|e| panic!("{e:#}"));
    // By gratuitous ARP, and by an unsolicited neighbour advertisement.
    for eip in addresses {
        wait_until("the announcement", SOON, || {
            let neighbour = world.net.x.ns.ip(&format!("neigh show {eip} dev ext"))?;
            anyhow::ensure!(
                neighbour.contains("lladdr") && !neighbour.contains(elsewhere),
                "{neighbour}"
            );
            Ok(Some(()))
        })
        .unwrap_or_else(|e| panic!("{e:#}"));
    }
}
