//! Clients of the echo servers, each reporting its own address and the address the server saw.

use std::fmt;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::netns::Netns;
use super::wait::wait_until;

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long to listen for an answer that must not come.
pub const SILENCE: Duration = Duration::from_millis(400);

/// A request and its answer, from both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The client's own address.
    pub local: SocketAddr,
    /// The client's address as the server saw it.
    pub seen: SocketAddr,
    /// The first letter of the server's namespace: `b` for B.
    pub server: char,
}

/// How a probe that should not be answered ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A RST or an ICMP port unreachable arrived.
    Refused,
    /// An ICMP error says that the path or an administrator refuses.
    Unreachable,
    /// Nothing arrived.
    Silent,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Refused => "connection refused",
            Self::Unreachable => "nothing: unreachable",
            Self::Silent => "nothing: dropped",
        })
    }
}

/// Sends `payload` over UDP and checks that exactly it comes back, from where it was sent to.
///
/// # Errors
/// No answer, a wrong one, or one from another address.
pub fn udp(ns: &Netns, port: u16, to: impl Into<SocketAddr>, payload: &[u8]) -> Result<Exchange> {
    let to = to.into();
    ns.enter(|| UdpProbe::connect(port, to)?.exchange(payload))?
        .with_context(|| format!("UDP to {to}"))
}

/// A UDP client that stays open, for several exchanges of one flow.
#[derive(Debug)]
pub struct UdpProbe {
    socket: UdpSocket,
}

impl UdpProbe {
    /// Binds `port` (0 for any) in the calling thread's namespace.
    ///
    /// # Errors
    /// The port is taken or there is no route.
    pub fn connect(port: u16, to: impl Into<SocketAddr>) -> Result<Self> {
        let to = to.into();
        let socket = UdpSocket::bind((any(to), port))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// Changes how long an answer may take.
    ///
    /// # Errors
    /// The kernel refuses the value.
    pub fn set_patience(&self, patience: Duration) -> Result<()> {
        Ok(self.socket.set_read_timeout(Some(patience))?)
    }

    /// One request and its answer.
    ///
    /// # Errors
    /// No answer, or a wrong one.
    pub fn exchange(&self, payload: &[u8]) -> Result<Exchange> {
        let local = self.socket.local_addr()?;
        self.socket.send(payload).context("failed to send")?;
        let mut buffer = vec![0; 65536];
        let length = self.socket.recv(&mut buffer).context("no answer")?;
        let (head, echoed) = split_line(&buffer[..length])?;
        ensure!(echoed == payload, "the payload came back changed");
        let (seen, server) = peer_of(head)?;
        Ok(Exchange { local, seen, server })
    }
}

/// Sends one UDP datagram that must not be answered by a server.
///
/// # Errors
/// A server answered.
pub fn udp_refused(ns: &Netns, to: impl Into<SocketAddr>) -> Result<Refusal> {
    let to = to.into();
    ns.enter(|| {
        let probe = UdpProbe::connect(0, to)?;
        probe.set_patience(SILENCE)?;
        probe.socket.send(b"anyone?\n").context("failed to send")?;
        let mut buffer = [0; 512];
        match probe.socket.recv(&mut buffer) {
            Ok(length) => {
                bail!("answered: {}", String::from_utf8_lossy(&buffer[..length]).trim())
            }
            Err(error) => refusal(&error),
        }
    })?
    .with_context(|| format!("UDP to {to}"))
}

/// Opens a TCP connection that must not be accepted.
///
/// # Errors
/// It was accepted.
pub fn tcp_refused(ns: &Netns, to: impl Into<SocketAddr>) -> Result<Refusal> {
    let to = to.into();
    ns.enter(|| match TcpStream::connect_timeout(&to, SILENCE) {
        Ok(stream) => bail!("accepted by {:?}", stream.peer_addr()),
        Err(error) => refusal(&error),
    })?
    .with_context(|| format!("TCP to {to}"))
}

/// A TCP connection to an echo server.
#[derive(Debug)]
pub struct TcpProbe {
    reader: BufReader<TcpStream>,
    /// Both views of the client's address.
    pub exchange: Exchange,
}

impl TcpProbe {
    /// Connects from `port` (0 for any) inside `ns` and reads the greeting.
    ///
    /// # Errors
    /// No connection, or no greeting.
    pub fn connect(ns: &Netns, port: u16, to: impl Into<SocketAddr>) -> Result<Self> {
        let to = to.into();
        ns.enter(|| Self::connect_here(port, to))?.with_context(|| format!("TCP to {to}"))
    }

