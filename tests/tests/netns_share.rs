//! Ports that several backends share, with real servers: row 10 of the packet table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gateway_tests::lab::addresses::{A, B, C, D};
use gateway_tests::lab::echo::ECHO_PORT;
use gateway_tests::lab::manifests::{EIP_DNAT, EIP_FIP, Manifests};
use gateway_tests::lab::netns::Netns;
use gateway_tests::lab::packet_table::Ip;
use gateway_tests::lab::probe::{self, TcpProbe, UdpProbe};
use gateway_tests::lab::running::Running;
use gateway_tests::lab::tier;
use gateway_tests::lab::wait::wait_until;

const SOON: Duration = Duration::from_secs(5);

/// The port that B, C and D share, TCP and UDP.
const SHARED: SocketAddrV4 = SocketAddrV4::new(EIP_DNAT, 7200);

/// The rules of the packet table, and the shared port with these backends.
fn manifests(gateway: &str, backends: &[Ipv4Addr]) -> Manifests {
    let mut manifests = Manifests::standard(gateway);
    manifests.share("tcp", "tcp", SHARED, backends, ECHO_PORT);
    manifests.share("udp", "udp", SHARED, backends, ECHO_PORT);
    manifests
}

/// Starts a gateway whose shared port has these backends.
fn start(backends: &[Ipv4Addr]) -> Option<Running> {
    let lab = Running::start(&tier::gateway()?);
    lab.world.configure(&manifests(lab.gateway.name(), backends).yaml()).expect("a change");
    let answers = || probe::udp(&lab.world.net.y.ns, 0, SHARED, b"there?").map(Some);
    lab.must("the shared port", wait_until("the shared port", SOON, answers));
    Some(lab)
}

/// Replaces the backends and waits until new connections meet exactly these.
fn replace(lab: &Running, backends: &[Ipv4Addr], letters: &str) {
    lab.world.configure(&manifests(lab.gateway.name(), backends).yaml()).expect("a change");
    let ns = &lab.world.net.y.ns;
    let wanted: BTreeSet<_> = letters.chars().collect();
    let settled = || {
        let met = (0..30).map(|_| Ok(probe::tcp(ns, 0, SHARED)?.server));
        let met = met.collect::<Result<BTreeSet<_>>>()?;
        ensure!(met == wanted, "met {met:?}");
        Ok(Some(()))
    };
    lab.must("the new backends", wait_until("the new backends", SOON, settled));
}

/// Connections of a host, until each of these servers has one.
fn one_each(ns: &Netns, servers: &str) -> Result<BTreeMap<char, TcpProbe>> {
    let mut open = BTreeMap::new();
    for _ in 0..200 {
        let connection = TcpProbe::connect(ns, 0, SHARED)?;
        open.insert(connection.exchange.server, connection);
        if servers.chars().all(|server| open.contains_key(&server)) {
            return Ok(open);
        }
    }
    anyhow::bail!("200 connections met only {:?}", open.into_keys())
}

#[test]
fn connections_are_spread_and_stay_where_they_are() {
    let Some(lab) = start(&[B, C, D]) else { return };
    let net = &lab.world.net;
    let mut open = lab.must("TCP", one_each(&net.y.ns, "bcd"));
    for (server, connection) in &mut open {
        for round in 0..3 {
            lab.must("echo", connection.echo(&format!("round {round}")));
        }
        let exchange = connection.exchange;
        assert_eq!(exchange.seen, exchange.local, "{server} sees the client itself");
    }
    for ip in Ip::ALL {
        let met = lab.must("UDP", udp_flows(&net.y.ns, ip.endpoint(SHARED)));
        assert_eq!(met, "bcd".chars().collect(), "over {ip:?}");
    }
}

/// Which servers sixty flows meet, each of which stays where it is.
fn udp_flows(ns: &Netns, to: SocketAddr) -> Result<BTreeSet<char>> {
    ns.enter(|| {
        let mut met = BTreeSet::new();
        for _ in 0..60 {
            let flow = UdpProbe::connect(0, to)?;
            let first = flow.exchange(b"first")?;
            met.insert(first.server);
            for _ in 0..3 {
                ensure!(flow.exchange(b"again")? == first, "a flow has moved");
            }
        }
        Ok(met)
    })?
}

#[test]
fn hosts_of_the_vpc_reach_it_too() {
    let Some(lab) = start(&[B, C]) else { return };
    let net = &lab.world.net;
    // Row 12: from the EIP, a backend that meets itself included. Row 13: a floating-IP host comes as
    // itself.
    for (host, seen) in [(&net.d, EIP_DNAT), (&net.b, EIP_DNAT), (&net.a, EIP_FIP)] {
        let mut open = lab.must(host.label, one_each(&host.ns, "bc"));
        for connection in open.values_mut() {
            lab.must(host.label, connection.echo("hello"));
            assert_eq!(connection.exchange.seen.ip(), seen, "from {}", host.label);
        }
    }
    assert_eq!(net.a.v4, A);
}

