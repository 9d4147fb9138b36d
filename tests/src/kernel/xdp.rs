//! The XDP programs in front of the TC programs.

use std::net::IpAddr;
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail, ensure};
use aya::Ebpf;
use aya::maps::xdp::DevMapHash;
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::Xdp;
use gateway_common::family::{V4, V6};
use gateway_common::records::{Counter, Neighbor, XdpFacts, ticks_from_secs};
use gateway_common::tuple::Direction;
use gateway_common::verdict::{COUNTERS, NextHop, XDP_FORWARDED};

use super::maps::{Raw, sum};
use super::take;
use super::test_run::{self, Frame};
use crate::build_packet::end;
use crate::decode::describe;
use crate::harness::notation::Notation;
use crate::harness::routes::{EXTERNAL_MAC, INTERNAL_MAC, Links, embed_prefix, ingress_mac};

const ABORTED: u32 = 0;
const DROPPED: u32 = 1;
const PASSED: u32 = 2;
const TRANSMITTED: u32 = 3;
const REDIRECTED: u32 = 4;

/// The neighbours that XDP knows. The others are for TC, so that sessions of one are met by the other.
const KNOWN: [&str; 8] = [
    "203.0.113.1",
    "203.0.113.3",
    "10.0.1.1",
    "10.0.1.3",
    "10.0.1.5",
    "10.0.1.10",
    "10.0.1.20",
    "10.0.1.7",
];

/// How many packets XDP has seen, and what it did with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// All.
    pub seen: u64,
    /// Finished.
    pub finished: u64,
    /// Index of the counter that the last one went to.
    pub last: u32,
    /// The MAC address that the last one was sent to that XDP finished.
    pub to: [u8; 6],
}

/// The XDP programs.
pub(super) struct Accelerator {
    counters: PerCpuArray<MapData, Raw<Counter>>,
    known: Vec<Counter>,
    links: Links,
    pub(super) share: Share,
    facts: Array<MapData, Raw<XdpFacts>>,
    valid: bool,
    /// When this was made, in ticks, and how often it was vouched for.
    loaded: u32,
    vouched: u32,
    neighbors_v4: HashMap<MapData, Raw<NextHop<V4>>, Raw<Neighbor>>,
    neighbors_v6: HashMap<MapData, Raw<NextHop<V6>>, Raw<Neighbor>>,
}

/// The MAC address of a neighbour in these tests.
fn mac(address: IpAddr) -> [u8; 6] {
    let last = match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(v6) => v6.octets()[12..].try_into().expect("four octets"),
    };
    [6, 0, last[0], last[1], last[2], last[3]]
}

impl Accelerator {
    /// Loads the programs and tells them of interfaces and neighbours.
    pub(super) fn load(ebpf: &mut Ebpf, links: &Links) -> Result<Self> {
        for name in ["xdp_internal", "xdp_external"] {
            let program: &mut Xdp = ebpf
                .program_mut(name)
                .with_context(|| format!("the object has no program {name}"))?
                .try_into()?;
            program.load().with_context(|| format!("failed to load {name}"))?;
        }
        let mut devices: DevMapHash<MapData> = take(ebpf, "DEVICES")?;
        for device in [links.internal, links.external] {
            devices.insert(device, device, None, 0)?;
        }
        let mut accelerator = Self {
            counters: take(ebpf, "XDP_COUNTERS")?,
            known: vec![Counter::default(); COUNTERS as usize],
            links: *links,
            share: Share::default(),
            facts: take(ebpf, "XDP_FACTS")?,
            valid: true,
            loaded: uptime_ticks() as u32,
            vouched: 0,
            neighbors_v4: take(ebpf, "NEIGHBORS_V4")?,
            neighbors_v6: take(ebpf, "NEIGHBORS_V6")?,
        };
        accelerator.learn(mac)?;
        Ok(accelerator)
    }

    /// Tells XDP of its neighbours.
    fn learn(&mut self, mac: impl Fn(IpAddr) -> [u8; 6]) -> Result<()> {
        for address in KNOWN {
            let ip = end(address).ip();
            let destination = mac(ip);
            insert::<V4>(&mut self.neighbors_v4, &self.links, ip, destination)?;
            let ip = embed_prefix((ip, 32)).0;
            insert::<V6>(&mut self.neighbors_v6, &self.links, ip, destination)?;
        }
        // Whatever a CPU remembers of them is old.
        self.vouch(self.valid)
    }

