//! Tells senders what became of their packets: ICMP errors of the gateway's own.
//!
//! ```text
//!  program ─► ring buffer ─► message ─► limit for each receiver ─► raw socket, routed by the kernel
//! ```
//!
//! Nothing waits for it: a program that finds the ring buffer full goes on, and without the daemon
//! packets are dropped in silence.
//!
//! Translated packets that are too large for their next link and may be fragmented take the same way: their
//! fragments go out by a raw socket.

pub mod fragments;
pub mod message;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use gateway_common::answer::{Answer, Oversize, Unanswered};
use ipnet::IpNet;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage,
    sendmsg, sendto, socket,
};
use tokio::sync::watch;
use tokio::task::yield_now;
use zerocopy::FromBytes as _;

use self::message::Message;
use crate::clock;
use crate::dataplane::raw;

/// The ring buffer of packets that are answered.
pub const RING: &str = "ANSWERS";
/// The ring buffer of packets that are fragmented.
pub const OVERSIZE_RING: &str = "OVERSIZE";

/// How many records are acted upon in a row.
const BATCH: u32 = 64;
/// How often one receiver is told, in the long run (as `net.ipv4.icmp_ratelimit`).
const INTERVAL: Duration = Duration::from_secs(1);
/// How often at once.
const BURST: u32 = 6;
/// How many receivers are remembered. Beyond that all are forgotten.
const RECEIVERS: usize = 4096;

/// Starts to answer. `lan` are the gateway's own addresses in the VPC.
///
/// # Errors
///
/// When sockets cannot be made: CAP_NET_RAW is missing.
pub fn serve(ring: RingBuf<MapData>, lan: watch::Receiver<Vec<IpNet>>) -> io::Result<()> {
    let sockets = Sockets::open()?;
    let mut limits = Limits::default();
    each(ring, move |record| {
        let Ok((record, _)) = Unanswered::read_from_prefix(record) else { return };
        let Some(message) = message::message(&record, &lan.borrow()) else { return };
        let always = record.answer == Answer::TooBig as u8;
        if always || limits.permit(message.to, clock::now()) {
            // A receiver without a route is not told.
            let _ = sockets.send(&message);
        }
    })
}

/// Starts to send the fragments of packets that are too large for their next link.
///
/// # Errors
///
/// As [`serve`].
pub fn fragment(ring: RingBuf<MapData>) -> io::Result<()> {
    let sockets = Sockets::open()?;
    each(ring, move |record| {
        let Ok((header, packet)) = Oversize::read_from_prefix(record) else { return };
        let mtu = usize::try_from(header.mtu).unwrap_or(usize::MAX);
        for one in fragments::fragments(packet, mtu, fastrand::u16(1..)).unwrap_or_default() {
            // Without a route, or with a full queue, it is lost as it would be in a router.
            let _ = sockets.send_by(header.ifindex, &one);
        }
    })
}

/// Starts to act upon the records of a ring buffer. However many there are, the rest of the daemon has its
/// turn in between.
fn each(ring: RingBuf<MapData>, mut act: impl FnMut(&[u8]) + 'static + Send) -> io::Result<()> {
    let mut ring = raw::wait_for(ring)?;
    tokio::spawn(async move {
        loop {
            let Ok(mut ready) = ring.readable_mut().await else { return };
            let mut left = BATCH;
            while left > 0
                && let Some(entry) = ready.get_inner_mut().next()
            {
                act(&entry);
                left -= 1;
            }
            if left > 0 {
                ready.clear_ready();
            }
            yield_now().await;
        }
    });
    Ok(())
}

/// Sockets that take packets with their IP header.
struct Sockets {
    v4: OwnedFd,
    /// Not there where the kernel has no IPv6.
    v6: Option<OwnedFd>,
}

impl Sockets {
    fn open() -> io::Result<Self> {
        let raw = |family| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            socket(family, SockType::Raw, flags, SockProtocol::Raw)
        };
        Ok(Self { v4: raw(AddressFamily::Inet)?, v6: raw(AddressFamily::Inet6).ok() })
    }

    fn send(&self, message: &Message) -> io::Result<()> {
        let socket = match message.to {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => self.v6.as_ref().ok_or(io::ErrorKind::Unsupported)?,
        };
        // Port 0: of a raw socket it would be a protocol.
        let to = SockaddrStorage::from(SocketAddr::new(message.to, 0));
        sendto(socket.as_raw_fd(), &message.packet, &to, MsgFlags::empty())?;
        Ok(())
    }
}

impl Sockets {
    /// Sends an IPv4 packet by an interface.
    fn send_by(&self, ifindex: u32, packet: &[u8]) -> io::Result<()> {
        let to = packet.get(16..).and_then(<[u8]>::first_chunk::<4>);
        let to = Ipv4Addr::from(*to.ok_or(io::ErrorKind::InvalidData)?);
        let interface = libc::in_pktinfo {
            ipi_ifindex: i32::try_from(ifindex).map_err(|_| io::ErrorKind::InvalidData)?,
            ipi_spec_dst: libc::in_addr { s_addr: 0 },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let control = [ControlMessage::Ipv4PacketInfo(&interface)];
        let to = SockaddrStorage::from(SocketAddr::new(to.into(), 0));
        let parts = [io::IoSlice::new(packet)];
        sendmsg(self.v4.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&to))?;
        Ok(())
    }
}

/// How often each receiver was told: the time until which its share is used up.
#[derive(Default)]
struct Limits {
    used_until: HashMap<IpAddr, Instant>,
}

impl Limits {
    fn permit(&mut self, to: IpAddr, now: Instant) -> bool {
        if self.used_until.len() >= RECEIVERS && !self.used_until.contains_key(&to) {
            self.used_until.clear();
        }
        let until = self.used_until.entry(to).or_insert(now);
        let next = (*until).max(now) + INTERVAL;
        let permitted = next <= now + INTERVAL * BURST;
        if permitted {
            *until = next;
        }
        permitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_receiver_is_told_a_few_times_at_once_and_then_once_a_second() {
        let mut limits = Limits::default();
        let start = clock::now();
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().expect("an address"));
        let told = (0..100).filter(|_| limits.permit(one, start)).count();
        assert_eq!(told, BURST as usize);
        assert!(limits.permit(other, start), "the share is each receiver's own");
        let later = start + INTERVAL * 3;
        let told = (0..100).filter(|_| limits.permit(one, later)).count();
        assert_eq!(told, 3);
    }

    #[test]
    fn a_flood_of_receivers_does_not_fill_memory() {
        let mut limits = Limits::default();
        for index in 0..RECEIVERS as u32 * 3 {
            limits.permit(IpAddr::from(index.to_be_bytes()), clock::now());
            assert!(limits.used_until.len() <= RECEIVERS);
        }
    }
}
