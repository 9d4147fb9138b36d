//! Programs on interfaces: a pinned TCX link, or a clsact filter at a place of its own.
//!
//! Either way a program that is attached already is replaced in place, so no packet is missed.

use std::fmt;
use std::io;
use std::path::Path;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{
    self, NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcError, TcHandle,
};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};

use super::pins::{self, PinsError};
use super::raw::tcx_ingress;

/// Priority of our clsact filter: before filters that leave the choice to the kernel.
const PRIORITY: u16 = 30311;

/// Handle of our clsact filter.
const HANDLE: TcHandle = TcHandle::new(0x7667, 1);

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachKind {
    /// A TCX link (kernel 6.6).
    Tcx,
    /// A filter of the clsact qdisc.
    Clsact,
}

impl fmt::Display for AttachKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// A program could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused.
    #[error("failed to {operation} {interface}")]
    Program {
        /// What was tried.
        operation: &'static str,
        /// The interface.
        interface: String,
        /// The cause.
        source: Box<ProgramError>,
    },
    /// The link cannot be used.
    #[error("failed to take over the link of {interface}")]
    Link {
        /// The interface.
        interface: String,
        /// The cause.
        source: LinkError,
    },
    /// The pin cannot be made or removed.
    #[error(transparent)]
    Pins(#[from] PinsError),
}

/// Attaches a loaded program to the ingress of an interface, or puts it in the place of the one
/// that is there. `pin` is where the TCX link lives.
///
/// # Errors
///
/// When neither TCX nor clsact takes it.
pub(crate) fn attach(
    program: &mut SchedClassifier,
    interface: &str,
    pin: &Path,
    tcx: bool,
) -> Result<AttachKind, AttachError> {
    if tcx && attach_tcx(program, interface, pin)? {
        // Left from a start without TCX; it would see every packet a second time.
        detach_clsact(interface)?;
        return Ok(AttachKind::Tcx);
    }
    attach_clsact(program, interface)?;
    pins::remove(pin)?;
    Ok(AttachKind::Clsact)
}

/// Returns whether the kernel has TCX.
fn attach_tcx(
    program: &mut SchedClassifier,
    interface: &str,
    pin: &Path,
) -> Result<bool, AttachError> {
    if let Some(link) = pinned_link(interface, pin)? {
        match program.attach_to_link(link) {
            Ok(id) => {
                release(program, id, interface)?;
                return Ok(true);
            }
            Err(error) if is(&error, &[Errno::ENOLINK]) => {}
            Err(error) => return Err(refused("replace the program of", interface)(error)),
        }
    }
    pins::remove(pin)?;
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = match program.attach_with_options(interface, TcAttachType::Ingress, options) {
        Ok(id) => id,
        Err(error) if is(&error, &[Errno::EINVAL, Errno::EOPNOTSUPP, Errno::ENOSYS]) => {
            return Ok(false);
        }
        Err(error) => return Err(refused("attach to", interface)(error)),
    };
    let link = program.take_link(id).map_err(refused("attach to", interface))?;
    let link = FdLink::try_from(link)
        .map_err(|source| AttachError::Link { interface: interface.to_owned(), source })?;
    link.pin(pin).map_err(|error| PinsError::Io {
        operation: "pin the link to",
        path: pin.to_owned(),
        source: io::Error::other(error),
    })?;
    Ok(true)
}

/// The pinned link, if it is (still) the one of this interface.
fn pinned_link(interface: &str, pin: &Path) -> Result<Option<SchedClassifierLink>, AttachError> {
    if !pin.exists() {
        return Ok(None);
    }
    let failed = |source| AttachError::Link { interface: interface.to_owned(), source };
    let link = FdLink::from(PinnedLink::from_pin(pin).map_err(failed)?);
    let program = link.info().map_err(failed)?.program_id();
    let index = if_nametoindex(interface);
    let there = index.map_err(io::Error::from).and_then(tcx_ingress).unwrap_or_default();
    if !there.contains(&program) {
        return Ok(None);
    }
    SchedClassifierLink::try_from(link).map(Some).map_err(failed)
}

/// Takes the link away from the program, so that it stays when the program is dropped.
fn release(
    program: &mut SchedClassifier,
    id: SchedClassifierLinkId,
    interface: &str,
) -> Result<(), AttachError> {
    let link = program.take_link(id).map_err(refused("attach to", interface))?;
    match FdLink::try_from(link) {
        // The pin keeps it.
        Ok(link) => drop(link),
        Err(source) => {
            return Err(AttachError::Link { interface: interface.to_owned(), source });
        }
    }
    Ok(())
}

fn attach_clsact(program: &mut SchedClassifier, interface: &str) -> Result<(), AttachError> {
    match tc::qdisc_add_clsact(interface) {
        Err(error) if !exists(&error) => {
            return Err(refused("add the clsact qdisc to", interface)(error.into()));
        }
        Ok(()) | Err(_) => {}
    }
    let place = filter(interface)?;
    let id = match program.attach_to_link(place) {
        Ok(id) => id,
        Err(error) if is(&error, &[Errno::ENOENT]) => {
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
            program
                .attach_with_options(
                    interface,
                    TcAttachType::Ingress,
                    TcAttachOptions::Netlink(options),
                )
                .map_err(refused("attach to", interface))?
        }
        Err(error) => return Err(refused("replace the filter of", interface)(error)),
    };
    let link = program.take_link(id).map_err(refused("attach to", interface))?;
    // Dropping it would detach it; there is nothing else in it that must be freed.
    std::mem::forget(link);
    Ok(())
}

/// Removes our clsact filter, if it is there.
///
/// # Errors
///
/// When the kernel refuses.
pub fn detach_clsact(interface: &str) -> Result<(), AttachError> {
    use aya::programs::Link as _;

    match filter(interface)?.detach() {
        // ENOENT: no such filter; EINVAL: no clsact qdisc at all.
        Err(error) if !is(&error, &[Errno::ENOENT, Errno::EINVAL]) => {
            Err(refused("remove the filter of", interface)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The place of our filter on an interface.
fn filter(interface: &str) -> Result<SchedClassifierLink, AttachError> {
    SchedClassifierLink::attached(interface, TcAttachType::Ingress, PRIORITY, HANDLE, None)
        .map_err(|error| refused("find", interface)(TcError::IoError(error).into()))
}

fn refused(operation: &'static str, interface: &str) -> impl FnOnce(ProgramError) -> AttachError {
    move |source| AttachError::Program {
        operation,
        interface: interface.to_owned(),
        source: Box::new(source),
    }
}

fn exists(error: &TcError) -> bool {
    matches!(error, TcError::AlreadyAttached)
        || matches!(error, TcError::NetlinkError(error)
            if error.raw_os_error() == Some(Errno::EEXIST as i32))
}

/// Whether the kernel's answer is one of `codes`.
fn is(error: &ProgramError, codes: &[Errno]) -> bool {
    let code = match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::NetlinkError(error) | ProgramError::TcError(TcError::NetlinkError(error)) => {
            error.raw_os_error()
        }
        _ => None,
    };
    codes.iter().any(|expected| code == Some(*expected as i32))
}
