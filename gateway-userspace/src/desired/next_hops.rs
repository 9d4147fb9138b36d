//! The annotations that name the routers of a gateway.
//!
//! ```text
//! vpc-gateway.io/external-next-hops: 203.0.113.1, 203.0.113.2 weight 2, 2001:db8::1
//! vpc-gateway.io/internal-next-hops: 10.0.1.1, 10.0.1.2
//! vpc-gateway.io/next-hop-hash: 5-tuple            or source; or one for each side: source/5-tuple
//! vpc-gateway.io/next-hop-bfd: 300/300/3           minRX and minTX in ms, multiplier; or on, off
//! vpc-gateway.io/next-hop-return: stay             or move
//! ```
//!
//! On a `Vpc`, `next-hop-bfd` is for the next hops of static routes with a `bfdId`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use gateway_common::nexthop::{GROUP_MEMBERS, HashFields};
use serde::Serialize;

use super::Bfd;
use super::annotation::path;
use super::egress::{Hash, hash_word, interval, multiplier};
use super::findings::{Findings, Site};
use super::value;
use crate::crd::Metadata;
use crate::rejection::Problem;

/// The routers outside, of both families.
pub(super) const EXTERNAL: &str = "vpc-gateway.io/external-next-hops";

/// The routers of the VPC, of both families.
pub(super) const INTERNAL: &str = "vpc-gateway.io/internal-next-hops";

/// What chooses the router of a flow: `5-tuple` (the default) or `source`, for both sides; or outside and
/// inside with `/` between.
pub(super) const NEXT_HOP_HASH: &str = "vpc-gateway.io/next-hop-hash";

/// How the routers are watched: `on`, `off` (the default), or `minRX/minTX/multiplier` in milliseconds.
pub(super) const NEXT_HOP_BFD: &str = "vpc-gateway.io/next-hop-bfd";

/// What becomes of open sessions when a router comes, or comes back: `stay` (the default) or `move`.
pub(super) const NEXT_HOP_RETURN: &str = "vpc-gateway.io/next-hop-return";

/// All of them.
pub(super) const ALL: [&str; 5] =
    [EXTERNAL, INTERNAL, NEXT_HOP_HASH, NEXT_HOP_BFD, NEXT_HOP_RETURN];

/// Largest weight of a router.
const MAX_WEIGHT: u32 = 1000;

/// The routers of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NextHops {
    /// Those outside.
    pub external: Vec<Router>,
    /// Those of the VPC.
    pub internal: Vec<Router>,
    /// What chooses the router of a flow.
    pub hash: Hashes,
    /// How they are watched, if by BFD: our own intervals.
    pub bfd: Option<Bfd>,
    /// Whether open sessions go back to a router that is there again.
    pub moves: bool,
}

/// What chooses the router of a flow on each side. Written as the annotation has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hashes {
    /// Outside.
    pub external: HashFields,
    /// Inside.
    pub internal: HashFields,
}

impl fmt::Display for Hashes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { external, internal } = self;
        f.write_str(hash_word(*external))?;
        if external == internal { Ok(()) } else { write!(f, "/{}", hash_word(*internal)) }
    }
}

impl Serialize for Hashes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Hashes {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let (external, internal) = text.split_once('/').unwrap_or((text, text));
        let read = |text: &str| text.parse::<Hash>().map(|hash| hash.0);
        Ok(Self { external: read(external)?, internal: read(internal)? })
    }
}

/// A router that a gateway sends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Router {
    /// Its address.
    pub address: IpAddr,
    /// Its share; 0 takes it out, and its sessions stay.
    pub weight: u32,
}

impl NextHops {
    /// Whether nobody has named any, so that routes alone decide.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.external.is_empty() && self.internal.is_empty()
    }
}

/// Reads the annotations. Whatever is bad in them is rejected, and the rest goes on.
pub(super) fn read(site: &Site, metadata: &Metadata, findings: &mut Findings) -> NextHops {
    let mut reader = Reader { site, metadata, findings };
    let (external, internal) = (reader.routers(EXTERNAL), reader.routers(INTERNAL));
    let hash: Hashes = reader.value(NEXT_HOP_HASH).unwrap_or_default();
    let watch: Watch = reader.value(NEXT_HOP_BFD).unwrap_or_default();
    let back: Return = reader.value(NEXT_HOP_RETURN).unwrap_or_default();
    NextHops { external, internal, hash, bfd: watch.0, moves: back.0 }
}

