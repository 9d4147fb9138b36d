//! Which hook an interface gets, and why. Pure.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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

/// The hook that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// TC ingress.
    Tc,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad("tc")
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

/// The mode that was asked for is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--mode {mode} for {interface}: this version has no XDP program yet ({reason}); \
     use --mode auto or tc"
)]
pub struct Unsupported {
    mode: Mode,
    interface: String,
    reason: &'static str,
}

/// Chooses the hook of an interface of `kind` (as `ip -d link` names it; `None` for hardware).
///
/// # Errors
///
/// When a mode is forced that cannot be had.
pub fn choose(interface: &str, requested: Mode, kind: Option<&str>) -> Result<Choice, Unsupported> {
    let reason = why_not_xdp(kind);
    match requested {
        Mode::Auto => Ok(Choice { mode: Hook::Tc, reason: reason.to_owned() }),
        Mode::Tc => Ok(Choice { mode: Hook::Tc, reason: "asked for by --mode tc".to_owned() }),
        mode @ (Mode::Xdp | Mode::XdpGeneric) => {
            Err(Unsupported { mode, interface: interface.to_owned(), reason })
        }
    }
}

/// Why the driver's XDP hook is not used.
fn why_not_xdp(kind: Option<&str>) -> &'static str {
    match kind {
        Some("veth") => "veth: native XDP would lose checksum offload",
        Some("macvlan") => "macvlan: no native XDP",
        Some("ipvlan") => "ipvlan: no native XDP",
        Some("bridge") => "bridge: no native XDP",
        Some("vlan") => "vlan: no native XDP",
        Some("dummy") => "dummy: no native XDP",
        Some(_) => "virtual interface: native XDP is not used on its kind",
        None => "hardware: the TC program handles everything",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_tc_with_a_reason() {
        let choice = choose("eth0", Mode::Auto, Some("veth")).unwrap();
        assert_eq!(choice.mode, Hook::Tc);
        assert_eq!(choice.reason, "veth: native XDP would lose checksum offload");
        assert!(choose("net1", Mode::Auto, Some("macvlan")).unwrap().reason.contains("macvlan"));
    }

    #[test]
    fn forced_xdp_is_refused_in_one_line() {
        let error = choose("net1", Mode::Xdp, Some("macvlan")).unwrap_err().to_string();
        assert!(error.starts_with("--mode xdp for net1:"), "{error}");
        assert!(!error.contains('\n'));
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
