//! iperf3: one TCP stream, as measured by its receiver.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::netns::Netns;
use super::process::Process;
use super::scratch::Scratch;
use super::wait::wait_until;

/// The port iperf3 listens on.
pub const IPERF_PORT: u16 = 5201;

/// An iperf3 server.
#[derive(Debug)]
pub struct Iperf {
    _server: Process,
}

impl Iperf {
    /// Starts a server inside `ns`.
    ///
    /// # Errors
    /// iperf3 is not installed or the port is taken.
    pub fn start(ns: &Netns, scratch: &Scratch) -> Result<Self> {
        let log = scratch.join(&format!("iperf3-{}.log", ns.name()));
        let mut command = Command::new("iperf3");
        command.args(["--server", "--forceflush", "--port", &IPERF_PORT.to_string()]);
        let server = ns.enter(|| Process::start(&mut command, &log))?.context("iperf3")?;
        wait_until("iperf3 to listen", Duration::from_secs(5), || {
            Ok(server.log().contains("listening").then_some(()))
        })?;
        Ok(Self { _server: server })
    }
}

/// Sends one TCP stream for some seconds and returns what arrived, in Gbit/s.
///
/// # Errors
/// No connection, or iperf3 failed.
pub fn stream(ns: &Netns, to: Ipv4Addr, seconds: u32) -> Result<f64> {
    let mut command = Command::new("iperf3");
    command.args(["--json", "--port", &IPERF_PORT.to_string(), "--time", &seconds.to_string()]);
    let report: Value =
        serde_json::from_str(&ns.output(command.arg("--client").arg(to.to_string()))?)?;
    let rate = &report["end"]["sum_received"]["bits_per_second"];
    Ok(rate.as_f64().with_context(|| format!("no rate in {report}"))? / 1e9)
}
