//! Where metrics are served.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// A TCP port, or a socket that only whoever may write it can ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `ADDRESS:PORT`.
    Tcp(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Tcp(address));
        }
        // A pod knows the address of its node without brackets.
        let bare = text.rsplit_once(':').and_then(|(address, port)| {
            Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, port.parse().ok()?))
        });
        bare.map(Self::Tcp).ok_or_else(|| {
            format!("{text} is neither ADDRESS:PORT, such as 127.0.0.1:9184, nor unix:PATH")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_port_or_a_path() {
        for (text, said) in [
            ("127.0.0.1:9184", "127.0.0.1:9184"),
            ("[::1]:9184", "[::1]:9184"),
            ("fd00::5:9184", "[fd00::5]:9184"),
            ("unix:/run/x", "unix:/run/x"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), said);
        }
        for bad in ["", "9184", "localhost:9184", "unix:", ":9184", "127.0.0.1:"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
