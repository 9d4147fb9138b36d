//! Both data paths side by side: every packet goes through the kernel first, then through the host.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gateway_common::family::{V4, V6};
use gateway_common::mapping::{PortRange, has_port_classes};
use gateway_common::records::{Config, DatagramKey};
use gateway_common::tuple::Direction;
use gateway_common::verdict::{DropReason, PassReason};

use super::host::Host;
use super::invariants::is_sound;
use super::notation::{Entry, Flow, Notation, flow};
use super::{Backend, Outcome, Store, accounts};
use crate::decode::{Decoded, decode_whole, describe};
use crate::kernel::Tc;
use crate::sim::{Choice, Random, SimTables};

/// The programs in the kernel and the host code, with the same rules, routes and sessions.
pub struct Pair<'a> {
    /// The programs.
    pub kernel: &'a mut Tc,
    /// The host code.
    pub host: Host,
    /// Since when datagrams are remembered.
    remembering: Instant,
}

/// For how long a datagram is remembered: less than the kernel, whose clock runs, remembers it.
const MEMORY: Duration = Duration::from_secs(1);

impl<'a> Pair<'a> {
    /// Two empty gateways whose session maps take `capacity` entries each.
    pub fn new(kernel: &'a mut Tc, capacity: u32) -> Self {
        kernel.clear();
        let host = Host::new(kernel.links(), capacity);
        Self { kernel, host, remembering: Instant::now() }
    }

    /// Does the same to both.
    pub fn both(&mut self, change: impl Fn(&mut dyn Backend)) {
        change(&mut *self.kernel);
        change(&mut self.host);
    }

    /// Sends a frame through both. Returns what became of it.
    ///
    /// # Errors
    /// They differ in verdict, reason, bytes or in a session entry that the packet asked for, or a
    /// checksum that was right is wrong; the error shows how.
    pub fn send(
        &mut self,
        direction: Direction,
        frame: &[u8],
    ) -> Result<(Outcome, Vec<u8>), String> {
        if self.remembering.elapsed() > MEMORY {
            self.both(|backend| backend.forget_fragments());
            self.remembering = Instant::now();
        }
        let (mut in_kernel, mut on_host) = (frame.to_vec(), frame.to_vec());
        let complain = |what: &str, kernel: &dyn std::fmt::Debug, host: &dyn std::fmt::Debug| {
            format!("{what}: kernel {kernel:?}, host {host:?}\n{direction:?} {}", describe(frame))
        };
        let outcome = self.kernel.deliver(direction, &mut in_kernel, None).map_err(|error| {
            format!("{error:#}\n{direction:?} {}\n{frame:02x?}", describe(frame))
        })?;
        if outcome == Outcome::Pass(PassReason::Replayed) {
            self.follow_replay(direction, frame);
        } else {
            self.follow(frame, &in_kernel, outcome);
        }
        let host = self.host.send(direction, &mut on_host).outcome;
        if outcome != host {
            return Err(complain("verdict", &outcome, &host));
        }
        if in_kernel != on_host {
            let frames = format!(
                "kernel {}\nhost   {}\nkernel {in_kernel:02x?}\nhost   {on_host:02x?}",
                describe(&in_kernel),
                describe(&on_host)
            );
            return Err(complain("bytes", &"see", &"below") + "\n" + &frames);
        }
        if is_translated(outcome) && is_sound(frame) && !is_sound(&in_kernel) {
            return Err(complain("checksum", &describe(&in_kernel), &"agrees"));
        }
        for flow in self.touched() {
            let [kernel, host] = [self.kernel.session(&flow), self.host.session(&flow)]
                .map(|entry| entry.map(Entry::timeless));
            if kernel != host {
                return Err(complain("session", &kernel, &host));
            }
        }
        self.choice_is_plausible().map_err(|why| complain(&why, &outcome, &host))?;
        Ok((outcome, in_kernel))
    }

    /// Lets the host choose the external port that the kernel chose.
    fn follow(&mut self, before: &[u8], after: &[u8], outcome: Outcome) {
        let translated = is_translated(outcome);
        if !translated && outcome != Outcome::Drop(DropReason::PortsExhausted) {
            (self.host.v4.random, self.host.v6.random) = (Random::Xorshift(1), Random::Xorshift(1));
            return;
        }
        let (before, after) = (decode_whole(before), decode_whole(after));
        let chosen = translated.then_some(after.as_ref().ok()).flatten();
        let config = self.host.config();
        self.host.v4.random = choice::<V4>(before.as_ref().ok(), chosen, &config);
        self.host.v6.random = choice::<V6>(before.as_ref().ok(), chosen, &config);
    }

