//! Packets as an interface saw them, through an `AF_PACKET` socket with a filter in the kernel.

use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

use super::netns::Netns;
use super::wait::wait_until;

const ETHERNET: usize = 14;
const SNAPSHOT: u32 = 256;

/// Which packets a capture keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All IPv4 packets.
    Ipv4,
    /// IPv4 packets whose source is in 10.0.0.0/8 and IPv6 packets whose source is in fd00::/8.
    PrivateSource,
}

/// An IPv4 packet that was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// Time to live as it arrived.
    pub ttl: u8,
    /// Whether it is a fragment: more fragments to come, or an offset.
    pub fragment: bool,
    /// Bytes from the transport header on, cut at 200 or so.
    pub transport: Vec<u8>,
}

impl Packet {
    fn parse(frame: &[u8]) -> Option<Self> {
        let ip = frame.get(ETHERNET..)?;
        let header = usize::from(ip.first()? & 0x0f) * 4;
        let address = |at: usize| -> Option<Ipv4Addr> {
            let bytes: [u8; 4] = ip.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes))
        };
        Some(Self {
            source: address(12)?,
            destination: address(16)?,
            protocol: *ip.get(9)?,
            ttl: *ip.get(8)?,
            fragment: u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]) & 0x3fff != 0,
            transport: ip.get(header..)?.to_vec(),
        })
    }

    fn word(&self, at: usize) -> u16 {
        let byte = |at: usize| self.transport.get(at).copied().unwrap_or(0);
        u16::from_be_bytes([byte(at), byte(at + 1)])
    }

    /// What follows a transport header of this length.
    pub fn payload_after(&self, header: usize) -> &[u8] {
        self.transport.get(header..).unwrap_or_default()
    }

    /// Source port of TCP and UDP.
    pub fn source_port(&self) -> u16 {
        self.word(0)
    }

    /// Destination port of TCP and UDP.
    pub fn destination_port(&self) -> u16 {
        self.word(2)
    }

    /// Whether it is an ICMP echo request.
    pub fn is_echo_request(&self) -> bool {
        self.protocol == 1 && self.transport.first() == Some(&8)
    }

    /// Identifier of an ICMP query.
    pub fn icmp_id(&self) -> u16 {
        self.word(4)
    }
}

type Packets = Arc<Mutex<Vec<Packet>>>;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    packets: Packets,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts capturing; packets that pass after this returned are seen.
    ///
    /// # Errors
    /// No privilege or no such interface.
    pub fn start(ns: &Netns, interface: &str, filter: Filter) -> Result<Self> {
        let socket = ns
            .enter(|| open(interface, filter))?
            .with_context(|| format!("failed to capture on {interface} of {}", ns.name()))?;
        let packets = Packets::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (sink, stopped) = (packets.clone(), stop.clone());
        let thread = thread::Builder::new()
            .name("capture".into())
            .spawn(move || record(&socket, &sink, &stopped))?;
        Ok(Self { packets, stop, thread: Some(thread) })
    }

    /// Everything kept so far.
    pub fn packets(&self) -> Vec<Packet> {
        self.packets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a packet.
    ///
    /// # Errors
    /// None arrived; what did arrive is told.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Packet) -> bool) -> Result<Packet> {
        wait_until(what, Duration::from_secs(2), || {
            let packets = self.packets();
            let found = packets.iter().find(|packet| wanted(packet)).cloned();
            ensure!(found.is_some(), "captured {}", summary(&packets));
            Ok(found)
        })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A list of packets for messages, the first ten of them.
pub fn summary(packets: &[Packet]) -> String {
    let lines = packets.iter().take(10).map(|packet| {
        let (from, to) = (packet.source, packet.destination);
        let (sport, dport) = (packet.source_port(), packet.destination_port());
        format!("[{from}:{sport} -> {to}:{dport} proto {} ttl {}]", packet.protocol, packet.ttl)
    });
    format!("{} packets {}", packets.len(), lines.collect::<Vec<_>>().join(" "))
}

fn open(interface: &str, filter: Filter) -> Result<Socket> {
    let every = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(every))?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    socket.attach_filter(&program(filter))?;
    socket.bind(&link_address(interface)?)?;
    let _ = socket.set_recv_buffer_size(8 << 20);
    Ok(socket)
}

fn link_address(interface: &str) -> Result<SockAddr> {
    let index = nix::net::if_::if_nametoindex(interface)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is a plain C structure that fits into the storage of any address.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    link.sll_ifindex = index.cast_signed();
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage holds a complete `sockaddr_ll` of this length.
    Ok(unsafe { SockAddr::new(storage, length) })
}

/// The filter in classic BPF; the value returned is the number of bytes to keep.
fn program(filter: Filter) -> Vec<SockFilter> {
    let load_half = |at| SockFilter::new(0x28, 0, 0, at);
    let load_byte = |at| SockFilter::new(0x30, 0, 0, at);
    let equal = |value, yes, no| SockFilter::new(0x15, yes, no, value);
    let keep = SockFilter::new(0x06, 0, 0, SNAPSHOT);
    let skip = SockFilter::new(0x06, 0, 0, 0);
    match filter {
        Filter::Ipv4 => vec![load_half(12), equal(0x0800, 0, 1), keep, skip],
        Filter::PrivateSource => vec![
            load_half(12),
            equal(0x0800, 0, 2),
            load_byte(26),
            equal(10, 3, 4),
            equal(0x86dd, 0, 3),
            load_byte(22),
            equal(0xfd, 0, 1),
            keep,
            skip,
        ],
    }
}

fn record(socket: &Socket, sink: &Packets, stop: &AtomicBool) {
    let mut buffer = [MaybeUninit::uninit(); SNAPSHOT as usize];
    while !stop.load(Ordering::SeqCst) {
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return,
            Err(_) => continue,
        };
        // SAFETY: the kernel filled the first `length` bytes.
        let frame: Vec<u8> =
            buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
        if let Some(packet) = Packet::parse(&frame) {
            sink.lock().unwrap_or_else(PoisonError::into_inner).push(packet);
        }
    }
}