    fn connect_here(port: u16, to: SocketAddr) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if port != 0 {
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::new(any(to), port).into())?;
        }
        socket.connect_timeout(&to.into(), PATIENCE).context("no connection")?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let local = stream.local_addr()?;
        let mut reader = BufReader::new(stream);
        let mut greeting = String::new();
        reader.read_line(&mut greeting).context("no greeting")?;
        let (seen, server) = peer_of(greeting.trim_end())?;
        Ok(Self { reader, exchange: Exchange { local, seen, server } })
    }

    /// Sends a line and checks that it comes back.
    ///
    /// # Errors
    /// The connection is dead, or the line changed.
    pub fn echo(&mut self, line: &str) -> Result<()> {
        self.reader.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        self.reader.read_line(&mut answer).context("no echo")?;
        ensure!(answer.trim_end() == line, "sent {line:?}, got {answer:?}");
        Ok(())
    }

    /// Ends the connection with a RST, so that its port is free at once.
    ///
    /// # Errors
    /// The kernel refuses the option.
    pub fn reset(self) -> Result<()> {
        let socket = SockRef::from(self.reader.get_ref());
        Ok(socket.set_linger(Some(Duration::ZERO))?)
    }

    /// Waits until nothing comes back any more.
    ///
    /// # Errors
    /// It still works after `patience`.
    pub fn wait_for_end(&mut self, patience: Duration) -> Result<()> {
        self.reader.get_ref().set_read_timeout(Some(SILENCE))?;
        wait_until("the connection to end", patience, || {
            Ok(self.echo("am I alive?").is_err().then_some(()))
        })
    }
}

/// Connects, echoes one line, closes.
///
/// # Errors
/// As [`TcpProbe::connect`] and [`TcpProbe::echo`].
pub fn tcp(ns: &Netns, port: u16, to: impl Into<SocketAddr>) -> Result<Exchange> {
    let to = to.into();
    let mut probe = TcpProbe::connect(ns, port, to)?;
    probe.echo("hello").with_context(|| format!("TCP to {to}"))?;
    Ok(probe.exchange)
}

/// Sends an ICMP echo request and waits for its reply; returns who replied.
///
/// # Errors
/// No reply with this identifier and sequence number.
pub fn icmp_echo(ns: &Netns, to: impl Into<IpAddr>, id: u16, payload: usize) -> Result<IpAddr> {
    let to = to.into();
    ns.enter(|| icmp_echo_here(to, id, payload))?.with_context(|| format!("ping {to}"))
}

fn icmp_echo_here(to: IpAddr, id: u16, payload: usize) -> Result<IpAddr> {
    let (domain, protocol, request_type, reply_type) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let request = echo_request(request_type, id, payload);
    socket.send_to(&request, &SocketAddr::new(to, 0).into())?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let mut buffer = [MaybeUninit::uninit(); 65536];
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        // SAFETY: the kernel filled the first `length` bytes.
        let packet: Vec<u8> =
            buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
        // Of IPv6 the socket gives no header.
        let header = if to.is_ipv4() { usize::from(packet[0] & 0x0f) * 4 } else { 0 };
        let Some(message) = packet.get(header..) else { continue };
        let from = from.as_socket().context("not an IP sender")?;
        if message.first() == Some(&reply_type) && message.get(4..) == Some(&request[4..]) {
            return Ok(from.ip());
        }
    }
    bail!("no echo reply");
}

/// The kernel sums up what a raw ICMPv6 socket sends.
fn echo_request(kind: u8, id: u16, payload: usize) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend(1_u16.to_be_bytes());
    message.extend((0..payload).map(|position| position.to_le_bytes()[0]));
    let sum = internet_checksum(&message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    message
}

fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sends one packet of any IP protocol, with a chosen TTL.
///
/// # Errors
/// No privilege or no route.
pub fn raw(ns: &Netns, protocol: u8, to: Ipv4Addr, ttl: u32, payload: &[u8]) -> Result<()> {
    ns.enter(|| -> Result<()> {
        let protocol = Protocol::from(i32::from(protocol));
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(protocol))?;
        socket.set_ttl_v4(ttl)?;
        socket.send_to(payload, &SocketAddrV4::new(to, 0).into())?;
        Ok(())
    })?
    .with_context(|| format!("raw packet to {to}"))
}

/// Sends one UDP datagram with a chosen TTL and waits for nothing.
///
/// # Errors
/// No route.
pub fn udp_send(ns: &Netns, port: u16, to: SocketAddrV4, ttl: u32, payload: &[u8]) -> Result<()> {
    ns.enter(|| -> Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        socket.set_ttl(ttl)?;
        socket.send_to(payload, to)?;
        Ok(())
    })?
    .with_context(|| format!("UDP to {to}"))
}

fn refusal(error: &std::io::Error) -> Result<Refusal> {
    match error.kind() {
        ErrorKind::ConnectionRefused => Ok(Refusal::Refused),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Ok(Refusal::Unreachable),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(Refusal::Silent),
        _ => bail!("unexpected error: {error}"),
    }
}

fn split_line(bytes: &[u8]) -> Result<(&str, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n').context("no greeting in the answer")?;
    Ok((std::str::from_utf8(&bytes[..end])?, &bytes[end + 1..]))
}

fn peer_of(greeting: &str) -> Result<(SocketAddr, char)> {
    let parse = || {
        let (peer, server) = greeting.strip_prefix("peer ")?.split_once(" at ")?;
        Some((peer.parse().ok()?, server.chars().next()?))
    };
    parse().with_context(|| format!("greeting {greeting:?}"))
}

/// The unspecified address of the family of `to`.
fn any(to: SocketAddr) -> IpAddr {
    match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
