//! What is measured: the gateway, its competitors, and the limits of the hooks.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use gateway_common::family::{Family, V4, V6};
use gateway_common::records::Session;
use gateway_common::tuple::Tuple;

use super::rig::Rig;
use super::rules::Rules;
use super::traffic::Table;
use crate::kernel::OBJECT;
use crate::kernel::maps::Raw;
use crate::lab::gateway::{Gateway, Settings};
use crate::lab::tier;
use crate::lab::topology::External;

/// A way for packets from one interface to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// This gateway, by TC.
    Tc,
    /// The same with `--preallocate`.
    TcPreallocated,
    /// This gateway, with XDP in front.
    Xdp,
    /// The same with `--preallocate`.
    XdpPreallocated,
    /// The iptables chains of Kube-OVN.
    Iptables,
    /// The same rules in nftables, port forwards in a map.
    Nftables,
    /// The kernel's forwarding, no NAT.
    Kernel,
    /// `bpf_redirect` in TC, no NAT.
    BareTc,
    /// `bpf_redirect_neigh` in TC, no NAT.
    BareNeighbor,
    /// `bpf_redirect` in XDP, no NAT.
    BareXdp,
    /// The same in TC with a table of flows: the floor of every NAT that has one.
    TableTc,
    /// The same with a table whose memory is there from the start.
    TableTcPreallocated,
    /// A table of flows in XDP.
    TableXdp,
    /// The same with a table whose memory is there from the start.
    TableXdpPreallocated,
}

impl Way {
    /// All that forward packets of open flows each in a way of its own, in the order of columns.
    pub const ALL: [Self; 10] = [
        Self::Tc,
        Self::Xdp,
        Self::Iptables,
        Self::Nftables,
        Self::Kernel,
        Self::BareTc,
        Self::BareNeighbor,
        Self::BareXdp,
        Self::TableTc,
        Self::TableXdp,
    ];

    /// Those that remember flows.
    pub const STATEFUL: [Self; 10] = [
        Self::Tc,
        Self::TcPreallocated,
        Self::Xdp,
        Self::XdpPreallocated,
        Self::Iptables,
        Self::Nftables,
        Self::TableTc,
        Self::TableTcPreallocated,
        Self::TableXdp,
        Self::TableXdpPreallocated,
    ];

    /// A short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tc => "TC",
            Self::TcPreallocated => "TC prealloc",
            Self::Xdp => "XDP",
            Self::XdpPreallocated => "XDP prealloc",
            Self::Iptables => "iptables",
            Self::Nftables => "nft map",
            Self::Kernel => "kernel",
            Self::BareTc => "bare TC",
            Self::BareNeighbor => "bare neigh",
            Self::BareXdp => "bare XDP",
            Self::TableTc => "table TC",
            Self::TableTcPreallocated => "table TC prealloc",
            Self::TableXdp => "table XDP",
            Self::TableXdpPreallocated => "table XDP prealloc",
        }
    }

    /// Whether it forwards by a table of the bench, which rules do not concern; and whether that table takes
    /// all its memory at the start.
    pub fn table(self) -> Option<bool> {
        match self {
            Self::TableTc | Self::TableXdp => Some(false),
            Self::TableTcPreallocated | Self::TableXdpPreallocated => Some(true),
            _ => None,
        }
    }
}

/// How a subject is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Its rules.
    pub rules: Rules,
    /// How many sessions it must hold.
    pub sessions: u32,
    /// What `net1` is.
    pub external: External,
    /// Whether frames are generated; otherwise links are as a pod has them.
    pub generated: bool,
}

/// One way, set up in namespaces of its own.
pub struct Subject {
    /// Which way it is.
    pub way: Way,
    /// This gateway's daemon. Dropped before the namespaces.
    pub gateway: Option<Gateway>,
    /// The namespaces.
    pub rig: Rig,
}

