//! The external ports that are in use, counted on the way of a sweep, which reads every session anyway.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use gateway_common::records::{ORIGINAL, Session};
use gateway_common::tuple::{Direction, Tuple};

use super::maps::MapFamily;

/// External ports in use on each EIP that has any. Two protocols with the same port are two; ICMP
/// identifiers are ports.
pub type PortsInUse = BTreeMap<IpAddr, u32>;

/// Which ports were met: 8 KB for each EIP and protocol in use.
#[derive(Debug, Default)]
pub(super) struct Census {
    met: HashMap<(IpAddr, u8), Box<[u64; 1024]>>,
}

impl Census {
    /// Counts a session, unless it is the half of one or has no port of an EIP.
    pub(super) fn meet<F: MapFamily>(&mut self, key: &Tuple<F>, session: &Session<F>) {
        if session.flags & ORIGINAL == 0 || key.direction != Direction::Outbound as u8 {
            return;
        }
        let (eip, port) = (F::decode(session.translated.source), session.translated.source_port);
        let ports = self.met.entry((eip, key.protocol)).or_insert_with(|| Box::new([0; 1024]));
        ports[usize::from(port / 64)] |= 1 << (port % 64);
    }

    /// What was met.
    pub(super) fn sum(&self) -> PortsInUse {
        let mut sum = PortsInUse::new();
        let mut all: Vec<_> = self.met.iter().collect();
        all.sort_by_key(|(key, _)| **key);
        for ((eip, _), ports) in all {
            *sum.entry(*eip).or_default() +=
                ports.iter().map(|word| word.count_ones()).sum::<u32>();
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use gateway_common::family::V4;

    use super::*;

    #[test]
    fn a_port_counts_once_for_each_protocol() {
        let eip = Ipv4Addr::new(203, 0, 113, 7);
        let mut census = Census::default();
        for (protocol, port, flags, direction) in [
            (6, 1024, ORIGINAL, Direction::Outbound),
            (6, 1024, ORIGINAL, Direction::Outbound),
            (6, 65_535, ORIGINAL, Direction::Outbound),
            (17, 1024, ORIGINAL, Direction::Outbound),
            (17, 1025, 0, Direction::Outbound),
            (17, 1026, ORIGINAL, Direction::Inbound),
        ] {
            let mut key = Tuple::<V4>::default();
            (key.protocol, key.direction) = (protocol, direction as u8);
            let mut session = Session::<V4> { flags, ..Session::default() };
            session.translated.source = eip.into();
            session.translated.source_port = port;
            census.meet(&key, &session);
        }
        assert_eq!(census.sum(), PortsInUse::from([(eip.into(), 3)]));
    }
}
