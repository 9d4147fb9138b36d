//! A gateway of the daemon's own making with very many sessions, which nobody opened packet by packet.

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use gateway_common::family::{Ipv4, V4};
use gateway_common::records::{Config, Counter, ORIGINAL, Session, Ticks, ticks_from_secs};
use gateway_common::tuple::{Direction, Tuple};
use gateway_common::verdict::SESSIONS_OPENED;
use gateway_userspace::clock;
use gateway_userspace::dataplane::kernel::{Kernel, KernelOptions};
use gateway_userspace::dataplane::pins::Pins;
use gateway_userspace::plan::{Change, Edit};

use super::maps::{Raw, SessionMap};
use crate::build_packet::UDP;
use crate::harness::config;
use crate::harness::routes::Links;

/// Programs and maps as the daemon loads them, attached nowhere; the pins go with it.
pub struct Crowd {
    /// What the daemon drives.
    pub kernel: Kernel,
    pins: Pins,
    count: u32,
}

/// What a session of a [`Crowd`] is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nobody has used it for long.
    Idle,
    /// Both ends have just used it.
    Live,
    /// The first end is silent, the other one is not.
    Answered,
}

/// Of four sessions two are idle.
#[must_use]
pub fn kind(number: u32) -> Kind {
    match number % 4 {
        0 | 2 => Kind::Idle,
        1 => Kind::Live,
        _ => Kind::Answered,
    }
}

impl Crowd {
    /// Loads the object, and fills the session map of IPv4 with `count` sessions, which is all that it takes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn gather(name: &str, object: &[u8], count: u32, preallocate: bool) -> Result<Self> {
        let max_sessions = Some(count);
        let options = KernelOptions { max_sessions, preallocate, ..KernelOptions::default() };
        let pins = Pins::new(name);
        let mut crowd = Self { kernel: Kernel::open(name, object, &options)?, pins, count };
        let config = Config { generation: 1, ..config(&Links::IMAGINED) };
        let edit = Edit { key: (), old: None, new: Some(config) };
        crowd.kernel.maps_mut().write(&Change::Config(edit))?;
        crowd.fill()?;
        Ok(crowd)
    }

    fn fill(&mut self) -> Result<()> {
        let mut sessions = self.sessions()?;
        let now = clock::ticks();
        for number in 0..self.count {
            let [original, reply] = session(number, now);
            sessions.insert(original.0, original.1, 0).context("an original")?;
            sessions.insert(reply.0, reply.1, 0).context("a reply")?;
        }
        // The sweep leaves maps alone in which there never was a session.
        let mut counters: PerCpuArray<MapData, Raw<Counter>> = self.map("COUNTERS")?;
        let cpus = nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?;
        let mut values = vec![Raw(Counter::default()); cpus];
        values[0].0.packets = self.count.into();
        counters.set(SESSIONS_OPENED, PerCpuValues::try_from(values)?, 0)?;
        Ok(())
    }

    fn map<M: TryFrom<Map, Error = aya::maps::MapError>>(&self, name: &str) -> Result<M> {
        let path = self.pins.map(name);
        let data = MapData::from_pin(&path).with_context(|| path.display().to_string())?;
        Ok(M::try_from(Map::from_map_data(data)?)?)
    }

    fn sessions(&self) -> Result<SessionMap<V4>> {
        self.map("SESSIONS_V4")
    }

    /// The numbers of the sessions that have both halves, and how many entries there are beside theirs.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn whole(&self) -> Result<(Vec<u32>, usize)> {
        let sessions = self.sessions()?;
        let whole: Vec<_> = (0..self.count)
            .filter(|number| {
                session(*number, 0).iter().all(|(key, _)| sessions.get(key, 0).is_ok())
            })
            .collect();
        let entries = sessions.keys().count();
        let others = entries - 2 * whole.len();
        Ok((whole, others))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Err(error) = self.pins.remove() {
            eprintln!("{error}");
        }
    }
}

/// A key and its value.
type Entry = (Raw<Tuple<V4>>, Raw<Session<V4>>);

/// Both entries of a session.
fn session(number: u32, now: Ticks) -> [Entry; 2] {
    let ago = |seconds| now.wrapping_sub(ticks_from_secs(seconds));
    let (first, second) = match kind(number) {
        Kind::Idle => (ago(400), ago(500)),
        Kind::Live => (ago(1), ago(1)),
        Kind::Answered => (ago(400), ago(1)),
    };
    let (host, port) = ((number / 60_000) as u8, (number % 60_000) as u16 + 1024);
    let mut key = Tuple::<V4> { protocol: UDP, ..Tuple::default() };
    key.direction = Direction::Outbound as u8;
    key.endpoints.source = Ipv4 { octets: [10, 0, 1, host] };
    key.endpoints.destination = Ipv4 { octets: [198, 51, 100, 7] };
    (key.endpoints.source_port, key.endpoints.destination_port) = (port, 443);
    let mut translated = key.endpoints;
    translated.source = Ipv4 { octets: [203, 0, 113, host] };
    let one = Session::<V4> { packets: 1, translated, ..Session::default() };
    let original = Session { last_seen: first, flags: ORIGINAL, ..one };
    let opposite = original.opposite(&key);
    let reply = Session { last_seen: second, translated: key.endpoints.reversed(), ..one };
    [(Raw(key), Raw(original)), (Raw(opposite), Raw(reply))]
}
