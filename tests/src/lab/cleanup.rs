//! What the lab makes outside this process is undone: on drop, on panic and on SIGINT, SIGTERM, SIGHUP.
//!
//! Every namespace, process, directory and pinned map is made through [`make`], which registers the
//! undo action in the same critical section. A signal takes that section for good, so nothing can
//! be made between the last undo action and the exit.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

type Action = Box<dyn FnOnce() + Send>;

static MAKING: Mutex<()> = Mutex::new(());
static ACTIONS: Mutex<BTreeMap<u64, Action>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(1);
static CAUGHT: AtomicI32 = AtomicI32::new(0);

const CLEANUP_THREAD: &str = "cleanup";

fn on_cleanup_thread() -> bool {
    thread::current().name() == Some(CLEANUP_THREAD)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A registered undo action: it runs when this is dropped.
#[derive(Debug)]
#[must_use = "dropping it undoes what was made"]
pub struct Undo {
    id: u64,
}

impl Undo {
    /// For what somebody else undoes.
    pub const fn nothing() -> Self {
        Self { id: 0 }
    }

    /// Leaves what was made in place for good.
    pub fn forget(self) {
        locked(&ACTIONS).remove(&self.id);
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if CAUGHT.load(Ordering::SeqCst) != 0 && !on_cleanup_thread() {
            // The failures that a clean-up causes must not end the process before it is through.
            loop {
                thread::park();
            }
        }
        let action = locked(&ACTIONS).remove(&self.id);
        if let Some(action) = action {
            action();
        }
    }
}

/// Makes something and registers how to undo it, as one step. Steps do not nest.
///
/// # Errors
/// The error of `create`; nothing is registered then.
pub fn make<T>(
    create: impl FnOnce() -> Result<T>,
    undo: impl FnOnce(&T) -> Action,
) -> Result<(T, Undo)> {
    let _making = locked(&MAKING);
    let made = create()?;
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    locked(&ACTIONS).insert(id, undo(&made));
    Ok((made, Undo { id }))
}

/// Runs every registered action, the newest first.
pub fn undo_everything() {
    loop {
        let last = locked(&ACTIONS).pop_last();
        let Some((_, action)) = last else { return };
        action();
    }
}

/// Installs the signal handlers; later calls do nothing.
///
/// # Errors
/// The kernel refused a handler.
pub fn on_signals() -> Result<()> {
    static INSTALLED: Once = Once::new();
    let mut outcome = Ok(());
    INSTALLED.call_once(|| outcome = install());
    outcome
}

/// For programs built with `panic = "abort"`, where no destructor runs: a panic undoes everything.
pub fn on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        undo_everything();
    }));
}

extern "C" fn note(signal: libc::c_int) {
    CAUGHT.store(signal, Ordering::SeqCst);
}

fn install() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: `note` only stores into an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.context("failed to install a signal handler")?;
    }
    thread::Builder::new()
        .name(CLEANUP_THREAD.into())
        .spawn(wait_for_signal)
        .context("failed to start the cleanup thread")?;
    Ok(())
}

fn wait_for_signal() {
    loop {
        let signal = CAUGHT.load(Ordering::SeqCst);
        if signal != 0 {
            let _making = locked(&MAKING);
            undo_everything();
            std::process::exit(128 + signal);
        }
        thread::sleep(Duration::from_millis(50));
    }
}
