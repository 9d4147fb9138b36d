//! Bidirectional Forwarding Detection: whether a neighbour is alive, within milliseconds.
//!
//! RFC 5880 in asynchronous mode over UDP (RFC 5881), on IPv4 and IPv6, for neighbours on the link
//! and, as Kube-OVN's BFD port needs it, one routed hop away.

pub mod engine;
pub mod packet;
pub mod report;
pub mod session;
pub mod socket;
