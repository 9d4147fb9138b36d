//! Many sessions in one thread: sockets and clock around [`Session`].

use std::collections::BTreeMap;
use std::io;
use std::net::{self, IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};

use super::packet::{ControlPacket, Diagnostic, State};
pub use super::report::Ends;
use super::report::Report;
use super::session::{Change, Parameters, Session};
use super::socket::{self, Datagram, SOURCE_PORTS, SocketError};
use crate::clock;
use crate::dataplane::raw;

/// A session that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Intervals, multiplier and role.
    pub parameters: Parameters,
    /// Lowest TTL or hop limit of packets that are taken: 255 for a neighbour on the link (RFC 5881
    /// section 5), one less for each router in between.
    pub min_ttl: u8,
    /// Held down by an operator.
    pub admin_down: bool,
}

/// A change of state, as it is told to whoever steers traffic by it.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Whose.
    pub ends: Ends,
    /// What.
    pub change: Change,
}

enum Request {
    Want(BTreeMap<Ends, Wanted>),
    Report(oneshot::Sender<Vec<Report>>),
}

/// The thread that runs the sessions. It ends when this is dropped, telling all neighbours so.
#[derive(Debug)]
pub struct Engine {
    requests: Option<mpsc::UnboundedSender<Request>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing to say but that it panicked, and it has said that.
            let _ = thread.join();
        }
    }
}

impl Engine {
    /// Starts the thread, in the network namespace of the caller. Changes of state go to `events`.
    ///
    /// The thread asks for a high priority, so that a busy machine does not look like a dead
    /// neighbour; it works without it too.
    ///
    /// # Errors
    ///
    /// When the port is taken, or there can be no more threads.
    pub fn start(events: mpsc::UnboundedSender<Event>) -> Result<Self, SocketError> {
        let (requests, incoming) = mpsc::unbounded_channel();
        let (started, result) = std::sync::mpsc::channel();
        let body = move || {
            let run = || -> Result<_, SocketError> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(socket::failed("start the event loop of BFD"))?;
                let worker = runtime.block_on(async { Worker::new(events) })?;
                Ok((runtime, worker))
            };
            match run() {
                Ok((runtime, worker)) => {
                    raw::ask_for_priority();
                    let _ = started.send(Ok(()));
                    runtime.block_on(worker.run(incoming));
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        };
        let thread = thread::Builder::new().name("bfd".into()).spawn(body);
        let thread = thread.map_err(socket::failed("start the thread of BFD"))?;
        match result.recv() {
            Ok(Ok(())) => Ok(Self { requests: Some(requests), thread: Some(thread) }),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                Err(socket::failed("start the thread of BFD")(io::Error::other("it panicked")))
            }
        }
    }

    /// Says which sessions there shall be. Those that stay are changed without a flap.
    pub fn want(&self, sessions: BTreeMap<Ends, Wanted>) {
        if let Some(requests) = &self.requests {
            // The thread lives as long as the channel.
            let _ = requests.send(Request::Want(sessions));
        }
    }

    /// All sessions, ordered by their ends.
    pub async fn report(&self) -> Vec<Report> {
        let (answer, reports) = oneshot::channel();
        if let Some(requests) = &self.requests {
            let _ = requests.send(Request::Report(answer));
        }
        reports.await.unwrap_or_default()
    }
}

/// A session with its socket and its statistics.
struct Peer {
    session: Session,
    min_ttl: u8,
    /// `None` until the local address is there.
    socket: Option<net::UdpSocket>,
    error: Option<String>,
    changed_at: Instant,
    last_down: Option<Diagnostic>,
    flaps: u64,
    sent: u64,
    received: u64,
    discarded: u64,
}

impl Peer {
    fn new(discriminator: u32, wanted: &Wanted) -> Self {
        Self {
            session: Session::new(discriminator, wanted.parameters),
            min_ttl: wanted.min_ttl,
            socket: None,
            error: None,
            changed_at: clock::now(),
            last_down: None,
            flaps: 0,
            sent: 0,
            received: 0,
            discarded: 0,
        }
    }

    /// Sends now or, if the kernel will not, leaves it to the next interval.
    fn send(&mut self, ends: Ends, packet: &ControlPacket) {
        if self.socket.is_none() {
            self.open(ends.local);
        }
        let Some(socket) = &self.socket else { return };
        let to = SocketAddr::new(ends.remote, socket::PORT);
        match socket.send_to(&packet.encode(), to) {
            Ok(_) => {
                self.sent += 1;
                self.error = None;
            }
            Err(error) => {
                self.error = Some(format!("failed to send to {}: {error}", ends.remote));
                // The address may have gone and come back.
                self.socket = None;
            }
        }
    }

    /// A source port that no other session has: the kernel knows which are taken.
    fn open(&mut self, local: IpAddr) {
        let ports = u32::from(*SOURCE_PORTS.end() - *SOURCE_PORTS.start()) + 1;
        let first = self.session.discriminator() % ports;
        let mut last = None;
        for turn in 0..16 {
            let offset = (first + turn) % ports;
            let port = *SOURCE_PORTS.start() + u16::try_from(offset).unwrap_or(0);
            match socket::sender(local, port) {
                Ok(socket) => {
                    self.socket = Some(socket);
                    return;
                }
                Err(error) => last = Some(error),
            }
        }
        self.error = last.map(|error| format!("failed to send from {local}: {error}"));
    }

    fn took(&mut self, change: Option<Change>) {
        let Some(change) = change else { return };
        self.changed_at = clock::now();
        if change.from == State::Up {
            self.flaps += 1;
        }
        if change.to != State::Up && change.to != State::Init {
            self.last_down = Some(change.diagnostic);
        }
    }

