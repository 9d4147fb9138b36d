//! All unsafe code of this crate: values of the maps as bytes, a socket address, a thread's priority.
#![allow(unsafe_code, reason = "the door to the kernel")]

use aya::Pod;
use gateway_common::family::{Address, Family};
use gateway_common::nexthop::{Group, Member};
use gateway_common::records::{
    Backend, Config, Counter, Dnat, DnatKey, Draining, Eip, Fip, FipKey, Host, Neighbor, Pool,
    Record, Rule, Session, Slots, XdpFacts,
};
use gateway_common::tuple::Tuple;
use gateway_common::verdict::NextHop;
use nix::libc;
use nix::sys::socket::{LinkAddr, SockaddrLike as _};

/// A record of `gateway-common` as aya wants it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Raw<T>(pub(crate) T);

/// Declares that records may be read and written as bytes.
macro_rules! pods {
    ($($single:ty),+; $($family:ident),+) => {
        $(
            // SAFETY: a `Record` is `repr(C)`, without padding, valid for every bit pattern.
            unsafe impl Pod for Raw<$single> {}
            const _: () = is_record::<$single>();
        )+
        $(
            // SAFETY: `V4` and `V6` are the only families, and for both this is a `Record`.
            unsafe impl<F: Family> Pod for Raw<$family<F>> {}
            const _: () = is_record::<$family<gateway_common::family::V4>>();
            const _: () = is_record::<$family<gateway_common::family::V6>>();
        )+
    };
}

const fn is_record<T: Record>() {}

pods!(
    Config, Counter, Draining, Eip, Group, Host, Neighbor, Rule, Slots, XdpFacts;
    Backend, Dnat, DnatKey, Fip, FipKey, Member, NextHop, Pool, Session, Tuple
);

/// An address as a key, or as part of the key of a longest-prefix trie.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Octets<A>(pub(crate) A);

// SAFETY: an `Address` is `FromBytes + IntoBytes`: no padding, valid for every bit pattern.
unsafe impl<A: Address + 'static> Pod for Octets<A> {}

/// The link-layer address `mac` on interface `ifindex`, for frames of `ether_type`.
pub(crate) fn link_address(ifindex: u32, ether_type: u16, mac: [u8; 6]) -> Option<LinkAddr> {
    let mut octets = [0; 8];
    octets[..6].copy_from_slice(&mac);
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).ok()?,
        sll_protocol: ether_type.to_be(),
        sll_ifindex: i32::try_from(ifindex).ok()?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: octets,
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).ok()?;
    // SAFETY: the pointer leads to a whole `sockaddr_ll` whose family says so.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) }
}

/// Gives the calling thread the largest share of the processor, if the privilege is there. For
/// threads that mostly sleep.
///
/// Not real-time: where the kernel has real-time groups, such a thread was seen to stand still for
/// 2.4 s on a busy machine, an ordinary one for less than 0.1 s.
pub(crate) fn ask_for_priority() {
    // SAFETY: a system call without pointers; 0 is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
}
