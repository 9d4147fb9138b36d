//! nginx in a namespace, and curl as its client.

use std::fs;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::netns::{self, Netns};
use super::process::Process;
use super::scratch::Scratch;
use super::wait::wait_until;

/// The port nginx listens on.
pub const HTTP_PORT: u16 = 80;

/// An nginx that tells every client its address, serves `/files/` and takes uploads there.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    files: PathBuf,
}

impl Nginx {
    /// Starts nginx inside `ns` with a configuration of its own below `scratch`.
    ///
    /// # Errors
    /// nginx is not installed or the port is taken.
    pub fn start(ns: &Netns, scratch: &Scratch) -> Result<Self> {
        let root = scratch.join(&format!("nginx-{}", ns.name()));
        let files = root.join("files");
        fs::create_dir_all(&files)?;
        let config = root.join("nginx.conf");
        fs::write(&config, configuration(&root))?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&root).arg("-e").arg(root.join("error.log")).arg("-c").arg(&config);
        let log = root.join("output.log");
        let process = ns.enter(|| Process::start(&mut command, &log))?.context("nginx")?;
        let nginx = Self { process, files };
        let here = SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, HTTP_PORT);
        wait_until("nginx to listen", Duration::from_secs(5), || {
            ns.enter(|| {
                std::net::TcpStream::connect_timeout(&here.into(), Duration::from_secs(1))
            })??;
            Ok(Some(()))
        })
        .with_context(|| nginx.process.log())?;
        Ok(nginx)
    }

    /// The directory behind `/files/`.
    pub fn files(&self) -> &Path {
        &self.files
    }

    /// Leaves it running for good.
    pub fn keep(self) {
        self.process.keep();
    }
}

fn configuration(root: &Path) -> String {
    let root = root.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {root}/{kind};"))
        .join(" ");
    format!(
        "daemon off; worker_processes 1; user root; pid {root}/nginx.pid;
        events {{ worker_connections 512; }}
        http {{
            {temporary}
            access_log off; sendfile on; tcp_nodelay on; client_max_body_size 0;
            server {{
                listen {HTTP_PORT}; listen [::]:{HTTP_PORT};
                location / {{
                    default_type text/plain; return 200 \"peer $remote_addr:$remote_port\\n\";
                }}
                location /files/ {{
                    alias {root}/files/; dav_methods PUT;
                    add_header X-Peer \"$remote_addr:$remote_port\" always;
                }}
            }}
        }}\n"
    )
}

/// Asks nginx which client address it sees.
///
/// # Errors
/// curl is missing, or the request fails.
pub fn whoami(ns: &Netns, server: impl Into<SocketAddr>) -> Result<SocketAddr> {
    let server = server.into();
    let body = ns.output(curl(3).arg(format!("http://{server}/")))?;
    let peer = body.trim().strip_prefix("peer ").with_context(|| format!("answer {body:?}"))?;
    // nginx puts no brackets around an IPv6 address.
    let parts =
        peer.rsplit_once(':').and_then(|(ip, port)| Some((ip.parse().ok()?, port.parse().ok()?)));
    let (ip, port) = parts.with_context(|| format!("answer {body:?}"))?;
    Ok(SocketAddr::new(ip, port))
}

/// A finished transfer.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Bytes of content.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

impl Transfer {
    /// Gigabits of content per second.
    pub fn gigabits(&self) -> f64 {
        self.bytes as f64 * 8e-9 / self.took.as_secs_f64()
    }
}

/// Downloads `name` and checks that the content is that of `original`.
///
/// # Errors
/// The transfer fails or the content differs.
pub fn download(
    ns: &Netns,
    server: SocketAddrV4,
    name: &str,
    original: &Path,
    copy: &Path,
) -> Result<Transfer> {
    let mut command = curl(60);
    command.arg("-o").arg(copy).arg(format!("http://{server}/files/{name}"));
    transfer(ns, &mut command, original, copy)
}

/// Uploads `original` as `name` and checks what the server stored at `copy`.
///
/// # Errors
/// The transfer fails or the content differs.
pub fn upload(
    ns: &Netns,
    server: SocketAddrV4,
    name: &str,
    original: &Path,
    copy: &Path,
) -> Result<Transfer> {
    let mut command = curl(60);
    command.arg("-T").arg(original).arg(format!("http://{server}/files/{name}"));
    transfer(ns, &mut command, original, copy)
}

fn transfer(ns: &Netns, command: &mut Command, original: &Path, copy: &Path) -> Result<Transfer> {
    let started = Instant::now();
    ns.output(command)?;
    let took = started.elapsed();
    let (sent, received) = (sha256(original)?, sha256(copy)?);
    ensure!(sent == received, "content changed on the way: sha256 {sent} became {received}");
    let bytes = fs::metadata(copy)?.len();
    fs::remove_file(copy)?;
    Ok(Transfer { bytes, took })
}

fn curl(seconds: u32) -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time"]);
    command.arg(seconds.to_string());
    command
}

/// Makes a file of random bytes.
///
/// # Errors
/// The file system is full.
pub fn random_file(path: &Path, megabytes: u32) -> Result<()> {
    let count = format!("count={megabytes}");
    let output = format!("of={}", path.display());
    netns::run(Command::new("dd").args(["if=/dev/urandom", &output, "bs=1M", &count]))?;
    Ok(())
}

/// The SHA-256 sum of a file.
///
/// # Errors
/// It cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let line = netns::run(Command::new("sha256sum").arg(path))?;
    line.split_whitespace().next().map(str::to_owned).context("no output of sha256sum")
}
