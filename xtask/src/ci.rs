//! `ci`: what CI runs, and nothing else: `check`, then `test`.

use anyhow::Result;
use clap::Args;

use crate::{Exit, check, console, test};

/// Runs `check` and then all tests; a failure of one does not hide the other.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Options {}

/// Runs the verb.
///
/// # Errors
///
/// A check or a test fails.
pub(crate) fn run(_: Options) -> Result<()> {
    let checked = check::run(check::Options::default());
    if let Err(error) = &checked {
        console::error(error);
    }
    test::run(test::Options::default())?;
    // Said above; the last line is the sum of the tests.
    checked.map_err(|_| Exit::FAILURE.into())
}
