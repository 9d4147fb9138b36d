//! Which hook an interface gets, and why. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::features::XdpFeatures;

/// What the user asks for (`--mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The best that works.
    #[default]
    Auto,
    /// TC only.
    Tc,
    /// XDP in the driver in front of TC.
    Xdp,
    /// XDP in the generic hook in front of TC.
    XdpGeneric,
}

/// A word that is not a mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a mode, expected auto, tc, xdp or xdp-generic")]
pub struct UnknownMode(String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        match text {
            "auto" => Ok(Self::Auto),
            "tc" => Ok(Self::Tc),
            "xdp" => Ok(Self::Xdp),
            "xdp-generic" => Ok(Self::XdpGeneric),
            other => Err(UnknownMode(other.to_owned())),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Tc => "tc",
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdp-generic",
        })
    }
}

/// A value of `--mode`: for both interfaces, or `INTERFACE=MODE` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeArgument {
    interface: Option<String>,
    mode: Mode,
}

impl FromStr for ModeArgument {
    type Err = UnknownMode;

    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        Ok(match text.split_once('=') {
            Some((interface, mode)) => {
                Self { interface: Some(interface.to_owned()), mode: mode.parse()? }
            }
            None => Self { interface: None, mode: text.parse()? },
        })
    }
}

/// The mode that the arguments give to an interface: its own one first, then the one for all.
#[must_use]
pub fn requested(arguments: &[ModeArgument], interface: &str) -> Mode {
    let own = arguments.iter().rfind(|argument| argument.interface.as_deref() == Some(interface));
    let all = || arguments.iter().rfind(|argument| argument.interface.is_none());
    own.or_else(all).map_or(Mode::Auto, |argument| argument.mode)
}

/// The hook that was chosen. TC is always behind XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// TC ingress.
    Tc,
    /// XDP in the driver.
    Xdp,
    /// XDP in the generic hook.
    XdpGeneric,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tc => "tc",
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdp-generic",
        })
    }
}

/// A choice and its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The hook.
    pub mode: Hook,
    /// Why.
    pub reason: String,
}

impl Choice {
    fn new(mode: Hook, reason: &str) -> Self {
        Self { mode, reason: reason.to_owned() }
    }
}

/// The mode that was asked for is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--mode xdp for {interface}: {reason}; use --mode {interface}=auto, tc or xdp-generic")]
pub struct Unsupported {
    interface: String,
    reason: &'static str,
}

/// What is known of an interface.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its kind as `ip -d link` names it; `None` for hardware.
    pub kind: Option<&'a str>,
    /// What its driver says of itself; `None` if the kernel does not tell.
    pub features: Option<XdpFeatures>,
}

/// Chooses the hook of an interface.
///
/// # Errors
///
/// When a mode is forced that cannot be had.
pub fn choose(interface: &Candidate<'_>, requested: Mode) -> Result<Choice, Unsupported> {
    match requested {
        Mode::Auto => Ok(match why_not_xdp(interface) {
            Some(reason) => Choice::new(Hook::Tc, reason),
            None => Choice::new(Hook::Xdp, "hardware whose driver has native XDP"),
        }),
        Mode::Tc => Ok(Choice::new(Hook::Tc, "asked for by --mode tc")),
        Mode::Xdp => match why_no_xdp(interface) {
            Some(reason) => Err(Unsupported { interface: interface.name.to_owned(), reason }),
            None if interface.kind == Some("veth") => Ok(Choice::new(Hook::Xdp, ON_VETH)),
            None => Ok(Choice::new(Hook::Xdp, "asked for by --mode xdp")),
        },
        Mode::XdpGeneric => Ok(Choice::new(
            Hook::XdpGeneric,
            "asked for by --mode xdp-generic; turns GRO off, and is slower than tc for most traffic",
        )),
    }
}

/// The choice when XDP turned out not to work on an interface after all.
#[must_use]
pub fn without_xdp(why: &str) -> Choice {
    Choice::new(Hook::Tc, why)
}

const ON_VETH: &str = "asked for by --mode xdp; veth: senders must compute checksums themselves \
     (ethtool -K eth0 tx off), and segmentation offload is lost";

/// Why the driver's XDP hook is not used unless it is asked for.
fn why_not_xdp(interface: &Candidate<'_>) -> Option<&'static str> {
    match interface.kind {
        Some("veth") => Some("veth: native XDP would lose checksum offload"),
        Some("macvlan" | "ipvlan" | "bridge" | "vlan" | "dummy") => why_no_xdp(interface),
        Some(_) => Some("virtual interface: native XDP is not used on its kind"),
        None => why_no_xdp(interface),
    }
}

/// Why there is no XDP hook in the driver.
fn why_no_xdp(interface: &Candidate<'_>) -> Option<&'static str> {
    match interface.kind {
        Some("macvlan") => Some("macvlan: no native XDP"),
        Some("ipvlan") => Some("ipvlan: no native XDP"),
        Some("bridge") => Some("bridge: no native XDP"),
        Some("vlan") => Some("vlan: no native XDP"),
        Some("dummy") => Some("dummy: no native XDP"),
        _ if interface.features.is_some_and(|features| !features.is_native()) => {
            Some("its driver has no native XDP")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(kind: Option<&str>, features: Option<u64>, mode: Mode) -> Result<Choice, String> {
        let features = features.map(XdpFeatures::from_bits);
        choose(&Candidate { name: "net1", kind, features }, mode).map_err(|error| error.to_string())
    }

    #[test]
    fn auto_takes_xdp_on_hardware_that_has_it() {
        for (kind, features, hook, reason) in [
            (Some("veth"), Some(0x27), Hook::Tc, "lose checksum offload"),
            (Some("macvlan"), Some(0), Hook::Tc, "macvlan: no native XDP"),
            (Some("vxlan"), Some(0), Hook::Tc, "virtual interface"),
            (None, Some(0), Hook::Tc, "its driver has no native XDP"),
            (None, Some(3), Hook::Xdp, "native XDP"),
            // Before 6.3 only an attempt tells.
            (None, None, Hook::Xdp, "native XDP"),
        ] {
            let choice = chosen(kind, features, Mode::Auto).unwrap();
            assert_eq!(choice.mode, hook, "{kind:?} {features:?}");
            assert!(choice.reason.contains(reason), "{choice:?}");
        }
    }

    #[test]
    fn forced_xdp_that_cannot_work_is_refused_in_one_line() {
        for (kind, features) in [(Some("macvlan"), None), (Some("vlan"), Some(0)), (None, Some(0))]
        {
            let error = chosen(kind, features, Mode::Xdp).unwrap_err();
            assert!(error.starts_with("--mode xdp for net1:"), "{error}");
            assert!(error.contains("use --mode net1=auto") && !error.contains('\n'), "{error}");
            let generic = chosen(kind, features, Mode::XdpGeneric).unwrap();
            assert_eq!(generic.mode, Hook::XdpGeneric);
        }
    }

    #[test]
    fn forced_xdp_on_veth_says_what_it_costs() {
        let choice = chosen(Some("veth"), Some(0x27), Mode::Xdp).unwrap();
        assert_eq!(choice.mode, Hook::Xdp);
        assert!(choice.reason.contains("checksums"), "{choice:?}");
    }

    #[test]
    fn an_interface_may_have_a_mode_of_its_own() {
        let arguments: Vec<_> =
            ["tc", "net1=auto"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(requested(&arguments, "eth0"), Mode::Tc);
        assert_eq!(requested(&arguments, "net1"), Mode::Auto);
        assert!("net1=fast".parse::<ModeArgument>().is_err());
    }
}
