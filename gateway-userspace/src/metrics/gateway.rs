//! The metrics of `vpc-gateway run`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gateway_common::family::{V4, V6};
use gateway_common::records::Counter;
use gateway_common::verdict::{DropReason, PassReason, SESSIONS_CLOSED, SESSIONS_OPENED, Tries};

use super::histogram::Histogram;
use super::page::Page;
use super::tally::{Amount, Last, Tally};
use super::{Collect, Facts, catalog, seconds};
use crate::daemon::chain;
use crate::dataplane::Applied;
use crate::dataplane::census::PortsInUse;
use crate::dataplane::maps::{MapFamily, Maps, MapsError};
use crate::dataplane::pins::Pins;
use crate::image::{Content, MapImage, is_draining, kind_of, name_of};
use crate::routers::report::{MemberStatus, Report, State};
use crate::status::{InterfaceStatus, SourceStatus};

/// What a gateway's daemon counts by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Rounds that changed something.
    pub apply: Histogram,
    /// How long changes took from when they were heard of.
    pub delay: Histogram,
    /// Rounds that changed nothing.
    pub idle_rounds: u64,
    /// Rounds that failed.
    pub failed_rounds: u64,
    /// Map entries.
    pub applied: Applied,
    /// Sessions that ended with their rules.
    pub cut: u64,
    /// Sweeps.
    pub sweep: Histogram,
    /// Sessions that sweeps have ended.
    pub swept: u64,
}

impl Counts {
    /// Counts a round that succeeded.
    pub fn round(&mut self, applied: Applied, cut: u64, took: Duration) {
        if applied == Applied::default() {
            self.idle_rounds += 1;
            return;
        }
        self.apply.record(took);
        self.applied.inserted += applied.inserted;
        self.applied.updated += applied.updated;
        self.applied.deleted += applied.deleted;
        self.cut += cut;
    }
}

/// What a gateway's daemon publishes.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// When the process started, in seconds since 1970.
    pub started_at: u64,
    /// Why it is not ready; `None` if it is.
    pub unready: Option<String>,
    /// How many problems each step has found.
    pub problems: Vec<(&'static str, usize)>,
    /// Whether the maps are there; and if so, whether they were there before the process.
    pub maps: Option<Origin>,
    /// Changes with everything that changes rules in the maps.
    pub edition: u64,
    /// Number of the applied state.
    pub generation: u32,
    /// The interfaces with programs.
    pub interfaces: Vec<InterfaceStatus>,
    /// How many rejections there are of each kind.
    pub rejections: BTreeMap<&'static str, usize>,
    /// Where the objects come from.
    pub source: SourceStatus,
    /// When the API server was last heard of.
    pub heard: Option<Heard>,
    /// How many ports an EIP has.
    pub ports: u32,
    /// How many external ports of each EIP were in use at the end of the last sweep.
    pub ports_in_use: Arc<PortsInUse>,
    /// What was counted.
    pub counts: Counts,
    /// The next-hop groups.
    pub routers: Report,
}

/// Where the maps come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Made by this process.
    Made,
    /// Left by another one.
    Adopted,
}

impl Facts for Published {
    fn started_at(&self) -> u64 {
        self.started_at
    }

    fn unready(&self) -> Option<String> {
        if self.started_at == 0 { Some("starting".to_owned()) } else { self.unready.clone() }
    }

    fn problems(&self) -> Vec<(&'static str, usize)> {
        self.problems.clone()
    }
}

/// When something was last heard of: written by whoever hears it, on any thread.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<AtomicU64>);

impl Heard {
    /// Just now.
    pub fn now(&self) {
        self.0.store(seconds(), Ordering::Relaxed);
    }

    /// Seconds since then; `None` if never.
    fn age(&self) -> Option<u64> {
        let last = self.0.load(Ordering::Relaxed);
        (last > 0).then(|| seconds().saturating_sub(last))
    }
}

/// A rule as the page shows it.
struct Known {
    kind: &'static str,
    name: String,
    draining: bool,
    eip: Option<IpAddr>,
}

/// Reads the maps of one gateway.
pub struct Gateway {
    pins: Pins,
    maps: Option<Maps>,
    /// The edition of `image`.
    edition: Option<u64>,
    sizes: Vec<(String, usize)>,
    rules: BTreeMap<u32, Known>,
    addresses: BTreeSet<IpAddr>,
    named: Tally<u32>,
    others: BTreeMap<&'static str, Amount>,
    eips: Tally<IpAddr>,
    last_rules: Last<u32>,
    last_eips: Last<IpAddr>,
}

