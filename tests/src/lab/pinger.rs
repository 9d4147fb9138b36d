//! A UDP ping-pong at 1 kHz that counts what did not come back.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::netns::{self, Netns};

const INTERVAL: Duration = Duration::from_millis(1);
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// What a ping-pong counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Datagrams sent.
    pub sent: u64,
    /// Answers received.
    pub received: u64,
}

impl Tally {
    /// Datagrams without an answer.
    pub fn lost(self) -> u64 {
        self.sent.saturating_sub(self.received)
    }
}

/// A running ping-pong.
#[derive(Debug)]
pub struct Pinger {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Tally>>,
}

impl Pinger {
    /// Starts sending from `ns` to an echo server.
    ///
    /// # Errors
    /// No thread.
    pub fn start(ns: &Netns, to: SocketAddrV4) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (ns.path(), stop.clone());
        let thread = thread::Builder::new().name("pinger".into()).spawn(move || {
            netns::enter_this_thread(&path)?;
            ping_until(to, &stopped)
        })?;
        Ok(Self { stop, thread })
    }

    /// Stops sending, waits for the last answers and counts.
    ///
    /// # Errors
    /// Sending failed.
    pub fn finish(self) -> Result<Tally> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().ok().context("the pinger panicked")?
    }
}

fn ping_until(to: SocketAddrV4, stop: &AtomicBool) -> Result<Tally> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    // Never blocked in the socket: its timeouts are rounded up to the kernel's ticks.
    socket.set_nonblocking(true)?;
    let mut tally = Tally { sent: 0, received: 0 };
    let mut next = Instant::now();
    while !stop.load(Ordering::SeqCst) {
        socket.send(&tally.sent.to_be_bytes()).context("failed to send")?;
        tally.sent += 1;
        tally.received += answers(&socket);
        next += INTERVAL;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let deadline = Instant::now() + LAST_ANSWERS;
    while tally.lost() > 0 && Instant::now() < deadline {
        thread::sleep(INTERVAL);
        tally.received += answers(&socket);
    }
    Ok(tally)
}

fn answers(socket: &UdpSocket) -> u64 {
    let mut buffer = [0; 256];
    let mut received = 0;
    while socket.recv(&mut buffer).is_ok() {
        received += 1;
    }
    received
}
