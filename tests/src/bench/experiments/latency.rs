//! Request latency: small UDP requests and answers, one after the other, nothing else going on.
//!
//! Both ends share a core, so that waking an idle one is no part of it.

use std::net::UdpSocket;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Bench, REPEATS};
use crate::bench::plan::X;
use crate::bench::report::Unit;
use crate::bench::rig::{path_cpu, pin};
use crate::bench::rules::Rules;
use crate::bench::screen::progress;
use crate::bench::subject::{Setup, Subject};
use crate::lab::topology::External;

/// Its name.
pub const NAME: &str = "latency";

/// The rows: a share of the requests that took no longer.
pub const ROWS: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];

const PORT: u16 = 7;
const BYTES: usize = 64;
const PATIENCE: Duration = Duration::from_secs(2);

/// Measures.
///
/// # Errors
/// No answer, or the kernel refuses something.
pub fn run(bench: &mut Bench) -> Result<()> {
    let setup = Setup {
        rules: Rules { dnats: 1 },
        sessions: 1 << 16,
        external: External::Veth,
        generated: false,
    };
    progress(&format!("{NAME}: UDP requests of {BYTES} bytes"));
    let mut subjects = bench.subjects(&super::bulk::WAYS, &setup);
    for (row, _) in ROWS {
        subjects.note_absent(&mut bench.report, NAME, row, Unit::Micros);
    }
    let requests = bench.pick(5_000, 50_000);
    for _ in 0..REPEATS {
        for subject in &mut subjects.ready {
            let mut times = round_trips(subject, requests)?;
            times.sort_unstable();
            for (row, share) in ROWS {
                let index = ((times.len() - 1) as f64 * share) as usize;
                let micros = times[index].as_secs_f64() * 1e6;
                bench.report.add(NAME, row, subject.way.name(), Unit::Micros, micros);
            }
        }
    }
    Ok(())
}

fn round_trips(subject: &Subject, requests: usize) -> Result<Vec<Duration>> {
    let rig = &subject.rig;
    let (ready, wait) = mpsc::channel();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            rig.outside.enter(move || -> Result<()> {
                pin(path_cpu())?;
                let socket = UdpSocket::bind((X, PORT)).context("port of the echo server")?;
                socket.set_read_timeout(Some(PATIENCE))?;
                ready.send(()).context("nobody waits")?;
                let mut buffer = [0; BYTES];
                for _ in 0..requests {
                    let (length, from) = socket.recv_from(&mut buffer).context("no request")?;
                    socket.send_to(&buffer[..length], from)?;
                }
                Ok(())
            })?
        });
        let client = rig.vpc.enter(move || -> Result<Vec<Duration>> {
            pin(path_cpu())?;
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            socket.connect((X, PORT))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            wait.recv().context("the echo server did not start")?;
            let mut buffer = [0; BYTES];
            let mut times = Vec::with_capacity(requests);
            for _ in 0..requests {
                let started = Instant::now();
                socket.send(&[0; BYTES])?;
                socket.recv(&mut buffer).context("no answer")?;
                times.push(started.elapsed());
            }
            Ok(times)
        })?;
        let served = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        served.and(client)
    })
}
