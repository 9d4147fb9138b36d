//! The directory in bpffs where maps and links outlive the process, and what may be adopted there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, MapError, MapInfo, MapType};
use gateway_common::family::{Family, V4, V6};
use gateway_common::nexthop::NextHopGroup;
use gateway_common::records::{
    ABI_VERSION, Backend, Config, Counter, Datagram, DatagramKey, Dnat, DnatKey, Draining, Eip,
    Fip, FipKey, Host, Identification, Mapping, MappingKey, Neighbor, Pool, Rule, Session, Slots,
    SnatKey, XdpFacts,
};
use gateway_common::tuple::Tuple;
use gateway_common::verdict::NextHop;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::raw::Raw;

/// Where bpffs is mounted.
const BPFFS: &str = "/sys/fs/bpf";

/// Type and sizes of a map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Layout {
    /// The name of the map and of its pin.
    pub(crate) name: &'static str,
    kind: MapType,
    key_bytes: usize,
    value_bytes: usize,
}

const fn layout<K, V>(name: &'static str, kind: MapType) -> Layout {
    Layout { name, kind, key_bytes: size_of::<K>(), value_bytes: size_of::<V>() }
}

const fn family<F: Family>(names: [&'static str; 12]) -> [Layout; 12] {
    let [
        sessions,
        fips,
        dnats,
        slots,
        backends,
        snats,
        fragments,
        eips,
        hosts,
        neighbors,
        mappings,
        next_hops,
    ] = names;
    [
        layout::<Tuple<F>, Session<F>>(sessions, MapType::Hash),
        layout::<FipKey<F>, Fip<F>>(fips, MapType::Hash),
        layout::<DnatKey<F>, Dnat<F>>(dnats, MapType::Hash),
        layout::<DnatKey<F>, Slots>(slots, MapType::Hash),
        layout::<u32, Backend<F>>(backends, MapType::Hash),
        layout::<SnatKey<F>, Pool<F>>(snats, MapType::LpmTrie),
        layout::<DatagramKey<F>, Datagram>(fragments, MapType::LruHash),
        layout::<F::Addr, Eip>(eips, MapType::Hash),
        layout::<F::Addr, Host>(hosts, MapType::Hash),
        layout::<NextHop<F>, Neighbor>(neighbors, MapType::Hash),
        layout::<MappingKey<F>, Mapping<F>>(mappings, MapType::Hash),
        layout::<u32, NextHopGroup<F>>(next_hops, MapType::Hash),
    ]
}

const V4_MAPS: [Layout; 12] = family::<V4>([
    "SESSIONS_V4",
    "FIPS_V4",
    "DNATS_V4",
    "SLOTS_V4",
    "BACKENDS_V4",
    "SNATS_V4",
    "FRAGMENTS_V4",
    "EIPS_V4",
    "HOSTS_V4",
    "NEIGHBORS_V4",
    "MAPPINGS_V4",
    "NEXT_HOPS_V4",
]);
const V6_MAPS: [Layout; 12] = family::<V6>([
    "SESSIONS_V6",
    "FIPS_V6",
    "DNATS_V6",
    "SLOTS_V6",
    "BACKENDS_V6",
    "SNATS_V6",
    "FRAGMENTS_V6",
    "EIPS_V6",
    "HOSTS_V6",
    "NEIGHBORS_V6",
    "MAPPINGS_V6",
    "NEXT_HOPS_V6",
]);
const COMMON_MAPS: [Layout; 9] = [
    layout::<u32, Config>("CONFIG", MapType::Array),
    layout::<u32, Rule>("RULES", MapType::Hash),
    layout::<u32, Draining>("DRAINING", MapType::Hash),
    layout::<u32, Counter>("RULE_COUNTERS", MapType::PerCpuArray),
    layout::<u32, Counter>("COUNTERS", MapType::PerCpuArray),
    layout::<u32, Identification>("IDENTIFICATIONS", MapType::Array),
    layout::<u32, Counter>("XDP_COUNTERS", MapType::PerCpuArray),
    layout::<u32, XdpFacts>("XDP_FACTS", MapType::Array),
    // The value is the kernel's `struct bpf_devmap_val`: an interface and a program.
    layout::<u32, [u32; 2]>("DEVICES", MapType::DevMapHash),
];

/// The maps of a gateway.
pub(crate) fn layouts() -> impl Iterator<Item = Layout> {
    COMMON_MAPS.into_iter().chain(V4_MAPS).chain(V6_MAPS)
}

/// Why pins cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// bpffs is not there and cannot be mounted.
    #[error("failed to mount bpffs at {BPFFS}; mount it with: mount -t bpf bpf {BPFFS}")]
    NoBpffs(#[source] io::Error),
    /// An I/O error.
    #[error("failed to {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A pinned map cannot be opened.
    #[error("failed to open map {name}")]
    Map {
        /// Its name.
        name: &'static str,
        /// The cause.
        source: MapError,
    },
    /// The maps come from another version.
    #[error(
        "{} has maps of another layout ({difference}): they cannot be adopted, and without them \
         all open sessions are lost; to go on without them, start `run` with --reset-maps", path.display()
    )]
    OtherLayout {
        /// The directory.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
}

