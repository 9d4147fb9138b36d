//! The lab: topologies of network namespaces with real servers, and the demo that runs in one.

pub mod demo;
pub mod lab;
