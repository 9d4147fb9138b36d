//! What a gateway must do, as plainly as it can be said: a list of sessions, a list of rules, a clock.
//!
//! The model chooses no port. It is told what became of a packet, says whether that may be, and remembers
//! it. It knows nothing of entries, halves, hashes or how ports are searched for, and of all else only what
//! the RFCs and the packet table say.

mod flows;
mod fragments;
mod mappings;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use gateway_common::verdict::DropReason;

use self::flows::{Door, Exit};
pub use self::fragments::Piece;
use self::fragments::{Datagram, Key};
pub use self::mappings::Filter;
use self::mappings::Mapping;
use self::session::Session;
pub use self::session::{Ends, Side, Way};
use crate::harness::routes::Prefix;

/// A packet, as far as the model looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Protocol number.
    pub protocol: u8,
    /// Its ends.
    pub way: Way,
    /// TCP flags.
    pub flags: u8,
    /// All of a datagram, or which fragment.
    pub piece: Piece,
}

impl Packet {
    /// A whole packet without flags.
    #[must_use]
    pub fn new(protocol: u8, way: Way) -> Self {
        Self { protocol, way, flags: 0, piece: Piece::Whole }
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// It left with these ends.
    Sent(SocketAddr, SocketAddr),
    /// The kernel got it.
    Passed,
    /// It comes again, and fragments that waited for it behind it.
    Replayed,
    /// It is gone.
    Dropped(DropReason),
}

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// EIP and inside address are each other.
    Fip(IpAddr, IpAddr),
    /// This port of an EIP is that port inside. Rules with the same port share it.
    Dnat(u8, SocketAddr, SocketAddr),
    /// These sources leave by this EIP. Rules with the same sources are a pool.
    Snat(Prefix, IpAddr),
    /// The same, with one external endpoint for all remotes, and a filter.
    Mapped(Prefix, IpAddr, Filter),
}

/// The model.
#[derive(Clone, Debug)]
pub struct ReferenceNat {
    now: u64,
    sessions: Vec<Session>,
    mappings: Vec<Mapping>,
    rules: BTreeMap<u32, Rule>,
    /// Backends that left a shared port: they keep their sessions.
    draining: BTreeSet<u32>,
    /// Which EIP of its pool a host was given, where each had a port to give.
    pairs: BTreeMap<(Prefix, IpAddr), IpAddr>,
    lost: BTreeSet<IpAddr>,
    /// Lowest and highest port for sources from 1024 on.
    ports: (u16, u16),
    /// Most sessions.
    capacity: usize,
    /// Where no port was free since the clock last moved: it may be said again.
    refused: BTreeSet<Door>,
    datagrams: BTreeMap<Key, Datagram>,
    /// Fragments that came before the first one, and when.
    waiting: BTreeMap<Key, Vec<(u64, Packet)>>,
}

