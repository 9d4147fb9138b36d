//! What a running gateway tells those who serve its metrics.

use std::collections::BTreeMap;

use super::{Daemon, Settings, Step};
use crate::metrics::gateway::{Origin, Published};
use crate::reconcile::Round;
use crate::rejection::Rejection;
use crate::status::Status;

impl Step {
    const ALL: [Self; 9] = [
        Self::Source,
        Self::Manifests,
        Self::Orders,
        Self::Interfaces,
        Self::Xdp,
        Self::Maps,
        Self::Host,
        Self::Answers,
        Self::NextHops,
    ];

    /// The word for it in metrics.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Manifests => "manifests",
            Self::Orders => "orders",
            Self::Interfaces => "interfaces",
            Self::Xdp => "xdp",
            Self::Maps => "maps",
            Self::Host => "host",
            Self::Answers => "answers",
            Self::NextHops => "next_hops",
        }
    }
}

impl Settings {
    /// How many ports from 1024 on an EIP has.
    fn ports(&self) -> u32 {
        let (low, high) = self.port_range;
        u32::from(high.saturating_sub(low)) + 1
    }
}

impl Daemon {
    /// Replaces what is published.
    pub(super) fn publish(&self) {
        let Some(publisher) = &self.settings.metrics else { return };
        let interfaces = self.ports.iter().filter_map(|(side, port)| port.status(*side));
        let count = |step: Step| (step.as_str(), self.problems.count(step));
        publisher.publish(Published {
            started_at: self.started_at,
            unready: self.unready(),
            problems: Step::ALL.map(count).to_vec(),
            maps: Some(if self.adopted { Origin::Adopted } else { Origin::Made }),
            edition: self.edition,
            generation: self.maps.live().config.map_or(0, |config| config.generation),
            interfaces: interfaces.collect(),
            rejections: self.rejected.clone(),
            source: self.source.clone(),
            heard: self.heard.clone(),
            ports: self.settings.ports(),
            ports_in_use: self.ports_in_use.clone(),
            counts: self.counts,
            routers: self.routers.report(),
        });
    }

    /// Why it is not ready, if so.
    fn unready(&self) -> Option<String> {
        if self.ready {
            return None;
        }
        let why = self.problems.0.get(&Step::Interfaces).and_then(|found| found.first());
        Some(why.cloned().unwrap_or_else(|| "starting".to_owned()))
    }

    /// Says that the loop turns.
    pub(super) fn beat(&self) {
        self.settings.metrics.iter().for_each(super::Publisher::beat);
    }

    /// Counts a round.
    pub(super) fn count(&mut self, round: &Round) {
        self.counts.round(round.applied, round.sessions_cut, round.duration);
        self.edition += u64::from(!round.plan.is_empty());
    }
}

/// Tells that the process waits for what it needs to start.
pub(super) fn publish_waiting(settings: &Settings, status: &Status) {
    let Some(publisher) = &settings.metrics else { return };
    publisher.beat();
    publisher.publish(Published {
        started_at: status.started_at,
        unready: status.problems.last().cloned(),
        problems: vec![(Step::Source.as_str(), status.problems.len())],
        source: status.source.clone(),
        ports: settings.ports(),
        rejections: by_kind(&[]),
        ..Published::default()
    });
}

/// How many rejections there are of each kind; kinds without any are 0.
pub(super) fn by_kind(rejections: &[Rejection]) -> BTreeMap<&'static str, usize> {
    let mut kinds = BTreeMap::new();
    for kind in crate::rejection::RejectionKind::ALL {
        kinds.insert(kind.as_str(), 0);
    }
    for rejection in rejections {
        *kinds.entry(rejection.kind().as_str()).or_default() += 1;
    }
    kinds
}
