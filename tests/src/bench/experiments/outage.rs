//! Packets lost while the daemon is killed and started again under load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Bench, open_all};
use crate::bench::plan::Kind;
use crate::bench::report::Unit;
use crate::bench::rules::Rules;
use crate::bench::screen::progress;
use crate::bench::subject::{Setup, Subject, Way};
use crate::lab::gateway::Gateway;
use crate::lab::topology::External;

/// Its name.
pub const NAME: &str = "outage";

/// Lost packets, and sessions that had to be opened again.
pub const ROWS: [&str; 2] = ["packets lost", "sessions opened again"];

const FLOWS: u32 = 1000;
const FRAMES: u32 = 50_000;

/// Measures.
///
/// # Errors
/// The daemon does not come back.
pub fn run(bench: &mut Bench) -> Result<()> {
    progress(&format!("{NAME}: the daemon is killed and started again under load"));
    let setup = Setup {
        rules: Rules { dnats: 1 },
        sessions: 1 << 16,
        external: External::Veth,
        generated: true,
    };
    let mut subjects = bench.subjects(&[Way::Tc, Way::Xdp], &setup);
    for row in ROWS {
        subjects.note_absent(&mut bench.report, NAME, row, Unit::Packets);
    }
    for subject in &mut subjects.ready {
        let way = subject.way.name();
        let (lost, opened) = kill_and_restart(subject)?;
        bench.report.add(NAME, ROWS[0], way, Unit::Packets, lost);
        bench.report.add(NAME, ROWS[1], way, Unit::Packets, opened);
    }
    Ok(())
}

fn sessions(subject: &Subject) -> Result<f64> {
    let gateway = subject.gateway.as_ref().context("no gateway")?;
    gateway.json("status")?["sessions"].as_f64().context("no `sessions` in the status")
}

/// Kills the daemon and starts it again, with pauses in which traffic goes on.
fn disturb(gateway: Option<&mut Gateway>) -> Result<()> {
    let gateway = gateway.context("no gateway")?;
    thread::sleep(Duration::from_millis(200));
    gateway.kill9()?;
    thread::sleep(Duration::from_millis(300));
    gateway.restart()?;
    thread::sleep(Duration::from_millis(200));
    Ok(())
}

fn kill_and_restart(subject: &mut Subject) -> Result<(f64, f64)> {
    open_all(subject, Kind::Snat, FLOWS, 60)?;
    let before = sessions(subject)?;
    let over = AtomicBool::new(false);
    let (gateway, rig) = (&mut subject.gateway, &mut subject.rig);
    let lost = thread::scope(|scope| -> Result<u64> {
        let load = scope.spawn(|| -> Result<u64> {
            let flows = Kind::Snat.flows(FLOWS, 60);
            let mut lost = 0;
            while !over.load(Ordering::Relaxed) {
                let burst = rig.send(Kind::Snat, &flows, FRAMES)?;
                lost += burst.sent - burst.received.min(burst.sent);
            }
            Ok(lost)
        });
        let outcome = disturb(gateway.as_mut());
        over.store(true, Ordering::Relaxed);
        let lost = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        outcome.and(lost)
    })?;
    Ok((lost as f64, sessions(subject)? - before))
}
