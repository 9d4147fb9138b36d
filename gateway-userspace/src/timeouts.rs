//! Idle times by name: as `--timeouts` takes them, and as `status` shows them.

use std::collections::BTreeMap;
use std::str::FromStr;

use gateway_common::records::{Ticks, Timeouts, ticks_from_secs};

/// The shortest and the longest idle time in seconds: ticks wrap after 52 days.
const RANGE: std::ops::RangeInclusive<u32> = 1..=14 * 86_400;

/// An idle time that can be chosen.
struct Key {
    name: &'static str,
    /// The least that an RFC asks for, in seconds; 0 if none does.
    least: u32,
    /// Which one.
    rfc: &'static str,
    field: fn(&mut Timeouts) -> &mut Ticks,
}

const KEYS: [Key; 7] = [
    Key {
        name: "tcp-opening",
        least: 240,
        rfc: "RFC 5382 REQ-5",
        field: |timeouts| &mut timeouts.tcp_opening,
    },
    Key {
        name: "tcp-established",
        least: 7440,
        rfc: "RFC 5382 REQ-5",
        field: |timeouts| &mut timeouts.tcp_established,
    },
    Key {
        name: "tcp-closing",
        least: 240,
        rfc: "RFC 7857 section 2",
        field: |timeouts| &mut timeouts.tcp_closing,
    },
    Key {
        name: "udp-new",
        least: 120,
        rfc: "RFC 4787 REQ-5",
        field: |timeouts| &mut timeouts.udp_new,
    },
    Key {
        name: "udp-stream",
        least: 120,
        rfc: "RFC 4787 REQ-5",
        field: |timeouts| &mut timeouts.udp_stream,
    },
    Key { name: "icmp", least: 60, rfc: "RFC 5508 REQ-2", field: |timeouts| &mut timeouts.icmp },
    Key { name: "other", least: 0, rfc: "", field: |timeouts| &mut timeouts.other },
];

/// What is wrong with a `KEY=DURATION`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeoutError {
    /// No `=`.
    #[error("{0:?} is not KEY=DURATION, as in udp-stream=300 or tcp-established=3h")]
    Form(String),
    /// No such key.
    #[error("{0:?} is not a timeout, expected one of {list}", list = names())]
    Key(String),
    /// Not a duration.
    #[error("{key}: {value:?} is not a duration, expected seconds or a number with s, m, h or d")]
    Duration {
        /// Of which key.
        key: &'static str,
        /// What stood there.
        value: String,
    },
    /// A file that cannot be read.
    #[error("failed to read {path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// A line of a file.
    #[error("{place}: {source}")]
    Line {
        /// File and line.
        place: String,
        /// What is wrong with it.
        source: Box<Self>,
    },
    /// Too short or too long.
    #[error("{key}: {value:?} is not from 1s to 14d")]
    Range {
        /// Of which key.
        key: &'static str,
        /// What stood there.
        value: String,
    },
}

fn names() -> String {
    KEYS.map(|key| key.name).join(", ")
}

/// One idle time that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout {
    index: usize,
    seconds: u32,
}

impl FromStr for Timeout {
    type Err = TimeoutError;

    fn from_str(text: &str) -> Result<Self, TimeoutError> {
        let (name, value) =
            text.split_once('=').ok_or_else(|| TimeoutError::Form(text.to_owned()))?;
        let index = KEYS
            .iter()
            .position(|key| key.name == name)
            .ok_or_else(|| TimeoutError::Key(name.to_owned()))?;
        let key = KEYS[index].name;
        let seconds = seconds(value)
            .ok_or_else(|| TimeoutError::Duration { key, value: value.to_owned() })?;
        match u32::try_from(seconds) {
            Ok(seconds) if RANGE.contains(&seconds) => Ok(Self { index, seconds }),
            _ => Err(TimeoutError::Range { key, value: value.to_owned() }),
        }
    }
}

/// A part of `--timeouts`: one `KEY=DURATION`, or `@FILE` with one in each line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked(pub Vec<Timeout>);

impl FromStr for Asked {
    type Err = TimeoutError;

