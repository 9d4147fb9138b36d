//! Signals while a child runs: the child cleans up after itself, so it is the one to hear them.

use std::process::Child;
use std::sync::atomic::{AtomicI32, Ordering};

/// The child that gets a termination signal passed on, 0 if there is none.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// Leaves Ctrl-C to the children of this process.
///
/// A terminal sends it to all processes in the foreground. A handler that does nothing, unlike
/// `SIG_IGN`, is not inherited by the programs that are started from here.
pub(crate) fn leave_to_children() {
    handle(libc::SIGINT, ignore);
    handle(libc::SIGQUIT, ignore);
}

/// Passes a termination signal, which only this process gets, on to `child`.
pub(crate) fn pass_on_to(child: &Child) {
    CHILD.store(child.id().try_into().unwrap_or(0), Ordering::Relaxed);
    handle(libc::SIGTERM, pass_on);
    handle(libc::SIGHUP, pass_on);
}

fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: both handlers do only what is allowed in a signal handler: nothing, or an atomic load
    // and `kill`; the function outlives the process.
    unsafe { libc::signal(signal, handler as *const () as libc::sighandler_t) };
}

extern "C" fn ignore(_signal: libc::c_int) {}

extern "C" fn pass_on(signal: libc::c_int) {
    let child = CHILD.load(Ordering::Relaxed);
    if child > 0 {
        // SAFETY: `kill` touches no memory of this process; the child is reaped only by a wait that
        // this handler interrupts, so its number is not reused meanwhile.
        unsafe { libc::kill(child, signal) };
    }
}
