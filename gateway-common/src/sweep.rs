//! The sweep: ends sessions that are over, a slice at a time.
//!
//! ```text
//!  daemon   reads entries in batches ──► those that may be over ──► a frame of their keys
//!  program                                                          looks at each again, and ends it
//!                                                                   or does not
//! ```
//!
//! The daemon only guesses, from one entry and at its own time. The program sees both entries where no
//! packet can slip in between, and its word counts: so a session that is used meanwhile stays.

use crate::{
    endpoint_independent::KeySlot,
    expire::{self, SessionState},
    family::Family,
    records::{
        MAPPED_SOURCE, MAPPED_TARGET, MappingKind, ORIGINAL, RuleState, Session, Ticks, Timeouts,
        ticks_from_secs,
    },
    session::elapsed,
    tables::Tables,
    tuple::Tuple,
};

/// Where the keys begin in a frame: behind an Ethernet header, aligned.
pub const HEADER_BYTES: usize = 16;

/// Length of the longest frame: the kernel runs a program on less than a page.
pub const FRAME_BYTES: usize = 3600;

/// How many keys a frame takes: 224 or 89. A run over that many takes a fraction of a millisecond.
#[must_use]
pub const fn keys_in_frame<F: Family>() -> usize {
    (FRAME_BYTES - HEADER_BYTES) / size_of::<Tuple<F>>()
}

/// How long an entry without its other half is left alone: the half may be on its way.
const ORPHAN_TICKS: Ticks = ticks_from_secs(10);

/// Instead of the [`RuleState`] of a rule that is gone. No `Option`: the verifier refuses to store what
/// `None` leaves undefined.
pub const NO_RULE: u8 = u8::MAX;

/// What becomes of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fate {
    /// It stays.
    Stays,
    /// It stays, and its rule gets no new ones.
    Drains,
    /// It ends.
    Ends,
}

/// What becomes of the session of an entry. The original entry decides for both.
///
/// `opposite` is its other entry, `rule` the [`RuleState`] of its rule, or [`NO_RULE`].
#[inline(always)]
#[must_use]
pub fn fate<F: Family>(
    key: &Tuple<F>,
    session: &Session<F>,
    opposite: Option<&Session<F>>,
    rule: u8,
    timeouts: &Timeouts,
    now: Ticks,
) -> Fate {
    if session.flags & ORIGINAL == 0 {
        let alone = opposite.is_none() && is_old(session, now);
        return if alone { Fate::Ends } else { Fate::Stays };
    }
    if rule == NO_RULE {
        return Fate::Ends;
    }
    let reply = opposite.unwrap_or(session);
    if expire::is_expired(key.protocol, key.direction, session, reply, timeouts, now) {
        Fate::Ends
    } else if rule == RuleState::Draining as u8 {
        Fate::Drains
    } else {
        Fate::Stays
    }
}

/// The state by which a session lives that has a rule in the state `own`, and reached a mapping whose rule is in the
/// state `target`: either is a [`RuleState`] or [`NO_RULE`].
#[inline(always)]
#[must_use]
pub const fn state_of_both(own: u8, target: u8) -> u8 {
    if target == NO_RULE { NO_RULE } else { own }
}

/// The rule of the mapping by which a mapped endpoint reached another one; 0 for all other sessions. Their
/// session has the rule of who asked, and ends with either: a mapping does not outlive its rule.
///
/// `reply` is the key of the entry of the answers; what `slot` holds does not matter.
#[inline(always)]
pub fn rule_of_target<F: Family, T: Tables<F>>(
    reply: &Tuple<F>,
    flags: u8,
    slot: &mut KeySlot<F>,
    tables: &mut T,
) -> u32 {
    if !joins_two_mappings(flags) {
        return 0;
    }
    let ends = &reply.endpoints;
    slot.key.set(MappingKind::Inside, &ends.source, ends.source_port, reply.protocol);
    match tables.mapping(&slot.key) {
        Some(mapping) => mapping.rule,
        None => 0,
    }
}

#[inline(always)]
fn joins_two_mappings(flags: u8) -> bool {
    const BOTH: u8 = MAPPED_SOURCE | MAPPED_TARGET;
    flags & BOTH == BOTH
}

/// Whether the other half of an entry must be there by now.
#[inline(always)]
fn is_old<F: Family>(session: &Session<F>, now: Ticks) -> bool {
    let idle = elapsed(now, session.last_seen);
    idle > ORPHAN_TICKS && idle < Ticks::MAX / 2
}

/// In how many sweeps each entry of a reply is looked at once.
const TURNS: u16 = 16;

