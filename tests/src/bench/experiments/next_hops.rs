//! For how long the flows of a router get no answer when it dies.
//!
//! It dies as one that hangs: it neither forwards nor speaks any more, but its links stay up, so that BFD
//! alone tells. Flows ask all the time, and the silence of one is what lies between the last request before
//! it that was answered and the first one after it: too long by one turn, never too short.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Bench;
use crate::bench::report::Unit;
use crate::bench::screen::progress;
use crate::bench::subject::Way;
use crate::lab::echo::{ECHO_PORT, EchoServers};
use crate::lab::routers::{OUTER, RoutersLab, SERVER, TENANT};
use crate::lab::wait::wait_until;

/// Its name.
pub const NAME: &str = "next hops";

/// The rows: flows of the router that dies, and the others.
pub const ROWS: [&str; 3] =
    ["silence of its first flow to move", "silence of its last flow", "longest of another flow"];

/// Three times 100 ms, as the manifest has it.
pub const DETECTION_MS: u32 = 300;

const FLOWS: usize = 32;
/// All flows ask once in this time.
const TURN: Duration = Duration::from_millis(4);
/// Turns before the death and after the flows have moved.
const CALM: usize = 50;
const PATIENCE: Duration = Duration::from_secs(20);

/// Measures.
///
/// # Errors
/// The network cannot be built, or BFD does not notice.
pub fn run(bench: &mut Bench) -> Result<()> {
    progress(&format!("{NAME}: one of two routers dies under load, BFD 3 x 100 ms"));
    let mut lab = RoutersLab::start(|text| text)?;
    let _echo = EchoServers::start(&lab.server, ECHO_PORT)?;
    for _ in 0..bench.pick(2, 5) {
        ready(&lab)?;
        let silences = death(&mut lab).with_context(|| lab.diagnostics())?;
        for (row, silence) in ROWS.iter().zip(silences) {
            let millis = silence.as_secs_f64() * 1e3;
            bench.report.add(NAME, row, Way::Tc.name(), Unit::Millis, millis);
        }
        lab.outer[1].ns.sysctl("ipv4/ip_forward", "1")?;
        lab.speak(true, 1)?;
    }
    Ok(())
}

/// Waits until all routers live and BFD has come down to the intervals that were asked for.
fn ready(lab: &RoutersLab) -> Result<()> {
    lab.wait_all()?;
    wait_until("the detection time", PATIENCE, || {
        let shown = lab.gateway.json("bfd")?;
        let sessions = shown["sessions"].as_array().context("no sessions")?;
        let fast = |time: &Value| time.as_u64() == Some(DETECTION_MS.into());
        let all = sessions.iter().all(|session| fast(&session["detection_time_ms"]));
        Ok(all.then_some(()))
    })
}

/// A UDP flow, and which of its requests were answered.
struct Flow {
    socket: UdpSocket,
    source: SocketAddr,
    answered: Vec<usize>,
}

impl Flow {
    fn open() -> Result<Self> {
        let socket = UdpSocket::bind((TENANT[0][0], 0))?;
        socket.connect((SERVER[0][0], ECHO_PORT))?;
        socket.set_nonblocking(true)?;
        Ok(Self { source: socket.local_addr()?, socket, answered: Vec::new() })
    }

    fn ask(&self, turn: usize) {
        // What could not be sent has no answer, and that counts.
        let _ = self.socket.send(&turn.to_be_bytes());
    }

    /// Takes the answers that are there. The server puts a line before what it was asked.
    fn listen(&mut self) {
        let mut buffer = [0; 512];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            if let Some(turn) = buffer[..length].last_chunk() {
                self.answered.push(usize::from_be_bytes(*turn));
            }
        }
    }
}

/// The longest time between two requests that were answered with none in between, or to the end.
fn silence(answered: &[usize], asked: &[Instant]) -> Duration {
    let turns: BTreeSet<_> = answered.iter().copied().chain([asked.len() - 1]).collect();
    let turns: Vec<_> = turns.into_iter().collect();
    let gaps = turns.windows(2).map(|pair| asked[pair[1]] - asked[pair[0]]);
    gaps.max().unwrap_or_default()
}

/// Asks until it is over. Returns when each turn began.
fn load(flows: &mut [Flow], turns: &AtomicUsize, over: &AtomicBool) -> Vec<Instant> {
    let mut asked = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        for flow in &mut *flows {
            flow.ask(asked.len());
            flow.listen();
        }
        asked.push(begun);
        turns.store(asked.len(), Ordering::Relaxed);
        thread::sleep(TURN.saturating_sub(begun.elapsed()));
    }
    asked
}

/// Lets a router die. Returns a silence for each row.
fn death(lab: &mut RoutersLab) -> Result<[Duration; 3]> {
    let open = || (0..FLOWS).map(|_| Flow::open()).collect::<Result<Vec<_>>>();
    let mut flows = lab.tenant.enter(open)??;
    let (turns, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (asked, concerned) = thread::scope(|scope| {
        let load = scope.spawn(|| load(&mut flows, &turns, &over));
        let outcome = disturb(lab, &turns);
        over.store(true, Ordering::Relaxed);
        let asked = load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        outcome.map(|concerned| (asked, concerned))
    })?;
    let (mut moved, mut others) = (Vec::new(), Vec::new());
    for flow in &flows {
        ensure!(!flow.answered.is_empty(), "{} never had an answer", flow.source);
        let silence = silence(&flow.answered, &asked);
        if concerned.contains(&flow.source) { &mut moved } else { &mut others }.push(silence);
    }
    let first = moved.iter().min().context("no flow took the router that died")?;
    let last = moved.iter().max().copied().unwrap_or_default();
    ensure!(*first > 4 * TURN, "a flow of the router that died was not disturbed");
    Ok([*first, last, others.into_iter().max().context("all flows took one router")?])
}

/// Ends the second outer router. Returns the sources of its flows.
fn disturb(lab: &mut RoutersLab, turns: &AtomicUsize) -> Result<BTreeSet<SocketAddr>> {
    let calm = |until: usize| {
        let reached = || Ok((turns.load(Ordering::Relaxed) >= until).then_some(()));
        wait_until("traffic to go on", PATIENCE, reached)
    };
    calm(CALM)?;
    let shown = lab.gateway.json("sessions")?;
    let sessions = shown.as_array().context("no list of sessions")?;
    let by_it = sessions.iter().filter(|session| session["next_hop"] == OUTER[0][1]);
    let source = |session: &Value| session["original"]["source"].as_str()?.parse().ok();
    let concerned = by_it.filter_map(source).collect();
    lab.outer[1].ns.sysctl("ipv4/ip_forward", "0")?;
    lab.silence(true, 1)?;
    lab.wait_for(&[OUTER[0][1]], "dead")?;
    calm(turns.load(Ordering::Relaxed) + CALM)?;
    Ok(concerned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_lies_between_two_answers_or_never_ends() {
        let start = Instant::now();
        let at = |millis| Duration::from_millis(millis);
        let asked: Vec<_> = (0..10).map(|turn| start + at(turn)).collect();
        assert_eq!(silence(&[0, 1, 2, 7, 8, 9], &asked), at(5));
        assert_eq!(silence(&[0, 2, 1, 3], &asked), at(6));
    }
}
