//! The programs in the kernel, run on single frames by `BPF_PROG_TEST_RUN`.
//!
//! [`run`] makes a network namespace on a thread of its own, loads the object that
//! `cargo xtask build-ebpf` made, with maps that nobody else sees, and hands out a [`Tc`]. With
//! [`Options::xdp`] every frame goes through the XDP program first.

pub mod crowd;
pub(crate) mod maps;
mod namespace;
pub(crate) mod test_run;
mod worker;
mod xdp;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use gateway_common::answer::Oversize;
use gateway_common::family::{V4, V6};
use gateway_common::records::{Config, Counter, Draining, Rule, RuleState};
use gateway_common::tuple::Direction;
use gateway_common::verdict::{DropReason, PassReason};
use gateway_userspace::dataplane::jiffies::Jiffies;
use gateway_userspace::dataplane::sweep::frames;

use self::maps::{FamilyMaps, Raw, sum};
use self::test_run::{Answer, Frame};
pub use self::worker::Worker;
use self::xdp::Accelerator;
pub use self::xdp::Share;
use crate::harness::routes::{Links, Prefix, Routes, Target};
use crate::harness::{Backend, Delivery, Outcome, Store, config};

/// Where the object is.
pub const OBJECT: &str = "VPC_GATEWAY_EBPF_OBJECT";

/// With this set to 1, a missing precondition is a failure.
pub const REQUIRE: &str = "GATEWAY_REQUIRE_KERNEL";

/// What a program returns for a packet that it has sent on.
pub const FORWARDED: u32 = 7;
const PASSED: u32 = 0;
const DROPPED: u32 = 2;

/// What differs between two loads of the object.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many entries a session map takes.
    pub capacity: u32,
    /// Whether the XDP programs sit in front of the TC programs.
    pub xdp: bool,
}

impl Options {
    /// TC alone, with session maps of this many entries.
    #[must_use]
    pub const fn tc(capacity: u32) -> Self {
        Self { capacity, xdp: false }
    }

    /// XDP in front of TC, with session maps of this many entries.
    #[must_use]
    pub const fn xdp(capacity: u32) -> Self {
        Self { capacity, xdp: true }
    }
}

/// Runs `work` on the programs in the kernel, or prints why it is skipped. Returns whether it ran.
///
/// # Panics
/// `work` does, or a precondition is missing and [`REQUIRE`] is 1.
pub fn run(options: Options, work: impl FnOnce(&mut Tc) + Send) -> bool {
    let Some(object) = granted() else {
        return false;
    };
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let mut tc = Tc::load(&object, options).expect("programs in a new namespace");
            work(&mut tc);
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    true
}

/// The eBPF object, or `None` after printing why the test is skipped.
///
/// # Panics
/// A precondition is missing and [`REQUIRE`] is 1.
#[must_use]
pub fn granted() -> Option<Vec<u8>> {
    match object() {
        Ok(object) => Some(object),
        Err(error) if std::env::var(REQUIRE).is_ok_and(|value| value == "1") => {
            panic!("{REQUIRE}=1, but {error:#}")
        }
        Err(error) => {
            println!("skipped: {error:#}");
            None
        }
    }
}

/// Sizes of key and value of every map in the object, as the kernel made it.
///
/// # Errors
/// The object cannot be loaded.
pub fn map_sizes(object: &[u8]) -> Result<BTreeMap<String, (usize, usize)>> {
    let jiffies = Jiffies::measure().context("failed to measure jiffies")?;
    let ebpf = loader(&jiffies, 64).load(object).context("failed to load the eBPF object")?;
    let mut sizes = BTreeMap::new();
    for (name, map) in ebpf.maps() {
        let (Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::DevMapHash(data)
        | Map::RingBuf(data)
        | Map::PerCpuArray(data)) = map
        else {
            bail!("map {name} is of a kind that the data path does not use");
        };
        let info = data.info().with_context(|| format!("map {name}"))?;
        sizes.insert(name.to_owned(), (info.key_size() as usize, info.value_size() as usize));
    }
    Ok(sizes)
}

/// A loader that makes session maps of this many entries.
fn loader(jiffies: &Jiffies, capacity: u32) -> EbpfLoader<'_> {
    let mut loader = EbpfLoader::new();
    jiffies.tell(&mut loader);
    for sessions in ["SESSIONS_V4", "SESSIONS_V6"] {
        loader.map_max_entries(sessions, capacity);
    }
    loader
}

/// The eBPF object, if it and the privilege to load it are there.
///
/// # Errors
/// One line that says what is missing.
pub fn object() -> Result<Vec<u8>> {
    ensure!(nix::unistd::geteuid().is_root(), "programs in the kernel need root");
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/vpc-gateway.o");
    let path = std::env::var_os(OBJECT).map_or(default, PathBuf::from);
    std::fs::read(&path).with_context(|| {
        format!(
            "no eBPF object at {}: run `cargo xtask build-ebpf`, or set {OBJECT}",
            path.display()
        )
    })
}

