//! `verify-udp`: the two ends of the round trip, run inside the virtual machine.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};

/// How long an answer may take, and how often the question is repeated.
const PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPTS: u32 = 3;

/// The two ends of a UDP round trip. Started by the init script of `verify`.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Options {
    #[command(subcommand)]
    end: End,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum End {
    /// Answers every datagram with the address it came from
    Serve {
        /// Port
        port: u16,
    },
    /// Asks a server which address it sees, and prints it
    Ask {
        /// Server
        server: SocketAddr,
        /// Local port
        port: u16,
    },
}

/// Runs one end.
///
/// # Errors
///
/// There is no socket, or no answer.
pub(crate) fn run(options: Options) -> Result<()> {
    match options.end {
        End::Serve { port } => serve(port),
        End::Ask { server, port } => ask(server, port),
    }
}

fn serve(port: u16) -> Result<()> {
    let socket = bind(port)?;
    let mut buffer = [0; 64];
    loop {
        let (_, peer) = socket.recv_from(&mut buffer).context("failed to receive")?;
        socket.send_to(peer.to_string().as_bytes(), peer).context("failed to answer")?;
    }
}

fn ask(server: SocketAddr, port: u16) -> Result<()> {
    let socket = bind(port)?;
    socket.set_read_timeout(Some(PATIENCE)).context("failed to set a time limit")?;
    let mut buffer = [0; 64];
    for _ in 0..ATTEMPTS {
        socket.send_to(b"who am I?", server).context("failed to send")?;
        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let seen = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
            println!("{peer} saw {seen}");
            return Ok(());
        }
    }
    bail!("no answer from {server}")
}

fn bind(port: u16) -> Result<UdpSocket> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
        .with_context(|| format!("failed to bind UDP port {port}"))
}
