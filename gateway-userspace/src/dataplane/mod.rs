//! Where a plan becomes true: the kernel's maps, or memory that behaves like them.
//!
//! ```text
//! kernel ── maps     typed maps, from their pins
//!        ├─ pins     the directory in bpffs: what is adopted and what is not
//!        ├─ attach   programs on interfaces: TCX links, else clsact filters
//!        ├─ sweep    which sessions may be over, a slice at a time
//!        ├─ recount  session counts of EIPs and hosts against the sessions
//!        ├─ xdp      the programs in front of them
//!        ├─ features what an interface's driver can do with XDP
//!        ├─ neighbors what XDP knows of next hops
//!        ├─ probe    what this kernel and this process can do
//!        ├─ jiffies how programs read the time
//!        ├─ preallocate memory of sessions at the start
//!        ├─ mode     which hook an interface gets, and why (pure)
//!        └─ raw      all unsafe code of this crate
//! memory ── an image, for tests and dry runs
//! ```

pub mod attach;
pub mod census;
pub mod features;
pub mod jiffies;
pub mod kernel;
pub mod maps;
pub mod memory;
pub mod mode;
pub mod neighbors;
pub mod object;
pub mod pins;
pub mod preallocate;
pub mod probe;
pub(crate) mod raw;
pub mod recount;
pub mod sweep;
pub mod xdp;

pub(crate) use self::raw::link_address;

use std::collections::BTreeMap;
use std::time::Duration;

use self::census::PortsInUse;
use crate::image::MapImage;
use crate::plan::{Action, Families, Plan};

/// Maps that can be read and changed.
pub trait Dataplane {
    /// Why it failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// What the maps hold.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    fn read(&mut self) -> Result<MapImage, Self::Error>;

    /// Does what the plan says, in its order. Sessions are not cut yet: that is
    /// [`Dataplane::sweep`], which may take longer.
    ///
    /// # Errors
    ///
    /// When a change is refused. The changes before it stay; [`Dataplane::read`] tells which.
    fn apply(&mut self, plan: &Plan) -> Result<Applied, Self::Error>;

    /// Begins to end sessions of these families that are idle or whose rule is gone. A sweep that was
    /// under way is forgotten.
    ///
    /// # Errors
    ///
    /// When the maps cannot be changed.
    fn begin_sweep(&mut self, families: Families) -> Result<(), Self::Error>;

    /// Does the next slice, of a few milliseconds. Returns what was found when that was the last one, or if
    /// no sweep is under way.
    ///
    /// # Errors
    ///
    /// When the maps cannot be read or a program fails. The sweep is over then.
    fn sweep_on(&mut self) -> Result<Option<Swept>, Self::Error>;

    /// A whole sweep at once.
    ///
    /// # Errors
    ///
    /// As [`Dataplane::begin_sweep`] and [`Dataplane::sweep_on`].
    fn sweep(&mut self, families: Families) -> Result<Swept, Self::Error> {
        self.begin_sweep(families)?;
        loop {
            if let Some(swept) = self.sweep_on()? {
                return Ok(swept);
            }
        }
    }
}

/// What [`Dataplane::sweep`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many sessions ended.
    pub ended: u64,
    /// How many sessions each draining rule has left. Empty unless both families were swept.
    pub left: BTreeMap<u32, u32>,
    /// External ports in use. Nothing unless both families were swept.
    pub ports: Option<PortsInUse>,
    /// How many runs of a program it took.
    pub runs: u32,
    /// How long all of them took.
    pub running: Duration,
    /// How long the longest of them took, time that the CPU gave to others included.
    pub longest: Duration,
}

/// What [`Dataplane::apply`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// New entries.
    pub inserted: usize,
    /// Entries with another value.
    pub updated: usize,
    /// Entries that went.
    pub deleted: usize,
}

impl Applied {
    /// Counts one change of entries.
    pub(crate) const fn count(&mut self, action: Action) {
        match action {
            Action::Insert => self.inserted += 1,
            Action::Update => self.updated += 1,
            Action::Delete => self.deleted += 1,
            Action::Cut => {}
        }
    }
}
