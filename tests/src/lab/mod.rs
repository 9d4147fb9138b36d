//! A laboratory of network namespaces: topology, real servers, probes, captures, a gateway to run.

pub mod addresses;
pub mod capture;
pub mod checks;
pub mod cleanup;
pub mod echo;
pub mod flood;
pub mod frr;
pub mod gateway;
pub mod http;
pub mod manifests;
pub mod netns;
pub mod packet_table;
pub mod perf;
pub mod pinger;
pub mod pins;
pub mod probe;
pub mod process;
pub mod running;
pub mod scratch;
pub mod table_run;
pub mod tier;
pub mod topology;
pub mod wait;
pub mod world;
