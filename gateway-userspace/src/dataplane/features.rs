//! What an interface can do with XDP, by the generic netlink family `netdev` (kernel 6.3).

use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// `GENL_ID_CTRL`, its command and attributes: how a family's number is asked for.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// The command of `netdev` that describes a device, and its attributes.
const GET_DEVICE: u8 = 1;
const DEVICE_IFINDEX: u16 = 1;
const DEVICE_XDP_FEATURES: u16 = 3;

/// Bits of `enum netdev_xdp_act`.
const BASIC: u64 = 1;
const NDO_XMIT: u64 = 4;

const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
/// `struct nlmsghdr` and `struct genlmsghdr`.
const HEADERS: usize = 16 + 4;

/// What a driver says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures(u64);

impl XdpFeatures {
    /// These bits of `enum netdev_xdp_act`.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Whether an XDP program can be attached to the driver.
    #[must_use]
    pub const fn is_native(self) -> bool {
        self.0 & BASIC != 0
    }

    /// Whether the device sends frames that other devices redirect to it. Some do only while a program
    /// is attached to them; a veth does while its peer has one, or GRO.
    #[must_use]
    pub const fn takes_redirects(self) -> bool {
        self.0 & NDO_XMIT != 0
    }
}

/// Asks for the features of an interface of this network namespace; `None` if the kernel does not
/// tell.
#[must_use]
pub fn query(ifindex: u32) -> Option<XdpFeatures> {
    ask(ifindex).ok().flatten().map(XdpFeatures)
}

fn ask(ifindex: u32) -> io::Result<Option<u64>> {
    let mut name = b"netdev\0".to_vec();
    let answer = request(CONTROL, GET_FAMILY, FAMILY_NAME, &mut name)?;
    let family = answer.as_deref().and_then(|answer| attribute(answer, FAMILY_ID));
    let Some(family) = family.and_then(|id| id.try_into().ok()).map(u16::from_ne_bytes) else {
        return Ok(None);
    };
    let mut index = ifindex.to_ne_bytes().to_vec();
    let answer = request(family, GET_DEVICE, DEVICE_IFINDEX, &mut index)?;
    let bits = answer.as_deref().and_then(|answer| attribute(answer, DEVICE_XDP_FEATURES));
    Ok(bits.and_then(|bits| bits.try_into().ok()).map(u64::from_ne_bytes))
}

/// Sends one attribute and returns the attributes of the answer; `None` if it is a refusal.
fn request(kind: u16, command: u8, of: u16, value: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    let length = u16::try_from(4 + value.len()).map_err(io::Error::other)?;
    value.resize(value.len().next_multiple_of(4), 0);
    let total = u32::try_from(HEADERS + 4 + value.len()).map_err(io::Error::other)?;
    let mut message = Vec::new();
    message.extend(total.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port do not matter on a socket of our own.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(length.to_ne_bytes());
    message.extend(of.to_ne_bytes());
    message.append(value);
    let (family, flags) = (AddressFamily::Netlink, SockFlag::SOCK_CLOEXEC);
    let socket = socket(family, SockType::Raw, flags, SockProtocol::NetlinkGeneric)?;
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = vec![0; 8192];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(length);
    let refused = answer.get(4..6) == Some(&NLMSG_ERROR.to_ne_bytes()[..]);
    Ok((!refused && length > HEADERS).then(|| answer.split_off(HEADERS)))
}

/// The value of an attribute in a list.
fn attribute(mut list: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (length, kind) = (list.get(..2)?.try_into().ok()?, list.get(2..4)?.try_into().ok()?);
        let (length, kind) = (usize::from(u16::from_ne_bytes(length)), u16::from_ne_bytes(kind));
        if kind == wanted {
            return list.get(4..length);
        }
        list = list.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_others() {
        let list = [5, 0, 7, 0, 9, 0, 0, 0, 6, 0, 1, 0, 0x17, 0, 0, 0];
        assert_eq!(attribute(&list, 1), Some(&[0x17, 0][..]));
        assert_eq!(attribute(&list, 7), Some(&[9][..]));
        assert_eq!(attribute(&list, 2), None);
        assert_eq!(attribute(&[0, 0, 0], 2), None);
    }

    #[test]
    fn loopback_has_no_native_xdp() {
        // Index 1 in every namespace. Kernels before 6.3 do not tell.
        assert!(query(1).is_none_or(|features| !features.is_native()));
        assert_eq!(query(u32::MAX), None);
    }
}
