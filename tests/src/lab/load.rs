//! Many UDP flows that keep sending, and what the echo server says of each: from which address it was
//! seen, and when.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::netns::Netns;

/// Time between two datagrams of a flow.
pub const INTERVAL: Duration = Duration::from_millis(20);

/// How long answers are waited for after the last datagram.
const REST: Duration = Duration::from_millis(300);

/// A flow was seen from one address, without another in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The client's address as the server saw it.
    pub seen: SocketAddr,
    /// When the first answer that says so arrived.
    pub first: Instant,
    /// When the last one did.
    pub last: Instant,
}

/// What became of a flow: its sightings in order.
pub type History = Vec<Sighting>;

/// Flows that keep sending until they are stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<u16, History>>,
}

impl Load {
    /// Opens `count` flows from `source` to an echo server, and starts to send.
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub fn start(ns: &Netns, source: &str, server: SocketAddr, count: u16) -> Result<Self> {
        let source: IpAddr = source.parse()?;
        let sockets = ns.enter(|| -> Result<BTreeMap<u16, UdpSocket>> {
            let open = |_| {
                let socket = UdpSocket::bind((source, 0))?;
                socket.connect(server)?;
                socket.set_nonblocking(true)?;
                Ok((socket.local_addr()?.port(), socket))
            };
            (0..count).map(open).collect()
        })??;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = thread::Builder::new().name("load".into());
        let thread = thread.spawn(move || send(&sockets, &told))?;
        Ok(Self { stop, thread })
    }

    /// Stops, and tells what became of each flow, by its local port.
    ///
    /// # Errors
    /// The thread ended early.
    pub fn stop(self) -> Result<BTreeMap<u16, History>> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().ok().context("the load ended early")
    }

    /// Sends for a while.
    ///
    /// # Errors
    /// See [`Load::start`].
    pub fn during(
        ns: &Netns,
        source: &str,
        server: SocketAddr,
        (count, time): (u16, Duration),
    ) -> Result<BTreeMap<u16, History>> {
        let load = Self::start(ns, source, server, count)?;
        thread::sleep(time);
        load.stop()
    }
}

fn send(sockets: &BTreeMap<u16, UdpSocket>, stop: &AtomicBool) -> BTreeMap<u16, History> {
    let mut histories: BTreeMap<u16, History> =
        sockets.keys().map(|port| (*port, Vec::new())).collect();
    let (mut next, mut end) = (Instant::now(), None);
    while end.is_none_or(|end| Instant::now() < end) {
        if end.is_none() && stop.load(Ordering::SeqCst) {
            end = Some(Instant::now() + REST);
        }
        for (port, socket) in sockets {
            if end.is_none() {
                // A route that is gone for a moment is what this is about.
                let _ = socket.send(b"who\n");
            }
            let history = histories.entry(*port).or_default();
            hear(socket, history);
        }
        next += INTERVAL;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    histories
}

fn hear(socket: &UdpSocket, history: &mut History) {
    let mut buffer = [0; 256];
    while let Ok(length) = socket.recv(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        let peer = text.strip_prefix("peer ").and_then(|rest| rest.split(' ').next());
        let Some(seen) = peer.and_then(|peer| peer.parse().ok()) else { continue };
        let now = Instant::now();
        match history.last_mut() {
            Some(last) if last.seen == seen => last.last = now,
            _ => history.push(Sighting { seen, first: now, last: now }),
        }
    }
}
