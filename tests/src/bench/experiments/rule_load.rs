//! Rules from YAML to active: all of them, and one change among them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use gateway_common::family::V4;
use gateway_common::records::{Dnat, DnatKey};
use serde_json::Value;

use super::{Bench, spaced};
use crate::bench::plan::{DNAT_PORT, EIP_DNAT};
use crate::bench::report::Unit;
use crate::bench::rules::Rules;
use crate::bench::screen::progress;
use crate::bench::subject::{Setup, Subject, Way};
use crate::kernel::maps::Raw;
use crate::lab::topology::External;
use crate::lab::wait::wait_until;

/// Its name.
pub const NAME: &str = "rule load";

/// Rows: from the renamed file to the last entry in the maps, and what of it is the writing of maps.
pub fn rows(rules: u32) -> [String; 3] {
    let rules = spaced(rules.into());
    [
        format!("{rules} rules from YAML to active"),
        format!("one of {rules} rules changed"),
        format!("one of {rules} rules changed: the maps alone"),
    ]
}

const PATIENCE: Duration = Duration::from_secs(60);

/// Measures.
///
/// # Errors
/// The rules do not become active.
pub fn run(bench: &mut Bench) -> Result<()> {
    let way = Way::Tc;
    for rules in [100, 10_000, 100_000] {
        progress(&format!("{NAME}: {} rules", spaced(rules.into())));
        let rows = rows(rules);
        let setup = Setup {
            rules: Rules { dnats: 0 },
            sessions: 1 << 16,
            external: External::Veth,
            generated: false,
        };
        // The ids of so many rules are not free again when as many others come a moment later.
        let repeats = if rules > 10_000 { 1 } else { 3 };
        let mut subjects = bench.subjects(&[way], &setup);
        for row in &rows {
            subjects.note_absent(&mut bench.report, NAME, row, Unit::Millis);
        }
        for subject in &mut subjects.ready {
            for _ in 0..repeats {
                apply(subject, Rules { dnats: 0 })?;
                let loaded = apply(subject, Rules { dnats: rules })?;
                let (changed, writing) = change_one(subject, rules)?;
                for (row, value) in rows.iter().zip([loaded, changed, writing]) {
                    bench.report.add(NAME, row, way.name(), Unit::Millis, millis(value));
                }
            }
        }
    }
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Replaces the manifests as an editor does. Returns when the new name was in place.
fn put(subject: &Subject, yaml: &str) -> Result<Instant> {
    let scratch = &subject.rig.scratch;
    let draft = scratch.write("draft.yaml", yaml)?;
    let started = Instant::now();
    std::fs::rename(draft, scratch.join("config/rules.yaml"))?;
    Ok(started)
}

/// The daemon's own record: reading it costs less than asking for it.
fn status(subject: &Subject) -> Result<Value> {
    let name = &subject.rig.name;
    let path = subject.rig.scratch.join(&format!("state-{name}")).join(name).join("status.json");
    let text = std::fs::read(&path).with_context(|| format!("no {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

fn generation(subject: &Subject) -> Result<u64> {
    status(subject)?["generation"].as_u64().context("no `generation` in the status")
}

/// Waits by looking again and again: what is timed may take less than a pause.
pub(super) fn until(
    patience: Duration,
    what: &str,
    mut done: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !done()? {
        if Instant::now() >= deadline {
            anyhow::bail!("waited {patience:?} for {what}");
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Applies rules and returns how long that took.
fn apply(subject: &Subject, rules: Rules) -> Result<Duration> {
    let before = generation(subject)?;
    let started = put(subject, &rules.yaml(&subject.rig.name))?;
    // Applying the same again changes nothing, and has no generation of its own.
    if rules.dnats == 0 && dnat_count(subject)? == 0 {
        return Ok(Duration::ZERO);
    }
    until(PATIENCE, "the rules to be active", || Ok(generation(subject)? > before))?;
    let elapsed = started.elapsed();
    wait_until("as many rules as were written", PATIENCE, || {
        Ok((dnat_count(subject)? == u64::from(rules.dnats)).then_some(()))
    })?;
    Ok(elapsed)
}

fn dnat_count(subject: &Subject) -> Result<u64> {
    let status = status(subject)?;
    let rules = status["rules"].as_object().context("no `rules` in the status")?;
    let count = |(kind, count): (&String, &Value)| {
        kind.to_lowercase().contains("dnat").then(|| count.as_u64().unwrap_or(0))
    };
    Ok(rules.iter().filter_map(count).sum())
}

/// Changes the inside port of the first rule. Returns the time until its map entry says so, and the
/// daemon's own account of how long it wrote maps.
fn change_one(subject: &Subject, rules: u32) -> Result<(Duration, Duration)> {
    const NEW_PORT: u16 = 9;
    let yaml = Rules { dnats: rules }.yaml(&subject.rig.name);
    let old = format!("internalPort: \"{DNAT_PORT}\"");
    let changed = yaml.replacen(&old, &format!("internalPort: \"{NEW_PORT}\""), 1);
    let gateway = subject.gateway.as_ref().context("no gateway")?;
    let map = open(&gateway.pins().join("DNATS_V4"))?;
    let key = DnatKey { eip: EIP_DNAT.into(), port: DNAT_PORT as u16, protocol: 17, zero: 0 };
    let before = generation(subject)?;
    let started = put(subject, &changed)?;
    until(PATIENCE, "the rule to change", || {
        Ok(map.get(&Raw(key), 0).is_ok_and(|dnat| dnat.0.port == NEW_PORT))
    })?;
    let elapsed = started.elapsed();
    until(PATIENCE, "the status", || Ok(generation(subject)? > before))?;
    let micros = status(subject)?["last_apply"]["duration_us"].as_u64().unwrap_or(0);
    Ok((elapsed, Duration::from_micros(micros)))
}

pub(super) type Dnats = HashMap<MapData, Raw<DnatKey<V4>>, Raw<Dnat<V4>>>;

pub(super) fn open(path: &Path) -> Result<Dnats> {
    let data = MapData::from_pin(path).with_context(|| format!("no map at {}", path.display()))?;
    Ok(HashMap::try_from(Map::HashMap(data))?)
}