/// The TC programs with maps, interfaces and routes of their own.
pub struct Tc {
    ebpf: Ebpf,
    links: Links,
    config: Array<MapData, Raw<Config>>,
    rules: HashMap<MapData, u32, Raw<Rule>>,
    draining: HashMap<MapData, u32, Raw<Draining>>,
    rule_counters: PerCpuArray<MapData, Raw<Counter>>,
    counters: PerCpuArray<MapData, Raw<Counter>>,
    oversize: RingBuf<MapData>,
    v4: FamilyMaps<V4>,
    v6: FamilyMaps<V6>,
    /// What [`Tc::counters`] holds, as far as this side has read it.
    known: Vec<Counter>,
    /// Events before the case that runs.
    before: Vec<u64>,
    changed_routes: BTreeSet<Prefix>,
    /// Whether frames arrive summed up by hardware, where the kernel can play that.
    pub checksum_complete: bool,
    plays_hardware: bool,
    xdp: Option<Accelerator>,
}

/// Takes a map out of the loaded object.
fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<M> {
    let map = ebpf.take_map(name).with_context(|| format!("the object has no map {name}"))?;
    M::try_from(map).with_context(|| format!("map {name} is of another kind"))
}

impl Tc {
    /// Moves this thread into a new namespace and loads the object there.
    fn load(object: &[u8], options: Options) -> Result<Self> {
        let links = namespace::enter()?;
        let jiffies = Jiffies::measure().context("failed to measure jiffies")?;
        let mut ebpf = loader(&jiffies, options.capacity)
            .load(object)
            .context("failed to load the eBPF object")?;
        for name in ["tc_internal", "tc_external", "sweep_v4", "sweep_v6"] {
            let program: &mut SchedClassifier = ebpf
                .program_mut(name)
                .with_context(|| format!("the object has no program {name}"))?
                .try_into()?;
            program.load().with_context(|| format!("failed to load {name}"))?;
        }
        let xdp = if options.xdp { Some(Accelerator::load(&mut ebpf, &links)?) } else { None };
        let slots = gateway_common::verdict::COUNTERS as usize;
        let mut tc = Self {
            links,
            config: take(&mut ebpf, "CONFIG")?,
            rules: take(&mut ebpf, "RULES")?,
            draining: take(&mut ebpf, "DRAINING")?,
            rule_counters: take(&mut ebpf, "RULE_COUNTERS")?,
            counters: take(&mut ebpf, "COUNTERS")?,
            oversize: take(&mut ebpf, "OVERSIZE")?,
            v4: FamilyMaps::take(&mut ebpf)?,
            v6: FamilyMaps::take(&mut ebpf)?,
            ebpf,
            known: vec![Counter::default(); slots],
            before: vec![0; slots],
            changed_routes: BTreeSet::new(),
            checksum_complete: false,
            plays_hardware: false,
            xdp,
        };
        let frame = Frame {
            bytes: &[0; 64],
            ifindex: links.internal,
            segment_bytes: None,
            checksum_complete: true,
        };
        tc.plays_hardware = tc.run("sweep_v4", &frame).is_ok();
        tc.configure(config(&links));
        Ok(tc)
    }

    /// Runs a program on a frame.
    ///
    /// # Errors
    /// The kernel refuses.
    fn run(&self, program: &'static str, frame: &Frame<'_>) -> Result<Answer> {
        let program: &SchedClassifier =
            self.ebpf.program(program).ok_or_else(|| anyhow!("no {program}"))?.try_into()?;
        test_run::run(program.fd()?.as_fd(), frame)
    }

    /// Runs a sweep program on frames of session keys. Returns how many sessions ended.
    fn sweep_frames(&self, program: &'static str, frames: &[Vec<u8>]) -> u32 {
        let run = |bytes: &Vec<u8>| {
            let ifindex = self.links.internal;
            let frame = Frame { bytes, ifindex, segment_bytes: None, checksum_complete: false };
            self.run(program, &frame).expect(program).code
        };
        frames.iter().map(run).sum()
    }

