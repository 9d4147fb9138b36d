//! Fragments: the first one of a datagram tells whose it is, later ones follow it, early ones wait for it.

use std::net::{IpAddr, SocketAddr};

use gateway_common::verdict::DropReason;

use super::flows::is_eip;
use super::{Became, Packet, ReferenceNat, Side, Way};

/// How long a first fragment is remembered, in seconds.
const REMEMBERED: u64 = 30;
/// How long a later one waits for it.
const WAITS: u64 = 2;
/// How many of one datagram wait at most.
const MOST: usize = 48;

/// Which piece of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// All of it.
    Whole,
    /// The first fragment of the datagram with this identification.
    First(u16),
    /// Another one, of which only the addresses of [`Packet::way`] are seen.
    Later(u16),
}

/// What holds the fragments of a datagram together.
pub(super) type Key = (u8, Side, IpAddr, IpAddr, u16);

/// A datagram whose first fragment has left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram {
    way: Way,
    since: u64,
    /// Its ends and its identification as it left.
    left: (IpAddr, IpAddr),
    identification: u32,
}

/// Of a fragment; `None` for a whole packet.
fn key(packet: &Packet) -> Option<Key> {
    let Way { side, from, to } = packet.way;
    match packet.piece {
        Piece::Whole => None,
        Piece::First(id) | Piece::Later(id) => {
            Some((packet.protocol, side, from.ip(), to.ip(), id))
        }
    }
}

fn bare(end: SocketAddr) -> SocketAddr {
    SocketAddr::new(end.ip(), 0)
}

impl ReferenceNat {
    /// A first fragment has found others that wait for it. Returns those that come again behind it.
    ///
    /// # Errors
    /// There are none.
    pub fn replays(&mut self, first: &Packet) -> Result<Vec<Packet>, String> {
        let waited = key(first).and_then(|key| self.waiting.remove(&key));
        let waited = waited.ok_or("nothing waits for it")?;
        let in_time = |(since, _): &&(u64, Packet)| self.now - since <= WAITS;
        Ok(waited.iter().filter(in_time).map(|(_, packet)| *packet).collect())
    }

    /// A fragment that is not the first one.
    pub(super) fn follows(&mut self, packet: &Packet, became: Became) -> Result<(), String> {
        let Some(key) = key(packet) else { return Err("it is no fragment".into()) };
        let known = self.datagrams.get(&key).copied();
        let known = known.filter(|datagram| self.now - datagram.since <= REMEMBERED);
        if let Some(datagram) = known {
            let packet = Packet { way: datagram.way, flags: 0, ..*packet };
            if let Some(index) = self.met(&packet) {
                return self.meets(index, &packet, became);
            }
        }
        let Way { side, from, to } = packet.way;
        let way = Way { side, from: bare(from), to: bare(to) };
        if let Some((from, to)) = self.floats(way) {
            return self.is_sent(became, from, to);
        }
        let room = self.has_room(key);
        match became {
            Became::Dropped(DropReason::NoRoute) if self.floating(to.ip()).is_some() => Ok(()),
            Became::Dropped(DropReason::NoRoute) if self.lost.contains(&to.ip()) => Ok(()),
            // Its session is gone.
            Became::Dropped(_) if known.is_some() => Ok(()),
            Became::Passed if is_eip(to.ip()) && (known.is_some() || !room) => Ok(()),
            Became::Passed if is_eip(to.ip()) => self.waits(key, packet),
            Became::Dropped(DropReason::FragmentHeld) if room => self.waits(key, packet),
            Became::Dropped(DropReason::Fragment | DropReason::NoRule) if !room => Ok(()),
            _ => Err(format!("its first fragment {known:?}, room to wait {room}")),
        }
    }

    fn has_room(&self, key: Key) -> bool {
        let Some(waiting) = self.waiting.get(&key) else { return true };
        waiting.iter().filter(|(since, _)| self.now - since <= WAITS).count() < MOST
    }

    fn waits(&mut self, key: Key, packet: &Packet) -> Result<(), String> {
        self.waiting.entry(key).or_default().push((self.now, *packet));
        Ok(())
    }

    /// A fragment has left with these addresses and this identification.
    ///
    /// # Errors
    /// That belongs to another datagram, or others wait for a first one.
    pub fn identified(
        &mut self,
        packet: &Packet,
        left: (IpAddr, IpAddr),
        before: u32,
        after: u32,
    ) -> Result<(), String> {
        let Some(key) = key(packet) else { return Ok(()) };
        let known = self.datagrams.get(&key).copied();
        if matches!(packet.piece, Piece::Later(_)) {
            return match known.filter(|_| self.follows_a_session(packet)) {
                Some(datagram) if datagram.identification == after => Ok(()),
                None if before == after => Ok(()),
                _ => Err(format!("identification {after:#x} of {known:?}")),
            };
        }
        if self.met(packet).is_none() {
            return if before == after { Ok(()) } else { Err("a new identification".into()) };
        }
        if self.waiting.contains_key(&key) {
            return Err("others wait for it".into());
        }
        let recent = known.filter(|datagram| self.now - datagram.since <= WAITS);
        let taken = |(other, datagram): (&Key, &Datagram)| {
            (other.0, datagram.left, datagram.identification) == (key.0, left, after)
                && self.now - datagram.since <= REMEMBERED
        };
        match recent {
            Some(datagram) if datagram.identification != after => {
                return Err(format!("it came before as {datagram:?}"));
            }
            None if self.datagrams.iter().any(taken) => {
                return Err(format!("identification {after:#x} is taken"));
            }
            _ => {}
        }
        let (way, since) = (packet.way, self.now);
        self.datagrams.insert(key, Datagram { way, since, left, identification: after });
        Ok(())
    }

    /// Whether a later fragment went the way of a session.
    fn follows_a_session(&self, packet: &Packet) -> bool {
        let Some(datagram) = key(packet).and_then(|key| self.datagrams.get(&key)) else {
            return false;
        };
        let first = Packet { way: datagram.way, ..*packet };
        self.now - datagram.since <= REMEMBERED && self.met(&first).is_some()
    }

    /// As a fragment's ends are seen.
    pub(super) fn seen(packet: &Packet, way: Way) -> Way {
        match packet.piece {
            Piece::Later(_) => Way { from: bare(way.from), to: bare(way.to), ..way },
            Piece::Whole | Piece::First(_) => way,
        }
    }
}
