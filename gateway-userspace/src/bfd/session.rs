//! One session as RFC 5880 section 6.8 describes it: packets and time in, packets and state out.
//!
//! Asynchronous mode without echo. No clock and no socket: the caller brings both.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::packet::{ControlPacket, Diagnostic, State};

/// While a session is not up it sends no faster than this (RFC 5880 section 6.8.3).
const SLOW: Duration = Duration::from_secs(1);

/// Who speaks first (RFC 5880 section 6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// We do.
    #[default]
    Active,
    /// The other side does; until then we are silent.
    Passive,
}

/// What an operator decides about a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// Shortest interval to send at (bfd.DesiredMinTxInterval while up).
    pub min_tx: Duration,
    /// Shortest interval to receive at (bfd.RequiredMinRxInterval).
    pub min_rx: Duration,
    /// How many of our packets may be lost in a row (bfd.DetectMult), from 1.
    pub multiplier: u8,
    /// Who speaks first.
    pub role: Role,
}

/// The other side, as far as its packets tell.
#[derive(Clone, Copy, Debug)]
struct Remote {
    discriminator: u32,
    state: State,
    min_tx: Duration,
    min_rx: Duration,
    multiplier: u8,
    demand: bool,
}

impl Default for Remote {
    fn default() -> Self {
        Self {
            discriminator: 0,
            state: State::Down,
            min_tx: Duration::ZERO,
            // RFC 5880 section 6.8.1: bfd.RemoteMinRxInterval begins at 1.
            min_rx: Duration::from_micros(1),
            multiplier: 0,
            demand: false,
        }
    }
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// Why.
    pub diagnostic: Diagnostic,
}

/// What came of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// To be sent at once: the answer to a poll.
    pub reply: Option<ControlPacket>,
    /// What the packet changed.
    pub change: Option<Change>,
}

/// What is due at a point of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// To be sent.
    pub packet: Option<ControlPacket>,
    /// The end of the session, if nothing was heard for too long.
    pub change: Option<Change>,
}

/// A session.
#[derive(Clone, Debug)]
pub struct Session {
    parameters: Parameters,
    discriminator: u32,
    state: State,
    diagnostic: Diagnostic,
    remote: Remote,
    /// Intervals in effect; those that are announced follow once the other side has confirmed them.
    tx_used: Duration,
    rx_used: Duration,
    /// A poll sequence is under way (section 6.5).
    polling: bool,
    /// What was announced when the poll began, so that its end confirms that and nothing newer.
    polled: (Duration, Duration),
    heard_at: Option<Instant>,
    sent_at: Option<Instant>,
    /// Part of the interval to wait before the next packet, in 1/1024.
    jitter: u32,
    /// Something changed that the other side should know at once.
    urgent: bool,
}

impl Session {
    /// A session that is down. `discriminator` is unique on this host and not 0.
    #[must_use]
    pub fn new(discriminator: u32, parameters: Parameters) -> Self {
        let slow = parameters.min_tx.max(SLOW);
        Self {
            parameters,
            discriminator,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            remote: Remote::default(),
            tx_used: slow,
            rx_used: parameters.min_rx,
            polling: false,
            polled: (slow, parameters.min_rx),
            heard_at: None,
            sent_at: None,
            jitter: 1024,
            urgent: false,
        }
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Why the state is as it is.
    #[must_use]
    pub fn diagnostic(&self) -> Diagnostic {
        self.diagnostic
    }

    /// Our discriminator.
    #[must_use]
    pub fn discriminator(&self) -> u32 {
        self.discriminator
    }

    /// The other side's discriminator, 0 if it is not known.
    #[must_use]
    pub fn remote_discriminator(&self) -> u32 {
        self.remote.discriminator
    }

    /// The state that the other side last reported.
    #[must_use]
    pub fn remote_state(&self) -> State {
        self.remote.state
    }

    /// What the operator decided.
    #[must_use]
    pub fn parameters(&self) -> Parameters {
        self.parameters
    }

    /// Interval between our packets, before jitter; `None` while we are silent.
    #[must_use]
    pub fn transmit_interval(&self) -> Option<Duration> {
        let silent = self.remote.min_rx.is_zero()
            || self.parameters.role == Role::Passive && self.remote.discriminator == 0
            || self.remote.demand
                && self.state == State::Up
                && self.remote.state == State::Up
                && !self.polling;
        (!silent).then(|| self.tx_used.max(self.remote.min_rx))
    }

    /// For how long nothing may be heard (section 6.8.4); zero before anything was heard.
    #[must_use]
    pub fn detection_time(&self) -> Duration {
        self.rx_used.max(self.remote.min_tx) * u32::from(self.remote.multiplier)
    }

    /// When [`Session::due`] has something to do next.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let transmit = self.transmit_at(now);
        let detect = self.heard_at.map(|at| at + self.detection_time());
        [transmit, detect].into_iter().flatten().min()
    }

    fn transmit_at(&self, now: Instant) -> Option<Instant> {
        let interval = self.transmit_interval()?;
        match self.sent_at {
            Some(sent) if !self.urgent => Some(sent + interval * self.jitter / 1024),
            Some(_) | None => Some(now),
        }
    }

