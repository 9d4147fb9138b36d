//! The generator, the sinks and the bare redirects: one load of the bench's eBPF object.

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::tc::TcAttachType;
use aya::programs::xdp::XdpMode;
use aya::programs::{SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};

use super::flow::{Flows, Progress, Record, Seen, Target};
use super::pod::Raw;
use crate::kernel::test_run;

/// Where the object is.
pub const OBJECT: &str = "VPC_GATEWAY_BENCH_OBJECT";

/// One load of the object, with maps of its own. Dropped, its programs are detached.
pub struct Traffic {
    ebpf: Ebpf,
    flows: Array<MapData, Raw<Flows>>,
    progress: Array<MapData, Raw<Progress>>,
    target: Array<MapData, Raw<Target>>,
    seen: PerCpuArray<MapData, Raw<Seen>>,
    table: Option<HashMap<MapData, [u32; 4], Raw<Record>>>,
}

/// A table of flows for the programs that have one.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// How many flows it holds.
    pub flows: u32,
    /// Whether it takes the memory of all of them at the start.
    pub preallocated: bool,
}

/// What came of a burst.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    /// Frames sent.
    pub sent: u64,
    /// Frames that reached a sink.
    pub received: u64,
    /// How long it took to send them, by the generator's clock.
    pub elapsed: Duration,
}

impl Burst {
    /// Millions of packets per second that arrived.
    pub fn mpps(&self) -> f64 {
        self.received as f64 / self.elapsed.as_secs_f64() / 1e6
    }

    /// The share that did not arrive.
    pub fn lost(&self) -> f64 {
        1.0 - self.received as f64 / self.sent.max(1) as f64
    }
}

impl Traffic {
    /// Loads the object, with a table of flows if one is wanted.
    ///
    /// # Errors
    /// There is none, or the kernel refuses it.
    pub fn load(table: Option<Table>) -> Result<Self> {
        let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/bench.o");
        let path = std::env::var_os(OBJECT).map_or(default, PathBuf::from);
        let object = std::fs::read(&path)
            .with_context(|| format!("no object of the bench at {}", path.display()))?;
        let mut loader = EbpfLoader::new();
        let table = table.map(|it| (if it.preallocated { "TABLE_PREALLOC" } else { "TABLE" }, it));
        if let Some((name, Table { flows, .. })) = table {
            // An entry for each direction.
            loader.map_max_entries(name, 2 * flows);
        }
        let mut ebpf = loader.load(&object).context("failed to load the bench's object")?;
        let mut take = |name| ebpf.take_map(name).with_context(|| format!("no map {name}"));
        Ok(Self {
            flows: take("FLOWS")?.try_into()?,
            progress: take("PROGRESS")?.try_into()?,
            target: take("TARGET")?.try_into()?,
            seen: take("SEEN")?.try_into()?,
            table: table
                .map(|(name, _)| take(name)?.try_into().map_err(Error::from))
                .transpose()?,
            ebpf,
        })
    }

    /// Loads and attaches an XDP program in the driver of an interface of this thread's namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach_xdp(&mut self, name: &str, interface: &str) -> Result<()> {
        let program = self.xdp(name)?;
        program
            .attach(interface, XdpMode::Driver)
            .with_context(|| format!("failed to attach {name} to {interface}"))?;
        Ok(())
    }

    /// Loads and attaches a TC program to the ingress of an interface of this thread's namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach_tc(&mut self, name: &str, interface: &str) -> Result<()> {
        let program: &mut SchedClassifier = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name}"))?
            .try_into()?;
        if program.fd().is_err() {
            program.load().with_context(|| format!("failed to load {name}"))?;
        }
        program
            .attach(interface, TcAttachType::Ingress)
            .with_context(|| format!("failed to attach {name} to {interface}"))?;
        Ok(())
    }

    fn xdp(&mut self, name: &str) -> Result<&mut Xdp> {
        let program: &mut Xdp = self
            .ebpf
            .program_mut(name)
            .with_context(|| format!("no program {name}"))?
            .try_into()?;
        if program.fd().is_err() {
            program.load().with_context(|| format!("failed to load {name}"))?;
        }
        Ok(program)
    }

    /// Removes every flow of the table.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn empty_table(&mut self) -> Result<()> {
        let Some(table) = &mut self.table else { return Ok(()) };
        // All keys first: looking for the first one takes the longer the emptier the table is.
        let keys: Vec<_> = table.keys().collect::<Result<_, _>>()?;
        Ok(keys.iter().try_for_each(|key| table.remove(key))?)
    }

    /// Says where bare redirects go.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn aim(&mut self, target: Target) -> Result<()> {
        Ok(self.target.set(0, Raw(target), 0)?)
    }

    /// Sends so many frames in this thread's namespace and on its CPU, from the first flow on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn send(&mut self, flows: &Flows, count: u32) -> Result<Burst> {
        self.flows.set(0, Raw(*flows), 0)?;
        self.progress.set(0, Raw(Progress::default()), 0)?;
        let before = self.seen()?.packets;
        let program = self.xdp("generate")?;
        let started = Instant::now();
        test_run::live(program.fd()?.as_fd(), flows.frame_bytes as usize, count)?;
        let total = started.elapsed();
        let received = self.seen()?.packets - before;
        let progress = self.progress.get(&0, 0)?.0;
        // A short burst is all beginning and end.
        let elapsed = match progress.last_turn {
            0 => total,
            turns => {
                let nanos = (progress.last_ns - progress.first_ns) as f64;
                Duration::from_secs_f64(nanos / 1e9 * f64::from(count) / turns as f64)
            }
        };
        Ok(Burst { sent: count.into(), received, elapsed })
    }

    /// What the sinks have seen so far.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn seen(&self) -> Result<Seen> {
        let values = self.seen.get(&0, 0)?;
        Ok(values.iter().fold(Seen::default(), |sum, value| Seen {
            packets: sum.packets + value.0.packets,
            bytes: sum.bytes + value.0.bytes,
        }))
    }
}
