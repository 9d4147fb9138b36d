//! Floods: packets with many sources and ports, sent through a raw socket, at a bounded rate.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::netns::{self, Netns};
use crate::build_packet::Draft;

/// `IPPROTO_RAW`: what is sent begins with its own IP header.
const WHOLE_PACKETS: i32 = 255;

/// So many are sent at a time, then the sender waits until it is time for the next ones.
const BURST: u32 = 50;

/// A running flood; it ends after its longest time even if nobody stops it.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Flood {
    /// Sends from `ns`, again and again, what `packet` makes of each number below `different`.
    ///
    /// # Errors
    /// No thread.
    pub fn start(
        ns: &Netns,
        per_second: u32,
        longest: Duration,
        different: u32,
        packet: impl Fn(u32) -> Draft,
    ) -> Result<Self> {
        let packets: Vec<_> = (0..different).map(|number| bytes(&packet(number))).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let (path, stopped) = (ns.path(), stop.clone());
        let thread = thread::Builder::new().name("flood".into()).spawn(move || {
            netns::enter_this_thread(&path)?;
            send_until(&packets, per_second, Instant::now() + longest, &stopped)
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it; returns how many packets were sent.
    ///
    /// # Errors
    /// Sending failed.
    pub fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().ok().context("the flood panicked")?
    }
}

/// The IP packet and where to send it.
fn bytes(draft: &Draft) -> (SocketAddrV4, Vec<u8>) {
    let destination = match draft.destination {
        std::net::IpAddr::V4(v4) => v4,
        std::net::IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    (SocketAddrV4::new(destination, 0), draft.clone().frame([0; 6])[14..].to_vec())
}

fn send_until(
    packets: &[(SocketAddrV4, Vec<u8>)],
    per_second: u32,
    deadline: Instant,
    stop: &AtomicBool,
) -> Result<u64> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(WHOLE_PACKETS)))?;
    let (started, pause) = (Instant::now(), Duration::from_secs(1) * BURST / per_second);
    let mut sent = 0_u64;
    let mut next = packets.iter().cycle();
    for burst in 0_u32.. {
        if stop.load(Ordering::SeqCst) || Instant::now() > deadline {
            break;
        }
        for (to, packet) in next.by_ref().take(BURST as usize) {
            // A full queue drops packets, as a flood does.
            sent += u64::from(socket.send_to(packet, &(*to).into()).is_ok());
        }
        thread::sleep((started + pause * burst).saturating_duration_since(Instant::now()));
    }
    Ok(sent)
}
