//! Several routers on one side of a gateway: groups, who of them is alive, and what the maps say.
//!
//! ```text
//! annotations, addresses, routes, neighbours, BFD ── plan ──► NEXT_HOPS_V4, NEXT_HOPS_V6, then CONFIG
//! ```
//!
//! The maps themselves remember which router has which slot, so that a restart moves no flow.

pub mod maps;
pub mod plan;
pub mod report;
