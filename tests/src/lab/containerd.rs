//! A container runtime of the lab's own: containerd and runc, with a CNI plugin that makes no interfaces.

mod messages;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gateway_userspace::agent::cri::{Runtime, Socket};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prost::Message;
use serde_json::Value;

use self::messages::*;
use super::cleanup::{self, Undo};
use super::netns::{self, Netns};
use super::process::Process;
use super::scratch::Scratch;
use super::wait::wait_until;

const SOON: Duration = Duration::from_secs(15);
const PAUSE: &str = "localhost/pause:1";

/// Answers as plugins do for a pod with one address. The lab plugs its own interfaces in.
const PLUGIN: &str = r#"#!/bin/sh
cat >/dev/null
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0"]}' ;;
ADD)
    echo '{"cniVersion": "0.4.0", "interfaces": [{"name": "eth0", "sandbox": "'"$CNI_NETNS"'"}],'
    echo '"ips": [{"version": "4", "interface": 0, "address": "10.0.1.254/24"}], "dns": {}}'
    ;;
esac
"#;

/// A running containerd; dropped, it, its sandboxes and their namespaces are gone.
#[derive(Debug)]
pub struct Containerd {
    folder: PathBuf,
    process: Option<Process>,
    sandboxes: Vec<String>,
    _undo: Undo,
}

/// Whether the programs are there.
///
/// # Errors
/// Which is not.
pub fn available() -> Result<()> {
    for program in ["containerd", "ctr", "runc"] {
        netns::run(Command::new(program).arg("--version"))
            .with_context(|| format!("{program} is missing"))?;
    }
    Ok(())
}

impl Containerd {
    /// Starts one whose only image holds `sleep`.
    ///
    /// # Errors
    /// A program is missing, or it does not come up.
    pub fn start(scratch: &Scratch) -> Result<Self> {
        let folder = scratch.join("containerd");
        let plugins = folder.join("cni");
        fs::create_dir_all(&plugins)?;
        for name in ["lab", "loopback"] {
            fs::write(plugins.join(name), PLUGIN)?;
            fs::set_permissions(plugins.join(name), fs::Permissions::from_mode(0o755))?;
        }
        let networks = r#"{"cniVersion": "0.4.0", "name": "lab", "plugins": [{"type": "lab"}]}"#;
        fs::write(plugins.join("10-lab.conflist"), networks)?;
        fs::write(folder.join("config.toml"), configuration(&folder))?;
        let ((), undo) = {
            let folder = folder.clone();
            cleanup::make(|| Ok(()), |()| Box::new(move || take_down(&folder)))?
        };
        let mut containerd = Self { folder, process: None, sandboxes: Vec::new(), _undo: undo };
        containerd.up()?;
        containerd.import(&pause_image(&containerd.folder)?)?;
        Ok(containerd)
    }

