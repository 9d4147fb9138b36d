//! A UDP ping-pong at 1 kHz that counts what did not come back.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::netns::{self, Netns};

const INTERVAL: Duration = Duration::from_millis(1);

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
    let mut tally = Tally { sent: 0, received: 0 };
    while !stop.load(Ordering::SeqCst) {
        let next = Instant::now() + INTERVAL;
        socket.send(&tally.sent.to_be_bytes()).context("failed to send")?;
        tally.sent += 1;
        tally.received += answers_until(&socket, next, u64::MAX)?;
    }
    let patience = Instant::now() + Duration::from_millis(500);
    tally.received += answers_until(&socket, patience, tally.lost())?;
    Ok(tally)
}

fn answers_until(socket: &UdpSocket, deadline: Instant, wanted: u64) -> Result<u64> {
    let mut buffer = [0; 256];
    let mut received = 0;
    while received < wanted {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        socket.set_read_timeout(Some(left.max(Duration::from_micros(50))))?;
        received += u64::from(socket.recv(&mut buffer).is_ok());
    }
    Ok(received)
}