/// Whether [`fate`] may be another one than [`Fate::Stays`], as far as this entry tells.
///
/// Entries of replies only matter if their other half is lost, which hardly ever happens: each sweep, with
/// another `turn`, looks at some of them.
#[must_use]
pub fn is_candidate<F: Family>(
    key: &Tuple<F>,
    session: &Session<F>,
    rule: u8,
    timeouts: &Timeouts,
    now: Ticks,
    turn: u16,
) -> bool {
    if session.flags & ORIGINAL == 0 {
        let ports = key.endpoints.source_port ^ key.endpoints.destination_port;
        return ports % TURNS == turn % TURNS && is_old(session, now);
    }
    if rule != RuleState::Active as u8 || joins_two_mappings(session.flags) {
        return true;
    }
    let idle = elapsed(now, session.last_seen);
    let patience = SessionState::ALL
        .iter()
        .map(|state| expire::timeout(key.protocol, F::ICMP, *state, timeouts))
        .min();
    idle < Ticks::MAX / 2 && patience.is_some_and(|patience| idle > patience)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        family::V4,
        wire::transport::{ACK, FIN, RST, SYN, TCP, UDP},
    };

    const ACTIVE: u8 = RuleState::Active as u8;

    fn entry(packets: u64, flags: u8, seen: u8) -> Session<V4> {
        Session { packets, flags, seen, last_seen: 1000, ..Session::default() }
    }

    /// Whatever ends or drains is a candidate by one of its entries, at any time and in some turn.
    #[test]
    fn nothing_that_ends_is_overlooked() {
        let timeouts = Timeouts::default();
        let rules = [ACTIVE, RuleState::Draining as u8, NO_RULE];
        let flags = [0, SYN, SYN | ACK, SYN | ACK | FIN, SYN | ACK | RST];
        let times = [0, 5, 11, 61, 121, 241, 301, 7441].map(|idle| 1000 + ticks_from_secs(idle));
        let mut ended = 0;
        for (protocol, rule, now) in itertools(&[TCP, UDP, 1, 99], &rules, &times) {
            for (one, other) in flags.iter().flat_map(|one| flags.map(|other| (*one, other))) {
                for original in [ORIGINAL, 0] {
                    let key = Tuple::<V4> { protocol, ..Tuple::default() };
                    let session = entry(1, original, one);
                    let reply = entry(u64::from(other), 0, other);
                    for opposite in [None, Some(&reply)] {
                        if fate(&key, &session, opposite, rule, &timeouts, now) == Fate::Stays {
                            continue;
                        }
                        ended += 1;
                        let seen = (0..TURNS)
                            .any(|turn| is_candidate(&key, &session, rule, &timeouts, now, turn));
                        assert!(seen, "{protocol} {rule} {now} {session:?} {opposite:?}");
                    }
                }
            }
        }
        assert!(ended > 100, "{ended}");
    }

    /// All combinations of three lists.
    fn itertools<'a, A: Copy, B: Copy, C: Copy>(
        a: &'a [A],
        b: &'a [B],
        c: &'a [C],
    ) -> impl Iterator<Item = (A, B, C)> + 'a {
        a.iter().flat_map(move |a| b.iter().flat_map(move |b| c.iter().map(move |c| (*a, *b, *c))))
    }

    #[test]
    fn what_was_just_used_is_no_candidate() {
        let timeouts = Timeouts::default();
        let key = Tuple::<V4> { protocol: UDP, ..Tuple::default() };
        let session = entry(1, ORIGINAL, 0);
        let candidate = |now| is_candidate(&key, &session, ACTIVE, &timeouts, now, 0);
        assert!(!candidate(1000 + timeouts.udp_new));
        assert!(candidate(1000 + timeouts.udp_new + 1));
        assert!(!candidate(999), "a clock that lags");
    }

    #[test]
    fn a_half_whose_other_half_is_there_stays() {
        let timeouts = Timeouts::default();
        let key = Tuple::<V4> { protocol: UDP, ..Tuple::default() };
        let (reply, original) = (entry(1, 0, 0), entry(1, ORIGINAL, 0));
        let later = 1000 + ticks_from_secs(11);
        assert_eq!(fate(&key, &reply, Some(&original), NO_RULE, &timeouts, later), Fate::Stays);
        assert_eq!(fate(&key, &reply, None, ACTIVE, &timeouts, later), Fate::Ends);
        assert_eq!(fate(&key, &reply, None, ACTIVE, &timeouts, 1001), Fate::Stays);
    }
}
