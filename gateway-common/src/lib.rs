//! The NAT data path of vpc-gateway, and the records it shares with user space.
//!
//! ```text
//! bytes --parse--> Parsed --classify--> Action --session--> Rewrite --translate--> bytes --forward--> Verdict
//! ```
//!
//! The same code runs in the TC programs and in tests on the host: it is generic over the medium
//! ([`packet::Packet`]), the maps ([`tables::Tables`]) and the address family ([`family::Family`]). It reads no clock and draws no random number by itself.
//!
//! Modules, in the order a packet meets them:
//!
//! | module | decides |
//! |---|---|
//! | [`packet`], [`wire`] | what bytes are there |
//! | [`family`], [`mod@tuple`], [`mod@parse`] | which flow they belong to |
//! | [`tables`], [`records`] | what is known about that flow |
//! | [`classify`] | which rule applies to a flow that has no session |
//! | [`session`], [`mapping`] | how a session opens, and its external port |
//! | [`fragment`] | which datagram a fragment is of, and its new identification |
//! | [`endpoint_independent`] | external endpoints that stay the same for every remote |
//! | [`accounting`] | what a session counts against, and whether there may be one more |
//! | [`checksum`], [`translate`], [`icmp_error`] | the new bytes |
//! | [`known_route`], [`spread`] | which route it takes, without asking the kernel each time |
//! | [`forward`], [`neighbor`], [`verdict`] | where the packet goes, or why it does not |
//! | [`answer`] | which dropped packets their sender is told of |
//! | [`pipeline`] | all of the above in one page |
//! | [`share`] | the backends of shared ports |
//! | [`expire`], [`sweep`] | when a session ends, and who sees to it |
//!
//! # Byte order
//!
//! Addresses are octets in network order. Ports, ICMP ids, interface indices and everything else
//! in a map record are integers of the host, so that `bpftool map dump` prints `8080` as 8080.
//!
//! # ABI
//!
//! The maps outlive the process that made them. [`records::ABI_VERSION`] names their layout; the
//! sizes are asserted at compile time and a test in the `tests` crate pins them.
#![no_std]
#![forbid(unsafe_code)]

pub mod accounting;
pub mod answer;
pub mod checksum;
pub mod classify;
pub mod endpoint_independent;
pub mod expire;
pub mod family;
pub mod forward;
pub mod fragment;
pub mod icmp_error;
pub mod known_route;
pub mod mapping;
pub mod mss;
pub mod neighbor;
pub mod nexthop;
pub mod packet;
pub mod parse;
pub mod pipeline;
pub mod records;
pub mod select;
pub mod session;
pub mod share;
pub mod spread;
pub mod sweep;
pub mod tables;
pub mod translate;
pub mod tuple;
pub mod verdict;
pub mod wire;