    /// Where its CRI is.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io"]);
        command
    }

    /// Starts it, again after [`Self::kill`].
    ///
    /// # Errors
    /// It does not come up in time.
    pub fn up(&mut self) -> Result<()> {
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.folder.join("config.toml"));
        let process = Process::start(&mut command, &self.folder.join("log"))?;
        self.process = Some(process);
        let answers = wait_until("containerd", SOON, || {
            let answer = self.call::<Nothing, Version>("Version", Nothing {})?;
            ensure!(!answer.runtime_name.is_empty(), "no name");
            Ok(Some(()))
        });
        answers.with_context(|| fs::read_to_string(self.folder.join("log")).unwrap_or_default())
    }

    /// Kills it. Sandboxes go on without it.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Makes an image known.
    ///
    /// # Errors
    /// The archive has none.
    pub fn import(&self, archive: &Path) -> Result<()> {
        netns::run(self.ctr().args(["images", "import"]).arg(archive)).map(drop)
    }

    /// Runs the sandbox of a pod and returns its id. Its cgroup does not have the uid in its name.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn run(&mut self, namespace: &str, name: &str, uid: &str, attempt: u32) -> Result<String> {
        let metadata = Metadata {
            name: name.to_owned(),
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            attempt,
        };
        let made: Id = self.call("RunPodSandbox", Run { config: Some(self.config(metadata)) })?;
        self.sandboxes.push(made.id.clone());
        Ok(made.id)
    }

    fn config(&self, metadata: Metadata) -> Config {
        let log_directory = self.folder.join("logs").display().to_string();
        let security = Some(Security { privileged: true });
        Config { metadata: Some(metadata), log_directory, linux: Some(Linux { security }) }
    }

    /// Runs a privileged container in a sandbox and returns its id.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn start_container(
        &self,
        sandbox: &str,
        image: &str,
        command: &[&str],
        variables: &[(&str, String)],
    ) -> Result<String> {
        let variable = |(key, value): &(&str, String)| Variable {
            key: (*key).to_owned(),
            value: value.clone(),
        };
        let container = Container {
            metadata: Some(ContainerName { name: "vpc-nat-gw".to_owned() }),
            image: Some(ImageName { image: image.to_owned() }),
            command: command.iter().map(ToString::to_string).collect(),
            variables: variables.iter().map(variable).collect(),
            log_path: "container.log".to_owned(),
            linux: Some(ContainerLinux { security: Some(ContainerSecurity { privileged: true }) }),
        };
        let config = Some(self.config(Metadata::default()));
        let create = Create { sandbox: sandbox.to_owned(), container: Some(container), config };
        let made: Id = self.call("CreateContainer", create)?;
        self.call::<Id, Nothing>("StartContainer", made.clone())?;
        Ok(made.id)
    }

    /// Runs a command in a container, as `kubectl exec` does.
    ///
    /// # Errors
    /// It cannot be run, or has not ended in time.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<Output> {
        let command = command.iter().map(ToString::to_string).collect();
        let exec = Exec { container: container.to_owned(), command, timeout: 30 };
        let Executed { stdout, stderr, code } = self.call("ExecSync", exec)?;
        Ok(Output { status: ExitStatus::from_raw(code << 8), stdout, stderr })
    }

    /// The network namespace of a sandbox.
    ///
    /// # Errors
    /// The runtime does not tell.
    pub fn namespace(&self, id: &str) -> Result<Netns> {
        let question = AskStatus { id: id.to_owned(), verbose: true };
        let status: Status = self.call("PodSandboxStatus", question)?;
        let info: Value = serde_json::from_str(status.info.get("info").context("no info")?)?;
        let all = info["runtimeSpec"]["linux"]["namespaces"].as_array().context("no namespaces")?;
        let network = all.iter().find(|one| one["type"] == "network").context("no network")?;
        Ok(Netns::adopt(network["path"].as_str().context("no path")?))
    }

    /// Stops and removes a sandbox; its network namespace goes with it.
    ///
    /// # Errors
    /// The runtime refuses.
    pub fn remove(&mut self, id: &str) -> Result<()> {
        self.call::<Id, Nothing>("StopPodSandbox", Id { id: id.to_owned() })?;
        self.call::<Id, Nothing>("RemovePodSandbox", Id { id: id.to_owned() })?;
        self.sandboxes.retain(|other| other != id);
        Ok(())
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let socket: Socket =
            self.socket().display().to_string().parse().map_err(anyhow::Error::msg)?;
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        tokio.block_on(async {
            let runtime = Runtime::new(&socket, 2 * SOON)?;
            Ok(runtime.call(method, request).await?)
        })
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if self.process.is_none() {
            let _ = self.up();
        }
        for id in self.sandboxes.clone() {
            if let Err(error) = self.remove(&id) {
                eprintln!("sandbox {id}: {error:#}");
            }
        }
        self.process = None;
    }
}

/// Ends what outlives containerd: shims, the processes of sandboxes, and mounts.
fn take_down(folder: &Path) {
    let socket = folder.join("containerd.sock").display().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let is_shim = words.split(|byte| *byte == 0).any(|word| word == socket.as_bytes());
        if is_shim && process.file_name() != *std::process::id().to_string() {
            end(process.file_name().to_str());
        }
    }
    let tasks = folder.join("state/io.containerd.runtime.v2.task/k8s.io");
    for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
        end(fs::read_to_string(task.path().join("init.pid")).ok().as_deref());
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let paths = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for path in paths.filter(|path| Path::new(path).starts_with(folder)) {
        let _ = umount2(path, MntFlags::MNT_DETACH);
    }
}

fn end(pid: Option<&str>) {
    if let Some(pid) = pid.and_then(|pid| pid.trim().parse().ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        r#"version = 2
root = "{folder}/root"
state = "{folder}/state"

[grpc]
address = "{folder}/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
disable_apparmor = true
restrict_oom_score_adj = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{folder}/cni"
conf_dir = "{folder}/cni"
"#
    )
}

/// An archive with an image of `sleep` and the libraries that it needs.
fn pause_image(folder: &Path) -> Result<PathBuf> {
    let folder = folder.join("image");
    fs::create_dir_all(&folder)?;
    let libraries = netns::run(Command::new("ldd").arg("/bin/sleep"))?;
    let files = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    let files = files.chain(["/bin/sleep"]).map(|path| path.trim_start_matches('/'));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--dereference", "--directory", "/", "--file"]);
    netns::run(tar.arg(folder.join("layer.tar")).args(files))?;
    let sum = netns::run(Command::new("sha256sum").arg(folder.join("layer.tar")))?;
    let sum = sum.split(' ').next().context("a sum")?;
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/sleep", "infinity"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]}
    });
    fs::write(folder.join("config.json"), config.to_string())?;
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [PAUSE], "Layers": ["layer.tar"]}]);
    fs::write(folder.join("manifest.json"), manifest.to_string())?;
    let archive = folder.join("pause.tar");
    let mut tar = Command::new("tar");
    tar.args(["--create", "--directory"]).arg(&folder).arg("--file").arg(&archive);
    netns::run(tar.args(["manifest.json", "config.json", "layer.tar"]))?;
    Ok(archive)
}
