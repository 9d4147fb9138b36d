//! What a gateway must do, as plainly as it can be said: a list of sessions, a list of rules, a clock.
//!
//! The model chooses no port. It is told what became of a packet, says whether that may be, and remembers
//! it. It knows nothing of entries, halves, hashes or how ports are searched for, and of all else only what
//! the RFCs and the packet table say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use gateway_common::verdict::DropReason;

use crate::build_packet::{ACK, FIN, ICMP, RST, SYN, TCP};
use crate::harness::notation::covers;
use crate::harness::routes::Prefix;

/// Which side of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The VPC.
    Inside,
    /// Everything else.
    Outside,
}

/// A packet, as far as the model looks at it. Of an ICMP query the end inside has its id as a port, the
/// other end has 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub side: Side,
    /// Protocol number.
    pub protocol: u8,
    /// Source.
    pub from: SocketAddr,
    /// Destination.
    pub to: SocketAddr,
    /// TCP flags.
    pub flags: u8,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Became {
    /// It left with these ends.
    Sent(SocketAddr, SocketAddr),
    /// The kernel got it.
    Passed,
    /// It is gone.
    Dropped(DropReason),
}

/// The three ends of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ends {
    /// Protocol number.
    pub protocol: u8,
    /// The host inside.
    pub inside: SocketAddr,
    /// The EIP, and the port that the remote sees.
    pub external: SocketAddr,
    /// The host outside.
    pub remote: SocketAddr,
}

/// What one end of a session has sent.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    anything: bool,
    ack: bool,
    fin: bool,
    /// Its last packet was a reset.
    reset: bool,
}

#[derive(Clone, Copy, Debug)]
struct Session {
    ends: Ends,
    opener: Side,
    rule: u32,
    last: u64,
    inside: Sent,
    outside: Sent,
}

impl Session {
    fn is_closing(&self) -> bool {
        let established = self.inside.ack && self.outside.ack;
        let closed = self.inside.fin && self.outside.fin;
        let cut = self.outside.reset && (self.inside.fin || !established);
        self.ends.protocol == TCP && (closed || self.inside.reset || cut)
    }

    fn timeout(&self) -> u64 {
        let answer = match self.opener {
            Side::Inside => self.outside,
            Side::Outside => self.inside,
        };
        match self.ends.protocol {
            TCP if !self.is_closing() && self.inside.ack && self.outside.ack => 7440,
            TCP => 240,
            ICMP => 60,
            _ if answer.anything => 300,
            _ => 120,
        }
    }

    fn is_over(&self, now: u64) -> bool {
        now - self.last > self.timeout()
    }

    fn note(&mut self, side: Side, flags: u8, now: u64) {
        let begins = self.ends.protocol == TCP && flags & (SYN | ACK) == SYN;
        if begins && (self.is_closing() || self.is_over(now)) {
            (self.inside, self.outside) = (Sent::default(), Sent::default());
        }
        let sent = match side {
            Side::Inside => &mut self.inside,
            Side::Outside => &mut self.outside,
        };
        sent.anything = true;
        sent.ack |= flags & ACK != 0;
        sent.fin |= flags & FIN != 0;
        sent.reset = flags & RST != 0;
        self.last = now;
    }
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
}

/// The model.
#[derive(Clone, Debug)]
pub struct ReferenceNat {
    now: u64,
    sessions: Vec<Session>,
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
    /// Who was told that no port is free since the clock last moved: he may be told so again.
    refused: BTreeSet<(u8, Prefix, u16, SocketAddr)>,
}

