//! Packets that no session knows: what the rules say of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use gateway_common::verdict::DropReason;

use super::{Became, Packet, ReferenceNat, Rule, Side, Way};
use crate::build_packet::{ICMP, end};
use crate::harness::notation::covers;
use crate::harness::routes::{EIPS, Prefix};

/// Where a rule leads what is sent to an external endpoint.
#[derive(Clone, Copy, Debug)]
struct Target {
    rule: u32,
    inside: SocketAddr,
    /// It is a floating IP.
    floats: bool,
}

/// An EIP that a new flow may take a port of, by a rule, and where it goes from there.
#[derive(Clone, Copy, Debug)]
struct Exit {
    rule: u32,
    eip: IpAddr,
    to: SocketAddr,
}

/// Where ports are given: protocol, EIP with the lowest of them, and who will see them.
pub(super) type Door = (u8, SocketAddr, SocketAddr);

impl ReferenceNat {
    /// A packet of no session.
    pub(super) fn begins(&mut self, packet: &Packet, became: Became) -> Result<(), String> {
        let Way { side, from, to } = packet.way;
        let own = self.own_eip(from.ip()).filter(|_| side == Side::Inside);
        let keeps_port = side == Side::Outside || own.is_some();
        let seen = SocketAddr::new(own.unwrap_or(from.ip()), from.port());
        let targets = self.targets(packet);
        match targets.first() {
            Some(target) if target.floats && keeps_port => {
                self.is_sent(became, seen, target.inside)
            }
            Some(_) if keeps_port => self.enters(packet, became, seen, &targets),
            Some(_) => self.turns(packet, became, &targets),
            None if EIPS.iter().any(|eip| end(eip).ip() == to.ip()) => match became {
                Became::Passed => Ok(()),
                _ => Err("it is to an address of the gateway, and nobody's".into()),
            },
            None if keeps_port => self.is_sent(became, seen, to),
            None => self.leaves(packet, became),
        }
    }

    /// The floating IP of a host.
    fn own_eip(&self, host: IpAddr) -> Option<IpAddr> {
        self.rules.values().find_map(|rule| match rule {
            Rule::Fip(eip, inside) => (*inside == host).then_some(*eip),
            _ => None,
        })
    }

    /// Where rules lead a packet by its destination. A floating IP has all of its EIP.
    fn targets(&self, packet: &Packet) -> Vec<Target> {
        let to = packet.way.to;
        let floating = self.rules.iter().find_map(|(rule, what)| match what {
            Rule::Fip(eip, inside) if *eip == to.ip() => {
                let inside = SocketAddr::new(*inside, to.port());
                Some(Target { rule: *rule, inside, floats: true })
            }
            _ => None,
        });
        let forwards = self.rules.iter().filter_map(|(rule, what)| match what {
            Rule::Dnat(protocol, external, inside)
                if (*protocol, *external) == (packet.protocol, to) =>
            {
                Some(Target { rule: *rule, inside: *inside, floats: false })
            }
            _ => None,
        });
        floating.map_or_else(|| forwards.collect(), |target| vec![target])
    }

    /// A new flow by a port forward, from who keeps his port: everybody outside, and floating IPs.
    fn enters(
        &mut self,
        packet: &Packet,
        became: Became,
        seen: SocketAddr,
        targets: &[Target],
    ) -> Result<(), String> {
        let left = |inside| Way { side: Side::Inside, from: seen, to: inside };
        match became {
            Became::Sent(_, to) => {
                let Some(target) = targets.iter().find(|target| target.inside == to) else {
                    return Err(format!("expected to one of {targets:?}"));
                };
                self.is_sent(became, seen, to)?;
                self.open(packet, left(to), target.rule)
            }
            Became::Dropped(DropReason::TupleTaken)
                if targets.iter().any(|target| self.is_taken(packet, left(target.inside))) =>
            {
                Ok(())
            }
            _ => self.is_refused(became, targets.iter().map(|target| target.inside)),
        }
    }

