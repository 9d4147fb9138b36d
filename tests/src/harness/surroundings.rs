//! A machine with nothing special about it, for tests of plans.

use gateway_common::records::{HostLimits, Timeouts, Unmatched};
use gateway_userspace::encode::{MssClamp, Port, Surroundings};

/// Interfaces with these MTUs in bytes, and the options that nobody has set.
#[must_use]
pub fn surroundings(internal_mtu: u32, external_mtu: u32) -> Surroundings {
    Surroundings {
        internal: Port { ifindex: 2, mtu: internal_mtu },
        external: Port { ifindex: 3, mtu: external_mtu },
        routing: 1,
        port_range: (1024, 65535),
        unmatched: Unmatched::Drop,
        timeouts: Timeouts::default(),
        host_limits: HostLimits::default(),
        mss_clamp: MssClamp::Off,
        next_hops: false,
    }
}
