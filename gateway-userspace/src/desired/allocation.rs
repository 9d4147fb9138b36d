//! The addresses that were chosen for EIPs without one, kept across restarts.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

/// The addresses that were chosen for each EIP, at most one of each family, by the name of its
/// `IptablesEIP`.
///
/// Covers every gateway of the input, so that daemons that share their manifests choose alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Allocations(
    #[serde(deserialize_with = "one_or_more")] pub BTreeMap<String, Vec<IpAddr>>,
);

/// Reads the file of an earlier version too, which had one address for each EIP.
fn one_or_more<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, Vec<IpAddr>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Addresses {
        One(IpAddr),
        More(Vec<IpAddr>),
    }

    let entries = BTreeMap::<String, Addresses>::deserialize(deserializer)?;
    let list = |addresses| match addresses {
        Addresses::One(address) => vec![address],
        Addresses::More(addresses) => addresses,
    };
    Ok(entries.into_iter().map(|(name, addresses)| (name, list(addresses))).collect())
}

/// The file of [`Allocations`] could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AllocationError {
    /// An I/O error.
    #[error("failed to {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not what [`Allocations::save`] writes.
    #[error("failed to parse {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
}

impl Allocations {
    /// Reads the file. A file that does not exist is an empty set.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read.
    pub fn load(path: &Path) -> Result<Self, AllocationError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(AllocationError::Io { operation: "read", path: path.into(), source });
            }
        };
        serde_json::from_slice(&text)
            .map_err(|source| AllocationError::Parse { path: path.into(), source })
    }

    /// Writes the file: a new one is written beside it and renamed, so that a reader or a crash
    /// finds the old or the new set, never half of one.
    ///
    /// # Errors
    ///
    /// When the directory does not exist, is not writable, or the disk is full.
    pub fn save(&self, path: &Path) -> Result<(), AllocationError> {
        let failed = |operation| {
            move |source| AllocationError::Io { operation, path: path.to_owned(), source }
        };
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|source| AllocationError::Parse { path: path.into(), source })?;
        text.push(b'\n');
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let fresh = path.with_file_name(name);
        write_synced(&fresh, &text).map_err(failed("write"))?;
        std::fs::rename(&fresh, path).map_err(failed("replace"))
    }
}

fn write_synced(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    io::Write::write_all(&mut file, text)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = std::env::temp_dir().join(format!("vpc-gateway-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("allocations.json");
        assert_eq!(Allocations::load(&path).unwrap(), Allocations::default());

        let mut allocations = Allocations::default();
        allocations.0.insert("eip-random".into(), vec!["203.0.113.2".parse().unwrap()]);
        allocations.save(&path).unwrap();
        let both = ["203.0.113.3".parse().unwrap(), "2001:db8::2".parse().unwrap()];
        allocations.0.insert("eip-dual".into(), both.to_vec());
        allocations.save(&path).unwrap();
        assert_eq!(Allocations::load(&path).unwrap(), allocations);

        std::fs::write(&path, r#"{"eip-random": "203.0.113.2"}"#).unwrap();
        allocations.0.remove("eip-dual");
        assert_eq!(Allocations::load(&path).unwrap(), allocations);

        std::fs::write(&path, "{").unwrap();
        let error = Allocations::load(&path).unwrap_err();
        assert!(error.to_string().starts_with("failed to parse"), "{error}");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
