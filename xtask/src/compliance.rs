//! `compliance`: writes `docs/rfc-compliance.md` from the table in `tests/src/compliance`.
//!
//! The table names tests of the crate `gateway-tests`, and a test there compares it with the page:
//! this verb runs that test and lets it write.

use anyhow::{Context as _, Result};
use clap::Args;

use crate::process;
use crate::workspace::Workspace;

/// Writes the page about the RFCs, and checks that the tests it names exist.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Options {
    /// Writes nothing, and fails if the page is out of date
    #[arg(long)]
    check: bool,
}

/// Runs the verb.
///
/// # Errors
///
/// The page is out of date (with `--check`), or a test that the table names does not exist.
pub(crate) fn run(options: Options) -> Result<()> {
    let mut test = Workspace::locate()?.cargo();
    test.args(["test", "--quiet", "--package", "gateway-tests", "--test", "compliance"]);
    if !options.check {
        test.env("COMPLIANCE_ACCEPT", "1");
    }
    process::run(&mut test).context("the table in tests/src/compliance is wrong, see above")
}
