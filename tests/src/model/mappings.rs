//! Endpoint-independent mappings: one external endpoint for an inside endpoint, whoever it talks to.

use std::net::SocketAddr;

use super::session::Session;
use super::{Packet, ReferenceNat, Rule, Side};

/// Who gets in by a mapping without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Nobody else than those that it has sessions with.
    Endpoints,
    /// Whoever has an address that the inside endpoint has asked.
    Addresses,
    /// Everybody.
    None,
}

/// It lives as long as sessions use it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapping {
    pub(super) protocol: u8,
    pub(super) inside: SocketAddr,
    pub(super) external: SocketAddr,
    pub(super) rule: u32,
    pub(super) filter: Filter,
}

impl Mapping {
    fn is_used(&self, session: &Session) -> bool {
        session.ends.protocol == self.protocol && session.maps.contains(&Some(self.inside))
    }
}

impl ReferenceNat {
    /// How many mappings there are.
    #[must_use]
    pub fn mappings(&self) -> usize {
        self.mappings.len()
    }

    /// The mapping of an inside endpoint.
    pub(super) fn mapping_of(&self, protocol: u8, inside: SocketAddr) -> Option<Mapping> {
        let of = |mapping: &&Mapping| (mapping.protocol, mapping.inside) == (protocol, inside);
        self.mappings.iter().find(of).copied()
    }

    /// The mapping that has an external endpoint.
    pub(super) fn mapping_at(&self, protocol: u8, external: SocketAddr) -> Option<Mapping> {
        let at = |mapping: &&Mapping| (mapping.protocol, mapping.external) == (protocol, external);
        self.mappings.iter().find(at).copied()
    }

    /// Whether the filter of a mapping lets a packet in.
    pub(super) fn admits(&self, mapping: &Mapping, packet: &Packet) -> bool {
        let from = packet.way.from.ip();
        let address = match packet.way.side {
            Side::Outside => Some(from),
            // A host inside is known by its EIP.
            Side::Inside => self
                .own_eip(from)
                .or_else(|| self.pool_of(from)?.eips.first_key_value().map(|(eip, _)| *eip)),
        };
        let asked = |session: &Session| {
            session.ends.protocol == mapping.protocol
                && session.maps[0] == Some(mapping.inside)
                && Some(session.ends.came.to.ip()) == address
        };
        match mapping.filter {
            Filter::Endpoints => false,
            Filter::Addresses => self.sessions.iter().any(asked),
            Filter::None => true,
        }
    }

    /// A session has just been opened by a port that was drawn, for a mapping if it says so.
    pub(super) fn drawn(&mut self, external: SocketAddr) -> Result<(), String> {
        self.forget_mappings();
        let Some(Session { ends, rule, maps, .. }) = self.sessions.last().copied() else {
            return Ok(());
        };
        if let Some(mapping) = self.mapping_at(ends.protocol, external) {
            return Err(format!("{external} is the port of {mapping:?}"));
        }
        let (Some(inside), Some(Rule::Mapped(_, _, filter))) = (maps[0], self.rules.get(&rule))
        else {
            return Ok(());
        };
        if self.forwards_port(ends.protocol, external) {
            return Err(format!("{external} is forwarded"));
        }
        let (protocol, filter) = (ends.protocol, *filter);
        self.mappings.push(Mapping { protocol, inside, external, rule, filter });
        Ok(())
    }

    /// Whether a mapping has this endpoint, and other sessions than those that are over and answered by
    /// this way.
    pub(super) fn is_mapped(&self, protocol: u8, answers: super::Way) -> bool {
        let gives_way =
            |session: &Session| session.meets(protocol, answers) && session.is_over(self.now);
        self.mapping_at(protocol, answers.to).is_some_and(|mapping| {
            let mut users = self.sessions.iter().filter(|session| mapping.is_used(session));
            users.any(|session| !gives_way(session))
        })
    }

    /// Forgets mappings without sessions.
    pub(super) fn forget_mappings(&mut self) {
        let sessions = &self.sessions;
        self.mappings.retain(|mapping| sessions.iter().any(|session| mapping.is_used(session)));
    }
}
