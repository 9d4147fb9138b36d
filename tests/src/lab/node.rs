//! A node without a kubelet: Pod objects on the API server, and for each a real process in a real cgroup
//! and network namespace, as kubelet and a container runtime make them; and the agent of the node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::cleanup::{self, Undo};
use super::kube::ApiServer;
use super::netns::{self, Netns};
use super::process::Process;
use super::scratch::Scratch;
use super::wait::wait_until;

const SOON: Duration = Duration::from_secs(15);

/// What is to become a gateway pod.
#[derive(Clone, Debug)]
pub struct Template<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its node.
    pub node: &'a str,
    /// Its labels.
    pub labels: Value,
    /// Its annotations.
    pub annotations: Value,
}

impl<'a> Template<'a> {
    /// A pod of a `VpcNatGateway`, as kube-ovn-controller has it.
    pub fn nat(node: &'a str, name: &'a str, gateway: &str) -> Self {
        Self {
            namespace: "kube-system",
            name,
            node,
            labels: json!({"app": name, "ovn.kubernetes.io/vpc-nat-gw": "true"}),
            annotations: json!({"ovn.kubernetes.io/vpc_nat_gw": gateway}),
        }
    }

    /// What the agent calls its data plane.
    pub fn data_plane(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }

    fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods", self.namespace)
    }

    /// Creates the object and returns its uid. No container runs yet.
    ///
    /// # Errors
    /// The API server refuses it.
    pub fn create(&self, api: &ApiServer) -> Result<String> {
        let body = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "labels": self.labels, "annotations": self.annotations},
            "spec": {
                "nodeName": self.node, "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "vpc-nat-gw", "image": "lab.invalid/none"}]
            }
        });
        let made = api.request("POST", &self.path(), "application/json", &body.to_string())?;
        self.phase(api, "Pending")?;
        Ok(made["metadata"]["uid"].as_str().context("a uid")?.to_owned())
    }

    /// Writes `status.phase`, as a kubelet does.
    ///
    /// # Errors
    /// The API server refuses it.
    pub fn phase(&self, api: &ApiServer, phase: &str) -> Result<()> {
        let path = format!("{}/{}/status", self.path(), self.name);
        let body = json!({"status": {"phase": phase}}).to_string();
        api.request("PATCH", &path, "application/merge-patch+json", &body).map(drop)
    }

    /// Deletes the object at once.
    ///
    /// # Errors
    /// The API server refuses it.
    pub fn delete(&self, api: &ApiServer) -> Result<()> {
        let path = format!("{}/{}?gracePeriodSeconds=0", self.path(), self.name);
        api.request("DELETE", &path, "application/json", "{}").map(drop)
    }
}

/// The process of a pod, the first in its network namespace; dropped, it and its cgroups are gone.
#[derive(Debug)]
pub struct Sandbox {
    _process: Process,
    _cgroup: Cgroup,
}

impl Sandbox {
    /// Starts it in a namespace, in the cgroup of the pod as kubelet names it with the cgroupfs driver.
    ///
    /// # Errors
    /// There is no cgroup file system of version 2, or it refuses.
    pub fn start(ns: &Netns, scratch: &Scratch, uid: &str) -> Result<Self> {
        let cgroup = Cgroup::make(&scratch_name(scratch), uid)?;
        let log = scratch.join("sandbox.log");
        let process =
            ns.enter(|| Process::start(Command::new("sleep").arg("infinity"), &log))??;
        fs::write(cgroup.leaf.join("cgroup.procs"), process.pid().to_string())
            .context("failed to move a process into its cgroup")?;
        Ok(Self { _process: process, _cgroup: cgroup })
    }
}

