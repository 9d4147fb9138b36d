//! `gateway-demo`: real traffic through a gateway in network namespaces, shown as a table.

pub mod cases;
pub mod egress;
pub mod leftovers;
pub mod nat;
pub mod rules;
pub mod screen;
pub mod stage;
