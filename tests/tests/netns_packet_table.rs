//! The packet table, end to end, through the real programs.

use std::collections::BTreeSet;
use std::net::{SocketAddr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use gateway_tests::lab::addresses::Y;
use gateway_tests::lab::checks::{Checks, Observation};
use gateway_tests::lab::echo::ECHO_PORT;
use gateway_tests::lab::gateway::Gateway;
use gateway_tests::lab::probe::UdpProbe;
use gateway_tests::lab::table_run::{self, Unmatched};
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::{Checksums, External, Options};
use gateway_tests::lab::world::World;
use serde_json::Value;

const FLOWS: usize = 500;

fn the_packet_table(options: &Options, unmatched: Unmatched) {
    let Some(binary) = tier::gateway() else { return };
    let world = World::build(options).expect("a world");
    let arguments: &[&str] = match unmatched {
        Unmatched::Drop => &[],
        Unmatched::Forward => &["--unmatched", "forward"],
    };
    let gateway = world.start_gateway(&binary, arguments).unwrap_or_else(|e| panic!("{e:#}"));
    let mut checks = Checks::default();
    table_run::run(&world.net, unmatched, &mut checks);
    if unmatched == Unmatched::Drop {
        for (row, reason) in [(19, "no_rule"), (20, "not_addressed_here")] {
            let name = format!("row {row} is counted as {reason}");
            checks.check(&name, || counted(&gateway, reason));
        }
    }
    checks.check("five hundred flows at once have ports of their own", || many_flows(&world));
    checks.conclude(|| gateway.diagnostics());
}

/// How many packets were dropped for a reason, which must not be none.
fn counted(gateway: &Gateway, reason: &str) -> Result<Observation> {
    let drops = gateway.json("drops")?;
    let counters = drops.as_array().context("no list of drops")?;
    let wanted = |counter: &&Value| counter["verdict"] == "drop" && counter["reason"] == reason;
    let packets = counters.iter().find(wanted).and_then(|counter| counter["packets"].as_u64());
    ensure!(packets.is_some_and(|packets| packets > 0), "{drops}");
    Ok(Observation::new("the rows above", format_args!("{packets:?} packets")))
}

/// Flows of two hosts to one endpoint, all open at the same time.
fn many_flows(world: &World) -> Result<Observation> {
    let net = &world.net;
    let to = SocketAddrV4::new(Y, ECHO_PORT);
    let mut seen = BTreeSet::new();
    let mut open = Vec::new();
    for ns in [&net.b.ns, &net.c.ns] {
        let flows = ns.enter(|| -> Result<Vec<(UdpProbe, SocketAddr)>> {
            let flow = |_| {
                let probe = UdpProbe::connect(0, to)?;
                let seen = probe.exchange(b"one of many")?.seen;
                Ok((probe, seen))
            };
            (0..FLOWS / 2).map(flow).collect()
        })??;
        open.extend(flows);
    }
    for (probe, first) in &open {
        seen.insert(*first);
        let again = probe.exchange(b"again")?.seen;
        ensure!(again == *first, "{first} became {again}");
    }
    ensure!(seen.len() == FLOWS, "{} tuples for {FLOWS} flows", seen.len());
    Ok(Observation::new(format_args!("{FLOWS} UDP flows to {to}"), "as many tuples, all kept"))
}

#[test]
fn the_packet_table_holds_over_veth() {
    the_packet_table(&Options::default(), Unmatched::Drop);
}

#[test]
fn the_packet_table_holds_over_macvlan() {
    let options = Options { external: External::Macvlan, ..Options::default() };
    the_packet_table(&options, Unmatched::Drop);
}

#[test]
fn the_packet_table_holds_when_the_gateway_completes_partial_checksums() {
    let options = Options { checksums: Checksums::AtGateway, ..Options::default() };
    the_packet_table(&options, Unmatched::Drop);
}

#[test]
fn the_packet_table_holds_when_senders_compute_checksums() {
    let options = Options { checksums: Checksums::AtSender, ..Options::default() };
    the_packet_table(&options, Unmatched::Drop);
}

#[test]
fn unmatched_packets_are_forwarded_on_request() {
    the_packet_table(&Options::default(), Unmatched::Forward);
}
