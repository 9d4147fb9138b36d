//! TCP bulk: what arrives of one and of eight streams, offloads on, links as a pod has them.
//!
//! The client sits right behind the gateway and the server right before it: no router takes part in
//! the cores.

use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Bench, spaced};
use crate::bench::plan::X;
use crate::bench::report::Unit;
use crate::bench::rules::Rules;
use crate::bench::screen::progress;
use crate::bench::subject::{Setup, Subject, Way};
use crate::lab::perf::Iperf;
use crate::lab::topology::External;

/// Its name.
pub const NAME: &str = "tcp bulk";

/// The ways that take part. XDP in the driver of a veth does not: it loses the checksum offload. What comes back
/// through the bare redirect is forwarded by the kernel.
pub const WAYS: [Way; 5] = [Way::Tc, Way::Iptables, Way::Nftables, Way::Kernel, Way::BareNeighbor];

/// The name of a row.
pub fn name(external: External, streams: u32) -> String {
    let link = match external {
        External::Veth => "veth",
        External::Macvlan => "macvlan",
    };
    let plural = if streams == 1 { "stream" } else { "streams" };
    format!("net1 {link}, {} {plural}", spaced(streams.into()))
}

/// Measures.
///
/// # Errors
/// The kernel refuses something, or iperf3 fails.
pub fn run(bench: &mut Bench) -> Result<()> {
    for external in [External::Veth, External::Macvlan] {
        let setup =
            Setup { rules: Rules { dnats: 1 }, sessions: 1 << 16, external, generated: false };
        let mut subjects = bench.subjects(&WAYS, &setup);
        let servers = subjects
            .ready
            .iter()
            .map(|subject| Iperf::start(&subject.rig.outside, &subject.rig.scratch))
            .collect::<Result<Vec<_>>>()?;
        for streams in [1, 8] {
            let row = name(external, streams);
            progress(&format!("{NAME}: {row}"));
            subjects.note_absent(&mut bench.report, NAME, &row, Unit::Gbps);
            for _ in 0..bench.pick(if streams > 1 { 1 } else { 2 }, 5) {
                for subject in &mut subjects.ready {
                    let rate = transfer(subject, streams, bench.pick(1, 2))?;
                    bench.report.add(NAME, &row, subject.way.name(), Unit::Gbps, rate);
                }
            }
        }
        drop(servers);
    }
    Ok(())
}

/// Gbit/s that arrived. The sender has the first CPU and the receiver the last one.
fn transfer(subject: &Subject, streams: u32, seconds: u32) -> Result<f64> {
    let last = std::thread::available_parallelism().map_or(0, |count| count.get() - 1);
    let mut command = Command::new("iperf3");
    command.args(["--json", "--affinity", &format!("0,{last}")]);
    command.args(["--time", &seconds.to_string(), "--parallel", &streams.to_string()]);
    command.args(["--client", &X.to_string()]);
    let report: Value = serde_json::from_str(&subject.rig.vpc.output(&mut command)?)?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(rate.with_context(|| format!("iperf3 gives no rate: {}", report["error"]))? / 1e9)
}