    /// A new flow from inside to an EIP, back inside. The other side must see an outside address, or it
    /// would answer past the gateway: that EIP.
    fn turns(&mut self, packet: &Packet, became: Became, targets: &[Target]) -> Result<(), String> {
        let eip = packet.way.to.ip();
        let exit = |target: &Target| Exit { rule: target.rule, eip, to: target.inside };
        let exits: Vec<_> = targets.iter().map(exit).collect();
        self.takes_port(packet, became, Side::Inside, &exits)
    }

    /// A new flow from inside to the outside.
    fn leaves(&mut self, packet: &Packet, became: Became) -> Result<(), String> {
        let Way { from, to, .. } = packet.way;
        let Some((sources, pool)) = self.pool_of(from.ip()) else {
            return match became {
                Became::Dropped(DropReason::NoRule | DropReason::NoRoute) => Ok(()),
                _ => Err("no rule covers it".into()),
            };
        };
        let exits = pool.iter().map(|(eip, rule)| Exit { rule: *rule, eip: *eip, to });
        let exits: Vec<_> = exits.collect();
        if let Became::Sent(external, _) = became {
            self.is_paired((sources, from.ip()), packet, external.ip(), &exits)?;
        }
        self.takes_port(packet, became, Side::Outside, &exits)
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

    /// A host has one EIP of a pool for all its flows, as long as that has a port to give (RFC 4787,
    /// REQ-2).
    fn is_paired(
        &mut self,
        host: (Prefix, IpAddr),
        packet: &Packet,
        eip: IpAddr,
        pool: &[Exit],
    ) -> Result<(), String> {
        let free = |exit: &Exit| self.free_port(packet, Side::Outside, exit);
        let Some(paired) = self.pairs.get(&host) else {
            // Otherwise nobody knows which it would have been.
            if pool.iter().all(|exit| free(exit).is_some()) {
                self.pairs.insert(host, eip);
            }
            return Ok(());
        };
        match pool.iter().find(|exit| exit.eip == *paired && *paired != eip).and_then(free) {
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
        let door = |exit: &Exit| (packet.protocol, SocketAddr::new(exit.eip, low), exit.to);
        for exit in exits {
            if self.free_port(packet, side, exit).is_none() {
                self.refused.insert(door(exit));
            }
        }
        match became {
            Became::Sent(external, to) => {
                self.is_sent(became, external, to)?;
                let exit = exits.iter().find(|exit| (exit.eip, exit.to) == (external.ip(), to));
                let Some(exit) = exit.filter(|_| (low..=high).contains(&external.port())) else {
                    return Err(format!("expected {exits:?}, a port from {low} to {high}"));
                };
                self.open(packet, Way { side, from: external, to }, exit.rule)
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
            _ => self.is_refused(became, exits.iter().map(|exit| exit.to)),
        }
    }

    /// A port of an EIP that this packet may have.
    fn free_port(&self, packet: &Packet, side: Side, exit: &Exit) -> Option<SocketAddr> {
        let (low, high) = self.range(packet);
        (low..=high)
            .map(|port| SocketAddr::new(exit.eip, port))
            .find(|external| !self.is_taken(packet, Way { side, from: *external, to: exit.to }))
    }

    /// Whether a packet cannot open a session that leaves like this. One that is over gives way, but whose
    /// first packet came as the answers would keeps its place until it is swept.
    fn is_taken(&self, packet: &Packet, left: Way) -> bool {
        let answers = left.back();
        let keeps = |held: &super::Session| {
            held.meets(packet.protocol, answers)
                && (held.ends.came == answers || !held.is_over(self.now))
        };
        packet.way == answers || self.sessions.iter().any(keeps)
    }

    /// Why else a packet that a rule covers may not leave.
    fn is_refused(
        &self,
        became: Became,
        mut to: impl Iterator<Item = SocketAddr>,
    ) -> Result<(), String> {
        match became {
            Became::Dropped(DropReason::NoRoute) if to.any(|to| self.lost.contains(&to.ip())) => {
                Ok(())
            }
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
