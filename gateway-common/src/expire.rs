//! When a session ends: decided from both of its entries together.
//!
//! Each entry is written only by packets of its own direction, so no packet pays for a second
//! look-up; whoever ends sessions sees both. What a TCP entry keeps is one byte of flags, all that
//! were seen in its direction; the state follows from both bytes.
//!
//! ```text
//!                  SYN, or anything else
//!    (no session) ───────────────────────► Opening ◄──────────────┐
//!         ▲                                │     │                │
//!         │ idle                ACK from   │     │ RST from       │ SYN from either end, once
//!         │ too long            both ends  │     │ either end     │ it is closing or idle too
//!         │                                ▼     │                │ long; on a live flow it
//!         │                       Established    │                │ changes nothing
//!         │   packet from inside    ▲      │     │                │
//!         │   after its RST         │      │ RST from inside;     │
//!         │                         │      │ FIN from both ends;  │
//!         │                         │      │ FIN from inside and  │
//!         │                         │      ▼ RST from outside     │
//!         └─────────────────────── Closing ───────────────────────┘
//! ```
//!
//! - A connection that is refused or never completed stays in the short states: both ends must have
//!   sent an ACK (RFC 5382 section 5), which also covers two SYNs that cross (simultaneous open).
//! - Only the inside cuts an established flow short: anybody outside can forge a reset or a FIN.
//!   From outside they count once the inside has sent its FIN.
//! - A flow that one end has closed goes on for as long as the other end likes (half-closed).
//! - After a reset the flow stays for the time of closing, and what follows takes it back (RFC 7857
//!   section 2.2).
//!
//! Of other protocols one packet from each end establishes.

use crate::{
    family::Family,
    records::{HAIRPIN, Session, Ticks, Timeouts},
    session::elapsed,
    tuple::Direction,
    wire::transport::{ACK, FIN, RST, TCP, UDP, UDP_LITE},
};

/// Where a session stands (the classes of RFC 5382).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Not both ends have spoken; of TCP, not both have sent an ACK.
    Opening,
    /// Both ends have spoken.
    Established,
    /// TCP only: closed, reset or refused.
    Closing,
}

impl SessionState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Opening, Self::Established, Self::Closing];

    /// The state as the command line prints it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
        }
    }
}

/// The state of the flow whose first packet came in by `direction`.
#[inline(always)]
#[must_use]
pub fn state<F: Family>(
    protocol: u8,
    direction: u8,
    original: &Session<F>,
    reply: &Session<F>,
) -> SessionState {
    if protocol == TCP {
        return tcp_state(direction, original, reply);
    }
    if reply.packets == 0 { SessionState::Opening } else { SessionState::Established }
}

#[inline(always)]
fn tcp_state<F: Family>(direction: u8, original: &Session<F>, reply: &Session<F>) -> SessionState {
    let (both, either) = (original.seen & reply.seen, original.seen | reply.seen);
    let inside = if original.flags & HAIRPIN != 0 {
        either
    } else if direction == Direction::Outbound as u8 {
        original.seen
    } else {
        reply.seen
    };
    let established = both & ACK != 0;
    // A reset counts from inside, or from outside where nothing is to be cut short.
    let reset = inside & RST != 0 || either & RST != 0 && (!established || inside & FIN != 0);
    if reset || both & FIN != 0 {
        SessionState::Closing
    } else if established {
        SessionState::Established
    } else {
        SessionState::Opening
    }
}

/// Whether a SYN begins a new flow on the tuple of this one, which is one of TCP.
#[inline(always)]
#[must_use]
pub fn may_reopen<F: Family>(
    direction: u8,
    original: &Session<F>,
    reply: &Session<F>,
    timeouts: &Timeouts,
    now: Ticks,
) -> bool {
    tcp_state(direction, original, reply) == SessionState::Closing
        || is_expired(TCP, direction, original, reply, timeouts, now)
}

/// Copies what is looked at here.
#[inline(always)]
pub fn keep<F: Family>(session: &Session<F>, copy: &mut Session<F>) {
    copy.packets = session.packets;
    copy.last_seen = session.last_seen;
    copy.seen = session.seen;
    copy.flags = session.flags;
}

/// Idle time that `state` allows.
#[inline(always)]
#[must_use]
pub fn timeout(protocol: u8, icmp: u8, state: SessionState, timeouts: &Timeouts) -> Ticks {
    match (protocol, state) {
        (TCP, SessionState::Opening) => timeouts.tcp_opening,
        (TCP, SessionState::Established) => timeouts.tcp_established,
        (TCP, SessionState::Closing) => timeouts.tcp_closing,
        (UDP | UDP_LITE, SessionState::Opening) => timeouts.udp_new,
        (UDP | UDP_LITE, _) => timeouts.udp_stream,
        (protocol, _) if protocol == icmp => timeouts.icmp,
        _ => timeouts.other,
    }
}

