//! What open sessions count against: their EIP, and the inside host that opened them.
//!
//! A session counts from the insertion of its original entry to the removal of it:
//!
//! | | EIP | host, if the first packet came from inside |
//! |---|---|---|
//! | the original entry was inserted | `sessions` and `opened` + 1 | `sessions` + 1 |
//! | the original entry was removed | `sessions` - 1 | `sessions` - 1 |
//! | no port was free | `refused` + 1 | |
//! | a limit of the host | | `refused` + 1 |
//!
//! However many CPUs end a session, the map lets one of them remove the entry, and that one counts it
//! out. So with the last session all counts are 0.
//!
//! A host may be limited (RFC 6888 REQ-4): in its open sessions, and in new ones per second. Only what it
//! opens itself counts: nobody outside can use up its share. The rate is kept by a single number, the
//! time at which the next session is due (the generic cell rate algorithm): each session moves it on by
//! the interval, and it may be ahead of the clock by a burst. Two CPUs that open sessions of one host at
//! the same moment may both take the last place.

use crate::{
    endpoint_independent::{self, KeySlot},
    family::{Address, Family},
    pipeline::Passage,
    records::{HostLimits, MAPPED_SOURCE, MAPPED_TARGET, Session, Ticks},
    tables::{EipEvent, Tables},
    tuple::{Direction, Tuple},
    verdict::{DropReason, Exit},
};

/// How far clocks of two CPUs may be apart, with room to spare: 16 ms.
const CLOCK_SLACK_NS: u64 = 1 << 24;

/// Ticks count 2^20 ns and have 32 bits: times in nanoseconds on their scale have 52.
const SCALE_BITS: u32 = 52;

/// `now` on the scale of [`crate::records::Host::due`].
#[inline(always)]
#[must_use]
pub const fn nanoseconds(now: Ticks) -> u64 {
    (now as u64) << 20
}

/// By how many nanoseconds `due` is ahead of `now_ns`; 0 if it is not.
#[inline(always)]
#[must_use]
pub const fn ahead(due: u64, now_ns: u64) -> u64 {
    // As a signed number of 52 bits: the scale wraps with the ticks.
    let unused = u64::BITS - SCALE_BITS;
    let difference = ((due.wrapping_sub(now_ns) << unused) as i64) >> unused;
    if difference > 0 { difference as u64 } else { 0 }
}

impl HostLimits {
    /// Whether there is any limit.
    #[inline(always)]
    #[must_use]
    pub const fn any(&self) -> bool {
        self.sessions | self.interval_ns != 0
    }

    /// Whether a session that is due at `due` comes too early.
    #[inline(always)]
    #[must_use]
    pub const fn too_early(&self, due: u64, now_ns: u64) -> bool {
        if self.interval_ns == 0 {
            return false;
        }
        let interval = self.interval_ns as u64;
        let tolerance = interval * (self.burst as u64).saturating_sub(1);
        let early = ahead(due, now_ns);
        // Nothing gets further ahead than this: what does has been left alone for half a turn of the
        // clock, or was written under another limit.
        early > tolerance && early <= tolerance + interval + CLOCK_SLACK_NS
    }
}

impl<F: Family> Session<F> {
    /// The EIP that a session counts for, if it has one. This is its original entry, and `key` the
    /// key of that.
    #[inline(always)]
    #[must_use]
    pub fn eip<'a>(&'a self, key: &'a Tuple<F>) -> &'a F::Addr {
        if is_outbound(key) { &self.translated.source } else { &key.endpoints.destination }
    }
}

/// What [`Session::eip`] says, from the keys of both entries.
#[inline(always)]
fn eip_of<'a, F: Family>(original: &'a Tuple<F>, reply: &'a Tuple<F>) -> &'a F::Addr {
    let key = if is_outbound(original) { reply } else { original };
    &key.endpoints.destination
}

#[inline(always)]
fn is_outbound<F: Family>(key: &Tuple<F>) -> bool {
    key.direction == Direction::Outbound as u8
}

/// Whether the host that sends the packet may open one more session.
///
/// # Errors
///
/// [`DropReason::HostSessions`] or [`DropReason::HostRate`].
#[inline(always)]
pub fn admit<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    let limits = &passage.config.host_limits;
    let key = &passage.work.parsed.tuple;
    if !limits.any() || !is_outbound(key) {
        return Ok(());
    }
    let Some(host) = passage.tables.host(&key.endpoints.source) else {
        return Ok(());
    };
    let reason = if limits.sessions != 0 && host.sessions >= limits.sessions {
        DropReason::HostSessions
    } else if limits.too_early(host.due, nanoseconds(passage.work.arrival.now)) {
        DropReason::HostRate
    } else {
        return Ok(());
    };
    passage.tables.refuse_host(&key.endpoints.source);
    Err(reason.into())
}

/// Counts a session in whose original entry has just been inserted.
#[inline(always)]
pub fn opened<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) {
    let key = &passage.work.parsed.tuple;
    let eip = eip_of(key, &passage.work.reply_key);
    passage.tables.count_eip(eip, EipEvent::Opened);
    if is_outbound(key) {
        let interval = passage.config.host_limits.interval_ns;
        let now = nanoseconds(passage.work.arrival.now);
        passage.tables.enter_host(&key.endpoints.source, now, interval);
    }
}

/// Counts a session out whose original entry has just been removed by whoever calls this.
///
/// `reply` is the key of its other entry, `flags` are those of either, and what `keys` hold does not
/// matter.
#[inline(always)]
pub fn closed<F: Family, T: Tables<F>>(
    original: &Tuple<F>,
    reply: &Tuple<F>,
    flags: u8,
    keys: &mut [KeySlot<F>; 2],
    tables: &mut T,
) {
    // A copy: where both keys lie on the BPF stack, LLVM makes arithmetic of the choice between them that
    // the verifier refuses.
    keys[0].key.address.set(eip_of(original, reply));
    tables.count_eip(&keys[0].key.address, EipEvent::Closed);
    if is_outbound(original) {
        tables.leave_host(&original.endpoints.source);
    }
    if flags & (MAPPED_SOURCE | MAPPED_TARGET) != 0 {
        endpoint_independent::leave(original, reply, flags, keys, tables);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::ticks_from_secs;

    #[test]
    fn a_burst_then_the_rate() {
        let limits = HostLimits { sessions: 0, interval_ns: 1 << 24, burst: 3 };
        let now = nanoseconds(1000);
        let interval = u64::from(limits.interval_ns);
        assert!(!limits.too_early(now + 2 * interval, now), "the third at once");
        assert!(limits.too_early(now + 3 * interval, now), "the fourth at once");
        assert!(!limits.too_early(now + 3 * interval, now + interval), "an interval later");
    }

    #[test]
    fn a_host_that_was_silent_for_weeks_is_not_early() {
        let limits = HostLimits { sessions: 0, interval_ns: 1_000_000_000, burst: 1 };
        let due = nanoseconds(5);
        for days in 1..52 {
            let now = nanoseconds(ticks_from_secs(days * 86_400));
            assert!(!limits.too_early(due, now), "after {days} days");
        }
    }

    #[test]
    fn the_scale_wraps() {
        let late = nanoseconds(Ticks::MAX);
        assert_eq!(ahead(late + (3 << 20), nanoseconds(0)), 2 << 20);
        assert_eq!(ahead(late, nanoseconds(1)), 0);
        assert_eq!(ahead(nanoseconds(1), late), 2 << 20);
    }
}
