//! The states of TCP sessions: what opens, establishes, closes, shortens and reopens them.
//!
//! RFC 5382 sections 4.1 and 5, RFC 7857 section 2, RFC 6146 section 3.5.2.

use super::{Gateway, Seen};
use crate::build_packet::{ACK, Draft, FIN, RST, SYN, TCP, tcp};

const INSIDE: &str = "10.0.1.10:4000";
const REMOTE: &str = "198.51.100.7:443";

/// Seconds that sessions in one of the short states live, and established ones.
const SHORT: u32 = 240;
const LONG: u32 = 7440;

/// A TCP connection with its two ends, whichever opened it.
struct Connection {
    there: Draft,
    back: Draft,
    from_outside: bool,
}

impl Connection {
    /// The first SYN from inside is through.
    fn from_inside(gw: &mut Gateway<'_>) -> Self {
        gw.snat("10.0.1.0/24", &["203.0.113.10"]);
        let there = tcp(INSIDE, REMOTE, SYN);
        let back = gw.outbound(there.clone()).forwarded().answer();
        Self { there, back, from_outside: false }
    }

    /// The first SYN from outside is through.
    fn from_outside(gw: &mut Gateway<'_>) -> Self {
        gw.dnat("203.0.113.11:443", TCP, "10.0.1.10:8443");
        let back = tcp("198.51.100.7:5000", "203.0.113.11:443", SYN);
        let there = gw.inbound(back.clone()).forwarded().answer();
        Self { there, back, from_outside: true }
    }

    /// A packet of the end inside.
    fn inside(&self, gw: &mut Gateway<'_>, flags: u8) -> Seen {
        gw.outbound(self.there.clone().with_tcp_flags(flags)).forwarded()
    }

    /// A packet of the end outside.
    fn outside(&self, gw: &mut Gateway<'_>, flags: u8) -> Seen {
        gw.inbound(self.back.clone().with_tcp_flags(flags)).forwarded()
    }

    /// The rest of the handshake.
    fn establish(self, gw: &mut Gateway<'_>) -> Self {
        if self.from_outside {
            self.inside(gw, SYN | ACK);
            self.outside(gw, ACK);
        } else {
            self.outside(gw, SYN | ACK);
            self.inside(gw, ACK);
        }
        self
    }
}

/// The session ends when it has been idle for so long, and not before.
#[track_caller]
fn lives(gw: &mut Gateway<'_>, seconds: u32) {
    gw.advance(seconds - 1);
    assert_eq!(gw.sweep(), 0, "after {} s", seconds - 1);
    gw.advance(2);
    assert_eq!(gw.sweep(), 1, "after {} s", seconds + 1);
    assert_eq!(gw.sessions(), []);
}

