//! What senders are told of packets that go no further: ICMP errors of the gateway's own.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gateway_tests::lab::addresses::{LAN, X, Y, v6};
use gateway_tests::lab::checks::{Checks, Observation};
use gateway_tests::lab::http::{self, HTTP_PORT, random_file};
use gateway_tests::lab::manifests::{DNAT_HTTP, EIP_FIP, Manifests};
use gateway_tests::lab::netns::Netns;
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::Options;
use gateway_tests::lab::world::World;

/// What one `ping` with these options prints.
fn ping(ns: &Netns, options: &[&str], to: IpAddr) -> Result<String> {
    let mut command = Command::new("ping");
    command.args(["-n", "-c", "1", "-W", "2"]).args(options).arg(to.to_string());
    let output = ns.enter(|| command.output())?.context("failed to run ping")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A ping that must be answered by `from` with `what`.
fn told(ns: &Netns, options: &[&str], to: IpAddr, from: IpAddr, what: &str) -> Result<Observation> {
    let output = ping(ns, options, to)?;
    let line = output.lines().find(|line| line.contains(what));
    let line = line.with_context(|| format!("nobody said {what:?}:\n{output}"))?;
    ensure!(line.contains(&format!("From {from} ")), "not from {from}: {line}");
    Ok(Observation::new(format_args!("ping {options:?} {to}"), line))
}

/// An address of the lab and the one of the other family that goes with it.
fn both(v4: Ipv4Addr) -> [IpAddr; 2] {
    [v4.into(), v6(v4).into()]
}

#[test]
fn a_ttl_that_ends_here_is_answered_from_the_eip_and_inside_from_the_lan_address() {
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(&Options::default()).expect("a world");
    let manifests = Manifests { ipv6: true, ..Manifests::standard(&world.net.name) };
    let gateway =
        world.start_gateway_with(&binary, &manifests, &[]).unwrap_or_else(|e| panic!("{e:#}"));
    let (net, mut checks) = (&world.net, Checks::default());
    let texts = ["Time to live exceeded", "Time exceeded: Hop limit"];
    for ((eip, lan), text) in both(EIP_FIP).into_iter().zip(both(LAN)).zip(texts) {
        checks.check("from outside", || told(&net.x.ns, &["-t", "1"], eip, eip, text));
        // The VPC router takes one of the two.
        checks.check("hairpin", || told(&net.c.ns, &["-t", "2"], eip, lan, text));
    }
    checks.conclude(|| gateway.diagnostics());
}

#[test]
fn path_mtu_discovery_works_towards_either_side() {
    let Some(binary) = tier::gateway() else { return };
    for (interface, mtu) in [("net1", 1400), ("eth0", 1300)] {
        let world = World::build(&Options::default()).expect("a world");
        let net = &world.net;
        net.gateway.ip(&format!("link set {interface} mtu {mtu}")).expect("an MTU");
        random_file(&net.scratch.join("original"), 4).expect("a file");
        let manifests = Manifests { ipv6: true, ..Manifests::standard(&net.name) };
        let gateway =
            world.start_gateway_with(&binary, &manifests, &[]).unwrap_or_else(|e| panic!("{e:#}"));
        let mut checks = Checks::default();
        let outwards = interface == "net1";
        let texts = [format!("(mtu = {mtu})"), format!("mtu={mtu}")];
        let peers = if outwards {
            both(X).into_iter().zip(both(LAN))
        } else {
            both(EIP_FIP).into_iter().zip(both(EIP_FIP))
        };
        let from = if outwards { &net.b.ns } else { &net.x.ns };
        for ((to, says), text) in peers.zip(&texts) {
            checks.check(interface, || told(from, &["-M", "do", "-s", "1400"], to, says, text));
        }
        let (server, files) = if outwards {
            (SocketAddrV4::new(X, HTTP_PORT), world.nginx_x.files())
        } else {
            (DNAT_HTTP, world.nginx_b.files())
        };
        checks.check("a transfer", || {
            let original = net.scratch.join("original");
            let sent = http::upload(from, server, "copy", &original, &files.join("copy"))?;
            Ok(Observation::new(
                format_args!("{} bytes to {server}", sent.bytes),
                "the same sha256",
            ))
        });
        checks.conclude(|| gateway.diagnostics());
    }
}

#[test]
fn a_host_over_its_limit_is_told_so_at_once() {
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(&Options::default()).expect("a world");
    let manifests = Manifests { ipv6: true, ..Manifests::standard(&world.net.name) };
    let gateway = world
        .start_gateway_with(&binary, &manifests, &["--host-sessions", "1"])
        .unwrap_or_else(|e| panic!("{e:#}"));
    let mut checks = Checks::default();
    for (to, kind) in
        both(Y).into_iter().zip([ErrorKind::HostUnreachable, ErrorKind::PermissionDenied])
    {
        checks.check("the second flow", || {
            let error = world.net.b.ns.enter(|| -> Result<_> {
                let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let open = || -> Result<UdpSocket> {
                    let socket = UdpSocket::bind(any)?;
                    socket.connect(SocketAddr::new(to, 9999))?;
                    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
                    socket.send(b"flow")?;
                    Ok(socket)
                };
                let _first = open()?;
                let second = open()?;
                second.recv(&mut [0; 16]).err().context("somebody answered")
            })??;
            ensure!(error.kind() == kind, "{error}, not {kind:?}");
            Ok(Observation::new(format_args!("a second flow to {to}"), error))
        });
    }
    checks.conclude(|| gateway.diagnostics());
}
