//! When a session ends: decided from both of its entries together.
//!
//! Each entry is written only by packets of its own direction, so no packet pays for a second
//! look-up; whoever ends sessions sees both.
//!
//! ```text
//!             both directions seen          FIN both ways, or FIN/RST from inside
//!  Opening -----------------------> Established -------------------------------> Closing
//!     ^                                                                             |
//!     +-------------------------------- SYN ----------------------------------------+
//! ```

use crate::{
    family::Family,
    records::{HAIRPIN, Session, Ticks, Timeouts},
    session::elapsed,
    tuple::Direction,
    wire::transport::{FIN, RST, TCP, UDP, UDP_LITE},
};

/// Where a session stands (the classes of RFC 5382).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Only the originator has spoken.
    Opening,
    /// Both ends have spoken.
    Established,
    /// TCP only: closed by both ends, or closed or reset from inside.
    Closing,
}

impl SessionState {
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
        let both = original.seen & reply.seen;
        let inside = if original.flags & HAIRPIN != 0 {
            original.seen | reply.seen
        } else if direction == Direction::Outbound as u8 {
            original.seen
        } else {
            reply.seen
        };
        // Only the inside may cut its session short: anybody outside can forge a reset.
        if both & FIN != 0 || inside & RST != 0 {
            return SessionState::Closing;
        }
    }
    if reply.packets == 0 { SessionState::Opening } else { SessionState::Established }
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

    #[test]
    fn a_reply_establishes() {
        assert_eq!(state(TCP, OUT, &entry(1, SYN), &entry(0, 0)), SessionState::Opening);
        assert_eq!(
            state(TCP, OUT, &entry(1, SYN), &entry(1, SYN | ACK)),
            SessionState::Established
        );
    }

    #[test]
    fn a_reset_from_outside_does_not_shorten() {
        let (inside, outside) = (entry(2, SYN | ACK), entry(2, SYN | ACK | RST));
        assert_eq!(state(TCP, OUT, &inside, &outside), SessionState::Established);
        assert_eq!(state(TCP, IN, &outside, &inside), SessionState::Established);
    }

    #[test]
    fn a_reset_from_inside_closes() {
        let (inside, outside) = (entry(2, SYN | ACK | RST), entry(2, SYN | ACK));
        assert_eq!(state(TCP, OUT, &inside, &outside), SessionState::Closing);
        assert_eq!(state(TCP, IN, &outside, &inside), SessionState::Closing);
    }

    #[test]
    fn one_fin_is_half_closed_two_are_closing() {
        let fin = SYN | ACK | FIN;
        assert_eq!(
            state(TCP, OUT, &entry(3, fin), &entry(3, SYN | ACK)),
            SessionState::Established
        );
        assert_eq!(state(TCP, OUT, &entry(3, fin), &entry(3, fin)), SessionState::Closing);
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