impl ReferenceNat {
    /// A gateway without rules.
    #[must_use]
    pub fn new(ports: (u16, u16), capacity: usize) -> Self {
        Self {
            now: 0,
            sessions: Vec::new(),
            rules: BTreeMap::new(),
            draining: BTreeSet::new(),
            pairs: BTreeMap::new(),
            lost: BTreeSet::new(),
            ports,
            capacity,
            refused: BTreeSet::new(),
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
        !session.is_over(self.now) && rule
    }

    /// Ends the sessions that are over or whose rule is gone. Returns how many.
    pub fn sweep(&mut self) -> usize {
        let before = self.sessions.len();
        let alive: Vec<_> =
            self.sessions.iter().filter(|session| self.is_alive(session)).copied().collect();
        self.sessions = alive;
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
        Ok(())
    }

    /// Whether that may have become of a packet; remembers what it changes.
    ///
    /// # Errors
    /// It may not.
    pub fn packet(&mut self, packet: &Packet, became: Became) -> Result<(), String> {
        let Packet { side, protocol, from, to, .. } = *packet;
        let met = self.sessions.iter().position(|Session { ends, .. }| {
            ends.protocol == protocol
                && match side {
                    Side::Inside => (ends.inside, ends.remote) == (from, to),
                    Side::Outside => (ends.remote, ends.external) == (from, to),
                }
        });
        if let Some(index) = met {
            return self.meets(index, packet, became);
        }
        let fip = self.rules.values().find_map(|rule| match (rule, side) {
            (Rule::Fip(eip, inside), Side::Inside) => (*inside == from.ip()).then_some(*eip),
            (Rule::Fip(eip, inside), Side::Outside) => (*eip == to.ip()).then_some(*inside),
            _ => None,
        });
        match (fip, side) {
            (Some(eip), Side::Inside) => {
                self.is_sent(became, SocketAddr::new(eip, from.port()), to)
            }
            (Some(inside), Side::Outside) => {
                self.is_sent(became, from, SocketAddr::new(inside, to.port()))
            }
            (None, Side::Inside) => self.leaves(packet, became),
            (None, Side::Outside) => self.enters(packet, became),
        }
    }

    /// A packet of a session.
    fn meets(&mut self, index: usize, packet: &Packet, became: Became) -> Result<(), String> {
        let Ends { inside, external, remote, .. } = self.sessions[index].ends;
        match packet.side {
            Side::Inside => self.is_sent(became, external, remote)?,
            Side::Outside => self.is_sent(became, remote, inside)?,
        }
        if matches!(became, Became::Sent(..)) {
            self.sessions[index].note(packet.side, packet.flags, self.now);
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

    /// A new flow from inside.
    fn leaves(&mut self, packet: &Packet, became: Became) -> Result<(), String> {
        let Some((sources, pool)) = self.pool_of(packet.from.ip()) else {
            return match became {
                Became::Dropped(DropReason::NoRule | DropReason::NoRoute) => Ok(()),
                _ => Err("no rule covers it".into()),
            };
        };
        match became {
            Became::Sent(external, to) => {
                self.is_sent(became, external, packet.to)?;
                let (low, high) = self.range(packet.protocol, packet.from.port());
                let rule = pool.get(&external.ip()).copied();
                let Some(rule) = rule.filter(|_| (low..=high).contains(&external.port())) else {
                    let eips = pool.keys();
                    return Err(format!("expected from {eips:?}, a port from {low} to {high}"));
                };
                self.is_paired((sources, packet.from.ip()), &pool, external.ip(), packet)?;
                let (protocol, inside) = (packet.protocol, packet.from);
                self.open(Ends { protocol, inside, external, remote: to }, packet, rule)
            }
            Became::Dropped(DropReason::NoRoute) if self.lost.contains(&packet.to.ip()) => Ok(()),
            Became::Dropped(DropReason::SessionsFull) => self.is_full(),
            Became::Dropped(DropReason::PortsExhausted) => {
                let (low, _) = self.range(packet.protocol, packet.from.port());
                let key = (packet.protocol, sources, low, packet.to);
                let free = pool.keys().find_map(|eip| self.free_port(*eip, packet));
                match free {
                    Some(free) if !self.refused.contains(&key) => {
                        Err(format!("{free} is free towards {}", packet.to))
                    }
                    _ => {
                        self.refused.insert(key);
                        Ok(())
                    }
                }
            }
            _ => Err("a rule covers it".into()),
        }
    }

    /// The longest prefix with a source in it, and the EIPs of its rules.
    fn pool_of(&self, source: IpAddr) -> Option<(Prefix, BTreeMap<IpAddr, u32>)> {
        let rules = self.rules.iter().filter_map(|(id, rule)| match rule {
            Rule::Snat(sources, eip) if covers(sources.0, sources.1, source) => {
                Some((*sources, *eip, *id))
            }
            _ => None,
        });
        let all: Vec<_> = rules.collect();
        let longest = all.iter().map(|(sources, ..)| *sources).max_by_key(|(_, length)| *length)?;
        let pool = all.iter().filter(|(sources, ..)| *sources == longest);
        Some((longest, pool.map(|(_, eip, id)| (*eip, *id)).collect()))
    }

    /// A port of an EIP that this packet may have.
    fn free_port(&self, eip: IpAddr, packet: &Packet) -> Option<SocketAddr> {
        let (low, high) = self.range(packet.protocol, packet.from.port());
        (low..=high).map(|port| SocketAddr::new(eip, port)).find(|external| {
            self.holder(packet.protocol, *external, packet.to)
                // A port forward's own session keeps its port until it is swept.
                .is_none_or(|held| held.is_over(self.now) && held.opener == Side::Inside)
        })
    }

    /// A host has one EIP of a pool for all its flows, as long as that has a port to give (RFC 4787,
    /// REQ-2).
    fn is_paired(
        &mut self,
        host: (Prefix, IpAddr),
        pool: &BTreeMap<IpAddr, u32>,
        eip: IpAddr,
        packet: &Packet,
    ) -> Result<(), String> {
        match self.pairs.get(&host) {
            Some(paired) if *paired != eip => match self.free_port(*paired, packet) {
                Some(free) => Err(format!("{} is paired with {paired}; {free} is free", host.1)),
                None => Ok(()),
            },
            Some(_) => Ok(()),
            None => {
                // Otherwise nobody knows which it would have been.
                if pool.keys().all(|eip| self.free_port(*eip, packet).is_some()) {
                    self.pairs.insert(host, eip);
                }
                Ok(())
            }
        }
    }

    /// A new flow from outside.
    fn enters(&mut self, packet: &Packet, became: Became) -> Result<(), String> {
        let backends = self.rules.iter().filter_map(|(id, rule)| match rule {
            Rule::Dnat(protocol, external, inside)
                if (*protocol, *external) == (packet.protocol, packet.to) =>
            {
                Some((*id, *inside))
            }
            _ => None,
        });
        let backends: Vec<_> = backends.collect();
        if backends.is_empty() {
            return match became {
                Became::Passed => Ok(()),
                _ => Err("it is to an address of the gateway, and nobody's".into()),
            };
        }
        let (protocol, external, remote) = (packet.protocol, packet.to, packet.from);
        let rival = |inside: SocketAddr| {
            self.sessions.iter().any(|Session { ends, .. }| {
                (ends.protocol, ends.inside, ends.remote) == (protocol, inside, remote)
            })
        };
        match became {
            Became::Sent(_, to) => {
                let chosen = backends.iter().find(|(_, inside)| *inside == to);
                let Some((rule, inside)) = chosen.copied() else {
                    return Err(format!("expected to one of {backends:?}"));
                };
                self.is_sent(became, remote, inside)?;
                self.open(Ends { protocol, inside, external, remote }, packet, rule)
            }
            Became::Dropped(DropReason::TupleTaken)
                if backends.iter().any(|(_, inside)| rival(*inside)) =>
            {
                Ok(())
            }
            Became::Dropped(DropReason::NoRoute)
                if backends.iter().any(|(_, inside)| self.lost.contains(&inside.ip())) =>
            {
                Ok(())
            }
            Became::Dropped(DropReason::SessionsFull) => self.is_full(),
            _ => Err("a rule forwards it".into()),
        }
    }

    /// A session opens, and those that are over and in its way are gone.
    fn open(&mut self, ends: Ends, packet: &Packet, rule: u32) -> Result<(), String> {
        let now = self.now;
        let in_the_way = |Session { ends: other, .. }: &Session| {
            other.protocol == ends.protocol
                && other.remote == ends.remote
                && (other.external == ends.external || other.inside == ends.inside)
        };
        if let Some(taken) =
            self.sessions.iter().find(|other| in_the_way(other) && !other.is_over(now))
        {
            return Err(format!("{:?} is taken by {:?}", ends.external, taken.ends));
        }
        self.sessions.retain(|other| !in_the_way(other));
        if self.sessions.len() >= self.capacity {
            return Err("the table is full".into());
        }
        let (inside, outside) = (Sent::default(), Sent::default());
        let mut session = Session { ends, opener: packet.side, rule, last: now, inside, outside };
        session.note(packet.side, packet.flags, now);
        self.sessions.push(session);
        Ok(())
    }

    fn is_full(&self) -> Result<(), String> {
        match self.sessions.len() >= self.capacity {
            true => Ok(()),
            false => Err(format!("{} of {} sessions", self.sessions.len(), self.capacity)),
        }
    }

    fn holder(&self, protocol: u8, external: SocketAddr, remote: SocketAddr) -> Option<&Session> {
        self.sessions.iter().find(|Session { ends, .. }| {
            (ends.protocol, ends.external, ends.remote) == (protocol, external, remote)
        })
    }

    /// The ports that a source port may become.
    fn range(&self, protocol: u8, port: u16) -> (u16, u16) {
        match (protocol, port) {
            (ICMP, _) => (0, u16::MAX),
            (_, 0..512) => (1, 511),
            (_, 512..1024) => (600, 1023),
            _ => self.ports,
        }
    }
}
