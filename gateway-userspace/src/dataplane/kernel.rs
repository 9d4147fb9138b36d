//! The data plane in the kernel: maps adopted or made, programs loaded fresh.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use aya::maps::{MapData, RingBuf};
use aya::programs::{ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader, TestRun as _, TestRunOptions};

use gateway_common::verdict::SESSIONS_OPENED;
use serde::{Deserialize, Serialize};

use super::attach::{self, AttachError, AttachKind};
use super::jiffies::Jiffies;
use super::maps::{Maps, MapsError};
use super::neighbors::NeighborMaps;
use super::pins::{Pins, PinsError, layouts};
use super::preallocate::with_preallocated_sessions;
use super::probe::{self, ProbeError};
use super::sweep::{Stage, Sweep};
use super::xdp::{self, XdpError};
use super::{Applied, Dataplane, Swept};
use crate::image::MapImage;
use crate::netlink::Interface;
use crate::plan::{Change, Families, Plan};
use crate::routers::maps::NextHopMaps;

/// How much of a verifier log is worth reading.
const LOG_LINES: usize = 20;

/// The programs that end sessions.
const SWEEP_V4: &str = "sweep_v4";
const SWEEP_V6: &str = "sweep_v6";

/// Which of the two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Towards the VPC.
    Internal,
    /// Towards the outside.
    External,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Internal, Self::External];

    /// The word for it, which is also the name of the link's pin.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::External => "external",
        }
    }

    const fn program(self) -> &'static str {
        match self {
            Self::Internal => "tc_internal",
            Self::External => "tc_external",
        }
    }

    const fn xdp_program(self) -> &'static str {
        match self {
            Self::Internal => "xdp_internal",
            Self::External => "xdp_external",
        }
    }

    const fn xdp_link(self) -> &'static str {
        match self {
            Self::Internal => "xdp-internal",
            Self::External => "xdp-external",
        }
    }
}

/// What can go wrong with the kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Privilege or kernel version.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// bpffs and what is in it.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A map.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// An attachment.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// An XDP program.
    #[error("failed to attach XDP to {interface}")]
    Xdp {
        /// The interface.
        interface: String,
        /// The cause.
        source: Box<XdpError>,
    },
    /// The object is not usable.
    #[error("failed to load the eBPF object")]
    Object(#[source] Box<EbpfError>),
    /// The object has no such program.
    #[error("failed to find program {0} in the eBPF object; build it again: cargo xtask build")]
    NoProgram(&'static str),
    /// The object's session maps are not defined as `--preallocate` expects.
    #[error(
        "failed to find the session maps in the eBPF object; do without --preallocate, or build it again: cargo xtask build"
    )]
    NoSessionMaps,
    /// The verifier refused a program.
    #[error("failed to load program {program}: {reason}\n{log}")]
    Verifier {
        /// Its name.
        program: &'static str,
        /// What the kernel says, in one line.
        reason: String,
        /// The end of the verifier's log.
        log: String,
    },
    /// A program failed.
    #[error("failed to run program {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The cause.
        source: Box<ProgramError>,
    },
}

/// Choices for [`Kernel::open`].
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelOptions {
    /// How many flows the session maps take; the object's own size if `None`.
    pub max_sessions: Option<u32>,
    /// Take the memory of all sessions at the start, where the maps are made.
    pub preallocate: bool,
    /// Start with empty maps, whatever is there.
    pub reset_maps: bool,
    /// Do without TCX.
    pub no_tcx: bool,
}

/// The programs and maps of one gateway.
pub struct Kernel {
    pins: Pins,
    ebpf: Ebpf,
    maps: Maps,
    tcx: bool,
    /// The state of every rule, as the maps have it.
    rules: HashMap<u32, u8>,
    sweep: Option<Sweep>,
    /// How many sweeps there were, wrapping.
    turn: u16,
}

impl Kernel {
    /// Adopts the pinned maps or makes them, and loads the programs. Attaches nothing.
    ///
    /// # Errors
    ///
    /// When something is missing or the kernel refuses; nothing that runs is changed then.
    pub fn open(
        gateway: &str,
        object: &[u8],
        options: &KernelOptions,
    ) -> Result<Self, KernelError> {
        probe::check()?;
        let pins = Pins::new(gateway);
        let first = !pins.exist();
        let opened = Self::open_at(pins.clone(), object, options);
        if first && opened.is_err() {
            // Half a set of empty maps helps nobody.
            pins.remove()?;
        }
        opened
    }

