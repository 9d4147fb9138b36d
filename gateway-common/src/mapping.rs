//! The external port of a new session (RFC 4787 section 4.2, RFC 6056).

use crate::{
    accounting, endpoint_independent, expire,
    family::Family,
    pipeline::Work,
    records::{Config, ORIGINAL, Ticks, Timeouts, ticks_from_secs},
    session::elapsed,
    tables::{ClaimError, Tables},
    verdict::SESSIONS_CLOSED,
    wire::transport,
};

/// How many ports are drawn at random before all of them are walked through.
///
/// With nine of ten ports taken this finds one in more than half of all cases; the walk does the
/// rest, and costs a look-up for each taken port.
pub const TRIES: u32 = 8;

/// For how long a range that was walked in vain is not walked again (about 0.1 s): a full walk
/// takes milliseconds, and nobody may buy one for every packet.
pub const EXHAUSTED_TICKS: Ticks = 100;

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

    /// Lowest port.
    #[inline(always)]
    #[must_use]
    pub const fn low(self) -> u16 {
        self.low
    }

    /// How many ports there are.
    #[inline(always)]
    #[must_use]
    pub fn size(self) -> u32 {
        u32::from(self.high) - u32::from(self.low) + 1
    }

    /// The port that `seed` falls on, every port as likely as any other (RFC 6056).
    #[inline(always)]
    #[must_use]
    pub fn candidate(self, seed: u32) -> u16 {
        // Multiply-shift instead of modulo: no bias towards low ports, no division.
        let offset = ((u64::from(seed) * u64::from(self.size())) >> 32) as u16;
        // Cannot exceed `high`: the offset is below the size.
        self.low.wrapping_add(offset)
    }
}

/// A walk through a range of ports, from a random start, for one that is free towards a remote.
#[derive(Debug)]
pub struct PortWalk<'a, F: Family> {
    /// The reply's key, whose destination port is the one to be found, and its entry.
    pub work: &'a mut Work<F>,
    /// When sessions end.
    pub timeouts: &'a Timeouts,
    /// Whether ports may be taken by mappings of inside endpoints.
    pub mappings: bool,
    /// Whether the port is for such a mapping, whose key and entry are in `work`.
    pub external: bool,
    /// Lowest port.
    pub low: u32,
    /// How many ports there are.
    pub size: u32,
    /// Where the walk begins, below `size`.
    pub start: u32,
    /// How it stands.
    pub end: WalkEnd,
}

/// How a [`PortWalk`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum WalkEnd {
    /// No port is free.
    Exhausted,
    /// The entry is inserted, with the port that is in the key.
    Claimed,
    /// The map is full.
    Full,
}

impl<F: Family> PortWalk<'_, F> {
    /// Tries the `index`-th port of the walk; `true` if the walk is over.
    #[inline(always)]
    pub fn step<T: Tables<F>>(&mut self, index: u32, tables: &mut T) -> bool {
        if index >= self.size {
            return true;
        }
        let offset = self.start + index;
        let offset = if offset >= self.size { offset - self.size } else { offset };
        let port = (self.low + offset) as u16;
        if self.external {
            self.end = endpoint_independent::claim_external(self.work, port, tables);
            return self.end != WalkEnd::Exhausted;
        }
        self.work.reply_key.endpoints.destination_port = port;
        if is_taken(self.work, self.timeouts, tables)
            || self.mappings && endpoint_independent::has_port(self.work, tables)
        {
            return false;
        }
        self.end = match tables.claim(&self.work.reply_key, &self.work.draft) {
            Ok(()) if self.mappings && endpoint_independent::got_port(self.work, tables) => {
                return false;
            }
            Ok(()) => WalkEnd::Claimed,
            Err(ClaimError::Full) => WalkEnd::Full,
            Err(ClaimError::Occupied) => return false,
        };
        true
    }
}

/// A younger entry is not looked at twice: hardly any timeout is shorter.
const YOUNG: Ticks = ticks_from_secs(30);

/// Whether a live session holds the key of the reply. One that is over gives way at once.
#[inline(always)]
pub fn is_taken<F: Family, T: Tables<F>>(
    work: &mut Work<F>,
    timeouts: &Timeouts,
    tables: &mut T,
) -> bool {
    let now = work.draft.last_seen;
    let Some(holder) = tables.session(&work.reply_key) else {
        return false;
    };
    if elapsed(now, holder.last_seen) < YOUNG || holder.flags & ORIGINAL != 0 {
        return true;
    }
    holder.write_opposite(&work.reply_key, &mut work.holder_key);
    expire::keep(holder, &mut work.holder);
    let protocol = work.reply_key.protocol;
    let direction = work.holder_key.direction;
    let over = match tables.session(&work.holder_key) {
        Some(original) => {
            expire::is_expired(protocol, direction, original, &work.holder, timeouts, now)
        }
        // Half a session that nobody has used for as long.
        None => true,
    };
    if over {
        // As the sweep does: a half without its original has been counted already.
        if tables.release(&work.holder_key) {
            tables.count_event(SESSIONS_CLOSED);
            let keys = &mut work.mapping_keys;
            accounting::closed(&work.holder_key, &work.reply_key, work.holder.flags, keys, tables);
        }
        tables.release(&work.reply_key);
    }
    !over
}

/// The seed of the next try (the generator of Numerical Recipes).
///
/// Without a branch, so that the verifier follows one path through each try and not two.
#[inline(always)]
#[must_use]
pub fn next_seed(seed: u32) -> u32 {
    seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)
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
    use crate::records::{HostLimits, Timeouts};

    fn config() -> Config {
        Config {
            generation: 1,
            abi_version: 0,
            internal_ifindex: 1,
            external_ifindex: 2,
            internal_mtu: 1500,
            external_mtu: 1500,
            clamp_mtu: 0,
            routing: 0,
            port_low: 1024,
            port_high: u16::MAX,
            unmatched: 0,
            mappings: 0,
            next_hops: 0,
            zero: [0; 3],
            timeouts: Timeouts::default(),
            host_limits: HostLimits::default(),
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

    /// The seeds of `count` tries.
    fn seeds(count: usize) -> impl Iterator<Item = u32> {
        core::iter::successors(Some(0x1234_5678), |&seed| Some(next_seed(seed))).take(count)
    }

    #[test]
    fn candidates_never_leave_the_range() {
        for (low, high) in [(1, 511), (600, 1023), (1024, 65_535), (0, 65_535), (80, 80)] {
            let range = PortRange::new(low, high).expect("not empty");
            for seed in seeds(1000).chain([0, u32::MAX]) {
                let port = range.candidate(seed);
                assert!((low..=high).contains(&port), "{port} not in {low}..={high}");
            }
            assert_eq!(range.candidate(0), low);
            assert_eq!(range.candidate(u32::MAX), high);
        }
    }

    #[test]
    fn tries_reach_every_part_of_the_range() {
        let range = PortRange::new(1024, 65_535).expect("not empty");
        let mut hits = [0_u32; 16];
        for seed in seeds(16_000) {
            hits[usize::from(range.candidate(seed) >> 12)] += 1;
        }
        assert!(hits.iter().all(|&hits| (500..1500).contains(&hits)), "{hits:?}");
    }

    #[test]
    fn the_configured_range_is_kept_by_high_ports_only() {
        let narrow = Config { port_low: 20_000, port_high: 20_099, ..config() };
        assert_eq!(PortRange::for_source(true, 5000, &narrow).size(), 100);
        assert_eq!(PortRange::for_source(true, 100, &narrow).size(), 511);
    }
}
