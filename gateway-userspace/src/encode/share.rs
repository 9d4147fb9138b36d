//! Shared ports: several backends, and those that drain.

use std::collections::BTreeMap;

use gateway_common::records::{BACKEND_SLOTS, Backend, Balance, Dnat, Rule, RuleState};

use super::{Encoder, Overflow, RULE_ENTRIES, SHARED_ENTRIES, addresses, dnat_content, room};
use crate::balance;
use crate::desired::{self, Affinity, DnatKey, Port, Protocol};
use crate::image::{Addressing, MapImage, is_exclusive, rule_name};

/// The rules of the backends of each shared port of an image.
pub(super) fn backends_by_port(image: &MapImage) -> BTreeMap<DnatKey, Vec<u32>> {
    fn add<F: Addressing>(image: &MapImage, ports: &mut BTreeMap<DnatKey, Vec<u32>>) {
        for (rule, backend) in &F::of(image).backends {
            let protocol = match backend.key.protocol {
                gateway_common::wire::transport::TCP => Protocol::Tcp,
                _ => Protocol::Udp,
            };
            let Some(port) = Port::new(backend.key.port) else { continue };
            let eip = F::decode(backend.key.eip);
            ports.entry(DnatKey { eip, protocol, port }).or_default().push(*rule);
        }
    }

    let mut ports = BTreeMap::new();
    add::<gateway_common::family::V4>(image, &mut ports);
    add::<gateway_common::family::V6>(image, &mut ports);
    ports
}

impl Encoder<'_> {
    /// A port that several rules share.
    pub(super) fn share<F: Addressing>(
        &mut self,
        port: &DnatKey,
        dnat: &desired::Dnat,
    ) -> Result<(), Overflow> {
        let mut chosen = Vec::new();
        let mut first: Option<(gateway_common::records::DnatKey<F>, Dnat<F>)> = None;
        for backend in &dnat.backends {
            match self.backend::<F>(port, backend, chosen.len()) {
                Ok((rule, record)) => {
                    chosen.push((rule, record.weight));
                    let balance = match dnat.affinity {
                        Affinity::None => Balance::Random,
                        Affinity::ClientIp => Balance::ClientAddress,
                    } as u16;
                    let Backend { key, address, port, .. } = record;
                    first.get_or_insert((key, Dnat { address, port, balance, rule }));
                }
                Err(overflow) => self.overflows.push(overflow),
            }
        }
        let Some((key, value)) = first else { return Ok(()) };
        let before = F::of(self.ids.live).slots.get(&key);
        let Some(slots) = balance::assign(before, &chosen) else { return Ok(()) };
        let image = F::of_mut(&mut self.image);
        image.slots.insert(key, slots);
        image.dnats.insert(key, value);
        self.drain::<F>(port);
        Ok(())
    }

    /// Puts a backend into the image. Returns the id of its rule.
    fn backend<F: Addressing>(
        &mut self,
        port: &DnatKey,
        backend: &desired::Backend,
        others: usize,
    ) -> Result<(u32, Backend<F>), Overflow> {
        let owner = &backend.owner;
        let (key, address) = addresses::<F>(port, backend)?;
        if others >= BACKEND_SLOTS {
            let (owner, port) = (owner.object.to_string(), port.to_string());
            return Err(Overflow::Backends { owner, port });
        }
        let image = F::of(&self.image);
        room(image.dnats.len(), RULE_ENTRIES, "the DNAT map", owner)?;
        room(image.slots.len(), SHARED_ENTRIES, "the map of shared ports", owner)?;
        room(image.backends.len(), RULE_ENTRIES, "the map of backends", owner)?;
        let internal_port = backend.endpoint.port();
        // An exclusive rule that becomes a shared one stays the same rule.
        let alone = F::of(self.ids.live).dnats.get(&key).filter(|dnat| {
            is_exclusive(dnat) && (dnat.address, dnat.port) == (address, internal_port)
        });
        let there = self.live_backend::<F>(port, backend).or(alone.map(|dnat| dnat.rule));
        let rule = self.rule(owner, dnat_content(port, backend), there)?;
        self.eip::<F>(key.eip, owner)?;
        let record = Backend { key, address, port: internal_port, weight: backend.weight };
        F::of_mut(&mut self.image).backends.insert(rule, record);
        Ok((rule, record))
    }

    /// The rule in the live image that has this backend and this name, draining or not.
    pub(super) fn live_backend<F: Addressing>(
        &self,
        port: &DnatKey,
        backend: &desired::Backend,
    ) -> Option<u32> {
        let live = self.ids.live;
        let address = F::encode(backend.endpoint.ip())?;
        let name = rule_name(&backend.owner.object.name);
        self.shared.get(port)?.iter().copied().find(|rule| {
            F::of(live).backends.get(rule).is_some_and(|there| {
                (there.address, there.port) == (address, backend.endpoint.port())
            }) && live.rules.get(rule).is_some_and(|rule| rule.name == name)
        })
    }

    /// Keeps the backends that go: without a slot they get nothing new, and their sessions stay.
    fn drain<F: Addressing>(&mut self, port: &DnatKey) {
        let live = self.ids.live;
        for id in self.shared.get(port).into_iter().flatten() {
            let there = (live.rules.get(id), F::of(live).backends.get(id));
            let (Some(rule), Some(backend)) = there else { continue };
            if self.image.rules.contains_key(id) {
                continue;
            }
            let draining = Rule { state: RuleState::Draining as u8, ..*rule };
            self.image.rules.insert(*id, draining);
            F::of_mut(&mut self.image).backends.insert(*id, *backend);
        }
    }
}