/// The directory of one gateway.
#[derive(Clone, Debug)]
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// The directory for the gateway of that name, which need not exist.
    #[must_use]
    pub fn new(gateway: &str) -> Self {
        // bpffs refuses dots in names, and Kubernetes refuses underscores.
        let name = gateway.replace('.', "_");
        Self { directory: Path::new(BPFFS).join("vpc-gateway").join(name) }
    }

    /// The directory for the selector of that name: beside those of the gateways.
    #[must_use]
    pub fn of_selector(name: &str) -> Self {
        let name = name.replace('.', "_");
        Self { directory: Path::new(BPFFS).join("vpc-gateway-select").join(name) }
    }

    /// The gateways that have a directory.
    #[must_use]
    pub fn gateways() -> Vec<String> {
        let Ok(entries) = fs::read_dir(Path::new(BPFFS).join("vpc-gateway")) else {
            return Vec::new();
        };
        let mut names: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .map(|name| name.replace('_', "."))
            .collect();
        names.sort();
        names
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the map of that name is pinned.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where the link of that name is pinned.
    #[must_use]
    pub fn link(&self, name: &str) -> PathBuf {
        self.directory.join("links").join(name)
    }

    /// Whether there are maps to adopt.
    #[must_use]
    pub fn exist(&self) -> bool {
        self.map("CONFIG").exists()
    }

    /// Makes the directory, and mounts bpffs first where it is not mounted.
    ///
    /// # Errors
    ///
    /// When bpffs cannot be mounted or the directory cannot be made.
    pub fn create(&self) -> Result<(), PinsError> {
        ensure_bpffs()?;
        let links = self.directory.join("links");
        fs::create_dir_all(&links).map_err(io_error("make", &links))
    }

    /// Checks that every pinned map has the layout of this version.
    ///
    /// # Errors
    ///
    /// [`PinsError::OtherLayout`] if not.
    pub fn check(&self) -> Result<(), PinsError> {
        for layout in layouts() {
            let path = self.map(layout.name);
            if !path.exists() {
                continue;
            }
            let info = MapInfo::from_pin(&path)
                .map_err(|source| PinsError::Map { name: layout.name, source })?;
            if let Some(difference) = difference(&layout, &info) {
                return Err(PinsError::OtherLayout { path: self.directory.clone(), difference });
            }
        }
        match self.abi_version()? {
            None | Some(ABI_VERSION) => Ok(()),
            Some(other) => Err(PinsError::OtherLayout {
                path: self.directory.clone(),
                difference: format!("ABI version {other}, expected {ABI_VERSION}"),
            }),
        }
    }

    /// The version in the pinned configuration, if there is one.
    fn abi_version(&self) -> Result<Option<u32>, PinsError> {
        if !self.exist() {
            return Ok(None);
        }
        let failed = |source| PinsError::Map { name: "CONFIG", source };
        let map = Map::Array(MapData::from_pin(self.map("CONFIG")).map_err(failed)?);
        let config: Array<_, Raw<Config>> = map.try_into().map_err(failed)?;
        let config = config.get(&0, 0).map_err(failed)?.0;
        Ok((config.generation != 0).then_some(config.abi_version))
    }

    /// Unpins the maps, whatever their layout. Programs that use them go on using them.
    ///
    /// # Errors
    ///
    /// When a pin cannot be removed.
    pub fn forget_maps(&self) -> Result<(), PinsError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error("read", &self.directory)(error)),
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if !path.is_dir() {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Unpins everything and removes the directory. Nothing happens if it is not there.
    ///
    /// # Errors
    ///
    /// When a pin cannot be removed.
    pub fn remove(&self) -> Result<(), PinsError> {
        // Links first: no program may run on maps that are gone.
        let links = self.directory.join("links");
        if let Ok(entries) = fs::read_dir(&links) {
            for entry in entries.flatten() {
                remove(&entry.path())?;
            }
        }
        self.forget_maps()?;
        for directory in [&links, &self.directory] {
            match fs::remove_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("remove", directory)(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

fn is_mounted() -> bool {
    statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts bpffs where it is not mounted, which takes CAP_SYS_ADMIN.
///
/// # Errors
///
/// When it cannot be mounted.
pub fn ensure_bpffs() -> Result<(), PinsError> {
    if is_mounted() { Ok(()) } else { mount_bpffs().map_err(PinsError::NoBpffs) }
}

/// Mounts bpffs, once: a second mount over the first would hide the pins of another gateway that
/// starts at the same moment.
fn mount_bpffs() -> io::Result<()> {
    let below = fs::File::open(BPFFS)?;
    below.lock()?;
    if !is_mounted() {
        let nothing: Option<&str> = None;
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), nothing)?;
    }
    Ok(())
}

/// Removes a pin, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), PinsError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinsError {
    move |source| PinsError::Io { operation, path: path.to_owned(), source }
}

/// How a pinned map differs from what it should be.
fn difference(layout: &Layout, info: &MapInfo) -> Option<String> {
    let name = layout.name;
    match info.map_type() {
        Ok(kind) if kind == layout.kind => {}
        Ok(kind) => return Some(format!("{name} is a {kind:?}, expected {:?}", layout.kind)),
        Err(error) => return Some(format!("{name}: {error}")),
    }
    let sizes = [
        ("keys", info.key_size(), layout.key_bytes),
        ("values", info.value_size(), layout.value_bytes),
    ];
    sizes.into_iter().find(|(_, found, expected)| *found as usize != *expected).map(
        |(what, found, expected)| {
            format!("{what} of {name} have {found} bytes, expected {expected}")
        },
    )
}

/// Whether a map refused an entry because it is full.
pub(crate) fn is_full(error: &MapError) -> bool {
    let MapError::SyscallError(error) = error else { return false };
    let code = error.io_error.raw_os_error();
    [Errno::E2BIG, Errno::ENOSPC, Errno::ENOMEM].iter().any(|full| code == Some(*full as i32))
}
