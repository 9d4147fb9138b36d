//! Reaches the daemon of a gateway, and starts it if it is dead.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::protocol::{self, Answer, Request, SOCKET};
use crate::state_dir::{StateDir, StateError};

/// The file in the state directory that makes the pod a gateway.
pub const INIT: &str = "init.json";
/// What the daemon prints.
pub const LOG: &str = "daemon.log";
/// Held while a daemon is being started.
const LOCK: &str = "exec.lock";

/// How long the daemon may take to be ready.
const START: Duration = Duration::from_secs(60);
/// How long it may take to answer: less than for ever, which is what kube-ovn-controller would wait.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is started again when it was killed before it was ready.
const STARTS: u32 = 10;
/// How often a request is made before it counts as one that daemons die of. A daemon that is being
/// stopped again and again takes requests down with it that are none of the reason.
const TRIES: u32 = 5;
/// A log beyond this starts anew with the next daemon.
const LOG_BYTES: u64 = 1 << 20;

/// What `init` decides for the life of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Initialised {
    /// The interface towards the VPC.
    pub internal: String,
    /// The interface towards the outside.
    pub external: String,
    /// The routers of the outside, at most one of each family.
    pub routers: Vec<IpAddr>,
}

/// The daemon cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// An I/O error.
    #[error("failed to {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The daemon ended before it was ready.
    #[error("failed to start the daemon: {said}")]
    Ended {
        /// What it said last.
        said: String,
    },
    /// The daemon is not ready in time.
    #[error("failed to start the daemon: not ready after {} s; see {}", START.as_secs(), log.display())]
    Slow {
        /// Its log.
        log: PathBuf,
    },
    /// It died over one request, each time it was made.
    #[error("failed to get an answer of the daemon: it ended {TRIES} times; see {}", log.display())]
    Died {
        /// Its log.
        log: PathBuf,
    },
}

/// A gateway and how its daemon is started.
pub struct Client {
    /// The state directory.
    pub state: StateDir,
    /// The name of the gateway.
    pub gateway: String,
    /// The directory of the state directories.
    pub root: PathBuf,
    /// More options of `run`.
    pub arguments: Vec<String>,
}

impl Client {
    /// What `init` has decided, if it was there.
    ///
    /// # Errors
    ///
    /// When the file is there and cannot be read.
    pub fn initialised(&self) -> Result<Option<Initialised>, StateError> {
        self.state.load(INIT)
    }

    /// Makes the pod a gateway and starts its daemon. Doing it again changes nothing.
    ///
    /// # Errors
    ///
    /// When the daemon cannot be started. If the pod was no gateway before, it is none then.
    pub fn init(&self, wanted: &Initialised) -> Result<(), ClientError> {
        fs::create_dir_all(self.state.file("")).map_err(self.failed("make", ""))?;
        let _lock = self.lock()?;
        let first = self.initialised()?.is_none();
        if first {
            self.state.save(INIT, wanted)?;
        }
        let started = self.connect_or_start().map(drop);
        if first && started.is_err() {
            let _ = fs::remove_file(self.state.file(INIT));
        }
        started
    }

    /// Has the daemon carry out a request, and starts it before if it is dead.
    ///
    /// # Errors
    ///
    /// When there is no daemon to be had.
    pub fn ask(&self, words: &[String]) -> Result<Answer, ClientError> {
        for again in (0..TRIES).map(|tries| tries > 0) {
            let stream = match self.connect() {
                Ok(stream) => stream,
                Err(_) => {
                    let _lock = self.lock()?;
                    self.connect_or_start()?
                }
            };
            let request = Request { words: words.to_vec(), again };
            match converse(stream, &request) {
                Ok(Some(answer)) => return Ok(answer),
                // It was killed in between: whatever it has done, it can do again.
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(source) => return Err(self.failed("talk by", SOCKET)(source)),
            }
        }
        Err(ClientError::Died { log: self.state.file(LOG) })
    }

    fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(self.state.file(SOCKET))
    }

    /// Waits until nobody else starts a daemon.
    fn lock(&self) -> Result<File, ClientError> {
        let path = self.state.file(LOCK);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(self.failed("open", LOCK))?;
        file.lock().map_err(self.failed("lock", LOCK))?;
        Ok(file)
    }

    /// The caller holds the lock.
    fn connect_or_start(&self) -> Result<UnixStream, ClientError> {
        if let Ok(stream) = self.connect() {
            return Ok(stream);
        }
        let log = self.log()?;
        let begin = log.metadata().map_err(self.failed("look at", LOG))?.len();
        let mut daemon = self.start(&log)?;
        let mut starts = 1;
        let deadline = Instant::now() + START;
        loop {
            if let Ok(stream) = self.connect() {
                return Ok(stream);
            }
            // Another one may have been started by hand.
            let ended = daemon.try_wait().map_err(self.failed("wait for the daemon of", ""))?;
            if let Some(ended) = ended {
                if ended.signal().is_some() && starts < STARTS {
                    starts += 1;
                    daemon = self.start(&log)?;
                    continue;
                }
                let said = format!("{}{ended}", self.said_since(begin));
                return Err(ClientError::Ended { said });
            }
            if Instant::now() >= deadline {
                return Err(ClientError::Slow { log: self.state.file(LOG) });
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn log(&self) -> Result<File, ClientError> {
        let path = self.state.file(LOG);
        let long = fs::metadata(&path).is_ok_and(|about| about.len() > LOG_BYTES);
        let mut options = OpenOptions::new();
        if long {
            options.write(true).truncate(true).open(&path).map_err(self.failed("empty", LOG))?;
        }
        let log = OpenOptions::new().create(true).append(true).open(&path);
        log.map_err(self.failed("open", LOG))
    }

    /// Starts the daemon so that it outlives this process and shares nothing with it. It becomes the
    /// leader of a session by itself.
    fn start(&self, log: &File) -> Result<Child, ClientError> {
        let program = std::env::current_exe().map_err(self.failed("find the program of", ""))?;
        let output = log.try_clone().map_err(self.failed("open", LOG))?;
        let errors = log.try_clone().map_err(self.failed("open", LOG))?;
        let mut command = Command::new(program);
        command.arg("run").arg("--exec").args(["--gateway", &self.gateway]);
        command.arg("--state-dir").arg(&self.root).args(&self.arguments);
        command.current_dir("/").stdin(Stdio::null()).stdout(output).stderr(errors);
        command.spawn().map_err(self.failed("start the daemon of", ""))
    }

    /// The end of what the daemon has printed.
    fn said_since(&self, begin: u64) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(self.state.file(LOG))?;
            file.seek(SeekFrom::Start(begin))?;
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok(text)
        };
        let text = read().unwrap_or_else(|error| error.to_string());
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(5)..];
        last.iter().map(|line| format!("{}; ", line.trim_start_matches("error: "))).collect()
    }

    fn failed(&self, operation: &'static str, file: &str) -> impl FnOnce(io::Error) -> ClientError {
        let path = self.state.file(file);
        move |source| ClientError::Io { operation, path, source }
    }
}

/// `None` if the other side ended without an answer.
fn converse(mut stream: UnixStream, request: &Request) -> io::Result<Option<Answer>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&protocol::line(request)?)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}