    /// As [`Pair::follow`], where only the kernel's maps tell what it chose: the packet is unchanged.
    fn follow_replay(&mut self, direction: Direction, frame: &[u8]) {
        let Ok(before) = decode_whole(frame) else { return };
        let flow = Flow {
            source: before.from(),
            destination: before.to(),
            protocol: before.protocol,
            direction: direction as u8,
        };
        let Some(entry) = self.kernel.session(&flow) else { return };
        let config = self.host.config();
        let chosen = Some(entry.translated);
        let id = renumbered(self.kernel.v4(), &before, direction)
            .or_else(|| renumbered(self.kernel.v6(), &before, direction))
            .unwrap_or_default();
        self.host.v4.random = chosen_by::<V4>(Some(&before), chosen, id, &config);
        self.host.v6.random = chosen_by::<V6>(Some(&before), chosen, id, &config);
    }

    fn touched(&self) -> Vec<Flow> {
        let v4 = self.host.v4.touched.iter().map(flow);
        let mut flows: Vec<Flow> = v4.chain(self.host.v6.touched.iter().map(flow)).collect();
        flows.sort_unstable();
        flows.dedup();
        flows
    }

    /// Whether the kernel had cause to pass over free ports: it remembers for a moment that there
    /// were none. The host, whose clock stands still, remembers for ever.
    fn choice_is_plausible(&self) -> Result<(), String> {
        passed_over(&self.host.v4)?;
        passed_over(&self.host.v6)
    }

    /// Compares all sessions but for the time of their last packet. Returns how many entries there are.
    ///
    /// # Errors
    /// They differ; the error names the first few.
    pub fn compare_sessions(&mut self) -> Result<usize, String> {
        let [kernel, host] = [self.kernel.sessions(), self.host.sessions()]
            .map(|entries| entries.into_iter().map(Entry::timeless).collect::<Vec<_>>());
        if kernel == host {
            accounts::check(&mut *self.kernel)?;
            accounts::check(&mut self.host)?;
            return Ok(kernel.len());
        }
        let only = |these: &[Entry], those: &[Entry]| {
            let missing = these.iter().filter(|entry| those.binary_search(entry).is_err()).take(3);
            missing.map(|entry| format!("\n  {entry:?}")).collect::<String>()
        };
        Err(format!(
            "{} sessions in the kernel, {} on the host; only in the kernel:{}\nonly on the host:{}",
            kernel.len(),
            host.len(),
            only(&kernel, &host),
            only(&host, &kernel)
        ))
    }
}

/// The identification that a datagram gets, once its first fragment has come.
fn renumbered<F: Notation>(
    store: &mut dyn Store<F>,
    first: &Decoded,
    direction: Direction,
) -> Option<u32> {
    let mut datagrams = store.datagrams().into_iter();
    let is_of = |key: &DatagramKey<F>| {
        key.identification == first.fragment.0
            && key.direction == direction as u8
            && [key.source, key.destination].map(F::to_ip) == [first.source, first.destination]
            && (key.protocol == 0 || key.protocol == first.protocol)
    };
    datagrams.find_map(|(key, datagram)| is_of(&key).then_some(datagram.identification))
}

/// Whether a packet leaves, whole or in fragments.
fn is_translated(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Forward | Outcome::Pass(PassReason::Fragmented))
}

fn passed_over<F: Notation>(tables: &SimTables<F>) -> Result<(), String> {
    match &tables.random {
        Random::Follow(Choice { free, taken, remembered: false, .. }) if *free > 0 => {
            Err(format!("passed over {free} free and {taken} taken ports"))
        }
        Random::Follow(_) | Random::Xorshift(_) => Ok(()),
    }
}

/// The choice that turned `before` into `after`.
fn choice<F: Notation>(
    before: Option<&Decoded>,
    after: Option<&Decoded>,
    config: &Config,
) -> Random<F> {
    let identification = after.map_or(0, |after| after.fragment.0);
    chosen_by(before, after.map(|after| (after.from(), after.to())), identification, config)
}

/// The choice that turned `before` into a packet between the ends `after`.
fn chosen_by<F: Notation>(
    before: Option<&Decoded>,
    after: Option<(SocketAddr, SocketAddr)>,
    identification: u32,
    config: &Config,
) -> Random<F> {
    let of_family = |end: SocketAddr| Some((F::from_ip(end.ip())?, end.port()));
    let external = after.and_then(|(from, _)| of_family(from));
    let destination = after.and_then(|(_, to)| of_family(to));
    let seed = before.zip(external).map_or(0, |(before, (_, port))| {
        let classes = has_port_classes(before.protocol);
        let range = PortRange::for_source(classes, before.from().port(), config);
        // The inverse of `PortRange::candidate`: the first seed that falls on the port.
        let offset = u64::from(port.saturating_sub(range.candidate(0)));
        ((offset << 32).div_ceil(u64::from(range.size()))) as u32
    });
    Random::Follow(Choice {
        seed,
        external,
        destination,
        identification,
        taken: 0,
        free: 0,
        remembered: false,
    })
}