#[test]
fn a_client_with_affinity_meets_one_backend() {
    let Some(lab) = start(&[B, C, D]) else { return };
    let mut rules = manifests(lab.gateway.name(), &[B, C, D]);
    // One rule that asks for it is enough.
    let asks = rules.dnats.iter_mut().find(|dnat| dnat.name == "tcp-30").expect("a rule for D");
    asks.annotations = "vpc-gateway.io/session-affinity: ClientIP".into();
    lab.world.configure(&rules.yaml()).expect("a change");
    let net = &lab.world.net;
    let one = || {
        let met = (0..30).map(|_| Ok(probe::tcp(&net.y.ns, 0, SHARED)?.server));
        let met = met.collect::<Result<BTreeSet<_>>>()?;
        ensure!(met.len() == 1, "met {met:?}");
        Ok(Some(()))
    };
    lab.must("affinity", wait_until("one backend for one client", SOON, one));
}

/// The rule of this name: its state, and how many sessions it has left.
fn state(lab: &Running, name: &str) -> Result<Option<(String, Option<u64>)>> {
    let rules = lab.gateway.json("rules")?;
    let rules = rules.as_array().context("no list of rules")?;
    let Some(rule) = rules.iter().find(|rule| rule["name"] == name) else { return Ok(None) };
    let state = rule["state"].as_str().context("no state")?.to_owned();
    Ok(Some((state, rule["sessions_left"].as_u64())))
}

#[test]
fn a_removed_backend_drains_even_across_a_restart_and_the_last_rule_cuts() {
    let Some(mut lab) = start(&[B, C, D]) else { return };
    let mut open = {
        let net = &lab.world.net;
        lab.must("TCP", one_each(&net.y.ns, "bcd"))
    };
    replace(&lab, &[B, D], "bd");
    for (server, connection) in &mut open {
        lab.must(&format!("{server} after the change"), connection.echo("still here"));
    }
    let drains = || Ok(state(&lab, "tcp-20")?.filter(|state| state.1.is_some()));
    let draining = lab.must("rules", wait_until("a count of sessions", 2 * SOON, drains));
    assert_eq!(draining.0, "draining");
    assert!(draining.1 >= Some(1), "{draining:?}");
    assert_eq!(lab.must("rules", state(&lab, "tcp-10")).expect("a rule").0, "active");

    lab.gateway.kill9().expect("a daemon to kill");
    let restarted = lab.gateway.restart();
    lab.must("restart", restarted);
    lab.must("C after the restart", open.get_mut(&'c').expect("C").echo("still here"));
    assert_eq!(lab.must("rules", state(&lab, "tcp-20")).expect("a rule").0, "draining");

    // The port goes, and with it every flow, those of the backend that drains included.
    let mut rest = manifests(lab.gateway.name(), &[B, D]);
    rest.dnats.retain(|dnat| !dnat.name.starts_with("tcp-"));
    lab.world.configure(&rest.yaml()).expect("a change");
    for (server, connection) in &mut open {
        lab.must(&format!("the flow of {server}"), connection.wait_for_end(SOON));
    }
    assert_eq!(lab.must("rules", state(&lab, "tcp-20")), None);
    let refused = probe::tcp_refused(&lab.world.net.y.ns, SHARED);
    lab.must("the port that went", refused);
    lab.must("UDP of the same port", probe::udp(&lab.world.net.y.ns, 0, SHARED, b"another rule"));
}

#[test]
fn no_connection_fails_while_backends_come_and_go() {
    let Some(lab) = start(&[B, C, D]) else { return };
    let ns = &lab.world.net.y.ns;
    let stop = AtomicBool::new(false);
    let (udp, tcp) = thread::scope(|scope| {
        let until = |body: fn(&Netns) -> Result<()>| {
            let mut count = 0;
            while !stop.load(Ordering::SeqCst) {
                body(ns).with_context(|| format!("after {count}"))?;
                count += 1;
            }
            anyhow::Ok(count)
        };
        let udp = scope.spawn(move || until(|ns| probe::udp(ns, 0, SHARED, b"new").map(drop)));
        let tcp = scope.spawn(move || until(|ns| probe::tcp(ns, 0, SHARED).map(drop)));
        for (backends, letters) in [
            (&[B, D][..], "bd"),
            (&[C], "c"),
            (&[B, C], "bc"),
            (&[D], "d"),
            (&[B, C, D], "bcd"),
            (&[B], "b"),
        ] {
            replace(&lab, backends, letters);
        }
        stop.store(true, Ordering::SeqCst);
        (udp.join().expect("a thread"), tcp.join().expect("a thread"))
    });
    let (udp, tcp) = (lab.must("UDP", udp), lab.must("TCP", tcp));
    println!("measured: {udp} UDP flows and {tcp} TCP connections across six changes, none failed");
    assert!(udp > 200 && tcp > 100, "too few to show anything: {udp} and {tcp}");
}
