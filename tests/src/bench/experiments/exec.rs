//! Verbs as kube-ovn-controller runs them in a gateway pod: a shell, the script of the image, and the
//! client, until the daemon has confirmed.

use std::time::Instant;

use anyhow::Result;

use super::Bench;
use crate::bench::report::Unit;
use crate::bench::rig::PREFIX;
use crate::bench::screen::progress;
use crate::bench::subject::Way;
use crate::lab::addresses::B;
use crate::lab::manifests::EIP_DNAT;
use crate::lab::pod::Pod;
use crate::lab::tier;
use crate::lab::topology::{Options, Topology};

/// Its name.
pub const NAME: &str = "exec";

/// The rows.
pub const DNAT_ADD: &str = "dnat-add with 10 000 present";
/// See [`DNAT_ADD`].
pub const EIP_ADD: &str = "eip-add";
const EIP_ADD_BESIDE_MANY: &str = "eip-add with 1 000 present";

const PRESENT: u16 = 10_000;
const FIRST_PORT: u16 = 10_000;

/// Measures.
///
/// # Errors
/// A verb fails.
pub fn run(bench: &mut Bench) -> Result<()> {
    progress(&format!("{NAME}: {DNAT_ADD}, {EIP_ADD}"));
    let net = Topology::build(&Options { prefix: PREFIX, ..Options::default() })?;
    let pod = Pod::new(&net, &tier::binary()?)?;
    measure(bench, &pod)
}

fn measure(bench: &mut Bench, pod: &Pod) -> Result<()> {
    pod.must("init", &[])?;
    pod.must("eip-add", &[&format!("{EIP_DNAT}/24")])?;
    let port = |number| forward(FIRST_PORT + number);
    let present: Vec<_> = (0..PRESENT).map(port).collect();
    // One command line takes no more than the kernel allows.
    for some in present.chunks(2_000) {
        must_all(pod, "dnat-add", some)?;
    }
    let dnats = bench.pick(60, 200);
    one_by_one(bench, pod, DNAT_ADD, "dnat-add", (PRESENT..PRESENT + dnats).map(port))?;
    let eips = |hosts: std::ops::Range<u16>| hosts.map(|host| format!("203.0.113.{host}/24"));
    one_by_one(bench, pod, EIP_ADD, "eip-add", eips(50..bench.pick(90, 150)))?;
    if bench.quick {
        let why = "not part of --quick";
        bench.report.miss(NAME, EIP_ADD_BESIDE_MANY, Way::Tc.name(), Unit::Millis, why);
        return Ok(());
    }
    let many: Vec<_> = (0..1_000).map(|n| format!("198.18.{}.{}/32", n / 250, n % 250)).collect();
    must_all(pod, "eip-add", &many)?;
    one_by_one(bench, pod, EIP_ADD_BESIDE_MANY, "eip-add", eips(150..250))
}

fn forward(port: u16) -> String {
    format!("{EIP_DNAT},{port},tcp,{B},{port}")
}

fn must_all(pod: &Pod, verb: &str, rules: &[String]) -> Result<()> {
    let rules: Vec<_> = rules.iter().map(String::as_str).collect();
    pod.must(verb, &rules).map(drop)
}

/// Times a verb with one rule each time.
fn one_by_one(
    bench: &mut Bench,
    pod: &Pod,
    row: &str,
    verb: &str,
    rules: impl Iterator<Item = String>,
) -> Result<()> {
    for rule in rules {
        let started = Instant::now();
        pod.must(verb, &[&rule])?;
        let millis = started.elapsed().as_secs_f64() * 1e3;
        bench.report.add(NAME, row, Way::Tc.name(), Unit::Millis, millis);
    }
    Ok(())
}
