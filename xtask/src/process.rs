//! Child processes whose errors name the command, and a search of `PATH`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Runs a command with inherited output.
///
/// # Errors
///
/// The command cannot be started or does not exit with 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status =
        command.status().with_context(|| format!("failed to start `{}`", line(command)))?;
    expect_success(command, status)
}

/// Runs a command and returns its standard output; standard error is part of the error.
///
/// # Errors
///
/// The command cannot be started, does not exit with 0, or prints something that is not UTF-8.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start `{}`", line(command)))?;
    if !output.status.success() {
        let cause = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` ended with {}: {}", line(command), output.status, cause.trim());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed something that is not UTF-8", line(command)))
}

/// Runs a command with inherited output and without input, and kills it after `limit`.
///
/// # Errors
///
/// As [`run`], or the limit is reached.
pub(crate) fn run_within(limit: Duration, command: &mut Command) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("failed to start `{}`", line(command)))?;
    match wait_within(limit, &mut child)? {
        Some(status) => expect_success(command, status),
        None => bail!("`{}` did not end within {} s", line(command), limit.as_secs()),
    }
}

/// Waits for a child and kills it after `limit`, then returns `None`.
///
/// # Errors
///
/// The kernel refuses to wait for the child.
pub(crate) fn wait_within(limit: Duration, child: &mut Child) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().context("failed to wait for a child process")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            // It may have ended in between: the wait below is what counts.
            let _ = child.kill();
            child.wait().context("failed to wait for a killed child process")?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn expect_success(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    bail!("`{}` ended with {status}", line(command))
}

/// The command as a person would type it: the program without its folder.
pub(crate) fn line(command: &Command) -> String {
    let program = command.get_program();
    let name = Path::new(program).file_name().unwrap_or(program);
    let words = std::iter::once(name).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Finds an executable on `PATH` or in the system directories that a plain user's `PATH` lacks.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_command_and_its_status() {
        let error = run(Command::new("false").arg("--now")).unwrap_err();
        assert_eq!(error.to_string(), "`false --now` ended with exit status: 1");
    }

    #[test]
    fn a_command_that_hangs_is_killed() {
        let limit = Duration::from_millis(50);
        let error = run_within(limit, Command::new("sleep").arg("30")).unwrap_err();
        assert!(error.to_string().contains("did not end within"), "{error}");
    }

    #[test]
    fn path_is_searched() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-of-vpc-gateway").is_none());
    }
}
