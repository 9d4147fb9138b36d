//! Packets that no session knows: what the rules say of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use gateway_common::verdict::DropReason;

use super::session::Session;
use super::{Became, Packet, ReferenceNat, Rule, Side, Way};
use crate::build_packet::{ICMP, end};
use crate::harness::notation::covers;
use crate::harness::routes::{EIPS, Prefix};

/// A way for a new flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exit {
    pub(super) rule: u32,
    /// The address that it is seen by, if it takes a port of that.
    eip: Option<IpAddr>,
    to: SocketAddr,
    /// As of a session.
    pub(super) maps: [Option<SocketAddr>; 2],
}

impl Exit {
    fn new(rule: u32, to: SocketAddr) -> Self {
        Self { rule, eip: None, to, maps: [None, None] }
    }
}

/// The EIPs of a source prefix, each with its rule.
pub(super) struct Pool {
    sources: Prefix,
    pub(super) eips: BTreeMap<IpAddr, u32>,
    /// Whether they map endpoint-independently.
    maps: bool,
}

/// Where ports are given: protocol, EIP, the lowest of them, and who will see them.
pub(super) type Door = (u8, Option<IpAddr>, u16, SocketAddr);

/// Whether an address is one of the gateway's.
pub(super) fn is_eip(address: IpAddr) -> bool {
    EIPS.iter().any(|eip| end(eip).ip() == address)
}

impl ReferenceNat {
    /// A packet of no session.
    pub(super) fn begins(&mut self, packet: &Packet, became: Became) -> Result<(), String> {
        let Way { side, from, to } = packet.way;
        let own = self.own_eip(from.ip()).filter(|_| side == Side::Inside);
        let keeps_port = side == Side::Outside || own.is_some();
        let seen = SocketAddr::new(own.unwrap_or(from.ip()), from.port());
        let targets = self.targets(packet);
        if let Some((from, to)) = self.floats(packet.way) {
            return self.is_sent(became, from, to);
        }
        match targets.is_empty() {
            true if is_eip(to.ip()) => match became {
                Became::Passed => Ok(()),
                _ => Err("it is to an address of the gateway, and nobody's".into()),
            },
            true => self.leaves(packet, became),
            false if keeps_port => self.is_seen_by(packet, became, Side::Inside, seen, &targets),
            false => self.turns(packet, became, targets),
        }
    }

    /// How a packet leaves by floating IPs alone.
    pub(super) fn floats(&self, way: Way) -> Option<(SocketAddr, SocketAddr)> {
        let Way { side, from, to } = way;
        let own = self.own_eip(from.ip()).filter(|_| side == Side::Inside);
        let seen = SocketAddr::new(own.unwrap_or(from.ip()), from.port());
        let inside = self.floating(to.ip()).map(|(_, inside)| SocketAddr::new(inside, to.port()));
        match (side, inside) {
            (Side::Inside, Some(inside)) => own.map(|_| (seen, inside)),
            (Side::Inside, None) if is_eip(to.ip()) => None,
            (Side::Inside, None) => own.map(|_| (seen, to)),
            (Side::Outside, inside) => inside.map(|inside| (from, inside)),
        }
    }

    /// The floating IP with this EIP: its rule and its host.
    pub(super) fn floating(&self, address: IpAddr) -> Option<(u32, IpAddr)> {
        self.rules.iter().find_map(|(id, rule)| match rule {
            Rule::Fip(eip, inside) => (*eip == address).then_some((*id, *inside)),
            _ => None,
        })
    }

    /// The floating IP of a host.
    pub(super) fn own_eip(&self, host: IpAddr) -> Option<IpAddr> {
        self.rules.values().find_map(|rule| match rule {
            Rule::Fip(eip, inside) => (*inside == host).then_some(*eip),
            _ => None,
        })
    }

    /// Where rules and mappings lead a packet by its destination.
    fn targets(&self, packet: &Packet) -> Vec<Exit> {
        let (protocol, to) = (packet.protocol, packet.way.to);
        if let Some((rule, inside)) = self.floating(to.ip()) {
            return vec![Exit::new(rule, SocketAddr::new(inside, to.port()))];
        }
        let forwards = self.rules.iter().filter_map(|(rule, what)| match what {
            Rule::Dnat(of, external, inside) if (*of, *external) == (protocol, to) => {
                Some(Exit::new(*rule, *inside))
            }
            _ => None,
        });
        let forwards: Vec<_> = forwards.collect();
        let mapping = self
            .mapping_at(protocol, to)
            .filter(|mapping| protocol != ICMP && self.admits(mapping, packet));
        match mapping {
            Some(mapping) if forwards.is_empty() => {
                let exit = Exit::new(mapping.rule, mapping.inside);
                vec![Exit { maps: [None, Some(mapping.inside)], ..exit }]
            }
            _ => forwards,
        }
    }