    fn open_at(pins: Pins, object: &[u8], options: &KernelOptions) -> Result<Self, KernelError> {
        pins.create()?;
        if options.reset_maps {
            pins.forget_maps()?;
        }
        pins.check()?;
        let mut ebpf = load(&pins, object, options)?;
        for name in Side::ALL.map(Side::program).into_iter().chain([SWEEP_V4, SWEEP_V6]) {
            load_program(program(&mut ebpf, name)?, name)?;
        }
        let maps = Maps::open(&pins)?;
        let rules = states(&maps.read()?);
        Ok(Self { pins, ebpf, maps, tcx: !options.no_tcx, rules, sweep: None, turn: 0 })
    }

    /// Puts the program of a side on an interface, in place of the one that is there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn attach(&mut self, side: Side, interface: &str) -> Result<Attachment, KernelError> {
        let pin = self.pins.link(side.as_str());
        let name = side.program();
        let program = program(&mut self.ebpf, name)?;
        let kind = attach::attach(program, interface, &pin, self.tcx)?;
        let info = program
            .info()
            .map_err(|source| KernelError::Program { program: name, source: Box::new(source) })?;
        Ok(Attachment { kind, program_id: info.id(), xdp_program_id: None })
    }

    /// Puts the XDP program of a side on an interface, in front of the other one, or in place of the
    /// one that is there. Returns its id.
    ///
    /// # Errors
    ///
    /// When the verifier or the driver refuses. Then no program of ours is in front.
    pub fn accelerate(
        &mut self,
        side: Side,
        interface: &Interface,
        generic: bool,
    ) -> Result<u32, KernelError> {
        let (name, pin) = (side.xdp_program(), self.pins.link(side.xdp_link()));
        let program: &mut Xdp = self
            .ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(KernelError::NoProgram(name))?;
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(error) => return Err(refused(error, name)),
        }
        let failed = |source| KernelError::Xdp {
            interface: interface.name.clone(),
            source: Box::new(source),
        };
        xdp::attach(program, interface.index, &pin, generic, interface.xdp).map_err(failed)?;
        let info = program
            .info()
            .map_err(|source| KernelError::Program { program: name, source: Box::new(source) })?;
        Ok(info.id())
    }

    /// Takes the XDP program of a side away, if it is there.
    ///
    /// # Errors
    ///
    /// When its pin cannot be removed.
    pub fn decelerate(&mut self, side: Side) -> Result<(), KernelError> {
        Ok(super::pins::remove(&self.pins.link(side.xdp_link()))?)
    }

    /// The maps from which XDP knows neighbours.
    ///
    /// # Errors
    ///
    /// When one cannot be opened.
    pub fn neighbors(&self) -> Result<NeighborMaps, KernelError> {
        NeighborMaps::open(&self.pins).map_err(|source| {
            KernelError::Maps(MapsError::Access {
                operation: "open",
                map: "of neighbours".to_owned(),
                source,
            })
        })
    }

    /// The ring buffer of that name; `None` if it was taken before.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn ring(&mut self, name: &str) -> Result<Option<RingBuf<MapData>>, KernelError> {
        let ring = self.ebpf.take_map(name).map(RingBuf::try_from).transpose();
        ring.map_err(|source| {
            let map = name.to_owned();
            KernelError::Maps(MapsError::Access { operation: "open", map, source })
        })
    }

    /// The maps of next-hop groups.
    ///
    /// # Errors
    ///
    /// When one cannot be opened.
    pub fn next_hops(&self) -> Result<NextHopMaps, KernelError> {
        Ok(NextHopMaps::open(&self.pins)?)
    }

    /// The maps.
    #[must_use]
    pub const fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The maps, to correct what they count.
    pub const fn maps_mut(&mut self) -> &mut Maps {
        &mut self.maps
    }

    /// Where everything is pinned.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.pins.directory()
    }
}

/// A program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// How.
    pub kind: AttachKind,
    /// The kernel's id of the program.
    pub program_id: u32,
    /// The one of the XDP program in front of it, if there is one.
    pub xdp_program_id: Option<u32>,
}

impl Dataplane for Kernel {
    type Error = KernelError;

