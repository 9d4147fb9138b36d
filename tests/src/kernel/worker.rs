//! The same programs from another thread: packets that meet on two CPUs.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use aya::programs::SchedClassifier;
use gateway_common::family::{Family, V4, V6};
use gateway_common::tuple::{Direction, Tuple};
use gateway_userspace::dataplane::sweep::frames;
use nix::sched::{CloneFlags, setns};

use super::Tc;
use super::maps::SessionMap;
use super::test_run::{self, Frame};
use crate::harness::routes::Links;

/// The programs of a [`Tc`], for one more thread.
pub struct Worker {
    internal: OwnedFd,
    external: OwnedFd,
    sweeps: [OwnedFd; 2],
    sessions: (SessionMap<V4>, SessionMap<V6>),
    namespace: File,
    links: Links,
}

impl Worker {
    /// A handle on the programs of `tc`, made in its thread.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn of(tc: &Tc) -> Result<Self> {
        let program = |name: &str| -> Result<OwnedFd> {
            let program = tc.ebpf.program(name).with_context(|| format!("no {name}"))?;
            let program: &SchedClassifier = program.try_into()?;
            Ok(program.fd()?.as_fd().try_clone_to_owned()?)
        };
        Ok(Self {
            internal: program("tc_internal")?,
            external: program("tc_external")?,
            sweeps: [program("sweep_v4")?, program("sweep_v6")?],
            sessions: (tc.v4.another_handle()?, tc.v6.another_handle()?),
            namespace: File::open("/proc/thread-self/ns/net")?,
            links: tc.links,
        })
    }

    /// Moves the thread that calls it into the namespace of the programs.
    ///
    /// # Errors
    /// The privilege is missing.
    pub fn enter(&self) -> Result<()> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNET).context("failed to enter a namespace")
    }

    /// Ends the sessions that are over. Returns how many.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn sweep(&self) -> Result<u32> {
        let ended = self.run(&self.sweeps[0], &frames::<V4>(&keys(&self.sessions.0)))?;
        Ok(ended + self.run(&self.sweeps[1], &frames::<V6>(&keys(&self.sessions.1)))?)
    }

    fn run(&self, sweep: &OwnedFd, frames: &[Vec<u8>]) -> Result<u32> {
        let mut ended = 0;
        for bytes in frames {
            let ifindex = self.links.internal;
            let frame = Frame { bytes, ifindex, segment_bytes: None, checksum_complete: false };
            ended += test_run::run(sweep.as_fd(), &frame)?.code;
        }
        Ok(ended)
    }

    /// Sends a frame; returns what the program returned, and the frame as it is then.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn send(&self, direction: Direction, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let program = match direction {
            Direction::Outbound => &self.internal,
            Direction::Inbound => &self.external,
        };
        let frame = Frame {
            bytes: frame,
            ifindex: self.links.ingress(direction),
            segment_bytes: None,
            checksum_complete: false,
        };
        test_run::run(program.as_fd(), &frame).map(|answer| (answer.code, answer.bytes))
    }
}

/// The keys that a walk meets while entries come and go; it may meet some twice.
fn keys<F: Family>(sessions: &SessionMap<F>) -> Vec<Tuple<F>> {
    const MOST: usize = 1 << 20;
    sessions.keys().take(MOST).filter_map(|key| key.ok().map(|key| key.0)).collect()
}
