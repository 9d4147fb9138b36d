//! A data plane in memory, which can be told to fail.

use std::collections::BTreeMap;

use super::{Applied, Dataplane, Swept};
use crate::image::{MapImage, is_draining};
use crate::plan::{Families, Plan};

/// Maps without a kernel.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// What they hold.
    pub image: MapImage,
    /// How many changes succeed before one fails; `None` for all of them.
    pub patience: Option<usize>,
    /// How often sessions were swept.
    pub sweeps: u64,
    /// What the sweep that is under way is for.
    pub sweeping: Option<Families>,
    /// How many sessions rules have that are draining; none if they are not here.
    pub sessions: BTreeMap<u32, u32>,
}

/// The change that was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to apply change {index} of {total}")]
pub struct Refused {
    /// Its number, counted from 1.
    pub index: usize,
    /// How many there were.
    pub total: usize,
}

impl Dataplane for Memory {
    type Error = Refused;

    fn read(&mut self) -> Result<MapImage, Refused> {
        Ok(self.image.clone())
    }

    fn apply(&mut self, plan: &Plan) -> Result<Applied, Refused> {
        let mut applied = Applied::default();
        for (index, change) in plan.changes.iter().enumerate() {
            if self.patience.is_some_and(|patience| index >= patience) {
                return Err(Refused { index: index + 1, total: plan.changes.len() });
            }
            self.image.apply(change);
            applied.count(change.action());
        }
        Ok(applied)
    }

    fn begin_sweep(&mut self, families: Families) -> Result<(), Refused> {
        self.sweeps += 1;
        self.sweeping = Some(families);
        Ok(())
    }

    fn sweep_on(&mut self) -> Result<Option<Swept>, Refused> {
        if self.sweeping.take() != Some(Families::ALL) {
            return Ok(Some(Swept::default()));
        }
        let draining = self.image.rules.iter().filter(|(_, rule)| is_draining(rule));
        let left = draining.map(|(id, _)| (*id, self.sessions.get(id).copied().unwrap_or(0)));
        Ok(Some(Swept { left: left.collect(), ..Swept::default() }))
    }
}