/// Both ways to open a connection.
const OPENERS: [fn(&mut Gateway<'_>) -> Connection; 2] =
    [Connection::from_inside, Connection::from_outside];

pub(super) fn a_handshake_establishes(gw: &mut Gateway<'_>) {
    for open in OPENERS {
        let _ = open(gw).establish(gw);
        lives(gw, LONG);
    }
}

// A SYN flood gets its answers from the host inside.
pub(super) fn a_handshake_without_its_end_stays_short(gw: &mut Gateway<'_>) {
    let connection = Connection::from_inside(gw);
    connection.outside(gw, SYN | ACK);
    lives(gw, SHORT);
    let connection = Connection::from_outside(gw);
    connection.inside(gw, SYN | ACK);
    connection.inside(gw, SYN | ACK);
    lives(gw, SHORT);
}

pub(super) fn a_refused_connection_stays_short(gw: &mut Gateway<'_>) {
    let connection = Connection::from_inside(gw);
    connection.outside(gw, RST | ACK);
    lives(gw, SHORT);
    let connection = Connection::from_outside(gw);
    connection.inside(gw, RST | ACK);
    lives(gw, SHORT);
}

pub(super) fn a_refused_connection_can_be_tried_again(gw: &mut Gateway<'_>) {
    let connection = Connection::from_inside(gw);
    let external = connection.outside(gw, RST | ACK).destination();
    assert_eq!(external.to_string(), INSIDE);
    connection.inside(gw, SYN);
    let _ = connection.establish(gw);
    lives(gw, LONG);
}

// RFC 5382 REQ-2a.
pub(super) fn crossing_syns_establish_when_both_are_acknowledged(gw: &mut Gateway<'_>) {
    let connection = Connection::from_inside(gw);
    connection.outside(gw, SYN);
    connection.inside(gw, SYN | ACK);
    gw.advance(SHORT - 1);
    assert_eq!(gw.sweep(), 0);
    connection.outside(gw, SYN | ACK);
    lives(gw, LONG);
    let connection = Connection::from_inside(gw);
    connection.outside(gw, SYN);
    connection.inside(gw, SYN | ACK);
    lives(gw, SHORT);
}

pub(super) fn a_flow_that_was_there_before_is_established_by_both_ends(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let there = gw.outbound(tcp(INSIDE, REMOTE, ACK)).forwarded();
    gw.advance(SHORT - 1);
    assert_eq!(gw.sweep(), 0);
    gw.inbound(there.answer().with_tcp_flags(ACK)).forwarded();
    lives(gw, LONG);
}

pub(super) fn a_reset_from_outside_does_not_shorten_a_session(gw: &mut Gateway<'_>) {
    for open in OPENERS {
        let connection = open(gw).establish(gw);
        connection.outside(gw, RST);
        lives(gw, LONG);
    }
}

pub(super) fn a_reset_from_inside_shortens_a_session(gw: &mut Gateway<'_>) {
    for open in OPENERS {
        let connection = open(gw).establish(gw);
        connection.inside(gw, RST);
        lives(gw, SHORT);
    }
}

// RFC 7857 section 2.2.
pub(super) fn what_follows_a_reset_from_inside_takes_it_back(gw: &mut Gateway<'_>) {
    for open in OPENERS {
        let connection = open(gw).establish(gw);
        connection.inside(gw, RST);
        gw.advance(SHORT - 1);
        // What is still under way from outside does not.
        connection.outside(gw, ACK);
        gw.advance(SHORT - 1);
        assert_eq!(gw.sweep(), 0);
        connection.inside(gw, ACK);
        lives(gw, LONG);
    }
}

pub(super) fn a_connection_closed_by_both_ends_is_closing(gw: &mut Gateway<'_>) {
    for open in OPENERS {
        let connection = open(gw).establish(gw);
        connection.inside(gw, FIN | ACK);
        connection.outside(gw, FIN | ACK);
        // The last acknowledgement does not make it established again.
        connection.inside(gw, ACK);
        lives(gw, SHORT);
        let connection = open(gw).establish(gw);
        connection.outside(gw, FIN | ACK);
        connection.inside(gw, FIN | ACK);
        connection.outside(gw, ACK);
        lives(gw, SHORT);
    }
}

pub(super) fn a_connection_closed_by_one_end_goes_on(gw: &mut Gateway<'_>) {
    for open in OPENERS {
        let connection = open(gw).establish(gw);
        connection.inside(gw, FIN | ACK);
        connection.outside(gw, ACK);
        lives(gw, LONG);
        let connection = open(gw).establish(gw);
        connection.outside(gw, FIN | ACK);
        connection.inside(gw, ACK);
        lives(gw, LONG);
    }
}

pub(super) fn a_reset_from_outside_ends_what_the_inside_has_closed(gw: &mut Gateway<'_>) {
    for open in OPENERS {
        let connection = open(gw).establish(gw);
        connection.inside(gw, FIN | ACK);
        connection.outside(gw, RST);
        lives(gw, SHORT);
    }
}

pub(super) fn a_syn_on_an_open_flow_changes_nothing(gw: &mut Gateway<'_>) {
    for open in OPENERS {
        let connection = open(gw).establish(gw);
        connection.inside(gw, SYN);
        connection.outside(gw, SYN);
        lives(gw, LONG);
        // Nor does one after a forged FIN or reset.
        for forged in [FIN | ACK, RST] {
            let connection = open(gw).establish(gw);
            connection.outside(gw, forged);
            connection.outside(gw, SYN);
            lives(gw, LONG);
        }
    }
}

// RFC 7857 section 2.1.
pub(super) fn a_syn_reopens_a_closing_flow(gw: &mut Gateway<'_>) {
    for open in OPENERS {
        let connection = open(gw).establish(gw);
        let external = connection.inside(gw, FIN | ACK).source();
        connection.outside(gw, FIN | ACK);
        let again = connection.inside(gw, SYN);
        assert_eq!(again.source(), external);
        let flags: Vec<u8> = gw.sessions().iter().map(|entry| entry.seen).collect();
        assert_eq!(flags.iter().fold(0, |all, seen| all | seen), SYN, "{flags:?}");
        gw.advance(SHORT - 1);
        assert_eq!(gw.sweep(), 0);
        connection.outside(gw, SYN | ACK);
        connection.inside(gw, ACK);
        lives(gw, LONG);
    }
}

pub(super) fn a_syn_of_the_other_end_reopens_too(gw: &mut Gateway<'_>) {
    for open in OPENERS {
        let connection = open(gw).establish(gw);
        connection.inside(gw, RST);
        connection.outside(gw, SYN);
        connection.inside(gw, SYN | ACK);
        lives(gw, SHORT);
    }
}

pub(super) fn a_syn_on_a_tuple_that_nobody_has_swept_opens_anew(gw: &mut Gateway<'_>) {
    for open in OPENERS {
        let connection = open(gw).establish(gw);
        gw.advance(LONG + 1);
        connection.outside(gw, SYN);
        lives(gw, SHORT);
    }
}