    /// Runs the program of `direction` on a frame `count` times in a row, each time on what the last run
    /// left of it. Returns what the last one returned, and the nanoseconds that one took on average.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn repeat(&self, direction: Direction, frame: &[u8], count: u32) -> Result<(u32, u32)> {
        let name = match direction {
            Direction::Outbound => "tc_internal",
            Direction::Inbound => "tc_external",
        };
        let program: &SchedClassifier =
            self.ebpf.program(name).ok_or_else(|| anyhow!("no {name}"))?.try_into()?;
        let frame = Frame {
            bytes: frame,
            ifindex: self.links.ingress(direction),
            segment_bytes: None,
            checksum_complete: false,
        };
        let (answer, nanos) = test_run::repeat(program.fd()?.as_fd(), &frame, count)?;
        Ok((answer.code, nanos))
    }

    /// As [`Tc::repeat`], with the XDP program. Returns whether the last run finished the frame.
    ///
    /// # Errors
    /// The kernel refuses, or there is no XDP.
    pub fn repeat_xdp(
        &mut self,
        direction: Direction,
        frame: &[u8],
        count: u32,
    ) -> Result<(bool, u32)> {
        let xdp = self.xdp.as_mut().context("no XDP programs")?;
        xdp.repeat(&self.ebpf, direction, frame, count)
    }

    /// Sends a frame whose segments are `segment_bytes` long each.
    ///
    /// # Errors
    /// The kernel refuses, or the program misbehaves.
    pub fn deliver(
        &mut self,
        direction: Direction,
        frame: &mut Vec<u8>,
        segment_bytes: Option<u32>,
    ) -> Result<Outcome> {
        // What was aggregated or summed up by hardware has passed the driver's hook as something else.
        if segment_bytes.is_none()
            && !self.checksum_complete
            && let Some(xdp) = &mut self.xdp
            && xdp.deliver(&self.ebpf, direction, frame)?
        {
            return Ok(Outcome::Forward);
        }
        let program = match direction {
            Direction::Outbound => "tc_internal",
            Direction::Inbound => "tc_external",
        };
        let arriving = Frame {
            bytes: frame,
            ifindex: self.links.ingress(direction),
            segment_bytes,
            // What comes in again is put together in the frame, whose sum ends with that; the kernel that
            // checks it afterwards does not notice.
            checksum_complete: self.checksum_complete
                && self.plays_hardware
                && !self.v4.holds()
                && !self.v6.holds(),
        };
        let answer = self.run(program, &arriving)?;
        let bytes = frame.len() as u64;
        let input = std::mem::replace(frame, answer.bytes);
        match answer.code {
            FORWARDED => Ok(Outcome::Forward),
            PASSED => {
                let reasons = PassReason::ALL.iter().map(|reason| (*reason, reason.counter()));
                self.counted(reasons, bytes).map(Outcome::Pass)
            }
            DROPPED => {
                let drops = DropReason::ALL.iter().map(|&why| (Outcome::Drop(why), why.counter()));
                // Of these, copies go on.
                let copied = [PassReason::Replayed, PassReason::Fragmented]
                    .map(|why| (Outcome::Pass(why), why.counter()));
                let outcome = self.counted(drops.chain(copied), bytes)?;
                match outcome {
                    Outcome::Pass(PassReason::Replayed) => *frame = input,
                    Outcome::Pass(PassReason::Fragmented) => self.hand_over(frame)?,
                    _ => {}
                }
                Ok(outcome)
            }
            code => bail!("{program} returned {code}"),
        }
    }

    /// Takes the packet out of the ring buffer, as the daemon does that makes fragments of it: it must be
    /// the translated one.
    fn hand_over(&mut self, frame: &[u8]) -> Result<()> {
        let record = self.oversize.next().context("nothing for the daemon to fragment")?;
        let packet = record.get(size_of::<Oversize>()..).unwrap_or_default();
        ensure!(*packet == frame[14..], "the daemon gets {packet:02x?}\nof {frame:02x?}");
        Ok(())
    }

    /// How many packets XDP has seen and how many of them it has finished.
    ///
    /// # Panics
    /// XDP is not in front.
    #[must_use]
    pub fn accelerated(&self) -> Share {
        self.xdp.as_ref().expect("XDP programs").share
    }

    /// Vouches for what XDP knows of neighbours and interfaces, or no longer does.
    ///
    /// # Panics
    /// XDP is not in front.
    pub fn vouch(&mut self, valid: bool) {
        self.xdp.as_mut().expect("XDP programs").vouch(valid).expect("XDP_FACTS");
    }

    /// Gives every neighbour that XDP knows another MAC address, whose second octet is this.
    ///
    /// # Panics
    /// XDP is not in front.
    pub fn move_neighbors(&mut self, octet: u8) {
        self.xdp.as_mut().expect("XDP programs").move_neighbors(octet).expect("NEIGHBORS");
    }

    /// Makes every route of IPv4 lead to interface `ifindex` that a CPU remembers. Returns how many there
    /// are.
    pub fn bend_routes(&mut self, ifindex: u32) -> usize {
        self.v4.change_routes(|known| known.next_hop.ifindex = ifindex)
    }

    /// The one reason whose counter has gone up.
    fn counted<R: Copy + std::fmt::Debug>(
        &mut self,
        reasons: impl Iterator<Item = (R, u32)>,
        bytes: u64,
    ) -> Result<R> {
        let mut changed = Vec::new();
        for (reason, index) in reasons {
            let now = sum(&self.counters, index)?;
            let known = &mut self.known[index as usize];
            if now != *known {
                let step = (now.packets - known.packets, now.bytes - known.bytes);
                changed.push((reason, step));
                *known = now;
            }
        }
        match changed[..] {
            [(reason, step)] if step == (1, bytes) => Ok(reason),
            _ => bail!("one packet of {bytes} bytes is counted as {changed:?}"),
        }
    }
}

