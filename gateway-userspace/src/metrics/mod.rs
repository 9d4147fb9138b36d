//! Prometheus metrics, liveness and readiness over HTTP.
//!
//! ```text
//! the daemon ── publishes a few numbers after each round ──► watch channel ─┐
//! the maps   ── read by a second set of descriptors ────────────────────────┴─► thread `metrics` ─► HTTP
//! ```
//!
//! The daemon never waits for a client: pages are made on a thread of their own, of maps that it opens
//! for itself. No page walks the sessions. What a page shows one by one is limited by
//! [`Settings::limit`]; everything else is summed.

mod address;
pub mod agent;
pub mod catalog;
mod collect;
pub mod gateway;
pub mod histogram;
mod include;
pub mod page;
pub mod selector;
mod server;
pub mod tally;

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tokio::sync::watch;

pub use self::address::Address;
pub use self::collect::{Collect, Collector};
use crate::{clock, privilege};

/// How the metrics are served.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where.
    pub address: Address,
    /// How many rules, and how many EIPs, are shown one by one.
    pub limit: usize,
}

/// The metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The port.
    #[error("failed to listen on {address} for metrics")]
    Listen {
        /// The address.
        address: Address,
        /// The cause.
        source: io::Error,
    },
    /// The thread.
    #[error("failed to start the thread that serves metrics")]
    Thread(#[source] io::Error),
}

/// A port that is open and not served yet.
///
/// It belongs to the network namespace in which it was opened, wherever the process goes then.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    limit: usize,
}

/// A socket that listens.
#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Opens the port.
    ///
    /// # Errors
    ///
    /// When it is taken, or the address is not ours.
    pub fn open(settings: Settings) -> Result<Self, MetricsError> {
        let Settings { address, limit } = settings;
        match Self::bind(&address) {
            Ok(socket) => Ok(Self { socket, limit }),
            Err(source) => Err(MetricsError::Listen { address, source }),
        }
    }

    fn bind(address: &Address) -> io::Result<Socket> {
        match address {
            Address::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Socket::Tcp(listener))
            }
            Address::Unix(path) => {
                // One that was killed has left its socket.
                let _ = fs::remove_file(path);
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                Ok(Socket::Unix(listener))
            }
        }
    }

    /// Serves what a collector makes of what the returned publisher publishes.
    ///
    /// # Errors
    ///
    /// When there can be no more threads.
    pub fn serve<P: Facts, C: Collect<P>>(
        self,
        collector: impl FnOnce(usize) -> C,
    ) -> Result<Publisher<P>, MetricsError> {
        let (sender, published) = watch::channel(Arc::new(P::default()));
        let beat = Arc::new(AtomicU64::new(seconds()));
        let collector = Collector::new(collector(self.limit), published, Arc::clone(&beat));
        let socket = self.socket;
        let serve = move || match privilege::keep(privilege::READ_MAPS) {
            Ok(_) => server::serve(socket, collector),
            Err(error) => eprintln!("metrics are not served: {error}"),
        };
        thread::Builder::new().name("metrics".into()).spawn(serve).map_err(MetricsError::Thread)?;
        Ok(Publisher { sender, beat })
    }
}

/// What a daemon publishes.
pub trait Facts: Default + Send + Sync + 'static {
    /// When the process started, in seconds since 1970.
    fn started_at(&self) -> u64;

    /// Nothing if it is ready, else why it is not, in one line.
    fn unready(&self) -> Option<String>;

    /// How many problems there are, by the step that found them.
    fn problems(&self) -> Vec<(&'static str, usize)>;
}

/// The daemon's end.
#[derive(Debug)]
pub struct Publisher<P> {
    sender: watch::Sender<Arc<P>>,
    beat: Arc<AtomicU64>,
}

impl<P> Publisher<P> {
    /// Replaces what is published.
    pub fn publish(&self, facts: P) {
        self.sender.send_replace(Arc::new(facts));
    }

    /// Says that the daemon's loop turns.
    pub fn beat(&self) {
        self.beat.store(seconds(), Ordering::Relaxed);
    }
}

/// Seconds since some moment in the past, for intervals.
fn seconds() -> u64 {
    clock::duration(clock::ticks()).as_secs()
}
