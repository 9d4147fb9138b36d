//! The capabilities of a process, thread by thread.

use std::fs;

use anyhow::{Context as _, Result, ensure};

/// CAP_NET_ADMIN.
pub const NET_ADMIN: u64 = 1 << 12;
/// CAP_NET_RAW.
pub const NET_RAW: u64 = 1 << 13;
/// CAP_PERFMON.
pub const PERFMON: u64 = 1 << 38;
/// CAP_BPF.
pub const BPF: u64 = 1 << 39;
/// CAP_DAC_READ_SEARCH.
pub const READ_FILES: u64 = 1 << 2;

/// What docs/kubernetes.md says that `run` needs while it runs.
pub const DOCUMENTED: u64 = NET_ADMIN | NET_RAW | PERFMON | BPF;

/// A thread of a process.
#[derive(Clone, Debug)]
pub struct Thread {
    /// Its name.
    pub name: String,
    /// Its inheritable, permitted, effective, bounding and ambient set.
    pub sets: [u64; 5],
    /// Whether it can gain none.
    pub fixed: bool,
}

/// The threads of a process, the first one first.
///
/// # Errors
/// The process is gone.
pub fn threads(pid: u32) -> Result<Vec<Thread>> {
    let mut threads = Vec::new();
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    let mut tasks = tasks.map(|task| Ok(task?.path())).collect::<Result<Vec<_>>>()?;
    let first = pid.to_string();
    tasks.sort_by_key(|task| !task.ends_with(&first));
    for task in tasks {
        let text = fs::read_to_string(task.join("status"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).with_context(|| format!("no {name} in {text}"))
        };
        let set = |name: &str| Ok::<_, anyhow::Error>(u64::from_str_radix(field(name)?, 16)?);
        let sets =
            [set("CapInh:")?, set("CapPrm:")?, set("CapEff:")?, set("CapBnd:")?, set("CapAmb:")?];
        let (name, fixed) = (field("Name:")?.to_owned(), field("NoNewPrivs:")? == "1");
        threads.push(Thread { name, sets, fixed });
    }
    Ok(threads)
}

/// Checks that each thread has at most these capabilities, and the main thread exactly them.
///
/// # Errors
/// One has others; the error says which.
pub fn keeps(pid: u32, wanted: u64) -> Result<()> {
    for (index, Thread { name, sets, fixed }) in threads(pid)?.into_iter().enumerate() {
        let [inheritable, permitted, effective, bounding, ambient] = sets;
        ensure!(fixed, "thread {name} can gain privileges");
        ensure!(inheritable == 0 && ambient == 0, "{name}: {inheritable:x} {ambient:x}");
        ensure!(permitted == effective, "{name}: {permitted:x} permitted, {effective:x} effective");
        ensure!(permitted & !wanted == 0, "{name} has {permitted:x}, not {wanted:x}");
        ensure!(index > 0 || permitted == wanted, "the daemon has {permitted:x}, not {wanted:x}");
        ensure!(bounding & !wanted == 0, "{name}: bounded by {bounding:x}, not {wanted:x}");
    }
    Ok(())
}
