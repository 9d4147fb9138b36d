//! What a test binary says: the sums of its `test result:` lines.

use std::ops::AddAssign;

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tally {
    /// Tests that passed.
    pub(crate) passed: u64,
    /// Tests that failed.
    pub(crate) failed: u64,
    /// Tests that were ignored, or that skipped themselves.
    pub(crate) skipped: u64,
}

impl Tally {
    /// One test that failed, for a binary that ends without a result.
    pub(crate) const ONE_FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Adds up the results in the output of one test binary, or of `cargo test --doc`.
///
/// A test that finds it cannot run prints a line that starts with `skipped:` and returns; libtest
/// counts it as passed, this counts it as skipped.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reader {
    sum: Tally,
    results: u64,
    skips_said: u64,
}

impl Reader {
    /// Takes one line of output.
    pub(crate) fn line(&mut self, line: &str) {
        if line.trim_start().starts_with("skipped:") {
            self.skips_said += 1;
        } else if let Some(tally) = result(line) {
            let silent = self.skips_said.min(tally.passed);
            self.sum +=
                Tally { passed: tally.passed - silent, skipped: tally.skipped + silent, ..tally };
            self.results += 1;
            self.skips_said = 0;
        }
    }

    /// The sum, `None` if there was no result at all: the binary died.
    pub(crate) fn tally(&self) -> Option<Tally> {
        (self.results > 0).then_some(self.sum)
    }
}

/// Reads `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; ...`.
fn result(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |name: &str| {
        counts.split(';').find_map(|part| part.trim().strip_suffix(name)?.trim().parse().ok())
    };
    Some(Tally { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &str = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s";
    const FAILED: &str = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s";

    fn read(text: &str) -> Option<Tally> {
        let mut reader = Reader::default();
        text.lines().for_each(|line| reader.line(line));
        reader.tally()
    }

    #[test]
    fn results_are_added_up() {
        let text = format!("running 6 tests\n{OK}\n\n{FAILED}\n");
        assert_eq!(read(&text), Some(Tally { passed: 8, failed: 2, skipped: 1 }));
    }

    #[test]
    fn a_binary_without_result_has_no_tally() {
        assert_eq!(read("running 6 tests\ntest a ... ok\n"), None);
    }

    #[test]
    fn a_test_that_skips_itself_is_not_a_pass() {
        let text = format!("---- a stdout ----\nskipped: not root\n{OK}\n");
        assert_eq!(read(&text), Some(Tally { passed: 4, failed: 0, skipped: 2 }));
    }

    #[test]
    fn other_lines_mean_nothing() {
        assert_eq!(result("test result_is_ok ... ok"), None);
        assert_eq!(result("test result: unknown"), None);
    }

    #[test]
    fn a_tally_reads_as_a_sentence() {
        let tally = Tally { passed: 1, failed: 2, skipped: 3 };
        assert_eq!(tally.to_string(), "1 passed, 2 failed, 3 skipped");
    }
}