impl Gateway {
    /// For the gateway with these pins; shows up to `limit` rules and EIPs one by one.
    #[must_use]
    pub fn new(pins: Pins, limit: usize) -> Self {
        Self {
            pins,
            maps: None,
            edition: None,
            sizes: Vec::new(),
            rules: BTreeMap::new(),
            addresses: BTreeSet::new(),
            named: Tally::new(limit),
            others: ["dnat", "fip", "forward", "snat"].map(|kind| (kind, Amount::default())).into(),
            eips: Tally::new(limit),
            last_rules: Last::default(),
            last_eips: Last::default(),
        }
    }

    /// Opens the maps once they are there. What others have counted before us is none of ours.
    fn open(&mut self, facts: &Published) -> Result<(), MapsError> {
        let (None, Some(origin)) = (&self.maps, facts.maps) else { return Ok(()) };
        let maps = Maps::open(&self.pins)?;
        self.refresh(&maps, facts)?;
        if origin == Origin::Adopted {
            for id in self.rules.keys() {
                self.last_rules.grown(*id, amount(maps.rule_counter(*id)?));
            }
            for (eip, _, amount) in eips(&maps)? {
                self.last_eips.grown(eip, amount);
            }
        }
        self.maps = Some(maps);
        Ok(())
    }

    /// Reads the rules again if they have changed.
    fn refresh(&mut self, maps: &Maps, facts: &Published) -> Result<(), MapsError> {
        if self.edition == Some(facts.edition) {
            return Ok(());
        }
        let image = maps.read()?;
        self.sizes = sizes(&image);
        self.rules = known(&image);
        self.addresses = self.rules.values().filter_map(|rule| rule.eip).collect();
        let ids = self.rules.keys().copied().collect();
        self.named.keep(&ids);
        self.last_rules.keep(&ids);
        self.eips.keep(&self.addresses);
        self.last_eips.keep(&self.addresses);
        self.edition = Some(facts.edition);
        Ok(())
    }

    fn fill(&mut self, facts: &Published, page: &mut Page) -> Result<(), MapsError> {
        self.open(facts)?;
        let Some(maps) = self.maps.take() else { return Ok(()) };
        let filled = self.refresh(&maps, facts).and_then(|()| self.show(&maps, facts, page));
        self.maps = Some(maps);
        filled
    }

    fn show(&mut self, maps: &Maps, facts: &Published, page: &mut Page) -> Result<(), MapsError> {
        self.show_rules(maps, page)?;
        self.show_eips(maps, &facts.ports_in_use, page)?;
        sessions(maps, page)?;
        reasons(maps, page)?;
        let mut entries = page.metric(catalog::MAP_ENTRIES);
        for (map, count) in &self.sizes {
            entries.sample([map], count);
        }
        let mut limits = page.metric(catalog::MAP_LIMIT);
        for (map, count) in maps.capacities() {
            limits.sample([&map], count);
        }
        Ok(())
    }

    fn show_rules(&mut self, maps: &Maps, page: &mut Page) -> Result<(), MapsError> {
        let mut counters = BTreeMap::new();
        for (id, rule) in &self.rules {
            let counter = maps.rule_counter(*id)?;
            let grown = self.last_rules.grown(*id, amount(counter));
            if let Some(eip) = &rule.eip {
                self.eips.add(eip, grown);
            }
            if self.named.is_named(id) {
                counters.insert(*id, counter);
            } else {
                let other = self.others.entry(rule.kind).or_default();
                other.packets += grown.packets;
                other.bytes += grown.bytes;
            }
        }
        let mut states: BTreeMap<_, u64> = BTreeMap::new();
        for kind in self.others.keys() {
            states.insert((*kind, "active"), 0);
        }
        for rule in self.rules.values() {
            let state = if rule.draining { "draining" } else { "active" };
            *states.entry((rule.kind, state)).or_default() += 1;
        }
        let mut rules = page.metric(catalog::RULES);
        for ((kind, state), count) in states {
            rules.sample([kind, state], count);
        }
        type Pick = fn(&Counter) -> u64;
        let picks: [(_, Pick); 2] = [
            (catalog::RULE_PACKETS, |counter| counter.packets),
            (catalog::RULE_BYTES, |counter| counter.bytes),
        ];
        for (metric, pick) in picks {
            let mut samples = page.metric(metric);
            for (id, counter) in &counters {
                let Some(rule) = self.rules.get(id) else { continue };
                samples.sample([rule.kind, &rule.name, &id.to_string()], pick(counter));
            }
        }
        let mut packets = page.metric(catalog::OTHER_RULE_PACKETS);
        self.others.iter().for_each(|(kind, other)| packets.sample([kind], other.packets));
        let mut bytes = page.metric(catalog::OTHER_RULE_BYTES);
        self.others.iter().for_each(|(kind, other)| bytes.sample([kind], other.bytes));
        Ok(())
    }

