//! One boot in QEMU, without KVM: any machine can do it.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::kernels::Kernel;
use crate::process;

/// The emulator.
pub(super) const EMULATOR: &str = "qemu-system-x86_64";

/// A boot takes a few seconds, the verifier and the cases minutes; what takes this long hangs.
const LIMIT: Duration = Duration::from_secs(600);

/// The lines of the console that say why a machine came to nothing.
const LAST_LINES: usize = 15;

/// Boots a kernel and returns what its init script reported.
///
/// `folder` keeps the console, the report and the initial file system.
///
/// # Errors
///
/// The machine does not start, or does not end in time.
pub(super) fn boot(kernel: &Kernel, initrd: &[u8], folder: &Path) -> Result<String> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("failed to create {}", folder.display()))?;
    let [image, console, report] =
        ["initrd", "console.log", "report.log"].map(|name| folder.join(name));
    for file in [&console, &report] {
        File::create(file).with_context(|| format!("failed to create {}", file.display()))?;
    }
    std::fs::write(&image, initrd)
        .with_context(|| format!("failed to write {}", image.display()))?;
    let serial = |file: &Path| format!("file:{}", file.display());
    let mut command = Command::new(process::find(EMULATOR).unwrap_or_else(|| EMULATOR.into()));
    command
        .args(["-accel", "tcg", "-cpu", "max", "-m", "2048", "-smp", "1"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&image)
        .args(["-append", "console=ttyS0 panic=-1"])
        .args(["-serial", &serial(&console), "-serial", &serial(&report)])
        .stdin(Stdio::null());
    die_with_us(&mut command);
    let mut machine = command
        .spawn()
        .with_context(|| format!("failed to start `{}`", process::line(&command)))?;
    let status = process::wait_within(LIMIT, &mut machine)?;
    // The initial file system is large; the two logs say everything.
    let _ = std::fs::remove_file(&image);
    let text = |file: &Path| {
        std::fs::read(file)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .with_context(|| format!("failed to read {}", file.display()))
    };
    match status {
        Some(status) if status.success() => text(&report),
        Some(status) => bail!("{EMULATOR} ended with {status}"),
        None => bail!(
            "the machine did not end within {} s; its console ends with:\n{}",
            LIMIT.as_secs(),
            last_lines(&text(&console)?, LAST_LINES)
        ),
    }
}

/// The last lines of a text.
pub(super) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

/// However this process ends, by Ctrl-C or by `kill -9`, the machine ends with it.
fn die_with_us(command: &mut Command) {
    let set = || {
        // SAFETY: `prctl` with these arguments touches no memory.
        let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between `fork` and `exec` the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(set) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_text_is_cut_by_lines() {
        assert_eq!(last_lines("a\n\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }
}
