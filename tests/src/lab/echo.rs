//! Echo servers that first say which peer address they saw, and who they are: the other side's view,
//! on the wire.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use super::netns::{self, Netns};

/// The port of the echo servers, UDP and TCP.
pub const ECHO_PORT: u16 = 7;

const PAUSE: Duration = Duration::from_millis(50);

/// UDP and TCP echo servers on one port of one namespace, stopped on drop.
#[derive(Debug)]
pub struct EchoServers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl EchoServers {
    /// Starts both servers on threads that live in the namespace.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(ns: &Netns, port: u16) -> Result<Self> {
        let (udp, tcp) = ns.enter(|| bind(port))??;
        let name = ns.name().rsplit('-').next().unwrap_or_default().to_owned();
        let stop = Arc::new(AtomicBool::new(false));
        let mut servers = Self { stop: stop.clone(), threads: Vec::new() };
        let (path, own) = (ns.path(), name.clone());
        servers.threads.push(spawn("udp-echo", move || {
            // Only to be seen there by `ip netns identify`; the sockets already belong to it.
            let _ = netns::enter_this_thread(&path);
            serve_udp(&udp, &own, &stop);
        })?);
        let stop = servers.stop.clone();
        servers.threads.push(spawn("tcp-echo", move || serve_tcp(&tcp, &name, &stop))?);
        Ok(servers)
    }
}

impl Drop for EchoServers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Serves both protocols until the process ends; says so on standard output once it listens.
///
/// # Errors
/// The port is taken.
pub fn serve_forever(port: u16) -> Result<()> {
    let (udp, tcp) = bind(port)?;
    println!("listening on port {port}");
    let never = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| serve_udp(&udp, "demo", &never));
        serve_tcp(&tcp, "demo", &never);
    });
    Ok(())
}

fn bind(port: u16) -> Result<(UdpSocket, TcpListener)> {
    // Both families: the kernel maps IPv4 into it.
    let any = (Ipv6Addr::UNSPECIFIED, port);
    let udp = UdpSocket::bind(any).with_context(|| format!("failed to bind UDP port {port}"))?;
    let tcp = TcpListener::bind(any).with_context(|| format!("failed to bind TCP port {port}"))?;
    udp.set_read_timeout(Some(PAUSE))?;
    tcp.set_nonblocking(true)?;
    Ok((udp, tcp))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    Ok(thread::Builder::new().name(name.into()).spawn(work)?)
}

fn greeting(peer: SocketAddr, name: &str) -> String {
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    format!("peer {peer} at {name}\n")
}

fn serve_udp(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut buffer = vec![0; 65536];
    while !stop.load(Ordering::SeqCst) {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let mut reply = greeting(peer, name).into_bytes();
        reply.extend_from_slice(&buffer[..length]);
        let _ = socket.send_to(&reply, peer);
    }
}

fn serve_tcp(listener: &TcpListener, name: &str, stop: &AtomicBool) {
    thread::scope(|scope| {
        while !stop.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((stream, peer)) => {
                    scope.spawn(move || echo_lines(stream, &greeting(peer, name), stop));
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    });
}

/// Greets, then answers every line with itself until the peer closes.
fn echo_lines(stream: TcpStream, greeting: &str, stop: &AtomicBool) {
    let ready = stream.set_nonblocking(false).and(stream.set_read_timeout(Some(PAUSE)));
    let Ok(mut writer) = ready.and_then(|()| stream.try_clone()) else { return };
    if writer.write_all(greeting.as_bytes()).is_err() {
        return;
    }
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while !stop.load(Ordering::SeqCst) {
        match reader.read_line(&mut line) {
            Ok(0) => return,
            Ok(_) if writer.write_all(line.as_bytes()).is_err() => return,
            Ok(_) => line.clear(),
            Err(error) if is_timeout(&error) => {}
            Err(_) => return,
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}