    fn read(&mut self) -> Result<MapImage, KernelError> {
        let image = self.maps.read()?;
        self.rules = states(&image);
        Ok(image)
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, KernelError> {
        let mut applied = Applied::default();
        for change in &plan.changes {
            self.maps.write(change)?;
            if let Change::Rule(edit) = change {
                // What the sweep under way has passed already was not counted for this rule.
                if let Some(sweep) = &mut self.sweep {
                    sweep.counts = false;
                }
                match edit.new {
                    Some(rule) => self.rules.insert(edit.key, rule.state),
                    None => self.rules.remove(&edit.key),
                };
            }
            applied.count(change.action());
        }
        Ok(applied)
    }

    fn begin_sweep(&mut self, families: Families) -> Result<(), KernelError> {
        // What a sweep that was given up has counted.
        self.maps.settle_draining(false)?;
        let mut sweep = Sweep::new(families, self.turn);
        sweep.skip();
        self.turn = self.turn.wrapping_add(1);
        // Reading an empty map of a million buckets takes a millisecond, even when it was never used.
        if self.maps.counter(SESSIONS_OPENED)?.packets == 0 {
            sweep.stage = Stage::Over;
        }
        self.sweep = Some(sweep);
        Ok(())
    }

    fn sweep_on(&mut self) -> Result<Option<Swept>, KernelError> {
        let Some(mut sweep) = self.sweep.take() else {
            return Ok(Some(Swept::default()));
        };
        let name = if sweep.stage == Stage::V4 { SWEEP_V4 } else { SWEEP_V6 };
        for frame in sweep.slice(&self.maps, &self.rules)? {
            let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() };
            let run = program(&mut self.ebpf, name)?.test_run(options).map_err(|source| {
                KernelError::Program { program: name, source: Box::new(source) }
            })?;
            sweep.ended += u64::from(run.return_value);
            sweep.runs += 1;
            sweep.running += run.duration;
            sweep.longest = sweep.longest.max(run.duration);
        }
        sweep.skip();
        if sweep.stage != Stage::Over {
            self.sweep = Some(sweep);
            return Ok(None);
        }
        let left = self.maps.settle_draining(sweep.counts && sweep.families == Families::ALL)?;
        let ports = (sweep.families == Families::ALL).then(|| sweep.census.sum());
        let Sweep { ended, runs, running, longest, .. } = sweep;
        Ok(Some(Swept { ended, left, ports, runs, running, longest }))
    }
}

/// The states of the rules.
fn states(image: &MapImage) -> HashMap<u32, u8> {
    image.rules.iter().map(|(id, rule)| (*id, rule.state)).collect()
}

fn load(pins: &Pins, object: &[u8], options: &KernelOptions) -> Result<Ebpf, KernelError> {
    let object = if options.preallocate {
        Cow::Owned(with_preallocated_sessions(object).ok_or(KernelError::NoSessionMaps)?)
    } else {
        Cow::Borrowed(object)
    };
    let jiffies = Jiffies::measure().unwrap_or_default();
    let mut loader = EbpfLoader::new();
    jiffies.tell(&mut loader);
    // Nothing in the object depends on the running kernel's types.
    loader.btf(None);
    for layout in layouts() {
        loader.map_pin_path(layout.name, pins.map(layout.name));
    }
    if let Some(flows) = options.max_sessions {
        let entries = flows.saturating_mul(2);
        loader.map_max_entries("SESSIONS_V4", entries).map_max_entries("SESSIONS_V6", entries);
        loader.map_max_entries("MAPPINGS_V4", entries).map_max_entries("MAPPINGS_V6", entries);
        loader.map_max_entries("HOSTS_V4", flows).map_max_entries("HOSTS_V6", flows);
    }
    loader.load(&object).map_err(|error| KernelError::Object(Box::new(error)))
}

pub(crate) fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, KernelError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(KernelError::NoProgram(name))
}

pub(crate) fn load_program(
    program: &mut SchedClassifier,
    name: &'static str,
) -> Result<(), KernelError> {
    program.load().map_err(|error| refused(error, name))
}

/// What is worth reading of a program that could not be loaded.
fn refused(error: ProgramError, name: &'static str) -> KernelError {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
            let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
            let reason = if lines.is_empty() {
                io_error.to_string()
            } else {
                format!("the verifier refused it ({io_error})")
            };
            KernelError::Verifier { program: name, reason, log: tail.join("\n") }
        }
        other => KernelError::Program { program: name, source: Box::new(other) },
    }
}
