//! Sockets for control packets: what RFC 5881 asks of ports and TTL.

use std::io::{self, IoSliceMut};
use std::net::{self, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, bind,
    recvmsg, setsockopt, socket, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Where control packets go (RFC 5881 section 4).
pub const PORT: u16 = 3784;

/// Where they come from (RFC 5881 section 4): one port for each session, from the dynamic range.
pub const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 49_152..=u16::MAX;

/// TTL of what is sent, so that the receiver can tell what comes from afar (RFC 5082).
const TTL: u8 = 255;

/// Longest payload that is looked at.
const ROOM: usize = 256;

/// A received payload and what the kernel says about it.
#[derive(Debug)]
pub struct Datagram {
    /// The payload.
    pub bytes: [u8; ROOM],
    /// How much of it there is.
    pub length: usize,
    /// The sender.
    pub from: IpAddr,
    /// The address that it was sent to.
    pub to: IpAddr,
    /// TTL or hop limit on arrival.
    pub ttl: u8,
}

/// A socket cannot be made. The operation is part of the message.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation}: {source}")]
pub struct SocketError {
    operation: String,
    source: io::Error,
}

pub(super) fn failed<E: Into<io::Error>>(
    operation: impl Into<String>,
) -> impl FnOnce(E) -> SocketError {
    move |error| SocketError { operation: operation.into(), source: error.into() }
}

fn udp(family: AddressFamily) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(family, SockType::Datagram, flags, None)
}

/// The socket that receives for all sessions of a family.
///
/// # Errors
///
/// When the port is taken, by another BFD daemon for example.
pub fn receiver(ipv6: bool) -> Result<UdpSocket, SocketError> {
    let any: IpAddr =
        if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let address = SocketAddr::new(any, PORT);
    let make = || -> io::Result<UdpSocket> {
        let family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        let fd = udp(family)?;
        if ipv6 {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
            setsockopt(&fd, sockopt::Ipv6RecvHopLimit, &true)?;
            setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else {
            setsockopt(&fd, sockopt::Ipv4RecvTtl, &true)?;
            setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?;
        }
        bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        UdpSocket::from_std(fd.into())
    };
    make().map_err(failed(format!("receive BFD packets on {address}")))
}

/// A socket that sends for one session, from `local` and `port`, without waiting.
///
/// # Errors
///
/// When `local` is not an address of this host, or the port is taken.
pub fn sender(local: IpAddr, port: u16) -> io::Result<net::UdpSocket> {
    let fd = match local {
        IpAddr::V4(_) => {
            let fd = udp(AddressFamily::Inet)?;
            setsockopt(&fd, sockopt::Ipv4Ttl, &i32::from(TTL))?;
            fd
        }
        IpAddr::V6(_) => {
            let fd = udp(AddressFamily::Inet6)?;
            setsockopt(&fd, sockopt::Ipv6Ttl, &i32::from(TTL))?;
            fd
        }
    };
    // CS6, network control (RFC 4594): it must get through where users fill the link.
    setsockopt(&fd, sockopt::Priority, &6)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(local, port)))?;
    Ok(fd.into())
}

/// The next datagram, `None` if there is none at the moment.
///
/// # Errors
///
/// As `recvmsg(2)`.
pub fn receive(socket: &UdpSocket) -> io::Result<Option<Datagram>> {
    match socket.try_io(Interest::READABLE, || receive_from(socket)) {
        Ok(datagram) => Ok(Some(datagram)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn receive_from(socket: &UdpSocket) -> io::Result<Datagram> {
    let mut bytes = [0; ROOM];
    let mut control = cmsg_space!([u8; 64]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let length = message.bytes;
    let from = message.address.as_ref().and_then(address).ok_or(io::ErrorKind::InvalidData)?;
    let (mut ttl, mut to) = (0, None);
    for part in message.cmsgs()? {
        match part {
            ControlMessageOwned::Ipv4Ttl(value) | ControlMessageOwned::Ipv6HopLimit(value) => {
                ttl = u8::try_from(value).unwrap_or(0);
            }
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                to = Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into());
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
            }
            _ => {}
        }
    }
    let to = to.ok_or(io::ErrorKind::InvalidData)?;
    Ok(Datagram { bytes, length, from, to, ttl })
}

fn address(storage: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = storage.as_sockaddr_in().map(|address| address.ip().into());
    v4.or_else(|| storage.as_sockaddr_in6().map(|address| address.ip().into()))
}
