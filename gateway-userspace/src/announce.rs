//! Tells the neighbours that an address is here: gratuitous ARP and unsolicited advertisements.
//!
//! Frames are written to a packet socket, three times one second apart, by a task of its own, so
//! nothing waits for them.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket};

use crate::dataplane::link_address;

/// How often an address is announced.
const TIMES: u32 = 3;
/// How long between two announcements.
const PAUSE: Duration = Duration::from_secs(1);

const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
/// All nodes on the link (RFC 4291 section 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Announces addresses, as long as they are wanted.
#[derive(Clone, Debug, Default)]
pub struct Announcer {
    wanted: Arc<Mutex<BTreeSet<IpAddr>>>,
    /// Open for good once it is: the kernel waits for a grace period of RCU, tens of milliseconds, when a
    /// packet socket is closed, and so would everything else here.
    socket: Arc<OnceLock<OwnedFd>>,
}

impl Announcer {
    /// From here on only these are announced: what went must not be claimed a second later.
    pub fn keep(&self, wanted: BTreeSet<IpAddr>) {
        *self.lock() = wanted;
    }

    /// Announces addresses on an interface in the background.
    pub fn announce(&self, ifindex: u32, mac: [u8; 6], addresses: Vec<IpAddr>) {
        if addresses.is_empty() {
            return;
        }
        let announcer = self.clone();
        tokio::spawn(async move {
            for round in 0..TIMES {
                if round > 0 {
                    tokio::time::sleep(PAUSE).await;
                }
                let wanted: Vec<_> = {
                    let all = announcer.lock();
                    addresses.iter().filter(|address| all.contains(address)).copied().collect()
                };
                if let Err(error) = announcer.send_all(ifindex, mac, &wanted) {
                    eprintln!("announce: failed to send on interface #{ifindex}: {error}");
                    return;
                }
            }
        });
    }

    fn send_all(&self, ifindex: u32, mac: [u8; 6], addresses: &[IpAddr]) -> io::Result<()> {
        let socket = self.socket()?.as_raw_fd();
        for address in addresses {
            let (ether_type, frame) = match address {
                IpAddr::V4(address) => (ARP, gratuitous_arp(mac, *address)),
                IpAddr::V6(address) => (IPV6, unsolicited_advertisement(mac, *address)),
            };
            let to = link_address(ifindex, ether_type, [0xff; 6])
                .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
            sendto(socket, &frame, &to, MsgFlags::empty())?;
        }
        Ok(())
    }

    fn socket(&self) -> io::Result<&OwnedFd> {
        if let Some(socket) = self.socket.get() {
            return Ok(socket);
        }
        // Protocol 0: the socket receives nothing.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fresh = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        Ok(self.socket.get_or_init(|| fresh))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<IpAddr>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ethernet(destination: [u8; 6], source: [u8; 6], ether_type: u16) -> Vec<u8> {
    [&destination[..], &source, &ether_type.to_be_bytes()].concat()
}

/// An ARP request for our own address, as `arping -U` sends it (RFC 5227 section 3).
fn gratuitous_arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet([0xff; 6], mac, ARP);
    // Ethernet, IPv4, lengths 6 and 4, request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// A neighbour advertisement nobody asked for (RFC 4861 section 7.2.6): router and override set.
fn unsolicited_advertisement(mac: [u8; 6], address: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0xa0, 0, 0, 0];
    message.extend(address.octets());
    // Option: target link-layer address, one unit of eight bytes.
    message.extend([2, 1]);
    message.extend(mac);
    let sum = icmpv6_checksum(address, ALL_NODES, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], mac, IPV6);
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

pub(crate) fn icmpv6_checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    let pseudo = [&source.octets()[..], &destination.octets(), &length, &[0, 0, 0, ICMPV6]];
    checksum(&[&pseudo.concat(), message].concat())
}

/// The checksum of RFC 1071. What includes its own sum has 0.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    #[test]
    fn an_arp_frame_asks_for_its_own_address() {
        let frame = gratuitous_arp(MAC, Ipv4Addr::new(203, 0, 113, 9));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[28..32], [203, 0, 113, 9]);
        assert_eq!(frame[38..42], [203, 0, 113, 9]);
    }

    #[test]
    fn the_checksum_of_an_advertisement_is_right() {
        let address = "2001:db8::9".parse().unwrap();
        let frame = unsolicited_advertisement(MAC, address);
        assert_eq!(frame.len(), 14 + 40 + 32);
        // Over a message with its checksum the sum is zero.
        assert_eq!(icmpv6_checksum(address, ALL_NODES, &frame[54..]), 0);
    }
}
