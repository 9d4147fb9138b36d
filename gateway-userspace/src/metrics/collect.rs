//! Answers to requests, whatever they are about.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};
use tokio::sync::watch;

use super::page::Page;
use super::{Facts, catalog, seconds};
use crate::clock;

/// A page is not made anew more often than this, whoever asks, unless the daemon has news.
const FRESH: Duration = Duration::from_secs(1);

/// How long the daemon's loop may be busy with one thing before it is taken for dead.
const DEAD: u64 = 60;

/// Makes a page of metrics.
pub trait Collect<P>: Send + 'static {
    /// Adds what it knows. What cannot be read is left out, and returned.
    fn collect(&mut self, facts: &P, page: &mut Page) -> Vec<String>;
}

/// What the server asks.
pub(super) trait Respond: Send + 'static {
    /// The page of `/metrics`.
    fn metrics(&mut self) -> Result<Arc<str>, String>;

    /// Whether everything was listed once and applied.
    fn ready(&self) -> Result<(), String>;

    /// Whether the daemon's loop turns.
    fn healthy(&self) -> Result<(), String>;
}

/// A collector with what is published for it.
pub struct Collector<P, C> {
    collect: C,
    published: watch::Receiver<Arc<P>>,
    beat: Arc<AtomicU64>,
    last: Option<Made<P>>,
}

/// A page, when it was made and of what.
struct Made<P> {
    at: Instant,
    of: Arc<P>,
    page: Arc<str>,
}

impl<P: Facts, C: Collect<P>> Collector<P, C> {
    pub(super) const fn new(
        collect: C,
        published: watch::Receiver<Arc<P>>,
        beat: Arc<AtomicU64>,
    ) -> Self {
        Self { collect, published, beat, last: None }
    }

    fn facts(&self) -> Arc<P> {
        Arc::clone(&self.published.borrow())
    }
}

impl<P: Facts, C: Collect<P>> Respond for Collector<P, C> {
    fn metrics(&mut self) -> Result<Arc<str>, String> {
        let facts = self.facts();
        if let Some(last) = &self.last
            && last.at.elapsed() < FRESH
            && Arc::ptr_eq(&last.of, &facts)
        {
            return Ok(Arc::clone(&last.page));
        }
        let began = clock::now();
        let mut page = Page::default();
        common(&*facts, &mut page);
        let problems = self.collect.collect(&facts, &mut page);
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        page.single(catalog::SCRAPE, began.elapsed().as_secs_f64());
        let page: Arc<str> = page.into_text().into();
        self.last = Some(Made { at: clock::now(), of: facts, page: Arc::clone(&page) });
        Ok(page)
    }

    fn ready(&self) -> Result<(), String> {
        self.facts().unready().map_or(Ok(()), Err)
    }

    fn healthy(&self) -> Result<(), String> {
        let silent = seconds().saturating_sub(self.beat.load(Ordering::Relaxed));
        if silent > DEAD { Err(format!("busy with one thing for {silent} s")) } else { Ok(()) }
    }
}

fn common(facts: &impl Facts, page: &mut Page) {
    page.metric(catalog::BUILD).sample([env!("CARGO_PKG_VERSION")], 1);
    page.single(catalog::START, facts.started_at());
    page.single(catalog::READY, u8::from(facts.unready().is_none()));
    let mut problems = page.metric(catalog::PROBLEMS);
    for (step, count) in facts.problems() {
        problems.sample([step], count);
    }
    if let Some((cpu, memory)) = process() {
        page.single(catalog::CPU, cpu);
        page.single(catalog::MEMORY, memory);
    }
}

/// CPU time in seconds and resident memory in bytes.
fn process() -> Option<(f64, u64)> {
    let number = |name| sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok());
    let (tick, size) = (number(SysconfVar::CLK_TCK)?, number(SysconfVar::PAGE_SIZE)?);
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in brackets, may contain anything.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let (user, system, pages) = (field(11)?, field(12)?, field(21)?);
    Some(((user + system) as f64 / tick as f64, pages * size))
}