    fn report(&self, ends: Ends) -> Report {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let session = &self.session;
        Report {
            ends,
            state: session.state(),
            remote_state: session.remote_state(),
            diagnostic: session.diagnostic(),
            last_down: self.last_down,
            flaps: self.flaps,
            since_seconds: clock::now().duration_since(self.changed_at).as_secs(),
            transmit_interval_ms: session.transmit_interval().map(millis),
            detection_time_ms: millis(session.detection_time()),
            discriminator: session.discriminator(),
            remote_discriminator: session.remote_discriminator(),
            sent: self.sent,
            received: self.received,
            discarded: self.discarded,
            error: self.error.clone(),
        }
    }
}

/// What the thread has.
struct Worker {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
    peers: BTreeMap<Ends, Peer>,
    events: mpsc::UnboundedSender<Event>,
}

impl Worker {
    fn new(events: mpsc::UnboundedSender<Event>) -> Result<Self, SocketError> {
        let v4 = socket::receiver(false)?;
        // A kernel without IPv6 is no reason not to run.
        let v6 = socket::receiver(true).ok();
        Ok(Self { v4, v6, peers: BTreeMap::new(), events })
    }

    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        loop {
            let deadline = self.work();
            let wait = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let v6 = async {
                match &self.v6 {
                    Some(socket) => socket.readable().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                request = requests.recv() => match request {
                    Some(request) => self.serve(request),
                    None => return self.end(),
                },
                _ = self.v4.readable() => self.drain(false),
                _ = v6 => self.drain(true),
                () = wait => {}
            }
        }
    }

    /// Does what is due, and says when to come again.
    fn work(&mut self) -> Option<Instant> {
        let mut next = None;
        for (ends, peer) in &mut self.peers {
            let now = clock::now();
            let due = peer.session.due(now, fastrand::u32(..));
            if let Some(packet) = due.packet {
                peer.send(*ends, &packet);
            }
            peer.took(due.change);
            tell(&self.events, *ends, due.change);
            let at = peer.session.deadline(now);
            next = [next, at].into_iter().flatten().min();
        }
        next
    }

    fn drain(&mut self, ipv6: bool) {
        // Not for ever: a flood must not keep our own packets back.
        for _ in 0..64 {
            let socket = if ipv6 { self.v6.as_ref() } else { Some(&self.v4) };
            let Some(socket) = socket else { return };
            match socket::receive(socket) {
                Ok(Some(datagram)) => self.take(&datagram),
                // An error belongs to one datagram; the next call says whether there are more.
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn take(&mut self, datagram: &Datagram) {
        let ends = Ends { local: datagram.to, remote: datagram.from };
        let Some(peer) = self.peers.get_mut(&ends) else { return };
        let bytes = datagram.bytes.get(..datagram.length).unwrap_or_default();
        let packet = match ControlPacket::decode(bytes) {
            Ok(packet) if datagram.ttl >= peer.min_ttl && is_for(&peer.session, &packet) => packet,
            Ok(_) | Err(_) => {
                peer.discarded += 1;
                return;
            }
        };
        peer.received += 1;
        let received = peer.session.receive(&packet, clock::now());
        if let Some(reply) = received.reply {
            peer.send(ends, &reply);
        }
        peer.took(received.change);
        tell(&self.events, ends, received.change);
    }

    fn serve(&mut self, request: Request) {
        match request {
            Request::Want(wanted) => self.want(&wanted),
            Request::Report(answer) => {
                let all = self.peers.iter().map(|(ends, peer)| peer.report(*ends)).collect();
                // Whoever asked may have gone.
                let _ = answer.send(all);
            }
        }
    }

    fn want(&mut self, wanted: &BTreeMap<Ends, Wanted>) {
        let gone: Vec<_> =
            self.peers.keys().filter(|ends| !wanted.contains_key(ends)).copied().collect();
        for ends in gone {
            if let Some(mut peer) = self.peers.remove(&ends) {
                farewell(ends, &mut peer);
            }
        }
        for (ends, wanted) in wanted {
            let discriminator = self.free_discriminator();
            let peer = self.peers.entry(*ends).or_insert_with(|| Peer::new(discriminator, wanted));
            peer.min_ttl = wanted.min_ttl;
            peer.session.set_parameters(wanted.parameters);
            let change = peer.session.set_admin_down(wanted.admin_down);
            peer.took(change);
            tell(&self.events, *ends, change);
        }
    }

    /// Random, so that packets of an earlier life are not taken for this one's.
    fn free_discriminator(&self) -> u32 {
        loop {
            let one = fastrand::u32(..);
            if one != 0 && self.peers.values().all(|peer| peer.session.discriminator() != one) {
                return one;
            }
        }
    }

    fn end(mut self) {
        for (ends, peer) in &mut self.peers {
            farewell(*ends, peer);
        }
    }
}

/// Tells the neighbour at once that nobody is here any more, instead of letting it find out.
fn farewell(ends: Ends, peer: &mut Peer) {
    peer.session.set_admin_down(true);
    if let Some(packet) = peer.session.due(clock::now(), 0).packet {
        peer.send(ends, &packet);
    }
}

/// Section 6.8.6: a discriminator that is given must be the session's.
fn is_for(session: &Session, packet: &ControlPacket) -> bool {
    packet.your_discriminator == 0 || packet.your_discriminator == session.discriminator()
}

fn tell(events: &mpsc::UnboundedSender<Event>, ends: Ends, change: Option<Change>) {
    if let Some(change) = change {
        // Nobody may be listening; the report has it too.
        let _ = events.send(Event { ends, change });
    }
}