    /// Whether a port forward has a port.
    pub(super) fn forwards_port(&self, protocol: u8, port: SocketAddr) -> bool {
        let has = |rule: &Rule| matches!(rule, Rule::Dnat(of, external, _) if (*of, *external) == (protocol, port));
        self.rules.values().any(has)
    }

    /// A new flow of one whose external endpoint is known beforehand: of everybody outside, of a floating
    /// IP and of who has a mapping.
    fn is_seen_by(
        &mut self,
        packet: &Packet,
        became: Became,
        side: Side,
        seen: SocketAddr,
        exits: &[Exit],
    ) -> Result<(), String> {
        let left = |to| Way { side, from: seen, to };
        match became {
            Became::Sent(_, to) => {
                let Some(exit) = exits.iter().find(|exit| exit.to == to) else {
                    return Err(format!("expected to one of {exits:?}"));
                };
                self.is_sent(became, seen, to)?;
                self.open(packet, left(to), exit)
            }
            Became::Dropped(DropReason::TupleTaken)
                if exits.iter().any(|exit| self.is_taken(packet, left(exit.to))) =>
            {
                Ok(())
            }
            _ => self.is_refused(became, exits),
        }
    }

    /// A new flow from inside to an EIP, back inside. The other side must see an outside address, or it
    /// would answer past the gateway: that EIP, or the mapping of the source (RFC 4787 REQ-9a).
    fn turns(
        &mut self,
        packet: &Packet,
        became: Became,
        mut targets: Vec<Exit>,
    ) -> Result<(), String> {
        if let Some(pool) = self.pool_of(packet.way.from.ip()).filter(|pool| pool.maps) {
            return self.takes_port_of(&pool, packet, became, Side::Inside, &targets);
        }
        targets.iter_mut().for_each(|exit| exit.eip = Some(packet.way.to.ip()));
        self.takes_port(packet, became, Side::Inside, &targets)
    }

    /// A new flow from inside to the outside.
    fn leaves(&mut self, packet: &Packet, became: Became) -> Result<(), String> {
        let Some(pool) = self.pool_of(packet.way.from.ip()) else {
            return match became {
                Became::Dropped(DropReason::NoRule | DropReason::NoRoute) => Ok(()),
                _ => Err("no rule covers it".into()),
            };
        };
        let exit = Exit::new(0, packet.way.to);
        self.takes_port_of(&pool, packet, became, Side::Outside, &[exit])
    }

    /// A new flow that is seen by an EIP of a pool.
    fn takes_port_of(
        &mut self,
        pool: &Pool,
        packet: &Packet,
        became: Became,
        side: Side,
        targets: &[Exit],
    ) -> Result<(), String> {
        let from = packet.way.from;
        let maps = |exit: &Exit| [pool.maps.then_some(from), exit.maps[1]];
        if let Some(mapping) = self.mapping_of(packet.protocol, from).filter(|_| pool.maps) {
            let exit = |exit: &Exit| Exit { rule: mapping.rule, maps: maps(exit), ..*exit };
            let exits: Vec<_> = targets.iter().map(exit).collect();
            return self.is_seen_by(packet, became, side, mapping.external, &exits);
        }
        let mut exits = Vec::new();
        for target in targets {
            let exit = |(eip, rule): (&IpAddr, &u32)| Exit {
                rule: *rule,
                eip: Some(*eip),
                maps: maps(target),
                ..*target
            };
            exits.extend(pool.eips.iter().map(exit));
        }
        if let Became::Sent(external, to) = became {
            let these: Vec<_> = exits.iter().filter(|exit| exit.to == to).copied().collect();
            self.is_paired((pool.sources, from.ip()), packet, external.ip(), side, &these)?;
        }
        self.takes_port(packet, became, side, &exits)
    }

    /// The longest prefix with a source in it, and the EIPs of its rules.
    pub(super) fn pool_of(&self, source: IpAddr) -> Option<Pool> {
        let rules = self.rules.iter().filter_map(|(id, rule)| match rule {
            Rule::Snat(sources, eip) => Some((*sources, *eip, *id, false)),
            Rule::Mapped(sources, eip, _) => Some((*sources, *eip, *id, true)),
            _ => None,
        });
        let all: Vec<_> =
            rules.filter(|(sources, ..)| covers(sources.0, sources.1, source)).collect();
        let (sources, _, _, maps) = *all.iter().max_by_key(|((_, length), ..)| *length)?;
        let pool = all.iter().filter(|(other, ..)| *other == sources);
        Some(Pool { sources, eips: pool.map(|(_, eip, id, _)| (*eip, *id)).collect(), maps })
    }

