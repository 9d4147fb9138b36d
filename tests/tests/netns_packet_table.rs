//! The packet table, end to end, through the real programs.

use gateway_tests::lab::checks::Checks;
use gateway_tests::lab::table_run::{self, Unmatched};
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::{Checksums, External, Options};
use gateway_tests::lab::world::World;

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
    checks.conclude(|| gateway.diagnostics());
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
