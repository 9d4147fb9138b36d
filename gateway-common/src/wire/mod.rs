//! Headers as they lie in a frame: unaligned, big-endian, without policy.

pub mod ethernet;
pub mod ipv4;
pub mod ipv6;
pub mod transport;
