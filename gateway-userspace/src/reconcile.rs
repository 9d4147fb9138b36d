//! `DesiredState -> MapImage -> Plan -> Dataplane`: the middle of the control path, in one place.
//!
//! The image of what the maps hold is kept between rounds, so that one changed rule costs one
//! comparison and a few writes, not a walk over the maps.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::Stopwatch;
use crate::dataplane::census::PortsInUse;
use crate::dataplane::{Applied, Dataplane, Swept};
use crate::desired::DesiredState;
use crate::encode::part::{Touched, encode_part};
use crate::encode::{Encoded, Overflow, Surroundings, encode, retired_ids};
use crate::image::MapImage;
use crate::plan::{Families, Plan, diff};

/// A data plane and what it is known to hold.
pub struct Reconciler<D: Dataplane> {
    dataplane: D,
    live: MapImage,
    /// Ids of rules that went, which sessions may still bear. They are not given away.
    retired: BTreeSet<u32>,
    /// Those of them whose sessions no whole sweep has met yet.
    uncut: BTreeSet<u32>,
    /// What both were when the sweep under way began.
    passing: [BTreeSet<u32>; 2],
    /// Draining rules without a session in the last sweep.
    idle: BTreeSet<u32>,
    /// Whether a sweep is under way.
    sweeping: bool,
    /// When it began.
    began: Stopwatch,
}

/// For how long a round waits until the sessions of rules that went are over. With a few hundred thousand
/// sessions it takes longer: the sweep goes on afterwards, slice by slice beside everything else.
const CUT: Duration = Duration::from_millis(100);

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
    /// Sessions of rules that went, and sessions that were idle anyway, as far as they ended at once.
    pub sessions_cut: u64,
    /// The rules that had drained when a sweep ended meanwhile.
    pub drained: Plan,
}

