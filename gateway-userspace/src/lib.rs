//! The loader of `vpc-gateway`: Kube-OVN objects in, BPF maps out.
//!
//! ```text
//! source -> Snapshot -> desired -> DesiredState -> encode -> MapImage -> plan -> Plan -> dataplane
//! (files)   (raw)       (pure)     (validated)     (pure)    (keys)      (pure)          (kernel)
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
//! - [`bfd`]: whether next hops are alive.
//! - [`cli`]: the verbs of the program.

pub mod announce;
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
pub mod host;
pub mod image;
pub mod neighbors;
pub mod netlink;
pub mod netns;
pub mod plan;
pub mod reconcile;
pub mod rejection;
pub mod source;
pub mod state_dir;
pub mod status;
pub mod watch;