    /// Runs the program of `direction` on a frame `count` times in a row, each time on what the last run
    /// left of it. Returns whether the last run finished it, and the nanoseconds that one took on average.
    /// Meanwhile every neighbour has the MAC address by which packets to it come in.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn repeat(
        &mut self,
        ebpf: &Ebpf,
        direction: Direction,
        frame: &[u8],
        count: u32,
    ) -> Result<(bool, u32)> {
        self.learn(|ip| if is_outside(ip) { INTERNAL_MAC } else { EXTERNAL_MAC })?;
        let ingress = self.links.ingress(direction);
        let input =
            Frame { bytes: frame, ifindex: ingress, segment_bytes: None, checksum_complete: false };
        let program = program(ebpf, direction)?;
        let (answer, nanos) = test_run::repeat_xdp(program.fd()?.as_fd(), &input, count)?;
        self.learn(mac)?;
        for (index, known) in (0..COUNTERS).zip(&mut self.known) {
            *known = sum(&self.counters, index)?;
        }
        Ok((matches!(answer.code, TRANSMITTED | REDIRECTED), nanos))
    }

    /// Gives every neighbour another MAC address: its second octet becomes this.
    pub(super) fn move_neighbors(&mut self, octet: u8) -> Result<()> {
        self.learn(|ip| {
            let mut moved = mac(ip);
            moved[1] = octet;
            moved
        })
    }

    /// Vouches for what XDP knows, or stopped doing so a moment ago.
    pub(super) fn vouch(&mut self, valid: bool) -> Result<()> {
        self.valid = valid;
        // Each time another number, as the daemon has it, for some of the 52 days after which ticks wrap.
        self.vouched += 1;
        let (day, moment) = (ticks_from_secs(86_400), ticks_from_secs(1));
        let until = if valid {
            self.loaded.wrapping_add(day).wrapping_add(self.vouched)
        } else {
            (uptime_ticks() as u32).wrapping_sub(moment)
        };
        let record = XdpFacts { until, internal_mac: INTERNAL_MAC, external_mac: EXTERNAL_MAC };
        Ok(self.facts.set(0, Raw(record), 0)?)
    }

    /// Sends a frame through the XDP program. Returns whether that has finished it.
    ///
    /// # Errors
    /// The program has changed what it did not finish, or it counts wrongly.
    pub(super) fn deliver(
        &mut self,
        ebpf: &Ebpf,
        direction: Direction,
        frame: &mut Vec<u8>,
    ) -> Result<bool> {
        let name = name(direction);
        let program = program(ebpf, direction)?;
        let ingress = self.links.ingress(direction);
        let input =
            Frame { bytes: frame, ifindex: ingress, segment_bytes: None, checksum_complete: false };
        let answer = test_run::repeat_xdp(program.fd()?.as_fd(), &input, 1)?.0;
        let counted = self.counted(frame.len() as u64)?;
        self.share.seen += 1;
        self.share.last = counted;
        let finished = match answer.code {
            PASSED => false,
            TRANSMITTED | REDIRECTED => true,
            ABORTED | DROPPED => bail!("{name} dropped {}", describe(frame)),
            code => bail!("{name} returned {code}"),
        };
        ensure!(
            finished == (counted == XDP_FORWARDED),
            "{name} returned {} and counted at {counted}",
            answer.code
        );
        if !finished {
            ensure!(answer.bytes == *frame, "{name} left a changed packet:\n{:02x?}", answer.bytes);
            return Ok(false);
        }
        self.share.finished += 1;
        self.share.to.copy_from_slice(&answer.bytes[..6]);
        let turns_round = answer.code == TRANSMITTED;
        check_addresses(&answer.bytes, direction, turns_round)
            .with_context(|| format!("{name}: {:02x?}", answer.bytes))?;
        let addresses = frame[..12].to_vec();
        *frame = answer.bytes;
        // TC leaves them to the kernel, and the host code knows none.
        frame[..12].copy_from_slice(&addresses);
        Ok(true)
    }

    /// The one counter that has gone up.
    fn counted(&mut self, bytes: u64) -> Result<u32> {
        let mut changed = Vec::new();
        for (index, known) in (0..COUNTERS).zip(&mut self.known) {
            let now = sum(&self.counters, index)?;
            if now != *known {
                changed.push((index, now.packets - known.packets, now.bytes - known.bytes));
                *known = now;
            }
        }
        match changed[..] {
            [(index, 1, counted)] if counted == bytes => Ok(index),
            _ => bail!("one packet of {bytes} bytes is counted by XDP as {changed:?}"),
        }
    }
}

/// Checks that a frame goes from an interface of ours to a neighbour that XDP knows.
fn check_addresses(frame: &[u8], direction: Direction, turns_round: bool) -> Result<()> {
    let comes_by = ingress_mac(direction);
    let leaves_by = match (turns_round, comes_by == INTERNAL_MAC) {
        (true, _) => comes_by,
        (false, true) => EXTERNAL_MAC,
        (false, false) => INTERNAL_MAC,
    };
    ensure!(frame[6..12] == leaves_by, "the source is not the interface it leaves by");
    let mut to = [0; 6];
    to.copy_from_slice(&frame[..6]);
    // Where it has moved to is for the test to say.
    to[1] = 0;
    let known = KNOWN.iter().any(|address| to == mac(end(address).ip()));
    ensure!(known, "the destination is no neighbour");
    let outside = frame[2] == 203;
    ensure!(outside == (leaves_by == EXTERNAL_MAC), "the neighbour is not on that side");
    Ok(())
}

const fn name(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "xdp_internal",
        Direction::Inbound => "xdp_external",
    }
}

fn program(ebpf: &Ebpf, direction: Direction) -> Result<&Xdp> {
    let name = name(direction);
    Ok(ebpf.program(name).context(name)?.try_into()?)
}

/// Whether a neighbour of these tests is outside.
fn is_outside(address: IpAddr) -> bool {
    mac(address)[2] == 203
}

fn insert<F: Notation>(
    map: &mut HashMap<MapData, Raw<NextHop<F>>, Raw<Neighbor>>,
    links: &Links,
    ip: IpAddr,
    destination: [u8; 6],
) -> Result<()> {
    let (ifindex, source) = if is_outside(ip) {
        (links.external, EXTERNAL_MAC)
    } else {
        (links.internal, INTERNAL_MAC)
    };
    let address = F::from_ip(ip).context("an address of the family")?;
    let neighbor = Neighbor { destination, source, used: 0 };
    Ok(map.insert(Raw(NextHop { ifindex, address }), Raw(neighbor), 0)?)
}

/// Time since boot in units of 2^20 ns.
fn uptime_ticks() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    let ns = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
    ns >> 20
}
