//! What client and daemon say to each other: one line of JSON each way, over a Unix socket.

use std::io;

use serde::{Deserialize, Serialize};

/// The socket in the state directory. It is there as soon as the daemon is ready.
pub const SOCKET: &str = "exec.sock";

/// The longest line. Ten thousand rules have half a million bytes.
pub const MOST_BYTES: u64 = 16 << 20;

/// Exit code of an order that could not be carried out.
pub const FAILED: u8 = 1;

/// Exit code when a route that shall go is not there, as `ip route del` has it.
pub const NO_SUCH_ROUTE: u8 = 2;

/// What the client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The verb and its rules.
    pub words: Vec<String>,
    /// Whether the daemon may have carried it out already, and died before it said so.
    pub again: bool,
}

/// What the daemon answers: what the process prints, and its exit code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The exit code.
    pub code: u8,
    /// For standard output.
    pub stdout: String,
    /// For standard error: empty on success, or kube-ovn-controller takes it for a failure.
    pub stderr: String,
}

impl Answer {
    /// A success.
    #[must_use]
    pub fn done(stdout: String) -> Self {
        Self { code: 0, stdout, stderr: String::new() }
    }

    /// A failure.
    #[must_use]
    pub fn failed(why: impl ToString) -> Self {
        Self { code: FAILED, stdout: String::new(), stderr: why.to_string() }
    }
}

/// A line of JSON.
///
/// # Errors
///
/// When the value cannot be written as JSON.
pub fn line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}
