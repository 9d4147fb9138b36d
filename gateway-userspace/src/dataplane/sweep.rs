//! Sessions that are over, found a slice at a time: the daemon does other things in between, and no
//! program runs for longer than a frame of keys takes.

use std::collections::HashMap;
use std::time::Duration;

use gateway_common::family::{Family, V4, V6};
use gateway_common::records::{Config, RuleState, Session};
use gateway_common::sweep::{FRAME_BYTES, HEADER_BYTES, NO_RULE, is_candidate, keys_in_frame};
use gateway_common::tuple::Tuple;

use super::census::Census;
use super::maps::{MapFamily, Maps, MapsError};
use super::raw::{Raw, key_bytes};
use crate::clock;
use crate::plan::Families;

/// How many entries a slice has: a few milliseconds.
const SLICE: usize = 8192;

/// Frames for the sweep programs with these session keys.
#[must_use]
pub fn frames<F: Family>(keys: &[Tuple<F>]) -> Vec<Vec<u8>> {
    let frame = |keys: &[Tuple<F>]| {
        let mut frame = Vec::with_capacity(FRAME_BYTES);
        frame.resize(HEADER_BYTES, 0);
        keys.iter().for_each(|key| frame.extend_from_slice(key_bytes(key)));
        frame
    };
    keys.chunks(keys_in_frame::<F>()).map(frame).collect()
}

/// Which family a sweep is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// It is over.
    Over,
}

impl Stage {
    const fn next(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 | Self::Over => Self::Over,
        }
    }
}

/// A sweep that is under way.
#[derive(Debug)]
pub(super) struct Sweep {
    /// What is swept.
    pub(super) families: Families,
    /// How far it is.
    pub(super) stage: Stage,
    position: Option<u32>,
    turn: u16,
    /// Whether what it counts of draining rules is all there is.
    pub(super) counts: bool,
    /// The ports that it has met.
    pub(super) census: Census,
    /// How many sessions have ended so far.
    pub(super) ended: u64,
    /// How many runs of a program there were so far, how long all took, and the longest.
    pub(super) runs: u32,
    pub(super) running: Duration,
    pub(super) longest: Duration,
}

impl Sweep {
    /// The `turn`-th one.
    pub(super) fn new(families: Families, turn: u16) -> Self {
        Self {
            families,
            stage: Stage::V4,
            position: None,
            turn,
            counts: true,
            census: Census::default(),
            ended: 0,
            runs: 0,
            running: Duration::ZERO,
            longest: Duration::ZERO,
        }
    }

    /// Steps over families that are not wanted.
    pub(super) fn skip(&mut self) {
        while match self.stage {
            Stage::V4 => !self.families.v4,
            Stage::V6 => !self.families.v6,
            Stage::Over => false,
        } {
            self.stage = self.stage.next();
        }
    }

    /// The next slice of the family that the sweep is at: frames with the keys of those that may be over.
    pub(super) fn slice(
        &mut self,
        maps: &Maps,
        rules: &HashMap<u32, u8>,
    ) -> Result<Vec<Vec<u8>>, MapsError> {
        let config = maps.config()?;
        let (frames, rest) = match self.stage {
            Stage::V4 => self.read::<V4>(maps, rules, &config)?,
            Stage::V6 => self.read::<V6>(maps, rules, &config)?,
            Stage::Over => return Ok(Vec::new()),
        };
        self.position = rest;
        if rest.is_none() {
            self.stage = self.stage.next();
        }
        Ok(frames)
    }

    fn read<F: MapFamily>(
        &mut self,
        maps: &Maps,
        rules: &HashMap<u32, u8>,
        config: &Config,
    ) -> Result<(Vec<Vec<u8>>, Option<u32>), MapsError> {
        let mut keys = vec![Raw(Tuple::<F>::default()); SLICE];
        let mut sessions = vec![Raw(Session::<F>::default()); SLICE];
        let (count, rest) = maps.session_batch::<F>(self.position, &mut keys, &mut sessions)?;
        for (key, session) in keys[..count].iter().zip(&sessions[..count]) {
            self.census.meet(&key.0, &session.0);
        }
        let now = clock::ticks();
        let may_be_over = |(key, session): (&Raw<Tuple<F>>, &Raw<Session<F>>)| {
            let rule = match session.0.rule {
                0 => RuleState::Active as u8,
                rule => rules.get(&rule).copied().unwrap_or(NO_RULE),
            };
            is_candidate(&key.0, &session.0, rule, &config.timeouts, now, self.turn)
                .then_some(key.0)
        };
        let candidates: Vec<_> =
            keys[..count].iter().zip(&sessions[..count]).filter_map(may_be_over).collect();
        Ok((frames(&candidates), rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_in_one_frame_and_none_is_too_long() {
        for count in [0, 1, 223, 224, 225, 1000] {
            let keys: Vec<_> = (0..count)
                .map(|port| {
                    let mut key = Tuple::<V4>::default();
                    key.endpoints.source_port = port;
                    key
                })
                .collect();
            let frames = frames(&keys);
            assert!(frames.iter().all(|frame| frame.len() <= FRAME_BYTES));
            let ports: Vec<_> = frames
                .iter()
                .flat_map(|frame| frame[HEADER_BYTES..].chunks(size_of::<Tuple<V4>>()))
                .map(|key| u16::from_ne_bytes([key[8], key[9]]))
                .collect();
            assert_eq!(ports, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn families_that_are_not_wanted_are_stepped_over() {
        for (v4, v6, first) in
            [(true, true, Stage::V4), (false, true, Stage::V6), (false, false, Stage::Over)]
        {
            let mut sweep = Sweep::new(Families { v4, v6 }, 0);
            sweep.skip();
            assert_eq!(sweep.stage, first);
        }
    }
}