    /// Takes a packet that belongs to this session (section 6.8.6, from the discriminators on).
    pub fn receive(&mut self, packet: &ControlPacket, now: Instant) -> Received {
        self.remote = Remote {
            discriminator: packet.my_discriminator,
            state: packet.state,
            min_tx: packet.desired_min_tx,
            min_rx: packet.required_min_rx,
            multiplier: packet.multiplier,
            demand: packet.demand,
        };
        if packet.is_final && self.polling {
            self.confirmed();
        }
        if self.state == State::AdminDown {
            return Received::default();
        }
        self.heard_at = Some(now);
        let change = self.follow(packet.state);
        let reply =
            packet.poll.then(|| ControlPacket { poll: false, is_final: true, ..self.packet() });
        Received { reply, change }
    }

    /// The state machine of section 6.2.
    fn follow(&mut self, remote: State) -> Option<Change> {
        match (self.state, remote) {
            (State::Init | State::Up, State::AdminDown) | (State::Up, State::Down) => {
                self.enter(State::Down, Diagnostic::NEIGHBOR_DOWN)
            }
            (State::Down, State::Down) => self.enter(State::Init, Diagnostic::NONE),
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                self.enter(State::Up, Diagnostic::NONE)
            }
            _ => None,
        }
    }

    fn enter(&mut self, state: State, diagnostic: Diagnostic) -> Option<Change> {
        let change = Change { from: self.state, to: state, diagnostic };
        self.state = state;
        self.diagnostic = diagnostic;
        self.urgent = true;
        if state == State::Up {
            self.negotiate();
        } else {
            // Nobody relies on the intervals of a session that is not up.
            self.polling = false;
            self.tx_used = self.desired_min_tx();
            self.rx_used = self.parameters.min_rx;
        }
        Some(change)
    }

    /// bfd.DesiredMinTxInterval: slow until the session is up (section 6.8.3).
    fn desired_min_tx(&self) -> Duration {
        match self.state {
            State::Up => self.parameters.min_tx,
            State::AdminDown | State::Down | State::Init => self.parameters.min_tx.max(SLOW),
        }
    }

    /// Announces the intervals by a poll sequence. What makes us send less often, or expect packets
    /// more often, waits for its end (section 6.8.3).
    fn negotiate(&mut self) {
        let (tx, rx) = (self.desired_min_tx(), self.parameters.min_rx);
        self.tx_used = self.tx_used.min(tx);
        self.rx_used = self.rx_used.max(rx);
        if !self.polling {
            self.polled = (tx, rx);
        }
        self.polling = true;
        self.urgent = true;
    }

    /// The end of a poll sequence.
    fn confirmed(&mut self) {
        (self.tx_used, self.rx_used) = self.polled;
        self.polling = false;
        if self.polled != (self.desired_min_tx(), self.parameters.min_rx) {
            self.negotiate();
        }
    }

    /// Changes what the operator decided, without a flap.
    pub fn set_parameters(&mut self, parameters: Parameters) {
        if self.parameters == parameters {
            return;
        }
        self.parameters = parameters;
        if self.state == State::Up {
            self.negotiate();
        } else {
            self.tx_used = self.desired_min_tx();
            self.rx_used = parameters.min_rx;
        }
    }

    /// Holds the session down, or lets it come up again.
    pub fn set_admin_down(&mut self, down: bool) -> Option<Change> {
        match (down, self.state) {
            (true, State::AdminDown) => None,
            (true, _) => {
                self.heard_at = None;
                self.enter(State::AdminDown, Diagnostic::ADMIN_DOWN)
            }
            (false, State::AdminDown) => {
                self.remote = Remote::default();
                self.enter(State::Down, Diagnostic::ADMIN_DOWN)
            }
            (false, _) => None,
        }
    }

    /// Does what is due at `now`. `random` spreads the packets of many sessions.
    pub fn due(&mut self, now: Instant, random: u32) -> Due {
        let change = self.detect(now);
        if self.transmit_at(now).is_none_or(|at| at > now) {
            return Due { packet: None, change };
        }
        self.sent_at = Some(now);
        self.urgent = false;
        // Section 6.8.7: 75 to 100 % of the interval, at most 90 % if one lost packet is the end.
        let spread = if self.parameters.multiplier == 1 { 154 } else { 257 };
        self.jitter = 768 + random % spread;
        Due { packet: Some(self.packet()), change }
    }

    /// Section 6.8.4: nothing was heard for the detection time.
    fn detect(&mut self, now: Instant) -> Option<Change> {
        let heard = self.heard_at?;
        if now < heard + self.detection_time() {
            return None;
        }
        self.heard_at = None;
        // Section 6.8.1: the other side may come back with another discriminator.
        self.remote = Remote { state: self.remote.state, ..Remote::default() };
        match self.state {
            State::Init | State::Up => self.enter(State::Down, Diagnostic::EXPIRED),
            State::AdminDown | State::Down => None,
        }
    }

    fn packet(&self) -> ControlPacket {
        ControlPacket {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: self.polling,
            is_final: false,
            demand: false,
            multiplier: self.parameters.multiplier,
            my_discriminator: self.discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_tx: self.desired_min_tx(),
            required_min_rx: self.parameters.min_rx,
        }
    }
}

#[cfg(test)]
mod tests;
