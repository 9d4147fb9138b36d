//! `DesiredState -> MapImage -> Plan -> Dataplane`: the middle of the control path, in one place.
//!
//! The image of what the maps hold is kept between rounds, so that one changed rule costs one
//! comparison and a few writes, not a walk over the maps.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::Stopwatch;
use crate::dataplane::{Applied, Dataplane};
use crate::desired::DesiredState;
use crate::encode::{Encoded, Overflow, Surroundings, encode, retired_ids};
use crate::image::MapImage;
use crate::plan::{Families, Plan, diff};

/// A data plane and what it is known to hold.
pub struct Reconciler<D: Dataplane> {
    dataplane: D,
    live: MapImage,
    retired: BTreeSet<u32>,
    /// Draining rules without a session in the last sweep.
    idle: BTreeSet<u32>,
}

/// One round.
#[derive(Clone, Debug)]
pub struct Round {
    /// What was planned, all of which was done.
    pub plan: Plan,
    /// How much that was.
    pub applied: Applied,
    /// Rules that do not fit into the maps.
    pub overflows: Vec<Overflow>,
    /// How long it took until all of it was active, planning included.
    pub duration: Duration,
    /// Sessions of rules that went, and sessions that were idle anyway.
    pub sessions_cut: u64,
}

impl<D: Dataplane> Reconciler<D> {
    /// Reads what is there, and ends the sessions of rules that are gone: whoever ran before may
    /// have been killed in between, and ids are about to be given away.
    ///
    /// # Errors
    ///
    /// When the data plane cannot be read.
    pub fn adopt(mut dataplane: D) -> Result<Self, D::Error> {
        let live = dataplane.read()?;
        if live.config.is_some() {
            dataplane.sweep(Families::ALL)?;
        }
        Ok(Self { dataplane, live, retired: BTreeSet::new(), idle: BTreeSet::new() })
    }

    /// Makes the data plane do what is desired. Doing it again plans nothing.
    ///
    /// # Errors
    ///
    /// When a change is refused. The next round starts from what is really there.
    pub fn round(
        &mut self,
        desired: &DesiredState,
        surroundings: &Surroundings,
    ) -> Result<Round, D::Error> {
        let watch = Stopwatch::start();
        let Encoded { image, overflows } =
            encode(desired, Some(surroundings), &self.live, &self.retired);
        let plan = diff(&self.live, &image);
        let applied = self.apply(&plan)?;
        let duration = watch.elapsed();
        self.live = image;
        let mut sessions_cut = 0;
        if let Some(cut) = plan.cut() {
            self.retired.extend(&cut.rules);
            sessions_cut = self.dataplane.sweep(cut.families)?.ended;
        }
        Ok(Round { plan, applied, overflows, duration, sessions_cut })
    }

    /// Ends sessions that are idle or whose rule is gone, and removes rules that have drained.
    /// Returns that change.
    ///
    /// A rule has drained when two sweeps in a row meet no session of it: a packet may have chosen it
    /// just before it lost its slots, and a walk may miss an entry beside one that goes.
    ///
    /// # Errors
    ///
    /// When the data plane cannot do it.
    pub fn sweep(&mut self) -> Result<Plan, D::Error> {
        let swept = self.dataplane.sweep(Families::ALL)?;
        // A packet that saw a rule just before it went has long been handled.
        self.retired.clear();
        let idle: BTreeSet<_> =
            swept.left.into_iter().filter(|(_, left)| *left == 0).map(|(rule, _)| rule).collect();
        let drained = &idle & &self.idle;
        self.idle = idle;
        if drained.is_empty() {
            return Ok(Plan::default());
        }
        let image = self.live.without(&drained);
        let plan = diff(&self.live, &image);
        self.apply(&plan)?;
        self.live = image;
        self.retired.extend(drained);
        Ok(plan)
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, D::Error> {
        self.dataplane.apply(plan).or_else(|error| {
            let before = std::mem::take(&mut self.live);
            self.live = self.dataplane.read()?;
            self.retired.extend(retired_ids(&before, &self.live));
            Err(error)
        })
    }

    /// What the maps hold.
    #[must_use]
    pub const fn live(&self) -> &MapImage {
        &self.live
    }

    /// The data plane.
    pub const fn dataplane(&mut self) -> &mut D {
        &mut self.dataplane
    }
}
