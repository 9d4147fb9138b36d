//! The only place where time comes from.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gateway_common::records::{Ticks, ticks_from_ns};
use nix::time::{ClockId, clock_gettime};

/// The time as the data path counts it: `bpf_ktime_get_coarse_ns` is `CLOCK_MONOTONIC_COARSE`, and jiffies
/// are counted with it.
#[must_use]
pub fn ticks() -> Ticks {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from);
    ticks_from_ns(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// Ticks as a duration.
#[must_use]
pub const fn duration(ticks: Ticks) -> Duration {
    Duration::from_nanos((ticks as u64) << 20)
}

/// Seconds since 1970.
#[must_use]
pub fn unix_seconds() -> u64 {
    since_1970().as_secs()
}

/// Nanoseconds since 1970, as files are stamped.
#[must_use]
pub fn unix_nanos() -> i128 {
    i128::try_from(since_1970().as_nanos()).unwrap_or(i128::MAX)
}

fn since_1970() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The present moment, for intervals.
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Measures how long something takes.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// How long ago that was.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
