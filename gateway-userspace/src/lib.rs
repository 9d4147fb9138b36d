//! The loader of `vpc-gateway`: Kube-OVN objects in, BPF maps out.
//!
//! ```text
//! source -> Snapshot -> desired -> DesiredState -> encode -> MapImage -> plan -> Plan -> dataplane
//! (files,   (raw)       (pure)     (validated)     (pure)    (keys)      (pure)          (kernel)
//!  API server)
//! ```
//!
//! Everything between the two ends is a pure function. In the order of that path:
//!
//! - [`crd`]: the objects of Kube-OVN as users write them.
//! - [`source`]: where objects come from; raw objects and where each one stands, no decisions.
//! - [`desired`]: what one gateway shall do, and what was rejected on the way.
//! - [`encode`]: what the maps shall hold, as an [`image`]; [`balance`] for shared ports.
//! - [`plan`]: the difference to what they hold.
//! - [`dataplane`]: the maps and programs in the kernel.
//! - [`rejection`]: how problems are named, shared by the two above.
//! - [`exec`]: the verbs of kube-ovn-controller as a source.
//! - [`agent`]: one data plane for each gateway pod of a node.
//! - [`bfd`]: whether next hops are alive.
//! - [`routers`]: several next hops on one side of a gateway.
//! - [`metrics`]: what Prometheus is told.
//! - [`privilege`]: what a process keeps of its capabilities.
//! - [`cli`]: the verbs of the program.

pub mod agent;
pub mod announce;
pub mod answers;
pub mod balance;
pub mod bfd;
pub mod cli;
pub mod clock;
pub mod crd;
pub mod daemon;
pub mod dataplane;
pub mod desired;
pub mod egress;
pub mod encode;
pub mod exec;
pub mod host;
pub mod image;
pub mod metrics;
pub mod neighbors;
pub mod netlink;
pub mod netns;
pub mod plan;
pub mod privilege;
pub mod reconcile;
pub mod rejection;
pub mod routers;
pub mod source;
pub mod state_dir;
pub mod status;
pub mod timeouts;
pub mod watch;
