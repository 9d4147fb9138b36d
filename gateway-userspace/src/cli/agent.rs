//! `vpc-gateway agent`: a data plane for each gateway pod of a node.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::table::Table;
use super::{print, print_json};
use crate::agent::cri::Socket;
use crate::agent::report::{AgentStatus, FILE, PodState, PodStatus};
use crate::agent::{self, HEARTBEAT, Interfaces, Places, Settings};
use crate::clock;
use crate::dataplane::probe;
use crate::metrics::{self, Address, Listener};
use crate::state_dir::{self, StateDir};
use crate::status::{self, Status};

/// Options of `vpc-gateway agent`.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Finds the pods of Kube-OVN's VpcNatGateways and VpcEgressGateways on the node and runs `vpc-gateway run \
--kube` in the network namespace of each. What no rule covers is left to the kernel of the pod, whose \
addresses, routes and iptables rules stay as they are. A pod names \
other interfaces by the annotation vpc-gateway.io/interfaces: INTERNAL,EXTERNAL.

The other verbs know a data plane as --gateway NAMESPACE.POD.

Signals: SIGTERM and SIGINT end the agent and its processes; the data planes stay attached, and the next \
agent takes them over without a gap, unless --detach-on-exit is given.

Exit codes: 0 ended by a signal, 2 could not start."
)]
pub struct Options {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    run: RunOptions,
}

#[derive(Debug, clap::Args)]
struct RunOptions {
    /// The node, as Kubernetes calls it.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node: Option<String>,
    /// How to reach the API server; otherwise KUBECONFIG, ~/.kube/config, or the ServiceAccount of
    /// the pod.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Takes all data planes down at the end, so that the pods are as they were.
    #[arg(long, env = "VPC_GATEWAY_DETACH_ON_EXIT", value_name = "BOOL", num_args = 0..=1,
        default_value = "false", default_missing_value = "true")]
    detach_on_exit: bool,
    /// Interface of the pods towards the VPC.
    #[arg(long, value_name = "IF", default_value = "eth0")]
    internal: String,
    /// Interface of the pods towards the outside.
    #[arg(long, value_name = "IF", default_value = "net1")]
    external: String,
    /// Serves /metrics, those of the processes of all pods included, /healthz and /readyz there.
    #[arg(long, env = "VPC_GATEWAY_METRICS", value_name = "ADDRESS:PORT|unix:PATH")]
    metrics: Option<Address>,
    /// How many rules, and how many EIPs, the metrics show one by one for each pod; the others are summed.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    metrics_limit: usize,
    #[command(flatten)]
    place: Place,
    /// More arguments of `vpc-gateway run`, after `--`, for every gateway.
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The procfs in which the processes of all pods of the node are to be seen.
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    proc: PathBuf,
    /// Asks the container runtime for the network namespaces of the pods instead of looking at the
    /// processes: the socket of its CRI, such as /run/containerd/containerd.sock.
    #[arg(long, env = "VPC_GATEWAY_CRI", value_name = "SOCKET")]
    cri: Option<Socket>,
    /// Directory for lock, status and allocations, with one directory for each pod in it.
    #[arg(long, value_name = "DIR", default_value = state_dir::DEFAULT)]
    state_dir: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Shows the gateway pods of the node and whether each is served.
    #[command(after_help = "\
Exit codes: 0 every pod is served, 1 no agent runs, it cannot see the pods, or a pod is not served, 2 error.")]
    Status(StatusOptions),
    /// Takes down what agents have left on this node, while none runs: every pod is as it was.
    #[command(after_help = "Exit codes: 0 nothing is left, 2 an agent runs, or something is left.")]
    Detach(Place),
}

#[derive(Debug, clap::Args)]
struct StatusOptions {
    /// Prints one JSON document instead of text.
    #[arg(long)]
    json: bool,
    /// Prints nothing, and asks only whether the agent works and has seen the pods: for probes.
    #[arg(long, conflicts_with = "json")]
    probe: bool,
    /// Directory for lock, status and allocations, with one directory for each pod in it.
    #[arg(long, value_name = "DIR", default_value = state_dir::DEFAULT)]
    state_dir: PathBuf,
}

/// Exit code 0: ended by a signal, or as the verb says.
pub(super) fn run(options: Options) -> Result<ExitCode> {
    match options.verb {
        Some(Verb::Status(options)) => show(&options),
        Some(Verb::Detach(place)) => detach(&settings(RunOptions {
            node: None,
            kubeconfig: None,
            detach_on_exit: false,
            internal: String::new(),
            external: String::new(),
            metrics: None,
            metrics_limit: 0,
            place,
            arguments: Vec::new(),
        })?),
        None if options.run.node.is_none() => {
            bail!("failed to tell which node this is; give --node NAME, or set NODE_NAME")
        }
        None => {
            probe::check()?;
            let options = options.run;
            let listen = |address| {
                Listener::open(metrics::Settings { address, limit: options.metrics_limit })
            };
            let listener = options.metrics.clone().map(listen).transpose()?;
            let serve = |listener: Listener| listener.serve(|_| metrics::agent::Agent);
            let publisher = listener.map(serve).transpose()?;
            super::runtime()?.block_on(agent::run(settings(options)?, publisher))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn settings(options: RunOptions) -> Result<Settings> {
    let mut arguments = options.arguments;
    let said = |argument: &OsString| argument.to_string_lossy().starts_with("--unmatched");
    if !arguments.iter().any(said) {
        arguments.extend(["--unmatched".into(), "kernel".into()]);
    }
    Ok(Settings {
        node: options.node.unwrap_or_default(),
        kubeconfig: options.kubeconfig,
        places: Places { proc: options.place.proc, runtime: options.place.cri },
        interfaces: Interfaces { internal: options.internal, external: options.external },
        state_dir: options.place.state_dir,
        detach_on_exit: options.detach_on_exit,
        metrics_limit: options.metrics.is_some().then_some(options.metrics_limit),
        program: std::env::current_exe().context("failed to find this program")?,
        arguments,
    })
}

fn detach(settings: &Settings) -> Result<ExitCode> {
    let mut failed = false;
    for result in super::runtime()?.block_on(agent::clean(settings))? {
        match result {
            Ok(pod) => print(format_args!("{pod}: removed\n"))?,
            Err(text) => {
                failed = true;
                eprintln!("{text}");
            }
        }
    }
    if failed {
        bail!("something is left");
    }
    Ok(ExitCode::SUCCESS)
}

/// What is shown.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    status: AgentStatus,
    /// Whether the agent runs and has written its status lately. Data planes work without it.
    running: bool,
    /// What the data planes say about themselves.
    data_planes: Vec<DataPlane>,
}

/// What a data plane says about itself.
#[derive(Debug, Serialize)]
struct DataPlane {
    name: String,
    ready: bool,
    problems: Vec<String>,
}

impl Shown {
    fn read(root: &Path) -> Result<Self> {
        let state = StateDir::of_agent(root);
        let status: AgentStatus = state.load(FILE)?.unwrap_or_default();
        let age = clock::unix_seconds().saturating_sub(status.written_at);
        let running = state.holder() == Some(status.pid) && age < 3 * HEARTBEAT.as_secs();
        let data_plane = |pod: &PodStatus| -> Result<DataPlane> {
            let said: Option<Status> = StateDir::new(root, &pod.data_plane)?.load(status::FILE)?;
            let said = said.unwrap_or_default();
            let current = running && Some(said.pid) == pod.process;
            let name = pod.data_plane.clone();
            Ok(DataPlane { name, ready: current && said.ready, problems: said.problems })
        };
        let data_planes = status.pods.iter().map(data_plane).collect::<Result<_>>()?;
        Ok(Self { status, running, data_planes })
    }

    fn works(&self) -> bool {
        self.running && self.status.synced
    }
}

fn show(options: &StatusOptions) -> Result<ExitCode> {
    let shown = Shown::read(&options.state_dir)?;
    if options.probe {
        return Ok(ExitCode::from(u8::from(!shown.works())));
    }
    if options.json {
        print_json(&shown)?;
    } else {
        print(text(&shown))?;
    }
    let served = shown.data_planes.iter().all(|data_plane| data_plane.ready);
    let fine = shown.works() && shown.status.problems.is_empty() && served;
    Ok(ExitCode::from(u8::from(!fine)))
}

fn text(shown: &Shown) -> String {
    let status = &shown.status;
    if status.pid == 0 {
        return "no agent has run here\n".to_owned();
    }
    let agent = match (shown.running, status.synced) {
        (true, true) => format!("running, process {}", status.pid),
        (true, false) => format!("running, process {}; waits for the pods of the node", status.pid),
        (false, _) => "not running; the data planes work without it".to_owned(),
    };
    let mut text = format!(
        "agent       {agent}\nnode        {}\nsource      {}\n",
        status.node, status.server
    );
    if !status.pods.is_empty() {
        text.push_str(&format!("\n{}", pods(shown)));
    }
    for problem in &status.problems {
        text.push_str(&format!("\nproblem: {problem}"));
    }
    if !status.problems.is_empty() {
        text.push('\n');
    }
    text
}

fn pods(shown: &Shown) -> Table {
    let mut table =
        Table::new(&["POD", "GATEWAY", "STATE", ">PROCESS", ">RESTARTS", ">PROBLEMS", "REASON"]);
    for (pod, data_plane) in shown.status.pods.iter().zip(&shown.data_planes) {
        let state = match (pod.state, data_plane.ready) {
            (PodState::Runs, true) => "ready",
            (PodState::Runs, false) => "not ready",
            (state, _) => state.as_str(),
        };
        table.row([
            data_plane.name.clone(),
            pod.pod.serves.to_string(),
            state.to_owned(),
            pod.process.map_or_else(|| "-".to_owned(), |process| process.to_string()),
            pod.restarts.to_string(),
            data_plane.problems.len().to_string(),
            pod.reason.clone(),
        ]);
    }
    table
}
