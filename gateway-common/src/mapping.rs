//! The external port of a new session (RFC 4787 section 4.2, RFC 6056).

use crate::{records::Config, wire::transport};

/// How many ports of one EIP are tried before the next EIP's turn.
pub const TRIES: u32 = 32;

/// An inclusive range of ports or ICMP ids: never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    low: u16,
    high: u16,
}

impl PortRange {
    /// The range from `low` to `high`, if that is not empty.
    #[must_use]
    pub const fn new(low: u16, high: u16) -> Option<Self> {
        if low <= high { Some(Self { low, high }) } else { None }
    }

    /// The range that a source port is translated into.
    ///
    /// The classes are those of the Linux kernel, so that a privileged port stays privileged
    /// (RFC 4787 REQ-3a); an ICMP id may become any other.
    #[inline(always)]
    #[must_use]
    pub fn for_source(protocol_has_ports: bool, port: u16, config: &Config) -> Self {
        if !protocol_has_ports {
            return Self { low: 0, high: u16::MAX };
        }
        match port {
            0..512 => Self { low: 1, high: 511 },
            512..1024 => Self { low: 600, high: 1023 },
            _ => {
                let low = config.port_low.max(1024);
                Self { low, high: config.port_high.max(low) }
            }
        }
    }

    /// How many ports there are.
    #[inline(always)]
    #[must_use]
    pub fn size(self) -> u32 {
        u32::from(self.high) - u32::from(self.low) + 1
    }

    /// The `attempt`-th port of a walk whose start and stride come from `seed`.
    ///
    /// The stride is odd and spread over the range, so that neighbouring starts do not run into
    /// the same taken ports.
    #[inline(always)]
    #[must_use]
    pub fn candidate(self, seed: u32, attempt: u32) -> u16 {
        let size = self.size();
        // Multiply-shift instead of modulo: no bias towards low ports, no division.
        let start = ((u64::from(seed) * u64::from(size)) >> 32) as u32;
        let stride = (seed >> 3) & 0x1ff | 1;
        let mut offset = start + attempt * stride;
        // At most 31 strides of 511 beyond the end; the small classes take the remainder.
        if offset >= size {
            offset %= size;
        }
        // Cannot exceed `high`: the offset is below the size.
        self.low.wrapping_add(offset as u16)
    }
}

/// Whether `protocol` has ports whose class must be kept.
#[inline(always)]
#[must_use]
pub fn has_port_classes(protocol: u8) -> bool {
    matches!(protocol, transport::TCP | transport::UDP | transport::UDP_LITE | transport::DCCP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::Timeouts;

    fn config() -> Config {
        Config {
            generation: 1,
            abi_version: 0,
            internal_ifindex: 1,
            external_ifindex: 2,
            internal_mtu: 1500,
            external_mtu: 1500,
            routing: 0,
            port_low: 1024,
            port_high: u16::MAX,
            unmatched: 0,
            zero: 0,
            timeouts: Timeouts::default(),
        }
    }

    #[test]
    fn classes_are_those_of_the_kernel() {
        for (port, low, high) in [
            (1, 1, 511),
            (511, 1, 511),
            (512, 600, 1023),
            (1023, 600, 1023),
            (1024, 1024, 65_535),
            (65_535, 1024, 65_535),
        ] {
            let range = PortRange::for_source(true, port, &config());
            assert_eq!(Some(range), PortRange::new(low, high), "source port {port}");
        }
        assert_eq!(PortRange::for_source(false, 7, &config()).size(), 65_536);
    }

    #[test]
    fn candidates_never_leave_the_range() {
        for (low, high) in [(1, 511), (600, 1023), (1024, 65_535), (0, 65_535), (80, 80)] {
            let range = PortRange::new(low, high).expect("not empty");
            for seed in (0..64).map(|i: u32| i.wrapping_mul(0x9e37_79b9)).chain([0, u32::MAX]) {
                for attempt in 0..TRIES {
                    let port = range.candidate(seed, attempt);
                    assert!((low..=high).contains(&port), "{port} not in {low}..={high}");
                }
            }
        }
    }

    #[test]
    fn a_walk_does_not_try_a_port_twice_in_a_large_range() {
        let range = PortRange::new(1024, 65_535).expect("not empty");
        for seed in (0..100).map(|i: u32| i.wrapping_mul(0x9e37_79b9)) {
            let mut tried: [u16; TRIES as usize] =
                core::array::from_fn(|attempt| range.candidate(seed, attempt as u32));
            tried.sort_unstable();
            assert!(tried.windows(2).all(|pair| pair[0] != pair[1]), "seed {seed:#x}");
        }
    }

    #[test]
    fn the_configured_range_is_kept_by_high_ports_only() {
        let narrow = Config { port_low: 20_000, port_high: 20_099, ..config() };
        assert_eq!(PortRange::for_source(true, 5000, &narrow).size(), 100);
        assert_eq!(PortRange::for_source(true, 100, &narrow).size(), 511);
    }
}
