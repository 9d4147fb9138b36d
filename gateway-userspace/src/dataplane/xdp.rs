//! XDP programs on interfaces: a pinned link, taken over by the next start and replaced in place.

use std::path::Path;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramError, Xdp};

use super::pins::{self, PinsError};

/// What the kernel says of the XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpOnInterface {
    /// The program.
    pub program_id: u32,
    /// Whether it runs in the generic hook.
    pub generic: bool,
}

/// An XDP program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// Somebody else's program is there.
    #[error("program {0} of somebody else is attached")]
    Taken(u32),
    /// The driver or the kernel refused.
    #[error("{}", reason(.0))]
    Refused(#[source] Box<ProgramError>),
    /// The pin cannot be made or removed.
    #[error(transparent)]
    Pins(#[from] PinsError),
}

fn refused(error: ProgramError) -> XdpError {
    XdpError::Refused(Box::new(error))
}

/// The kernel's answer in one line.
fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::SyscallError(error) => error.io_error.to_string(),
        other => {
            let cause = std::error::Error::source(other).map(ToString::to_string);
            cause.unwrap_or_else(|| other.to_string())
        }
    }
}

/// Attaches a loaded program to an interface, or puts it in the place of ours that is there.
///
/// `pin` is where the link lives, `there` what the interface has.
///
/// # Errors
///
/// When the driver does not take it. Then nothing of ours is attached.
pub(crate) fn attach(
    program: &mut Xdp,
    ifindex: u32,
    pin: &Path,
    generic: bool,
    there: Option<XdpOnInterface>,
) -> Result<(), XdpError> {
    if let Some(there) = there {
        match pinned(pin).filter(|(_, id)| *id == there.program_id) {
            // A link keeps its mode for ever.
            Some((link, _)) if there.generic == generic => return replace(program, link),
            Some(_) => {}
            None => return Err(XdpError::Taken(there.program_id)),
        }
    }
    pins::remove(pin)?;
    let mode = if generic { XdpMode::Skb } else { XdpMode::Driver };
    let id = program.attach_to_if_index(ifindex, mode).map_err(refused)?;
    let link = program.take_link(id).map_err(refused)?;
    let link = FdLink::try_from(link)
        .map_err(|error| refused(ProgramError::IOError(std::io::Error::other(error))))?;
    link.pin(pin).map_err(|error| PinsError::Io {
        operation: "pin the link to",
        path: pin.to_owned(),
        source: std::io::Error::other(error),
    })?;
    Ok(())
}

/// The pinned link and the program on it.
fn pinned(pin: &Path) -> Option<(XdpLink, u32)> {
    let link = FdLink::from(PinnedLink::from_pin(pin).ok()?);
    let program = link.info().ok()?.program_id();
    Some((XdpLink::try_from(link).ok()?, program))
}

fn replace(program: &mut Xdp, link: XdpLink) -> Result<(), XdpError> {
    let id = program.attach_to_link(link).map_err(refused)?;
    let link = program.take_link(id).map_err(refused)?;
    // Dropping it only closes a descriptor: the pin keeps the link.
    drop(FdLink::try_from(link));
    Ok(())
}
