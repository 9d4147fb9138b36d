//! Bulk transfers: the content that arrives is the content that was sent, and how fast it went.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use anyhow::Result;
use gateway_tests::lab::addresses::X;
use gateway_tests::lab::checks::{Checks, Observation};
use gateway_tests::lab::http::{self, HTTP_PORT, Transfer, random_file};
use gateway_tests::lab::manifests::{DNAT_HTTP, EIP_DNAT};
use gateway_tests::lab::netns::Netns;
use gateway_tests::lab::perf::{Iperf, stream};
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::{Checksums, External, Options};
use gateway_tests::lab::world::World;

const MEGABYTES: u32 = 64;
const SECONDS: u32 = 1;
const RUNS: u32 = 3;

fn observed(path: &str, transfer: Transfer) -> Observation {
    let Transfer { bytes, .. } = transfer;
    Observation::new(
        format_args!("{bytes} bytes {path}"),
        format_args!("the same sha256, {:.1} Gbit/s", transfer.gigabits()),
    )
}

/// Both directions of a connection that the client opens.
fn both_ways(
    world: &World,
    client: &Netns,
    server: SocketAddrV4,
    files: &Path,
    checks: &mut Checks,
) {
    let original = world.net.scratch.join("original");
    let copy = world.net.scratch.join("copy");
    checks.check("download", || -> Result<Observation> {
        fs::copy(&original, files.join("served"))?;
        let transfer = http::download(client, server, "served", &original, &copy)?;
        Ok(observed(&format!("from {server}"), transfer))
    });
    checks.check("upload", || {
        let transfer =
            http::upload(client, server, "uploaded", &original, &files.join("uploaded"))?;
        Ok(observed(&format!("to {server}"), transfer))
    });
}

fn content_survives(options: &Options) {
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(options).expect("a world");
    random_file(&world.net.scratch.join("original"), MEGABYTES).expect("a file");
    let gateway = world.start_gateway(&binary, &[]).unwrap_or_else(|e| panic!("{e:#}"));
    let mut checks = Checks::default();
    let web_x = SocketAddrV4::new(X, HTTP_PORT);
    both_ways(&world, &world.net.b.ns, web_x, world.nginx_x.files(), &mut checks);
    both_ways(&world, &world.net.x.ns, DNAT_HTTP, world.nginx_b.files(), &mut checks);
    both_ways(&world, &world.net.c.ns, DNAT_HTTP, world.nginx_b.files(), &mut checks);
    checks.conclude(|| gateway.diagnostics());
}

#[test]
fn content_survives_over_veth_with_offloads() {
    content_survives(&Options::default());
}

#[test]
fn content_survives_over_macvlan_with_offloads() {
    content_survives(&Options { external: External::Macvlan, ..Options::default() });
}

#[test]
fn content_survives_when_the_gateway_completes_partial_checksums() {
    content_survives(&Options { checksums: Checksums::AtGateway, ..Options::default() });
}

#[test]
fn content_survives_when_senders_compute_checksums() {
    content_survives(&Options { checksums: Checksums::AtSender, ..Options::default() });
}

/// The best of several runs: whatever else the machine does only makes a run slower.
fn best_stream(ns: &Netns, to: Ipv4Addr) -> Result<f64> {
    let rates = (0..RUNS).map(|_| stream(ns, to, SECONDS)).collect::<Result<Vec<_>>>()?;
    Ok(rates.into_iter().fold(0.0, f64::max))
}

/// Prints the rates; nothing is asserted about time.
fn throughput_against_plain_forwarding(external: External) {
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(&Options { external, ..Options::default() }).expect("a world");
    let net = &world.net;
    let _servers =
        [&net.b, &net.x].map(|host| Iperf::start(&host.ns, &net.scratch).expect("iperf3"));
    net.route_plainly().expect("routes");
    let plain_out = best_stream(&net.b.ns, X).expect("plain forwarding, outbound");
    let plain_in = best_stream(&net.x.ns, net.b.v4).expect("plain forwarding, inbound");
    let gateway = world.start_gateway(&binary, &[]).unwrap_or_else(|e| panic!("{e:#}"));
    for (what, ns, to, plain) in
        [("SNAT", &net.b.ns, X, plain_out), ("DNAT", &net.x.ns, EIP_DNAT, plain_in)]
    {
        let rate = best_stream(ns, to)
            .unwrap_or_else(|error| panic!("{what}: {error:#}\n{}", gateway.diagnostics()));
        let ratio = rate / plain;
        println!(
            "measured: one TCP stream, best of {RUNS}, {external:?}, {what}: {rate:.1} Gbit/s, \
             plain kernel forwarding: {plain:.1} Gbit/s, ratio {ratio:.2}"
        );
    }
}

#[test]
fn throughput_against_plain_forwarding_over_veth() {
    throughput_against_plain_forwarding(External::Veth);
}

#[test]
fn throughput_against_plain_forwarding_over_macvlan() {
    throughput_against_plain_forwarding(External::Macvlan);
}
