//! `vpc-gateway exec`: a verb of kube-ovn-controller.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::exec::client::{Client, Initialised};
use crate::exec::protocol::Answer;
use crate::exec::verb::{self, Call, Init};
use crate::state_dir::{self, StateDir};

/// What `get-iptables-version` says: from 1.6.3 on the controller asks for random ports, which SNAT has
/// here in any case.
const IPTABLES: &str = "iptables v1.8.9";

/// Options of `vpc-gateway exec`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Verbs, each with any number of rules:
  init [INTERNAL,EXTERNAL]                    default eth0,net1; starts the daemon, which stays
  get-iptables-version
  subnet-route-add CIDR,NEXTHOP               subnet-route-del CIDR
  eip-add ADDRESS/LENGTH[,GATEWAY]            eip-del ADDRESS/LENGTH
  floating-ip-add EIP,INTERNAL_IP             floating-ip-del EIP
  dnat-add EIP,PORT,PROTOCOL,IP,PORT          dnat-del EIP,PORT,PROTOCOL
  nft-dnat-map-add EIP,PORT,PROTOCOL,IP:PORT@IP:PORT...
  nft-dnat-map-del EIP,PORT,PROTOCOL
  snat-add EIP,CIDR[,--random-fully]          snat-del EIP,CIDR
  eip-ingress-qos-add, eip-egress-qos-add EIP,PRIORITY,RATE,BURST   and -del EIP: not enforced
  qos-add, qos-del                                                  not enforced
  floating-ip-sync, dnat-sync, snat-sync      exactly these rules (v1.7 to v1.9)
  ext-subnet-route-add CIDR,NEXTHOP           ext-subnet-route-del CIDR (v1.11)

A verb that ends with 0 is in the data plane. Adding again and removing what is not there do no harm.

Exit codes: 0 done, standard error is empty; 1 not done, and why; 2 subnet-route-del found no route.")]
pub struct Options {
    /// Name of the gateway: one for each network namespace.
    #[arg(long, value_name = "NAME", env = "VPC_GATEWAY_NAME", default_value = "pod")]
    gateway: String,
    /// Directory for lock, ledger and status, with one directory for each gateway in it.
    #[arg(long, value_name = "DIR", env = "VPC_GATEWAY_STATE_DIR", default_value = state_dir::DEFAULT)]
    state_dir: PathBuf,
    /// More options of `run` for the daemon, separated by spaces.
    #[arg(long, value_name = "OPTIONS", env = "VPC_GATEWAY_OPTIONS", default_value = "")]
    options: String,
    /// Router of the external network.
    #[arg(long, value_name = "ADDRESS", env = "GATEWAY_V4", default_value = "")]
    gateway_v4: String,
    /// Router of the external network.
    #[arg(long, value_name = "ADDRESS", env = "GATEWAY_V6", default_value = "")]
    gateway_v6: String,
    /// The verb and its rules.
    #[arg(value_name = "VERB RULE", trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

impl Options {
    fn client(&self) -> Result<Client> {
        Ok(Client {
            state: StateDir::new(&self.state_dir, &self.gateway)?,
            gateway: self.gateway.clone(),
            root: self.state_dir.clone(),
            arguments: self.options.split_whitespace().map(str::to_owned).collect(),
        })
    }

    fn routers(&self) -> Result<Vec<IpAddr>> {
        let given = [("GATEWAY_V4", &self.gateway_v4), ("GATEWAY_V6", &self.gateway_v6)];
        let given = given.into_iter().filter(|(_, text)| !text.is_empty());
        let router = |(name, text): (&str, &String)| {
            text.parse().with_context(|| format!("{name} {text:?} is not an IP address"))
        };
        given.map(router).collect()
    }
}

/// Exit codes as in the help.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let answer = carry_out(options).unwrap_or_else(|error| Answer::failed(format!("{error:#}")));
    super::print(&answer.stdout)?;
    if !answer.stderr.is_empty() {
        writeln!(std::io::stderr(), "{}", answer.stderr.trim_end())?;
    }
    Ok(ExitCode::from(answer.code))
}

fn carry_out(options: &Options) -> Result<Answer> {
    let call = verb::parse(&options.words)?;
    if call == Call::Version {
        let version = env!("CARGO_PKG_VERSION");
        return Ok(Answer::done(format!("{IPTABLES} (vpc-gateway {version})\n")));
    }
    let client = options.client()?;
    if let Call::Init(init) = &call {
        return start(options, &client, init);
    }
    if client.initialised()?.is_none() {
        if call.needs_init() {
            anyhow::bail!("not initialized: run init first");
        }
        return Ok(Answer::done("not enforced: QoS\n".into()));
    }
    Ok(client.ask(&options.words)?)
}

fn start(options: &Options, client: &Client, init: &Init) -> Result<Answer> {
    let (internal, external) = match init {
        Init::Interfaces { internal, external } => (internal.as_str(), external.as_str()),
        Init::Plain | Init::Route(_) => ("eth0", "net1"),
    };
    let wanted = Initialised {
        internal: internal.to_owned(),
        external: external.to_owned(),
        routers: options.routers()?,
    };
    if let Some(there) = client.initialised()?
        && matches!(init, Init::Interfaces { .. })
        && (&there.internal, &there.external) != (&wanted.internal, &wanted.external)
    {
        anyhow::bail!(
            "initialized with {},{} already; a pod has one gateway",
            there.internal,
            there.external
        );
    }
    client.init(&wanted)?;
    Ok(client.ask(&options.words)?)
}
