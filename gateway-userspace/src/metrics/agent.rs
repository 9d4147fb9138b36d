//! The metrics of `vpc-gateway agent`: its pods, and what the process of each pod says itself.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::page::Page;
use super::{Collect, Facts, catalog};
use crate::agent::report::{AgentStatus, PodState, PodStatus};

/// How long a process may take for its page. It makes one in less than that or is busy.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest page.
const PAGE_BYTES: u64 = 64 << 20;

/// What an agent publishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// What it says about itself and its pods.
    pub status: AgentStatus,
    /// Whether the pods of the node cannot be watched at the moment.
    pub trouble: bool,
    /// Where the processes of the pods are asked for their metrics, by the uids of the pods.
    pub sockets: BTreeMap<String, PathBuf>,
}

impl Facts for Published {
    fn started_at(&self) -> u64 {
        self.status.started_at
    }

    fn unready(&self) -> Option<String> {
        (!self.status.synced).then(|| "waits for the pods of the node".to_owned())
    }

    fn problems(&self) -> Vec<(&'static str, usize)> {
        vec![("agent", self.status.problems.len())]
    }
}

/// Asks the processes of the pods.
#[derive(Debug, Default)]
pub struct Agent;

impl Collect<Published> for Agent {
    fn collect(&mut self, facts: &Published, page: &mut Page) -> Vec<String> {
        let status = &facts.status;
        page.single(catalog::AGENT_SYNCED, u8::from(status.synced));
        page.single(catalog::AGENT_CONNECTED, u8::from(status.synced && !facts.trouble));
        let mut pods = page.metric(catalog::AGENT_PODS);
        for state in [PodState::Waits, PodState::Runs, PodState::Failed] {
            let count = status.pods.iter().filter(|pod| pod.state == state).count();
            pods.sample([state.as_str()], count);
        }
        let mut served = page.metric(catalog::AGENT_SERVED);
        for pod in &status.pods {
            let gateway = pod.pod.serves.to_string();
            let runs = u8::from(pod.state == PodState::Runs);
            served.sample([&pod.pod.namespace, &pod.pod.name, &gateway], runs);
        }
        let mut restarts = page.metric(catalog::AGENT_RESTARTS);
        for pod in &status.pods {
            restarts.sample([&pod.pod.namespace, &pod.pod.name], pod.restarts);
        }
        let pages = gather(facts);
        let mut shown = page.metric(catalog::AGENT_SHOWN);
        for (pod, page) in status.pods.iter().zip(&pages) {
            shown.sample([&pod.pod.namespace, &pod.pod.name], u8::from(page.is_ok()));
        }
        for (pod, text) in status.pods.iter().zip(pages) {
            let labels = vec![
                ("gateway_namespace", pod.pod.namespace.clone()),
                ("gateway_pod", pod.pod.name.clone()),
            ];
            // A process that is about to start has none.
            if let Ok(text) = text {
                page.include(text, labels);
            }
        }
        Vec::new()
    }
}

/// The pages of all pods. All are asked before the first is waited for.
fn gather(facts: &Published) -> Vec<io::Result<String>> {
    let ask = |pod: &PodStatus| match facts.sockets.get(&pod.pod.uid) {
        Some(socket) => ask(socket),
        None => Err(io::ErrorKind::NotFound.into()),
    };
    let asked: Vec<_> = facts.status.pods.iter().map(ask).collect();
    asked.into_iter().map(|stream| read(stream?)).collect()
}

fn ask(socket: &Path) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n")?;
    Ok(stream)
}

fn read(stream: UnixStream) -> io::Result<String> {
    let mut text = String::new();
    stream.take(PAGE_BYTES).read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(io::Error::other(body.trim_end().to_owned()));
    }
    Ok(body.to_owned())
}