    fn show_eips(
        &mut self,
        maps: &Maps,
        ports_in_use: &PortsInUse,
        page: &mut Page,
    ) -> Result<(), MapsError> {
        let mut open = BTreeMap::new();
        let mut open_elsewhere = 0;
        for (eip, sessions, now) in eips(maps)? {
            // One that came with a change that is still under way is shown next time.
            if !self.addresses.contains(&eip) {
                continue;
            }
            let grown = self.last_eips.grown(eip, now);
            self.eips.add(&eip, grown);
            if self.eips.is_named(&eip) {
                open.insert(eip, sessions);
            } else {
                open_elsewhere += sessions;
            }
        }
        type Pick = fn(&Amount) -> u64;
        let picks: [(_, _, Pick); 4] = [
            (catalog::EIP_PACKETS, catalog::OTHER_EIP_PACKETS, |amount| amount.packets),
            (catalog::EIP_BYTES, catalog::OTHER_EIP_BYTES, |amount| amount.bytes),
            (catalog::EIP_OPENED, catalog::OTHER_EIP_OPENED, |amount| amount.opened),
            (catalog::EIP_REFUSED, catalog::OTHER_EIP_REFUSED, |amount| amount.refused),
        ];
        for (metric, other, pick) in picks {
            let mut samples = page.metric(metric);
            for (eip, amount) in self.eips.named() {
                samples.sample([&eip.to_string()], pick(amount));
            }
            page.single(other, pick(&self.eips.other()));
        }
        let mut samples = page.metric(catalog::EIP_SESSIONS);
        for (eip, sessions) in open {
            samples.sample([&eip.to_string()], sessions);
        }
        page.single(catalog::OTHER_EIP_SESSIONS, open_elsewhere);
        let mut samples = page.metric(catalog::EIP_PORTS);
        for (eip, _) in self.eips.named() {
            samples.sample([&eip.to_string()], ports_in_use.get(eip).copied().unwrap_or(0));
        }
        page.single(catalog::EIPS, self.addresses.len());
        Ok(())
    }
}

impl Collect<Published> for Gateway {
    fn collect(&mut self, facts: &Published, page: &mut Page) -> Vec<String> {
        page.single(catalog::GENERATION, facts.generation);
        let mut interfaces = page.metric(catalog::INTERFACE);
        for InterfaceStatus { side, name, mode, attach, .. } in &facts.interfaces {
            interfaces.sample([side.as_str(), name, &mode.to_string(), &attach.to_string()], 1);
        }
        page.single(catalog::PORTS, facts.ports);
        counted(&facts.counts, page);
        let mut rejections = page.metric(catalog::REJECTIONS);
        for (kind, count) in &facts.rejections {
            rejections.sample([kind], count);
        }
        source(facts, page);
        routers(&facts.routers, page);
        self.fill(facts, page).err().map(|error| chain(&error)).into_iter().collect()
    }
}

fn routers(report: &Report, page: &mut Page) {
    let members = || {
        report.groups.iter().flat_map(|group| {
            let labels = |member: &MemberStatus| {
                [group.side.as_str().to_owned(), group.family.clone(), member.address.to_string()]
            };
            group.members.iter().map(move |member| (labels(member), member))
        })
    };
    let mut alive = page.metric(catalog::ROUTER_ALIVE);
    for (labels, member) in members() {
        let is_dead = matches!(member.state, State::Dead | State::NotOnLink);
        alive.sample(labels.each_ref().map(String::as_str), u8::from(!is_dead));
    }
    let mut slots = page.metric(catalog::ROUTER_SLOTS);
    for (labels, member) in members() {
        slots.sample(labels.each_ref().map(String::as_str), member.slots);
    }
}

fn counted(counts: &Counts, page: &mut Page) {
    let mut rounds = page.metric(catalog::ROUNDS);
    rounds.sample(["changed"], counts.apply.count());
    rounds.sample(["unchanged"], counts.idle_rounds);
    rounds.sample(["failed"], counts.failed_rounds);
    page.histogram(catalog::APPLY, &counts.apply);
    page.histogram(catalog::DELAY, &counts.delay);
    let mut changes = page.metric(catalog::CHANGES);
    changes.sample(["insert"], counts.applied.inserted);
    changes.sample(["update"], counts.applied.updated);
    changes.sample(["delete"], counts.applied.deleted);
    page.single(catalog::CUT, counts.cut);
    page.histogram(catalog::SWEEP, &counts.sweep);
    page.single(catalog::SWEPT, counts.swept);
}

fn source(facts: &Published, page: &mut Page) {
    let source = &facts.source;
    page.single(catalog::SOURCE_SYNCED, u8::from(source.synced));
    let connected = source.synced && source.trouble_since.is_none();
    page.single(catalog::SOURCE_CONNECTED, u8::from(connected));
    let mut objects = page.metric(catalog::SOURCE_OBJECTS);
    for (kind, count) in &source.objects {
        objects.sample([kind], count);
    }
    let mut heard = page.metric(catalog::SOURCE_HEARD);
    if let Some(age) = facts.heard.as_ref().and_then(Heard::age) {
        heard.sample([], age);
    }
    page.single(catalog::SOURCE_RELISTS, source.expired);
}