/// A sweep that is over.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// The rules that have drained, which are gone.
    pub plan: Plan,
    /// How many ids of rules that went may be given to others from now on.
    pub freed: usize,
    /// External ports in use, if that was counted.
    pub ports: Option<PortsInUse>,
    /// How many sessions have ended.
    pub ended: u64,
    /// How long it took.
    pub took: Duration,
    /// How long the longest run of a program took.
    pub longest: Duration,
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
        Ok(Self {
            dataplane,
            live,
            retired: BTreeSet::new(),
            uncut: BTreeSet::new(),
            passing: Default::default(),
            idle: BTreeSet::new(),
            sweeping: false,
            began: Stopwatch::start(),
        })
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
        let Sweep { ended: sessions_cut, plan: drained, .. } = self.cut(&plan)?;
        Ok(Round { plan, applied, overflows, duration, sessions_cut, drained })
    }

    /// Ends the sessions of the rules that went, or begins to. Returns what is over in time.
    ///
    /// A sweep that is under way meets some of them; another one follows it for the others.
    fn cut(&mut self, plan: &Plan) -> Result<Sweep, D::Error> {
        let mut done = Sweep::default();
        let Some(cut) = plan.cut() else { return Ok(done) };
        self.retired.extend(&cut.rules);
        let families = if self.uncut.is_empty() { cut.families } else { Families::ALL };
        self.uncut.extend(&cut.rules);
        if !self.sweeping {
            self.begin(families)?;
        }
        let watch = Stopwatch::start();
        while !self.uncut.is_empty() && watch.elapsed() < CUT {
            if let Some(swept) = self.sweep_on()? {
                done.ended += swept.ended;
                done.plan.changes.extend(swept.plan.changes);
            }
        }
        Ok(done)
    }

    /// As [`Reconciler::round`], where nothing but the touched rules has changed since the last one.
    /// Costs as much as they do, however many rules there are.
    ///
    /// # Errors
    ///
    /// When a change is refused. The next round starts from what is really there.
    pub fn round_of(
        &mut self,
        desired: &DesiredState,
        touched: &Touched,
        surroundings: &Surroundings,
    ) -> Result<Round, D::Error> {
        let watch = Stopwatch::start();
        let part = encode_part(desired, touched, surroundings, &self.live, &self.retired);
        let Some(part) = part else { return self.round(desired, surroundings) };
        let plan = diff(&part.before, &part.after);
        let applied = self.apply(&plan)?;
        let duration = watch.elapsed();
        plan.changes.iter().for_each(|change| self.live.apply(change));
        let Sweep { ended: sessions_cut, plan: drained, .. } = self.cut(&plan)?;
        let overflows = part.overflows;
        Ok(Round { plan, applied, overflows, duration, sessions_cut, drained })
    }

    /// A whole sweep at once: [`Reconciler::begin_sweep`] and [`Reconciler::sweep_on`] until it is over.
    ///
    /// # Errors
    ///
    /// When the data plane cannot do it.
    pub fn sweep(&mut self) -> Result<Plan, D::Error> {
        self.begin_sweep()?;
        loop {
            if let Some(done) = self.sweep_on()? {
                return Ok(done.plan);
            }
        }
    }

    /// Begins to end sessions that are idle or whose rule is gone.
    ///
    /// # Errors
    ///
    /// When the data plane cannot do it.
    pub fn begin_sweep(&mut self) -> Result<(), D::Error> {
        self.begin(Families::ALL)
    }

    fn begin(&mut self, families: Families) -> Result<(), D::Error> {
        self.sweeping = false;
        self.dataplane.begin_sweep(families)?;
        self.sweeping = true;
        let seen_once = &self.retired - &self.uncut;
        let seen_once = if families == Families::ALL { seen_once } else { BTreeSet::new() };
        self.passing = [seen_once, self.uncut.clone()];
        self.began = Stopwatch::start();
        Ok(())
    }

    /// Whether a sweep is under way.
    #[must_use]
    pub const fn is_sweeping(&self) -> bool {
        self.sweeping
    }

    /// Does the next slice of a sweep; with the last one, removes rules that have drained. Returns
    /// nothing while the sweep is under way. If rules went meanwhile, the next sweep begins at once.
    ///
    /// A rule has drained when two sweeps in a row meet no session of it: a packet may have chosen it
    /// just before it lost its slots, and a walk may miss an entry beside one that goes.
    ///
    /// # Errors
    ///
    /// When the data plane cannot do it. The sweep is over then.
    pub fn sweep_on(&mut self) -> Result<Option<Sweep>, D::Error> {
        let sweeping = std::mem::take(&mut self.sweeping);
        let Some(mut swept) = self.dataplane.sweep_on()? else {
            self.sweeping = sweeping;
            return Ok(None);
        };
        let (ended, longest, took) = (swept.ended, swept.longest, self.began.elapsed());
        let ports = swept.ports.take();
        let (plan, freed) = self.settle(swept)?;
        if !self.uncut.is_empty() {
            self.begin_sweep()?;
        }
        Ok(Some(Sweep { plan, freed, ports, ended, took, longest }))
    }

    /// Returns what became of drained rules, and how many ids are free again.
    fn settle(&mut self, swept: Swept) -> Result<(Plan, usize), D::Error> {
        // A packet that saw a rule just before it went has long been handled when the second sweep begins.
        let [seen_twice, cut] = std::mem::take(&mut self.passing);
        let retired = self.retired.len();
        self.retired.retain(|rule| !seen_twice.contains(rule));
        let freed = retired - self.retired.len();
        self.uncut.retain(|rule| !cut.contains(rule));
        let idle: BTreeSet<_> =
            swept.left.into_iter().filter(|(_, left)| *left == 0).map(|(rule, _)| rule).collect();
        let drained = &idle & &self.idle;
        self.idle = idle;
        if drained.is_empty() {
            return Ok((Plan::default(), freed));
        }
        let image = self.live.without(&drained);
        let plan = diff(&self.live, &image);
        self.apply(&plan)?;
        self.live = image;
        self.retired.extend(drained);
        Ok((plan, freed))
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
