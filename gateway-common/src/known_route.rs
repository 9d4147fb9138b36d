//! Routes that a CPU has asked for a moment ago.
//!
//! A session keeps its route. Whatever has none asks the kernel with each packet: floating IPs, what
//! passes as it is, the first packet of each flow. So every CPU remembers some answers:
//!
//! ```text
//! source, destination ─hash─► place ─► same question, same routing, same epoch? ─► its next hop
//!                                        └► the kernel, whose answer takes the place
//! ```
//!
//! An answer is as good as a new one would be as long as the routing table is the same:
//!
//! - The question holds all that the kernel is told of a packet: both addresses, the protocol and the
//!   interface it came in by. Ports, mark and type of service are zero in each question, for the kernel
//!   as well as here, so a routing rule or a multipath hash that looks at them makes no difference
//!   between two packets with the same question.
//! - [`Config::routing`](crate::records::Config::routing) changes with every change of routes, rules or
//!   addresses that the daemon hears of. It is noted before the kernel is asked: of a change in between
//!   the answer is not believed.
//! - What nobody heard of is found out with the next epoch ([`same_epoch`]), as sessions do. A session
//!   that opens with a remembered route looks it up again in the same moment in which this place becomes
//!   old, so the two delays do not add up.
//!
//! Only routes that lead somewhere are remembered. Which member of a next-hop group takes a router's place
//! is decided for each packet, behind this.

use crate::{
    family::{Address, Family, V4, V6, mix},
    records::{Record, Ticks, records, sealed},
    tables::RouteQuery,
    verdict::NextHop,
};

/// Places for routes on each CPU, in each family: 7 kB and 16 kB.
pub const PLACES: u32 = 256;

/// Routes are looked up again when time crosses a multiple of 2^11 ticks (2.1 s).
///
/// So a change of routes is followed even if nobody raises
/// [`Config::routing`](crate::records::Config::routing).
const EPOCH_SHIFT: u32 = 11;

/// Whether a route that was looked up, or looked at, `then` is to be believed at `now`.
#[inline(always)]
#[must_use]
pub const fn same_epoch(then: Ticks, now: Ticks) -> bool {
    (then ^ now) >> EPOCH_SHIFT == 0
}

/// Value of `ROUTES_V4` and `ROUTES_V6`: a question to the routing table and its answer.
///
/// All-zero is no answer: no interface has the index 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct KnownRoute<F: Family> {
    /// Source address of the question.
    pub source: F::Addr,
    /// Destination address of the question.
    pub destination: F::Addr,
    /// Interface of the question.
    pub ifindex: u32,
    /// When it was asked.
    pub asked: Ticks,
    /// [`Config::routing`](crate::records::Config::routing) before it was asked.
    pub routing: u16,
    /// Protocol of the question.
    pub protocol: u8,
    /// Zero.
    pub zero: u8,
    /// The answer; without interface while there is none.
    pub next_hop: NextHop<F>,
}

/// When a route is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The time.
    pub now: Ticks,
    /// [`Config::routing`](crate::records::Config::routing).
    pub routing: u16,
}

impl<F: Family> KnownRoute<F> {
    /// The place of the question for these addresses, below [`PLACES`].
    #[inline(always)]
    #[must_use]
    pub fn place(source: &F::Addr, destination: &F::Addr) -> u32 {
        mix(source.spread().rotate_left(1) ^ destination.spread()) % PLACES
    }

    /// Whether this is the answer to a question.
    #[inline(always)]
    #[must_use]
    pub fn answers(
        &self,
        query: &RouteQuery,
        source: &F::Addr,
        destination: &F::Addr,
        at: Moment,
    ) -> bool {
        self.next_hop.ifindex != 0
            && self.routing == at.routing
            && same_epoch(self.asked, at.now)
            && self.ifindex == query.ifindex
            && self.protocol == query.protocol
            && self.destination.same(destination)
            && self.source.same(source)
    }

    /// Notes a question, before it is asked.
    #[inline(always)]
    pub fn ask(&mut self, query: &RouteQuery, source: &F::Addr, destination: &F::Addr, at: Moment) {
        self.next_hop.ifindex = 0;
        self.source.set(source);
        self.destination.set(destination);
        self.ifindex = query.ifindex;
        self.asked = at.now;
        self.routing = at.routing;
        self.protocol = query.protocol;
    }

    /// Notes its answer.
    #[inline(always)]
    pub fn answer(&mut self, next_hop: &NextHop<F>) {
        self.next_hop.address.set(&next_hop.address);
        self.next_hop.ifindex = next_hop.ifindex;
    }
}

records! {
    KnownRoute<V4> = 4 4 4 4 2 1 1 8;
    KnownRoute<V6> = 16 16 4 4 2 1 1 20;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Ipv4;

    const AT: Moment = Moment { now: 5 << EPOCH_SHIFT, routing: 7 };
    const QUERY: RouteQuery = RouteQuery { ifindex: 2, protocol: 17 };

    fn ends() -> (Ipv4, Ipv4) {
        (Ipv4 { octets: [10, 0, 1, 5] }, Ipv4 { octets: [198, 51, 100, 7] })
    }

    fn known() -> KnownRoute<V4> {
        let ((source, destination), mut known) = (ends(), KnownRoute::default());
        known.ask(&QUERY, &source, &destination, AT);
        known.answer(&NextHop { ifindex: 3, address: Ipv4 { octets: [203, 0, 113, 1] } });
        known
    }

    #[test]
    fn an_answer_is_for_its_question_alone() {
        let (source, destination) = ends();
        assert!(known().answers(&QUERY, &source, &destination, AT));
        assert!(!known().answers(&QUERY, &destination, &source, AT));
        assert!(!known().answers(&QUERY, &source, &source, AT));
        let other = RouteQuery { ifindex: 3, ..QUERY };
        assert!(!known().answers(&other, &source, &destination, AT));
        let other = RouteQuery { protocol: 6, ..QUERY };
        assert!(!known().answers(&other, &source, &destination, AT));
    }

    #[test]
    fn an_answer_ends_with_the_epoch_and_with_the_routing() {
        let (source, destination) = ends();
        let answers = |at| known().answers(&QUERY, &source, &destination, at);
        assert!(answers(Moment { now: AT.now + (1 << EPOCH_SHIFT) - 1, ..AT }));
        assert!(!answers(Moment { now: AT.now + (1 << EPOCH_SHIFT), ..AT }));
        assert!(!answers(Moment { routing: AT.routing + 1, ..AT }));
    }

    #[test]
    fn a_question_without_answer_is_none() {
        let (source, destination) = ends();
        assert!(!KnownRoute::<V4>::default().answers(&QUERY, &source, &destination, AT));
        let mut asked = known();
        asked.ask(&QUERY, &source, &destination, AT);
        assert!(!asked.answers(&QUERY, &source, &destination, AT));
    }

    #[test]
    fn neighbours_have_places_of_their_own() {
        let (_, destination) = ends();
        let mut taken = [false; PLACES as usize];
        for last in 0..64 {
            let source = Ipv4 { octets: [10, 0, 1, last] };
            taken[KnownRoute::<V4>::place(&source, &destination) as usize] = true;
        }
        let places = taken.iter().filter(|&&taken| taken).count();
        assert!(places > 50, "64 sources share {places} places");
    }
}