/// Whether the session has been idle for longer than its state allows.
#[inline(always)]
#[must_use]
pub fn is_expired<F: Family>(
    protocol: u8,
    direction: u8,
    original: &Session<F>,
    reply: &Session<F>,
    timeouts: &Timeouts,
    now: Ticks,
) -> bool {
    let state = state(protocol, direction, original, reply);
    let idle = elapsed(now, original.last_seen).min(elapsed(now, reply.last_seen));
    // A packet that arrived after `now` was read must not look like one from 52 days ago.
    idle < Ticks::MAX / 2 && idle > timeout(protocol, F::ICMP, state, timeouts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        family::V4,
        records::ticks_from_secs,
        wire::transport::{ACK, SYN},
    };

    const OUT: u8 = Direction::Outbound as u8;
    const IN: u8 = Direction::Inbound as u8;

    fn entry(packets: u64, seen: u8) -> Session<V4> {
        Session { packets, seen, last_seen: 1000, ..Session::default() }
    }

    /// Flags that each end has sent, the state if the first end is inside, and if the second is.
    const STATES: &[(u8, u8, SessionState, SessionState)] = {
        use SessionState::{Closing, Established, Opening};
        &[
            // The handshake, step by step.
            (SYN, 0, Opening, Opening),
            (SYN, SYN | ACK, Opening, Opening),
            (SYN | ACK, SYN | ACK, Established, Established),
            // Both ends send a SYN first.
            (SYN, SYN, Opening, Opening),
            (SYN | ACK, SYN, Opening, Opening),
            // A flow that was there before the gateway was.
            (ACK, 0, Opening, Opening),
            (ACK, ACK, Established, Established),
            // Refused by the other end, given up by the first one.
            (SYN, RST | ACK, Closing, Closing),
            (SYN | RST, SYN | ACK, Closing, Closing),
            (SYN | RST, 0, Closing, Closing),
            // One end resets.
            (SYN | ACK | RST, SYN | ACK, Closing, Established),
            (SYN | ACK, SYN | ACK | RST, Established, Closing),
            // One end closes, both do.
            (SYN | ACK | FIN, SYN | ACK, Established, Established),
            (SYN | ACK, SYN | ACK | FIN, Established, Established),
            (SYN | ACK | FIN, SYN | ACK | FIN, Closing, Closing),
            // One end closes, the other one resets.
            (SYN | ACK | FIN, SYN | ACK | RST, Closing, Closing),
        ]
    };

    #[test]
    fn flags_of_both_ends_make_the_state() {
        for &(first, second, from_inside, from_outside) in STATES {
            let [first, second] = [first, second].map(|flags| entry(1, flags));
            let case = (first.seen, second.seen);
            assert_eq!(state(TCP, OUT, &first, &second), from_inside, "{case:x?}, from inside");
            assert_eq!(state(TCP, IN, &first, &second), from_outside, "{case:x?}, from outside");
            // The state does not depend on which of the ends began, but on which is inside.
            assert_eq!(state(TCP, IN, &second, &first), from_inside, "{case:x?}, turned round");
            let hairpin = Session { flags: HAIRPIN, ..first };
            let either =
                if from_inside == from_outside { from_inside } else { SessionState::Closing };
            assert_eq!(state(TCP, OUT, &hairpin, &second), either, "{case:x?}, hairpin");
        }
    }

    #[test]
    fn of_other_protocols_a_packet_from_each_end_establishes() {
        assert_eq!(state(UDP, OUT, &entry(9, 0), &entry(0, 0)), SessionState::Opening);
        assert_eq!(state(UDP, OUT, &entry(1, 0), &entry(1, 0)), SessionState::Established);
    }

    #[test]
    fn a_syn_reopens_what_is_closing_or_idle_too_long() {
        let timeouts = Timeouts::default();
        let reopens = |first, second, idle| {
            may_reopen(OUT, &entry(1, first), &entry(1, second), &timeouts, 1000 + idle)
        };
        let open = SYN | ACK;
        assert!(!reopens(open, open, timeouts.tcp_established));
        assert!(reopens(open, open, timeouts.tcp_established + 1));
        assert!(!reopens(open, open | RST, 0), "a reset from outside");
        assert!(!reopens(open, open | FIN, 0), "a FIN from outside");
        assert!(reopens(open | RST, open, 0));
        assert!(reopens(SYN, RST | ACK, 0), "refused");
    }

    #[test]
    fn idle_is_counted_from_the_later_of_both_directions() {
        let timeouts = Timeouts::default();
        let limit = timeouts.udp_stream;
        let original = entry(5, 0);
        let reply = Session { last_seen: 1000 + ticks_from_secs(10), ..entry(5, 0) };
        let expired = |now| is_expired(UDP, OUT, &original, &reply, &timeouts, now);
        assert!(!expired(1000 + ticks_from_secs(10) + limit));
        assert!(expired(1000 + ticks_from_secs(10) + limit + 1));
    }

    #[test]
    fn time_may_wrap_and_may_lag() {
        let timeouts = Timeouts::default();
        let late = Session::<V4> { last_seen: u32::MAX - 5, packets: 1, ..Session::default() };
        assert!(!is_expired(UDP, OUT, &late, &late, &timeouts, 20));
        assert!(!is_expired(UDP, OUT, &late, &late, &timeouts, u32::MAX - 9));
        assert!(is_expired(UDP, OUT, &late, &late, &timeouts, timeouts.udp_stream + 20));
    }
}
