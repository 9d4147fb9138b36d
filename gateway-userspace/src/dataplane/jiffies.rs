//! How the programs read the time from the kernel's tick counter: see `clock.rs` of `gateway-ebpf`.

use std::io;
use std::time::Duration;

use aya::EbpfLoader;
use nix::time::{ClockId, clock_getres, clock_gettime};

use super::raw;

/// How often a measurement is tried that a tick fell into.
const TRIES: u32 = 10;

/// How jiffies relate to the clock that the rest of the program reads.
///
/// By default nothing is known, and the programs ask the kernel for the time by a helper that costs more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Jiffies {
    /// Nanoseconds of a jiffy; 0 if nothing is known.
    nanos: u64,
    /// The clock when jiffies were 0, in nanoseconds, as a wrapping difference.
    at: u64,
}

impl Jiffies {
    /// Measures it, by a program that reads the counter.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the program.
    pub fn measure() -> io::Result<Self> {
        let counter = raw::JiffyCounter::load()?;
        let nanos = nanos(clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?.into());
        for _ in 0..TRIES {
            let before = coarse()?;
            let jiffies = counter.read()?;
            if coarse()? == before {
                return Ok(Self { nanos, at: before.wrapping_sub(jiffies.wrapping_mul(nanos)) });
            }
        }
        Err(io::Error::other("the clock does not stand still between two ticks"))
    }

    /// Tells the programs that `loader` will load.
    pub fn tell<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader.override_global("JIFFY_NS", &self.nanos, true);
        loader.override_global("JIFFIES_AT", &self.at, true);
    }
}

fn coarse() -> io::Result<u64> {
    Ok(nanos(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?.into()))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