fn scratch_name(scratch: &Scratch) -> String {
    scratch.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[derive(Debug)]
struct Cgroup {
    leaf: PathBuf,
    _undo: Undo,
}

impl Cgroup {
    fn make(lab: &str, uid: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = mounts.find(|fields| fields.get(2) == Some(&"cgroup2"));
        let mount = mount.context("no cgroup file system of version 2 is mounted")?;
        let top = Path::new(mount[1]).join(format!("{lab}-{uid}"));
        let parts = ["kubepods", "besteffort", &format!("pod{uid}"), "4f3a9c"].map(str::to_owned);
        let leaf = parts.iter().fold(top.clone(), |path, part| path.join(part));
        let (leaf, undo) = cleanup::make(
            || {
                fs::create_dir_all(&leaf)
                    .with_context(|| format!("failed to make {}", leaf.display()))?;
                Ok(leaf)
            },
            |leaf| {
                let (leaf, top) = (leaf.clone(), top.clone());
                Box::new(move || remove(&leaf, &top))
            },
        )?;
        Ok(Self { leaf, _undo: undo })
    }
}

/// Removes a cgroup and those above it up to `top`, once its processes are gone.
fn remove(leaf: &Path, top: &Path) {
    for path in leaf.ancestors().take_while(|path| path.starts_with(top)) {
        let gone = || Ok((fs::remove_dir(path).is_ok() || !path.exists()).then_some(()));
        let _ = wait_until("the cgroup to be empty", Duration::from_secs(2), gone);
    }
}

/// The agent of a node; dropped, it is killed and everything that it has left is taken down.
#[derive(Debug)]
pub struct Agent {
    binary: PathBuf,
    node: String,
    state: PathBuf,
    log: PathBuf,
    kubeconfig: PathBuf,
    /// More environment, such as `VPC_GATEWAY_DETACH_ON_EXIT`.
    pub environment: Vec<(String, String)>,
    process: Option<Process>,
    _undo: Undo,
}

impl Agent {
    /// An agent that is not started.
    ///
    /// # Errors
    /// The clean-up cannot be registered.
    pub fn new(binary: &Path, scratch: &Scratch, node: &str, kubeconfig: PathBuf) -> Result<Self> {
        let state = scratch.join("state-agent");
        let ((), undo) = {
            let (binary, state) = (binary.to_owned(), state.clone());
            cleanup::make(|| Ok(()), |()| Box::new(move || detach_all(&binary, &state)))?
        };
        Ok(Self {
            binary: binary.to_owned(),
            node: node.to_owned(),
            log: scratch.join("agent.log"),
            state,
            kubeconfig,
            environment: Vec::new(),
            process: None,
            _undo: undo,
        })
    }

    /// Starts it.
    ///
    /// # Errors
    /// There is no such program.
    pub fn start(&mut self) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command.arg("agent").args(["--node", &self.node]);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.arg("--state-dir").arg(&self.state).envs(self.environment.iter().cloned());
        self.process = Some(Process::start(&mut command, &self.log)?);
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Kills the agent alone, with SIGKILL.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill9(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL)
    }

    /// Ends the agent with SIGTERM.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn terminate(&mut self) -> Result<()> {
        self.end(Signal::SIGTERM)
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let mut process = self.process.take().context("the agent does not run")?;
        kill(Pid::from_raw(process.pid().cast_signed()), signal)?;
        process.wait(SOON).map(drop)
    }

    /// Everything it and its processes printed.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What `agent status --json` says, whatever its exit code.
    ///
    /// # Errors
    /// It prints no JSON.
    pub fn status(&self) -> Result<Value> {
        let mut command = Command::new(&self.binary);
        command.args(["agent", "status", "--json", "--state-dir"]).arg(&self.state);
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).with_context(|| format!("agent status --json printed {text}"))
    }

    /// What the agent says of a pod, by the name of its data plane.
    ///
    /// # Errors
    /// It does not know it.
    pub fn pod(&self, data_plane: &str) -> Result<Value> {
        let status = self.status()?;
        let pods = status["pods"].as_array().context("no list of pods")?;
        let pod = pods.iter().find(|pod| pod["data_plane"] == data_plane);
        pod.cloned().with_context(|| format!("{data_plane} is not in {status}"))
    }

    /// Waits until a data plane is ready, and returns what is said of the pod.
    ///
    /// # Errors
    /// It is not ready in time; the error carries the log.
    pub fn await_ready(&self, data_plane: &str) -> Result<Value> {
        let ready = wait_until("a data plane", SOON, || {
            let status = self.status()?;
            let planes = status["data_planes"].as_array().context("no list of data planes")?;
            let ready = planes.iter().any(|one| one["name"] == data_plane && one["ready"] == true);
            ensure!(ready, "{data_plane} is not ready: {status}");
            self.pod(data_plane).map(Some)
        });
        ready.with_context(|| self.log())
    }

    /// Runs another verb of the program with this state directory, and returns what it printed.
    ///
    /// # Errors
    /// The verb fails; the error carries what it printed.
    pub fn verb(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.binary);
        netns::run(command.args(arguments).arg("--state-dir").arg(&self.state))
    }

    /// Waits until the agent says something of itself or of a pod.
    ///
    /// # Errors
    /// It does not; the error carries the log.
    pub fn await_said(&self, wanted: &str) -> Result<()> {
        let said = wait_until(wanted, SOON, || {
            let status = self.status()?.to_string();
            ensure!(status.contains(wanted), "the status says {status}");
            Ok(Some(()))
        });
        said.with_context(|| self.log())
    }
}

/// Takes everything down. An agent that was killed a moment ago may still have processes.
fn detach_all(binary: &Path, state: &Path) {
    let done = || {
        let mut command = Command::new(binary);
        Ok(netns::run(command.args(["agent", "detach", "--state-dir"]).arg(state)).ok())
    };
    let _ = wait_until("data planes to go", SOON, done);
}
