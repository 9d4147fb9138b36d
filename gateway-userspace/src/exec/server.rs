//! Takes requests in: a Unix socket that only root can reach.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::protocol::{self, Answer, MOST_BYTES, Request};

/// How many requests wait while one is carried out.
const WAITING: usize = 64;

/// A request and where its answer goes.
pub struct Asked {
    /// What is asked.
    pub request: Request,
    /// Who asks.
    pub answer: oneshot::Sender<Answer>,
}

/// A socket that is listened to; dropped, its file goes.
pub struct Server {
    path: PathBuf,
    requests: mpsc::Receiver<Asked>,
}

/// The socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen at {}", path.display())]
pub struct ServerError {
    /// The socket.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub source: io::Error,
}

impl Server {
    /// Makes the socket, in place of one that a killed process has left. The caller holds the lock of
    /// the state directory.
    ///
    /// # Errors
    ///
    /// When the socket cannot be made.
    pub fn listen(path: &Path) -> Result<Self, ServerError> {
        let failed = |source| ServerError { path: path.to_owned(), source };
        let draft = path.with_extension("new");
        let _ = fs::remove_file(&draft);
        let listener = UnixListener::bind(&draft).map_err(failed)?;
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        fs::rename(&draft, path).map_err(failed)?;
        let (sender, requests) = mpsc::channel(WAITING);
        tokio::spawn(accept(listener, sender));
        Ok(Self { path: path.to_owned(), requests })
    }

    /// Waits for the next request.
    pub async fn next(&mut self) -> Asked {
        match self.requests.recv().await {
            Some(asked) => asked,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

async fn accept(listener: UnixListener, sender: mpsc::Sender<Asked>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let sender = sender.clone();
                tokio::spawn(async move {
                    // A client that went away is not missed.
                    let _ = converse(stream, &sender).await;
                });
            }
            Err(error) => {
                eprintln!("exec: failed to accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, sender: &mpsc::Sender<Asked>) -> io::Result<()> {
    let (input, mut output) = stream.into_split();
    let mut line = String::new();
    BufReader::new(input.take(MOST_BYTES)).read_line(&mut line).await?;
    if line.is_empty() {
        return Ok(());
    }
    let answer = match serde_json::from_str(&line) {
        Ok(request) => {
            let (answer, answered) = oneshot::channel();
            let _ = sender.send(Asked { request, answer }).await;
            // Without an answer the client sees the end of the connection, and asks again.
            let Ok(answer) = answered.await else { return Ok(()) };
            answer
        }
        Err(error) => Answer::failed(format_args!("failed to read the request: {error}")),
    };
    output.write_all(&protocol::line(&answer)?).await
}