fn sessions(maps: &Maps, page: &mut Page) -> Result<(), MapsError> {
    page.single(catalog::SESSIONS, maps.open_sessions()?);
    page.single(catalog::SESSIONS_LIMIT, maps.session_capacity() / 2);
    page.single(catalog::OPENED, maps.counter(SESSIONS_OPENED)?.packets);
    page.single(catalog::CLOSED, maps.counter(SESSIONS_CLOSED)?.packets);
    let mut tries = page.metric(catalog::PORT_TRIES);
    for class in Tries::ALL {
        tries.sample([class.as_str()], maps.counter(class.counter())?.packets);
    }
    let (finished, seen) = maps.xdp_share()?;
    let mut xdp = page.metric(catalog::XDP_PACKETS);
    xdp.sample(["finished"], finished);
    xdp.sample(["passed"], seen.saturating_sub(finished));
    Ok(())
}

/// Why packets were not forwarded. All reasons are there from the beginning.
fn reasons(maps: &Maps, page: &mut Page) -> Result<(), MapsError> {
    let drops = DropReason::ALL.iter().map(|one| (one.as_str(), one.counter()));
    let passes = PassReason::ALL.iter().filter(|reason| !reason.is_of_xdp());
    let passes = passes.map(|one| (one.as_str(), one.counter()));
    let read = |(reason, index)| Ok((reason, maps.counter(index)?));
    let drops = drops.map(read).collect::<Result<Vec<_>, MapsError>>()?;
    let passes = passes.map(read).collect::<Result<Vec<_>, MapsError>>()?;
    for (list, packets, bytes) in [
        (drops, catalog::DROPPED_PACKETS, catalog::DROPPED_BYTES),
        (passes, catalog::PASSED_PACKETS, catalog::PASSED_BYTES),
    ] {
        let mut samples = page.metric(packets);
        list.iter().for_each(|(reason, counter)| samples.sample([reason], counter.packets));
        let mut samples = page.metric(bytes);
        list.iter().for_each(|(reason, counter)| samples.sample([reason], counter.bytes));
    }
    Ok(())
}

/// Every EIP with its open sessions and what it has counted.
fn eips(maps: &Maps) -> Result<Vec<(IpAddr, u64, Amount)>, MapsError> {
    fn family<F: MapFamily>(
        maps: &Maps,
        all: &mut Vec<(IpAddr, u64, Amount)>,
    ) -> Result<(), MapsError> {
        all.extend(maps.eips::<F>()?.into_iter().map(|(address, eip)| {
            let (opened, refused) = (eip.opened, eip.refused);
            let amount = Amount { opened, refused, ..Amount::default() };
            (F::decode(address), eip.sessions, amount)
        }));
        Ok(())
    }
    let mut all = Vec::new();
    family::<V4>(maps, &mut all)?;
    family::<V6>(maps, &mut all)?;
    Ok(all)
}

fn known(image: &MapImage) -> BTreeMap<u32, Known> {
    let contents = image.contents();
    let known = |(id, rule)| {
        let eip = match contents.get(id) {
            Some(
                Content::Fip { eip, .. } | Content::Dnat { eip, .. } | Content::Snat { eip, .. },
            ) => Some(*eip),
            Some(Content::Forward { .. }) | None => None,
        };
        let (kind, name, draining) = (kind_of(rule), name_of(rule), is_draining(rule));
        (*id, Known { kind, name, draining, eip })
    };
    image.rules.iter().map(known).collect()
}

fn sizes(image: &MapImage) -> Vec<(String, usize)> {
    fn family<F: MapFamily>(image: &MapImage, sizes: &mut Vec<(String, usize)>) {
        let maps = F::of(image);
        let counts = [
            ("FIPS", maps.fips.len()),
            ("DNATS", maps.dnats.len()),
            ("SLOTS", maps.slots.len()),
            ("BACKENDS", maps.backends.len()),
            ("SNATS", maps.snats.len()),
            ("EIPS", maps.eips.len()),
        ];
        sizes.extend(counts.map(|(map, count)| (format!("{map}_{}", F::SUFFIX), count)));
    }
    let mut sizes = vec![("RULES".to_owned(), image.rules.len())];
    family::<V4>(image, &mut sizes);
    family::<V6>(image, &mut sizes);
    sizes
}

const fn amount(counter: Counter) -> Amount {
    let Counter { packets, bytes } = counter;
    Amount { packets, bytes, opened: 0, refused: 0 }
}