impl Subject {
    /// Sets it up.
    ///
    /// # Errors
    /// A program is missing, the kernel refuses something, or the gateway refuses the mode.
    pub fn build(way: Way, setup: &Setup) -> Result<Self> {
        let word = way.name().replace(' ', "").to_lowercase();
        let table = way.table().map(|preallocated| Table { flows: setup.sessions, preallocated });
        let mut rig = Rig::build(&word, setup.external, table)?;
        if setup.generated {
            rig.instrument()?;
        }
        let gateway = match way {
            Way::Tc => Some(start(&rig, setup, "tc", &[])?),
            Way::TcPreallocated => Some(start(&rig, setup, "tc", &["--preallocate"])?),
            Way::Xdp => Some(start(&rig, setup, "xdp", &[])?),
            Way::XdpPreallocated => Some(start(&rig, setup, "xdp", &["--preallocate"])?),
            Way::Iptables => {
                restore(&rig, "iptables-legacy-restore", &[], &setup.rules.iptables())?;
                None
            }
            Way::Nftables => {
                restore(&rig, "nft", &["-f"], &setup.rules.nftables())?;
                None
            }
            Way::Kernel => None,
            Way::BareTc => rig.redirect("redirect_tc", false).map(|()| None)?,
            Way::BareNeighbor => rig.redirect("neighbor_tc", false).map(|()| None)?,
            Way::BareXdp => rig.redirect("redirect_xdp", true).map(|()| None)?,
            Way::TableTc => rig.redirect("table_tc", false).map(|()| None)?,
            Way::TableTcPreallocated => rig.redirect("prealloc_tc", false).map(|()| None)?,
            Way::TableXdp => rig.redirect("table_xdp", true).map(|()| None)?,
            Way::TableXdpPreallocated => rig.redirect("prealloc_xdp", true).map(|()| None)?,
        };
        Ok(Self { way, gateway, rig })
    }

    /// Whether this gateway's IPv4 session map is empty. Not by its counters: who empties the map by hand,
    /// as [`Subject::forget_connections`] does, is not counted.
    ///
    /// # Errors
    /// The kernel refuses access to the map, or another way is asked.
    pub fn has_no_sessions(&self) -> Result<bool> {
        let gateway = self.gateway.as_ref().context("only a gateway has a session map")?;
        Ok(open::<V4>(&gateway.pins().join("SESSIONS_V4"))?.keys().next().is_none())
    }

    /// Ends all connections, so that the next ones meet a table as it was at first.
    ///
    /// # Errors
    /// conntrack fails, or the kernel refuses access to a map.
    pub fn forget_connections(&mut self) -> Result<()> {
        if let Some(gateway) = &self.gateway {
            empty::<V4>(&gateway.pins().join("SESSIONS_V4"))?;
            return empty::<V6>(&gateway.pins().join("SESSIONS_V6"));
        }
        match self.way {
            Way::Iptables | Way::Nftables => {
                self.rig.gateway.output(Command::new("conntrack").arg("-F")).map(drop)
            }
            _ => self.rig.traffic.empty_table(),
        }
    }
}

type Sessions<F> = HashMap<MapData, Raw<Tuple<F>>, Raw<Session<F>>>;

fn open<F: Family>(path: &Path) -> Result<Sessions<F>> {
    let data = MapData::from_pin(path).with_context(|| format!("no map at {}", path.display()))?;
    Ok(Map::HashMap(data).try_into()?)
}

/// Removes every entry of a pinned session map.
fn empty<F: Family>(path: &Path) -> Result<()> {
    let mut map = open::<F>(path)?;
    // All keys first: the kernel looks for the first one from the first bucket on, which takes the longer
    // the emptier the map is.
    let keys: Vec<_> = map.keys().collect::<Result<_, _>>()?;
    for key in keys {
        // The daemon may have been faster.
        let _ = map.remove(&key);
    }
    Ok(())
}

fn start(rig: &Rig, setup: &Setup, mode: &str, more: &[&str]) -> Result<Gateway> {
    let config = rig.scratch.join("config");
    std::fs::create_dir_all(&config)?;
    rig.scratch.write("config/rules.yaml", setup.rules.yaml(&rig.name))?;
    let mut arguments: Vec<String> =
        ["--mode", mode, "--timeouts", "udp-new=3600"].map(Into::into).into();
    arguments.extend(["--max-sessions".into(), setup.sessions.to_string()]);
    arguments.extend(more.iter().map(ToString::to_string));
    if let Some(object) = std::env::var_os(OBJECT) {
        // The same programs that the test runs load: those of the build, or a variant to compare.
        arguments.extend(["--object".into(), object.to_string_lossy().into_owned()]);
    }
    let (binary, name) = (tier::binary()?, rig.name.clone());
    let settings = Settings { binary, name, object: None, config, arguments };
    Gateway::start_in(&rig.gateway, &rig.scratch, settings)
}

fn restore(rig: &Rig, program: &str, arguments: &[&str], rules: &str) -> Result<()> {
    let file = rig.scratch.write("rules", rules)?;
    rig.gateway
        .output(Command::new(program).args(arguments).arg(&file))
        .with_context(|| format!("{program} refuses the rules"))?;
    // Flows without an answer must outlive the run, as they do in this gateway.
    let conntrack = [("netfilter/nf_conntrack_udp_timeout", "3600")];
    conntrack.iter().try_for_each(|(key, value)| rig.gateway.sysctl(key, value))
}