impl ReferenceNat {
    /// A gateway without rules.
    #[must_use]
    pub fn new(ports: (u16, u16), capacity: usize) -> Self {
        Self {
            now: 0,
            sessions: Vec::new(),
            mappings: Vec::new(),
            rules: BTreeMap::new(),
            draining: BTreeSet::new(),
            pairs: BTreeMap::new(),
            lost: BTreeSet::new(),
            ports,
            capacity,
            refused: BTreeSet::new(),
            datagrams: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// A rule comes.
    pub fn add(&mut self, id: u32, rule: Rule) {
        self.rules.insert(id, rule);
        self.pairs.clear();
    }

    /// A rule goes.
    pub fn remove(&mut self, id: u32) {
        self.rules.remove(&id);
        self.pairs.clear();
    }

    /// A backend leaves a shared port.
    pub fn drain(&mut self, id: u32) {
        self.remove(id);
        self.draining.insert(id);
    }

    /// Whether there is such a rule that takes new flows.
    #[must_use]
    pub fn forwards(&self, rule: &Rule) -> bool {
        self.rules.values().any(|other| other == rule)
    }

    /// The way to an address is lost, or found again.
    pub fn lose(&mut self, address: IpAddr, lost: bool) {
        match lost {
            true => self.lost.insert(address),
            false => self.lost.remove(&address),
        };
    }

    /// Time passes.
    pub fn advance(&mut self, seconds: u32) {
        self.now += u64::from(seconds);
        self.refused.clear();
    }

    /// All sessions, over or not.
    pub fn sessions(&self) -> impl Iterator<Item = Ends> {
        self.sessions.iter().map(|session| session.ends)
    }

    fn is_alive(&self, session: &Session) -> bool {
        let rule = self.rules.contains_key(&session.rule) || self.draining.contains(&session.rule);
        let of = |inside: &SocketAddr| self.mapping_of(session.ends.protocol, *inside);
        let mut mappings = session.maps.iter().flatten().filter_map(of);
        !session.is_over(self.now)
            && rule
            && mappings.all(|mapping| self.rules.contains_key(&mapping.rule))
    }

    /// Ends the sessions that are over or whose rule is gone. Returns how many.
    pub fn sweep(&mut self) -> usize {
        let before = self.sessions.len();
        let alive: Vec<_> =
            self.sessions.iter().filter(|session| self.is_alive(session)).copied().collect();
        self.sessions = alive;
        self.forget_mappings();
        before - self.sessions.len()
    }

    /// Compares with the sessions that are there. One that is over may have given way.
    ///
    /// # Errors
    /// A live session has disappeared, or there is one that nobody opened.
    pub fn compare(&mut self, there: &BTreeSet<Ends>) -> Result<(), String> {
        let known: BTreeSet<_> = self.sessions().collect();
        if let Some(unknown) = there.difference(&known).next() {
            return Err(format!("nobody opened {unknown:?}"));
        }
        let gone = |session: &Session| !there.contains(&session.ends);
        if let Some(lost) =
            self.sessions.iter().find(|session| gone(session) && self.is_alive(session))
        {
            return Err(format!("a live session has disappeared: {lost:?} at {}", self.now));
        }
        self.sessions.retain(|session| there.contains(&session.ends));
        self.forget_mappings();
        Ok(())
    }

    /// Whether that may have become of a packet; remembers what it changes.
    ///
    /// # Errors
    /// It may not.
    pub fn packet(&mut self, packet: &Packet, became: Became) -> Result<(), String> {
        if matches!(packet.piece, Piece::Later(_)) {
            return self.follows(packet, became);
        }
        match self.met(packet) {
            Some(index) => self.meets(index, packet, became),
            None => self.begins(packet, became),
        }
    }

    /// The session of a packet.
    fn met(&self, packet: &Packet) -> Option<usize> {
        let met = |session: &Session| session.meets(packet.protocol, packet.way);
        self.sessions.iter().position(met)
    }

    /// A packet of a session.
    fn meets(&mut self, index: usize, packet: &Packet, became: Became) -> Result<(), String> {
        let Ends { came, left, .. } = self.sessions[index].ends;
        let leaves = if packet.way == came { left } else { came.back() };
        let leaves = Self::seen(packet, leaves);
        self.is_sent(became, leaves.from, leaves.to)?;
        if matches!(became, Became::Sent(..)) {
            self.sessions[index].note(packet, self.now);
        }
        Ok(())
    }

    /// It must leave like this, unless there is no way.
    fn is_sent(&self, became: Became, from: SocketAddr, to: SocketAddr) -> Result<(), String> {
        match became {
            Became::Dropped(DropReason::NoRoute) if self.lost.contains(&to.ip()) => Ok(()),
            Became::Sent(..) if self.lost.contains(&to.ip()) => Err("there is no way".into()),
            Became::Sent(source, destination) if (source, destination) == (from, to) => Ok(()),
            _ => Err(format!("expected from {from} to {to}")),
        }
    }

    /// A session opens, and one that is over and in its way is gone.
    fn open(&mut self, packet: &Packet, left: Way, exit: &Exit) -> Result<(), String> {
        let (protocol, came) = (packet.protocol, packet.way);
        let answers = left.back();
        if answers == came {
            return Err(format!("{} talks to itself", came.from));
        }
        if let Some(taken) = self
            .sessions
            .iter()
            .find(|other| other.meets(protocol, answers) && !other.is_over(self.now))
        {
            return Err(format!("{} is taken by {:?}", left.from, taken.ends));
        }
        self.sessions.retain(|other| !other.meets(protocol, answers));
        // Others that are over may have given way while a port was looked for.
        if self.sessions.iter().filter(|other| !other.is_over(self.now)).count() >= self.capacity {
            return Err("the table is full".into());
        }
        let ends = Ends { protocol, came, left };
        self.sessions.push(Session::new(ends, packet, exit, self.now));
        Ok(())
    }

    fn is_full(&self) -> Result<(), String> {
        match self.sessions.len() >= self.capacity {
            true => Ok(()),
            false => Err(format!("{} of {} sessions", self.sessions.len(), self.capacity)),
        }
    }
}