impl Backend for Tc {
    fn name(&self) -> &'static str {
        if self.xdp.is_some() { "xdp and tc" } else { "tc" }
    }

    fn links(&self) -> Links {
        self.links
    }

    fn config(&self) -> Config {
        self.config.get(&0, 0).expect("CONFIG").0
    }

    fn configure(&mut self, config: Config) {
        self.config.set(0, Raw(config), 0).expect("CONFIG");
    }

    fn v4(&mut self) -> &mut dyn Store<V4> {
        &mut self.v4
    }

    fn v6(&mut self) -> &mut dyn Store<V6> {
        &mut self.v6
    }

    fn set_rule(&mut self, id: u32, rule: Option<Rule>) {
        match rule {
            Some(rule) => {
                if rule.state == RuleState::Draining as u8 {
                    self.draining.insert(id, Raw(Draining::default()), 0).expect("DRAINING");
                } else {
                    maps::zero(&mut self.rule_counters, id).expect("RULE_COUNTERS");
                }
                self.rules.insert(id, Raw(rule), 0).expect("RULES");
            }
            None => self.rules.remove(&id).expect("RULES"),
        }
    }

    fn set_route(&mut self, prefix: Prefix, target: Target) {
        namespace::set_route(&self.links, prefix, target).expect("a route");
        self.changed_routes.insert(prefix);
    }

    fn send(&mut self, direction: Direction, frame: &mut Vec<u8>) -> Delivery {
        let outcome = self.deliver(direction, frame, None).expect("a test run");
        Delivery { outcome, next_hop: None }
    }

    fn shortest(&self, ipv6: bool) -> usize {
        // Kernels from 6.18 on answer EINVAL if there is no whole IP header.
        if ipv6 { 14 + 40 } else { 14 + 20 }
    }

    fn sweep(&mut self) -> u32 {
        let keys = self.v4.sessions().into_iter().map(|(key, _)| key);
        let ended = self.sweep_frames("sweep_v4", &frames::<V4>(&keys.collect::<Vec<_>>()));
        let keys = self.v6.sessions().into_iter().map(|(key, _)| key);
        ended + self.sweep_frames("sweep_v6", &frames::<V6>(&keys.collect::<Vec<_>>()))
    }

    fn left(&mut self, id: u32) -> u32 {
        let Ok(Raw(Draining { met, .. })) = self.draining.get(&id, 0) else { return 0 };
        self.draining.insert(id, Raw(Draining::default()), 0).expect("DRAINING");
        met
    }

    fn rule_counter(&mut self, id: u32) -> Counter {
        sum(&self.rule_counters, id).expect("RULE_COUNTERS")
    }

    fn event(&mut self, index: u32) -> u64 {
        sum(&self.counters, index).expect("COUNTERS").packets - self.before[index as usize]
    }

    fn clear(&mut self) {
        self.v4.clear();
        self.v6.clear();
        let ids: Vec<u32> = self.rules.keys().collect::<Result<_, _>>().expect("RULES");
        for id in ids {
            self.rules.remove(&id).expect("RULES");
        }
        let ids: Vec<u32> = self.draining.keys().collect::<Result<_, _>>().expect("DRAINING");
        for id in ids {
            self.draining.remove(&id).expect("DRAINING");
        }
        let base = Routes::of(&self.links);
        for prefix in std::mem::take(&mut self.changed_routes) {
            namespace::reset_route(&self.links, prefix, &base).expect("a route");
        }
        for index in 0..self.before.len() {
            let counter = sum(&self.counters, index as u32).expect("COUNTERS");
            self.before[index] = counter.packets;
            self.known[index] = counter;
        }
        self.configure(config(&self.links));
    }
}

/// The name of an interface.
fn name(links: &Links, ifindex: u32) -> &'static str {
    match ifindex {
        index if index == links.internal => "eth0",
        index if index == links.external => "net1",
        _ => "aux0",
    }
}

/// An address and its length, as `ip` takes them.
fn text((address, length): (IpAddr, u32)) -> String {
    format!("{address}/{length}")
}
