//! The metrics of `vpc-gateway select`.

use gateway_common::verdict::DropReason;

use super::page::Page;
use super::{Collect, Facts, catalog};
use crate::bfd::packet::State;
use crate::bfd::report::Sessions;
use crate::daemon::chain;
use crate::dataplane::maps::MapsError;
use crate::dataplane::pins::Pins;
use crate::egress::maps::Maps;
use crate::egress::plan::{Liveness, MemberStatus};
use crate::egress::report::Report;

/// What a selector publishes.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// When the process started, in seconds since 1970.
    pub started_at: u64,
    /// The groups; `None` until they are in the maps.
    pub report: Option<Report>,
    /// The BFD sessions.
    pub bfd: Sessions,
}

impl Facts for Published {
    fn started_at(&self) -> u64 {
        self.started_at
    }

    fn unready(&self) -> Option<String> {
        self.report.is_none().then(|| "starting".to_owned())
    }

    fn problems(&self) -> Vec<(&'static str, usize)> {
        vec![("selector", self.report.as_ref().map_or(0, |report| report.problems.len()))]
    }
}

/// Reads the maps of one selector.
pub struct Selector {
    pins: Pins,
    maps: Option<Maps>,
}

impl Selector {
    /// For the selector with these pins.
    #[must_use]
    pub const fn new(pins: Pins) -> Self {
        Self { pins, maps: None }
    }

    fn fill(&mut self, report: &Report, page: &mut Page) -> Result<(), MapsError> {
        let maps = match self.maps.take() {
            Some(maps) => maps,
            None => Maps::open(&self.pins)?,
        };
        let filled = show(&maps, report, page);
        self.maps = Some(maps);
        filled
    }
}

impl Collect<Published> for Selector {
    fn collect(&mut self, facts: &Published, page: &mut Page) -> Vec<String> {
        let mut up = page.metric(catalog::BFD_UP);
        for session in &facts.bfd.sessions {
            let (local, remote) = (session.ends.local.to_string(), session.ends.remote.to_string());
            up.sample([&local, &remote], u8::from(session.state == State::Up));
        }
        let mut flaps = page.metric(catalog::BFD_FLAPS);
        for session in &facts.bfd.sessions {
            let (local, remote) = (session.ends.local.to_string(), session.ends.remote.to_string());
            flaps.sample([&local, &remote], session.flaps);
        }
        let Some(report) = &facts.report else { return Vec::new() };
        self.fill(report, page).err().map(|error| chain(&error)).into_iter().collect()
    }
}

fn show(maps: &Maps, report: &Report, page: &mut Page) -> Result<(), MapsError> {
    let members = || {
        report.groups.iter().flat_map(|group| {
            let labels = |member: &MemberStatus| {
                [group.gateway.clone(), group.family.clone(), member.address.to_string()]
            };
            group.members.iter().map(move |member| (labels(member), member))
        })
    };
    let counters = members()
        .map(|(labels, member)| Ok((labels, maps.member_counter(member.id)?)))
        .collect::<Result<Vec<_>, MapsError>>()?;
    let mut packets = page.metric(catalog::NEXT_HOP_PACKETS);
    for (labels, counter) in &counters {
        packets.sample(labels.each_ref().map(String::as_str), counter.packets);
    }
    let mut bytes = page.metric(catalog::NEXT_HOP_BYTES);
    for (labels, counter) in &counters {
        bytes.sample(labels.each_ref().map(String::as_str), counter.bytes);
    }
    let mut alive = page.metric(catalog::NEXT_HOP_ALIVE);
    for (labels, member) in members() {
        // What BFD has said nothing about yet counts as it did before.
        let is_alive = matches!(member.liveness, Liveness::Alive | Liveness::Unknown);
        alive.sample(labels.each_ref().map(String::as_str), u8::from(is_alive));
    }
    let mut slots = page.metric(catalog::NEXT_HOP_SLOTS);
    for (labels, member) in members() {
        slots.sample(labels.each_ref().map(String::as_str), member.slots);
    }
    let mut dropped = page.metric(catalog::SELECTOR_DROPPED);
    for reason in [DropReason::NoNextHop, DropReason::Denied] {
        dropped.sample([reason.as_str()], maps.counter(reason.counter())?.packets);
    }
    Ok(())
}