    /// A host has one EIP of a pool for all its flows, as long as that has a port to give (RFC 4787,
    /// REQ-2).
    fn is_paired(
        &mut self,
        host: (Prefix, IpAddr),
        packet: &Packet,
        eip: IpAddr,
        side: Side,
        pool: &[Exit],
    ) -> Result<(), String> {
        let free = |exit: &Exit| self.free_port(packet, side, exit);
        let Some(paired) = self.pairs.get(&host) else {
            // Otherwise nobody knows which it would have been.
            if pool.iter().all(|exit| free(exit).is_some()) {
                self.pairs.insert(host, eip);
            }
            return Ok(());
        };
        match pool.iter().find(|exit| exit.eip == Some(*paired) && *paired != eip).and_then(free) {
            Some(free) => Err(format!("{} is paired with {paired}; {free} is free", host.1)),
            None => Ok(()),
        }
    }

    /// A new flow that gets a port of an EIP.
    fn takes_port(
        &mut self,
        packet: &Packet,
        became: Became,
        side: Side,
        exits: &[Exit],
    ) -> Result<(), String> {
        let (low, high) = self.range(packet);
        let door = |exit: &Exit| (packet.protocol, exit.eip, low, exit.to);
        for exit in exits {
            if self.free_port(packet, side, exit).is_none() {
                self.refused.insert(door(exit));
            }
        }
        match became {
            Became::Sent(external, to) => {
                self.is_sent(became, external, to)?;
                let exit =
                    exits.iter().find(|exit| (exit.eip, exit.to) == (Some(external.ip()), to));
                let Some(exit) = exit.filter(|_| (low..=high).contains(&external.port())) else {
                    return Err(format!("expected {exits:?}, a port from {low} to {high}"));
                };
                self.open(packet, Way { side, from: external, to }, exit)?;
                self.drawn(external)
            }
            Became::Dropped(DropReason::PortsExhausted) => {
                // A pool is tried to its end, of a shared port one backend.
                let in_vain = |to: SocketAddr| {
                    let mut exits = exits.iter().filter(|exit| exit.to == to);
                    exits.all(|exit| self.refused.contains(&door(exit)))
                };
                match exits.iter().any(|exit| in_vain(exit.to)) {
                    true => Ok(()),
                    false => Err(format!("a port of {exits:?} is free")),
                }
            }
            // Of all ports it was to be the one that it talks to.
            Became::Dropped(DropReason::TupleTaken)
                if exits.iter().any(|exit| exit.to == packet.way.from)
                    && (low..=high).contains(&packet.way.to.port()) =>
            {
                Ok(())
            }
            _ => self.is_refused(became, exits),
        }
    }

    /// A port of an EIP that this packet may have.
    fn free_port(&self, packet: &Packet, side: Side, exit: &Exit) -> Option<SocketAddr> {
        let ((low, high), eip, protocol) = (self.range(packet), exit.eip?, packet.protocol);
        (low..=high).map(|port| SocketAddr::new(eip, port)).find(|external| {
            let left = Way { side, from: *external, to: exit.to };
            let held = |session: &Session| session.meets(protocol, left.back());
            // A new mapping takes nothing from anybody.
            let other = exit.maps[0].is_some()
                && (self.forwards_port(protocol, *external) || self.sessions.iter().any(held));
            !other && !self.is_taken(packet, left) && !self.is_mapped(protocol, left.back())
        })
    }

    /// Whether a packet cannot open a session that leaves like this. One that is over gives way, but whose
    /// first packet came as the answers would keeps its place until it is swept.
    fn is_taken(&self, packet: &Packet, left: Way) -> bool {
        let answers = left.back();
        let keeps = |held: &Session| {
            held.meets(packet.protocol, answers)
                && (held.ends.came == answers || !held.is_over(self.now))
        };
        packet.way == answers || self.sessions.iter().any(keeps)
    }

    /// Why else a packet that a rule covers may not leave.
    fn is_refused(&self, became: Became, exits: &[Exit]) -> Result<(), String> {
        let lost = |exit: &Exit| self.lost.contains(&exit.to.ip());
        match became {
            Became::Dropped(DropReason::NoRoute) if exits.iter().any(lost) => Ok(()),
            Became::Dropped(DropReason::SessionsFull) => self.is_full(),
            _ => Err("a rule covers it".into()),
        }
    }

    /// The ports that the source port may become.
    fn range(&self, packet: &Packet) -> (u16, u16) {
        match (packet.protocol, packet.way.from.port()) {
            (ICMP, _) => (0, u16::MAX),
            (_, 0..512) => (1, 511),
            (_, 512..1024) => (600, 1023),
            _ => self.ports,
        }
    }
}
