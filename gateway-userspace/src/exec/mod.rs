//! The verbs that kube-ovn-controller runs in a gateway pod, as a source of what a gateway shall do.
//!
//! ```text
//! exec VERB RULE...  ─► client ─unix socket─► daemon:  verb ─► ledger ─► maps, addresses, routes
//!                       │                              │        │
//!                       └ starts it if it is dead      parse    journal: survives the daemon
//! ```
//!
//! A verb that succeeded is in the data plane. One change costs one comparison and a few writes,
//! however many rules there are.
//!
//! - [`verb`]: the words of the command line as [`verb::Order`]s. Pure.
//! - [`ledger`]: everything that was asked for and not taken back, and what contradicts it. Pure.
//! - [`desired`]: the ledger as [`crate::desired::DesiredState`]. Pure.
//! - [`journal`]: the ledger as a file.
//! - [`protocol`]: what client and daemon say to each other.
//! - [`client`]: reaches the daemon, and starts it.
//! - [`server`]: takes requests in.

pub mod client;
pub mod desired;
pub mod journal;
pub mod ledger;
pub mod protocol;
pub mod server;
pub mod verb;
