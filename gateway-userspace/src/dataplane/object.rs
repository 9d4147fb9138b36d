//! Where the eBPF object comes from.

use std::borrow::Cow;
use std::env;
use std::io;
use std::path::{Path, PathBuf};

/// Names the object at run time, where none is embedded.
const VARIABLE: &str = "VPC_GATEWAY_EBPF_OBJECT";

/// There is no object.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The file cannot be read.
    #[error("failed to read the eBPF object {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Nothing is embedded and nothing is named.
    #[error(
        "this binary has no eBPF object in it; build it with cargo xtask build, or add --object FILE"
    )]
    Missing,
}

#[cfg(feature = "embed-ebpf")]
const EMBEDDED: Option<&[u8]> = Some(aya::include_bytes_aligned!(env!("VPC_GATEWAY_EBPF_OBJECT")));
#[cfg(not(feature = "embed-ebpf"))]
const EMBEDDED: Option<&[u8]> = None;

/// The object in `file`, else the embedded one, else the one that the environment names.
///
/// # Errors
///
/// When there is none, or it cannot be read.
pub fn object(file: Option<&Path>) -> Result<Cow<'static, [u8]>, ObjectError> {
    let named = || env::var_os(VARIABLE).map(PathBuf::from);
    match (file, EMBEDDED) {
        (None, Some(embedded)) => Ok(Cow::Borrowed(embedded)),
        (file, _) => {
            let path = file.map(Path::to_owned).or_else(named).ok_or(ObjectError::Missing)?;
            std::fs::read(&path)
                .map(Cow::Owned)
                .map_err(|source| ObjectError::Read { path, source })
        }
    }
}
