//! How a range of ports fills towards one remote: who gets a port, after how many tries, and how long it
//! takes, up to the last port and beyond. By `BPF_PROG_TEST_RUN` on the real programs.

use std::time::Instant;

use anyhow::{Result, ensure};
use gateway_common::records::Config;
use gateway_common::tuple::Direction;
use gateway_common::verdict::Tries;

use super::Bench;
use crate::bench::report::Unit;
use crate::bench::screen::progress;
use crate::build_packet::udp;
use crate::harness::routes::{ingress_mac, prefix};
use crate::harness::{Backend as _, NatRule};
use crate::kernel::{self, FORWARDED, Options, Tc, Worker};

/// Its name.
pub const NAME: &str = "ports";

const CAPACITY: u32 = 1 << 18;
const EIP: &str = "203.0.113.10";
const REMOTE: &str = "198.51.100.7:443";

/// Up to which share of the range it is filled in turn, in thousandths.
const LEVELS: [u32; 6] = [100, 500, 900, 990, 999, 1000];

/// How many more flows ask when the range is full.
const BEYOND: u32 = 2000;

/// Measures.
///
/// # Errors
/// The kernel refuses something.
pub fn run(bench: &mut Bench) -> Result<()> {
    let ports = bench.pick(8192, 64_512);
    progress(&format!("{NAME}: {ports} ports towards one remote"));
    let mut outcome = Ok(());
    let ran = kernel::run(Options::tc(CAPACITY), |tc| outcome = fill(bench, tc, ports));
    ensure!(ran, "the programs cannot be loaded");
    outcome
}

fn fill(bench: &mut Bench, tc: &mut Tc, ports: u32) -> Result<()> {
    let pool = vec![(prefix(EIP).0, 1)];
    tc.add(&NatRule::Snat { prefix: prefix("10.0.0.0/8"), pool });
    let port_low = u16::MAX - (ports - 1) as u16;
    tc.configure(Config { port_low, port_high: u16::MAX, ..tc.config() });
    let worker = Worker::of(tc)?;
    let (mut flow, mut before) = (0, 0);
    for level in LEVELS {
        let goal = ports * level / 1000;
        let row = format!("{} % to {} %", percent(before), percent(level));
        let opened = ask(bench, tc, &worker, &row, flow..goal)?;
        ensure!(opened == goal - flow, "{row}: {opened} of {} flows got a port", goal - flow);
        (flow, before) = (goal, level);
    }
    let opened = ask(bench, tc, &worker, "beyond 100 %", flow..flow + BEYOND)?;
    ensure!(opened == 0, "{opened} flows got a port of a full range");
    Ok(())
}

/// Sends the first packets of these flows. Returns how many were forwarded.
fn ask(
    bench: &mut Bench,
    tc: &mut Tc,
    worker: &Worker,
    row: &str,
    flows: std::ops::Range<u32>,
) -> Result<u32> {
    let asked = flows.len();
    let frames: Vec<_> = flows.map(frame).collect();
    let tries =
        |tc: &mut Tc| Tries::ALL.iter().map(|tries| tc.event(tries.counter())).collect::<Vec<_>>();
    let before = tries(tc);
    let mut opened = 0;
    let started = Instant::now();
    for frame in &frames {
        opened += u32::from(worker.send(Direction::Outbound, frame)?.0 == FORWARDED);
    }
    let nanos = started.elapsed().as_nanos() as f64 / asked as f64;
    let report = &mut bench.report;
    report.add(NAME, row, "asked", Unit::Packets, asked as f64);
    report.add(NAME, row, "opened", Unit::Packets, opened.into());
    for ((class, after), before) in Tries::ALL.iter().zip(tries(tc)).zip(before) {
        let way = format!("tries: {}", class.as_str());
        report.add(NAME, row, &way, Unit::Packets, (after - before) as f64);
    }
    report.add(NAME, &format!("{row}, a packet with its system call"), "asked", Unit::Nanos, nanos);
    Ok(opened)
}

fn percent(thousandths: u32) -> f64 {
    f64::from(thousandths) / 10.0
}

/// The first packet of a flow, each from another source of the VPC.
fn frame(flow: u32) -> Vec<u8> {
    let host = format!("10.{}.{}.{}", 1 + flow / 10_000 / 250, flow / 10_000 % 250, 10 + flow % 5);
    let source = format!("{host}:{}", 1024 + flow / 5 % 60_000);
    udp(&source, REMOTE).frame(ingress_mac(Direction::Outbound))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_flow_is_another() {
        let flows = 64_512 + BEYOND;
        let frames: BTreeSet<_> = (0..flows).map(frame).collect();
        assert_eq!(frames.len(), flows as usize);
    }
}
