//! The uid of a pod -> its network namespace, by the processes of the node.
//!
//! The names of a pod's cgroups have its uid in them, as it is (cgroupfs) or with `_` for `-`
//! (systemd), whichever container runtime made them; so no runtime has to be asked.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::namespaces::{Namespace, Nobody, open};

/// Finds the network namespaces of pods under `proc`, the procfs of the node: that of the oldest
/// process of each, which is the one that every other was started after.
///
/// # Errors
///
/// When `proc` cannot be read. A process that ends meanwhile is no error.
pub(super) fn namespaces<'u>(
    proc: &Path,
    uids: &[&'u str],
) -> io::Result<BTreeMap<&'u str, Namespace>> {
    let nobody = Nobody::find(proc);
    let mut found: BTreeMap<&str, (u64, Namespace)> = BTreeMap::new();
    for entry in fs::read_dir(proc)? {
        let path = entry?.path();
        let process = path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
        if process.is_none() {
            continue;
        }
        let Ok(cgroups) = fs::read_to_string(path.join("cgroup")) else { continue };
        let Some(uid) = uids.iter().find(|uid| belongs_to(&cgroups, uid)) else { continue };
        let Ok(stat) = fs::read_to_string(path.join("stat")) else { continue };
        let Some(started) = start_time(&stat) else { continue };
        if found.get(uid).is_some_and(|(oldest, _)| *oldest <= started) {
            continue;
        }
        if let Some(namespace) = open(&path.join("ns/net"), &nobody) {
            found.insert(uid, (started, namespace));
        }
    }
    Ok(found.into_iter().map(|(uid, (_, namespace))| (uid, namespace)).collect())
}

/// When the process of a `/proc/PID/stat` was started, in ticks since boot.
fn start_time(stat: &str) -> Option<u64> {
    // The name of the program may have spaces and parentheses in it.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

/// Whether one of the cgroups, in the text of `/proc/PID/cgroup`, is one of the pod.
fn belongs_to(cgroups: &str, uid: &str) -> bool {
    let (plain, systemd) = (format!("pod{uid}"), format!("pod{}", uid.replace('-', "_")));
    let names = cgroups.lines().flat_map(|line| line.split('/'));
    names
        .map(|name| name.trim_end_matches(".slice"))
        .any(|name| name.ends_with(&plain) || name.ends_with(&systemd))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0c7b1f8e-2a0d-4d9e-9a53-0d6c5a4f1b22";

    #[test]
    fn the_cgroups_of_every_runtime_are_known() {
        let systemd = UID.replace('-', "_");
        for cgroups in [
            format!("0::/kubepods/besteffort/pod{UID}/4f3a\n"),
            format!("12:cpu:/\n0::/kubepods.slice/kubepods-pod{systemd}.slice/x.scope\n"),
            format!("0::/../../kubepods-burstable-pod{systemd}.slice/cri-containerd-4f3a.scope"),
            format!("0::/../pod{UID}/crio-abc"),
        ] {
            assert!(belongs_to(&cgroups, UID), "{cgroups}");
        }
        assert!(!belongs_to(&format!("0::/kubepods/pod{UID}0/x"), UID));
        assert!(!belongs_to("0::/user.slice\n", UID));
    }

    #[test]
    fn the_start_of_a_process_is_read_behind_its_name() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 98765 1 2";
        assert_eq!(start_time(stat), Some(98_765));
        assert!(start_time(&fs::read_to_string("/proc/self/stat").unwrap()).is_some());
    }
}
