//! XDP in front of TC: attached where it was chosen, and told where packets can go.

use std::collections::BTreeMap;

use tokio::sync::watch;

use super::{Daemon, DaemonError, Step, chain, log};
use crate::dataplane::features::{self, XdpFeatures};
use crate::dataplane::kernel::Side;
use crate::dataplane::mode::{self, Hook, Mode};
use crate::neighbors::{self, Interfaces};

impl Daemon {
    /// Puts XDP in front of the interfaces that shall have it and takes it away from the others.
    /// Interfaces that have it already keep it.
    ///
    /// Where nobody has insisted on XDP and it does not work, TC does everything.
    pub(super) fn accelerate(&mut self) -> Result<(), DaemonError> {
        for side in Side::ALL {
            self.put_in_front(side)?;
        }
        let useless = self.drop_the_useless()?;
        self.problems.set(Step::Xdp, useless);
        self.tell_xdp()
    }

    fn put_in_front(&mut self, side: Side) -> Result<(), DaemonError> {
        let Some(port) = self.ports.get_mut(&side) else { return Ok(()) };
        let Some(attachment) = &mut port.attachment else { return Ok(()) };
        let name = &port.interface.name;
        let generic = match port.choice.mode {
            Hook::Tc => return Ok(self.maps.dataplane().decelerate(side)?),
            Hook::Xdp | Hook::XdpGeneric if attachment.xdp_program_id.is_some() => return Ok(()),
            Hook::Xdp => false,
            Hook::XdpGeneric => true,
        };
        match self.maps.dataplane().accelerate(side, &port.interface, generic) {
            Ok(id) => {
                attachment.xdp_program_id = Some(id);
                let (mode, why) = (port.choice.mode, &port.choice.reason);
                log(format_args!("{name}: {mode} in front of tc ({why}), program {id}"));
                Ok(())
            }
            Err(error) if self.settings.mode(name) == Mode::Auto => {
                log(format_args!("{name}: tc alone: {}", chain(&error)));
                port.choice = mode::without_xdp(&chain(&error));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether packets can be redirected to the interface of a side. Only now can the kernel tell: some
    /// drivers take redirected frames only while they have a program.
    fn takes_redirects(&self, side: Side) -> bool {
        let Some(port) = self.ports.get(&side).filter(|port| port.interface.up) else {
            return false;
        };
        let others = self.ports.iter().filter(|(other, _)| **other != side);
        let from_generic =
            others.map(|(_, port)| port.choice.mode).any(|mode| mode == Hook::XdpGeneric);
        let features = features::query(port.interface.index);
        from_generic || features.is_none_or(XdpFeatures::takes_redirects)
    }

    /// Takes XDP away where nobody has insisted on it and nothing can be sent on. Returns where it
    /// stays for nothing.
    fn drop_the_useless(&mut self) -> Result<Vec<String>, DaemonError> {
        let mut useless = Vec::new();
        for (side, other) in [(Side::Internal, Side::External), (Side::External, Side::Internal)] {
            if self.takes_redirects(other) {
                continue;
            }
            let why = format!("{} takes no redirected packets", self.settings.interface(other));
            let Some(port) = self.ports.get_mut(&side) else { continue };
            let Some(attachment) = &mut port.attachment else { continue };
            if attachment.xdp_program_id.is_none() {
                continue;
            }
            let name = &port.interface.name;
            if self.settings.mode(name) == Mode::Auto {
                log(format_args!("{name}: tc alone: {why}"));
                port.choice = mode::without_xdp(&why);
                attachment.xdp_program_id = None;
                self.maps.dataplane().decelerate(side)?;
            } else {
                useless.push(format!("{name}: XDP leaves everything to tc: {why}"));
            }
        }
        Ok(useless)
    }

    /// Tells XDP of the interfaces, if there is XDP; the first time starts what keeps it informed.
    fn tell_xdp(&mut self) -> Result<(), DaemonError> {
        let in_use = self.ports.values().any(|port| port.choice.mode != Hook::Tc);
        if !in_use && self.xdp.is_none() {
            return Ok(());
        }
        let mac = |side| self.ports.get(&side).and_then(|port| port.interface.mac);
        let egress: BTreeMap<u32, [u8; 6]> = Side::ALL
            .into_iter()
            .filter(|side| self.takes_redirects(*side))
            .filter_map(|side| Some((self.ports.get(&side)?.interface.index, mac(side)?)))
            .collect();
        let interfaces = Interfaces {
            internal_mac: mac(Side::Internal).unwrap_or_default(),
            external_mac: mac(Side::External).unwrap_or_default(),
            egress,
        };
        if let Some(sender) = &self.xdp {
            sender.send_if_modified(|there| {
                let differs = *there != interfaces;
                *there = interfaces;
                differs
            });
            return Ok(());
        }
        let maps = self.maps.dataplane().neighbors()?;
        let (sender, receiver) = watch::channel(interfaces);
        neighbors::keep(maps, receiver)?;
        self.xdp = Some(sender);
        Ok(())
    }
}
