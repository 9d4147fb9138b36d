//! What tests the gateway: packets one by one, on the host and in the kernel, and a lab of network
//! namespaces with real servers.
//!
//! | module | what |
//! |---|---|
//! | [`build_packet`], [`decode`] | frames, written and read back |
//! | [`sim`], [`kernel`] | what the data path runs on: host memory, or the kernel |
//! | [`harness`], [`cases`] | one way to drive both, and what they must do |
//! | [`model`] | what a gateway must do, in a few plain lines |
//! | [`fuzz`] | what a fuzzer drives, and what must hold for any input |
//! | [`compliance`] | what the RFCs ask for, and the tests that show it |
//! | [`lab`], [`demo`] | namespaces with real servers, and the demo that runs in them |
//! | [`mod@bench`] | how fast it is, beside what users run today |

pub mod bench;
pub mod build_packet;
pub mod cases;
pub mod compliance;
pub mod decode;
pub mod demo;
pub mod deploy;
pub mod fuzz;
pub mod harness;
pub mod kernel;
pub mod lab;
pub mod model;
pub mod sim;