    fn from_str(text: &str) -> Result<Self, TimeoutError> {
        let Some(path) = text.strip_prefix('@') else {
            return Ok(Self(vec![text.parse()?]));
        };
        let lines = std::fs::read_to_string(path).map_err(|error| TimeoutError::File {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let said = lines.lines().enumerate().filter_map(|(index, line)| {
            // What follows a number sign is for people.
            let line = line.split('#').next().unwrap_or_default().trim();
            (!line.is_empty()).then_some((index + 1, line))
        });
        said.map(|(number, line)| {
            line.parse().map_err(|error| TimeoutError::Line {
                place: format!("{path}:{number}"),
                source: Box::new(error),
            })
        })
        .collect::<Result<_, _>>()
        .map(Self)
    }
}

/// `90`, `90s`, `2m`, `3h` or `1d`, in seconds.
fn seconds(text: &str) -> Option<u64> {
    let unit = match text.chars().last()? {
        's' | '0'..='9' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    let number: u64 = text.strip_suffix(['s', 'm', 'h', 'd']).unwrap_or(text).parse().ok()?;
    number.checked_mul(unit)
}

/// The defaults with what was asked for; of two for one key the later one counts.
#[must_use]
pub fn chosen(asked: &[Timeout]) -> Timeouts {
    let mut timeouts = Timeouts::default();
    for timeout in asked {
        *(KEYS[timeout.index].field)(&mut timeouts) = ticks_from_secs(timeout.seconds);
    }
    timeouts
}

/// Every idle time by its name, in seconds.
#[must_use]
pub fn by_name(mut timeouts: Timeouts) -> BTreeMap<&'static str, u32> {
    KEYS.iter().map(|key| (key.name, in_seconds(*(key.field)(&mut timeouts)))).collect()
}

/// What is shorter than an RFC asks for, one line each.
#[must_use]
pub fn too_short(mut timeouts: Timeouts) -> Vec<String> {
    let mut lines = Vec::new();
    for Key { name, least, rfc, field } in KEYS {
        let seconds = in_seconds(*field(&mut timeouts));
        if seconds < least {
            lines.push(format!("--timeouts {name}={seconds} is below the {least} s of {rfc}"));
        }
    }
    lines
}

/// Ticks in seconds; [`ticks_from_secs`] has rounded them down.
fn in_seconds(ticks: Ticks) -> u32 {
    let nanos = u64::from(ticks) << 20;
    u32::try_from(nanos.div_ceil(1_000_000_000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Timeout, TimeoutError> {
        text.parse()
    }

    #[test]
    fn durations_have_units() {
        for (text, seconds) in [
            ("udp-new=30", 30),
            ("udp-new=30s", 30),
            ("icmp=2m", 120),
            ("tcp-established=3h", 10_800),
        ] {
            assert_eq!(parse(text).unwrap().seconds, seconds, "{text}");
        }
        let chosen = chosen(&[parse("icmp=1d").unwrap(), parse("icmp=90").unwrap()]);
        assert_eq!(chosen, Timeouts { icmp: ticks_from_secs(90), ..Timeouts::default() });
    }

    #[test]
    fn a_file_says_the_same_in_lines() {
        let path = std::env::temp_dir().join(format!("vpc-gateway-t-{}", std::process::id()));
        let asked = |text: &str| {
            std::fs::write(&path, text).unwrap();
            format!("@{}", path.display()).parse::<Asked>()
        };
        let file = asked("# ours\nudp-stream=10m # long\n\n  icmp=61\n").unwrap();
        let words = ["udp-stream=600", "icmp=61"].map(|word| word.parse().unwrap());
        assert_eq!(file, Asked(words.to_vec()));
        let wrong = asked("icmp=61\nicpm=61\n").unwrap_err().to_string();
        assert!(wrong.contains(":2: \"icpm\" is not a timeout"), "{wrong}");
        std::fs::remove_file(&path).unwrap();
        let missing = format!("@{}", path.display()).parse::<Asked>().unwrap_err().to_string();
        assert!(missing.starts_with("failed to read"), "{missing}");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, why) in [
            (
                "udp-new",
                "\"udp-new\" is not KEY=DURATION, as in udp-stream=300 or tcp-established=3h",
            ),
            (
                "udp=30",
                "\"udp\" is not a timeout, expected one of tcp-opening, tcp-established, \
                 tcp-closing, udp-new, udp-stream, icmp, other",
            ),
            ("icmp=0", "icmp: \"0\" is not from 1s to 14d"),
            ("icmp=15d", "icmp: \"15d\" is not from 1s to 14d"),
            (
                "icmp=1w",
                "icmp: \"1w\" is not a duration, expected seconds or a number with s, m, h or d",
            ),
            (
                "icmp=",
                "icmp: \"\" is not a duration, expected seconds or a number with s, m, h or d",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), why);
        }
        assert!(parse("icmp=-3").is_err() && parse("icmp=ssm").is_err());
    }

    #[test]
    fn defaults_read_as_they_are_written() {
        let names = by_name(Timeouts::default());
        assert_eq!(names["tcp-established"], 7440);
        assert_eq!(names.values().sum::<u32>(), 240 + 7440 + 240 + 120 + 300 + 60 + 300);
    }

    #[test]
    fn what_is_below_an_rfc_is_said() {
        assert_eq!(too_short(Timeouts::default()), Vec::<String>::new());
        let short = chosen(&[parse("tcp-established=1h").unwrap(), parse("other=1").unwrap()]);
        let line = "--timeouts tcp-established=3600 is below the 7440 s of RFC 5382 REQ-5";
        assert_eq!(too_short(short), [line]);
    }
}