/// Reads [`NEXT_HOP_BFD`] alone: `None` if it is not there or bad, else what it says.
pub(super) fn watch(
    site: &Site,
    metadata: &Metadata,
    findings: &mut Findings,
) -> Option<Option<Bfd>> {
    let watch: Option<Watch> = Reader { site, metadata, findings }.value(NEXT_HOP_BFD);
    watch.map(|watch| watch.0)
}

struct Reader<'r> {
    site: &'r Site,
    metadata: &'r Metadata,
    findings: &'r mut Findings,
}

impl Reader<'_> {
    fn value<T: FromStr<Err = Problem>>(&mut self, name: &'static str) -> Option<T> {
        let text = self.metadata.annotations.get(name)?;
        self.findings.accept(self.site, &path(name), text.parse())
    }

    fn routers(&mut self, name: &'static str) -> Vec<Router> {
        let Some(text) = self.metadata.annotations.get(name) else { return Vec::new() };
        let field = path(name);
        let mut routers: Vec<Router> = Vec::new();
        for part in text.split(',') {
            let router = router(part.trim()).and_then(|router| fits(&routers, router));
            routers.extend(self.findings.accept(self.site, &field, router));
        }
        for ipv4 in [true, false] {
            let of_family = |router: &&Router| router.address.is_ipv4() == ipv4;
            let mut all = routers.iter().filter(of_family).peekable();
            if all.peek().is_some() && all.all(|router| router.weight == 0) {
                let (value, not) = (text.clone(), "a group: every weight is 0");
                let expected = "a router of each family with a weight from 1 on";
                let problem = Problem::Invalid { value, not, expected };
                self.findings.reject(self.site, &field, problem);
                routers.retain(|router| router.address.is_ipv4() != ipv4);
            }
        }
        routers
    }
}

/// An address, or one with `weight N`.
fn router(text: &str) -> Result<Router, Problem> {
    let mut words = text.split_whitespace();
    let address = value::address(words.next().unwrap_or_default())?;
    let weight = match (words.next(), words.next(), words.next()) {
        (None, ..) => Some(1),
        (Some("weight"), Some(number), None) => weight(number),
        _ => None,
    };
    let weight = weight.ok_or_else(|| Problem::Invalid {
        value: text.to_owned(),
        not: "a next hop",
        expected: "an address, or one followed by weight and 0 to 1000",
    })?;
    Ok(Router { address, weight })
}

fn weight(text: &str) -> Option<u32> {
    // `u32` would take "+1".
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|weight| digits && *weight <= MAX_WEIGHT)
}

fn fits(there: &[Router], router: Router) -> Result<Router, Problem> {
    let address = router.address;
    if there.iter().any(|other| other.address == address) {
        return Err(Problem::RepeatedMember { address });
    }
    let of_family = there.iter().filter(|other| other.address.is_ipv4() == address.is_ipv4());
    if of_family.count() >= GROUP_MEMBERS {
        let (value, not) = (address.to_string(), "among the first 16 of its family");
        return Err(Problem::Invalid { value, not, expected: "at most 16 next hops of a family" });
    }
    Ok(router)
}

/// The value of [`NEXT_HOP_BFD`].
#[derive(Default)]
struct Watch(Option<Bfd>);

impl FromStr for Watch {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text {
            "off" => return Ok(Self(None)),
            "on" => return Ok(Self(Some(Bfd::DEFAULT))),
            _ => {}
        }
        let invalid = || Problem::Invalid {
            value: text.to_owned(),
            not: "a way to watch next hops",
            expected: "off, on, or minRX/minTX/multiplier in ms such as 300/300/3",
        };
        let numbers: Option<Vec<u32>> = text.split('/').map(|part| part.parse().ok()).collect();
        let Some([rx, tx, times]) = numbers.as_deref() else { return Err(invalid()) };
        let bfd =
            Bfd { min_rx: interval(*rx)?, min_tx: interval(*tx)?, multiplier: multiplier(*times)? };
        Ok(Self(Some(bfd)))
    }
}

/// The value of [`NEXT_HOP_RETURN`].
#[derive(Default)]
struct Return(bool);

impl FromStr for Return {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text {
            "stay" => Ok(Self(false)),
            "move" => Ok(Self(true)),
            other => Err(Problem::Invalid {
                value: other.to_owned(),
                not: "what becomes of open sessions",
                expected: "stay or move",
            }),
        }
    }
}

impl Bfd {
    /// For how long nothing may be heard, as far as our side says.
    #[must_use]
    pub fn detection(&self) -> Duration {
        self.min_tx.max(self.min_rx) * u32::from(self.multiplier)
    }
}
