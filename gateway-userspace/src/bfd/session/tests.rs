use super::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn parameters(min_tx: u64, min_rx: u64, multiplier: u8, role: Role) -> Parameters {
    Parameters { min_tx: ms(min_tx), min_rx: ms(min_rx), multiplier, role }
}

/// Two sessions and the wire between them.
struct Link {
    ends: [Session; 2],
    now: Instant,
    /// Packets towards an end are lost.
    cut: [bool; 2],
    /// When an end sent, in order.
    sent: [Vec<Instant>; 2],
    changes: Vec<(usize, Instant, Change)>,
}

impl Link {
    fn new(one: Parameters, other: Parameters) -> Self {
        Self {
            ends: [Session::new(11, one), Session::new(22, other)],
            now: Instant::now(),
            cut: [false; 2],
            sent: [Vec::new(), Vec::new()],
            changes: Vec::new(),
        }
    }

    fn deliver(&mut self, to: usize, packet: ControlPacket) {
        if self.cut[to] {
            return;
        }
        let packet = ControlPacket::decode(&packet.encode()).expect("a valid packet");
        let yours = packet.your_discriminator;
        assert!(yours == 0 || yours == self.ends[to].discriminator());
        let received = self.ends[to].receive(&packet, self.now);
        self.changes.extend(received.change.map(|change| (to, self.now, change)));
        if let Some(reply) = received.reply {
            assert!(reply.is_final && !reply.poll);
            self.deliver(1 - to, reply);
        }
    }

    /// Goes through everything that happens within `time`.
    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let next = self.ends.iter().filter_map(|end| end.deadline(self.now)).min();
            match next {
                Some(next) if next <= until => self.now = next.max(self.now),
                _ => break,
            }
            for index in 0..2 {
                let due = self.ends[index].due(self.now, 0x9e37_79b9);
                self.changes.extend(due.change.map(|change| (index, self.now, change)));
                if let Some(packet) = due.packet {
                    self.sent[index].push(self.now);
                    self.deliver(1 - index, packet);
                }
            }
        }
        self.now = until;
    }

    fn states(&self) -> [State; 2] {
        [self.ends[0].state(), self.ends[1].state()]
    }

    fn up(one: Parameters, other: Parameters) -> Self {
        let mut link = Self::new(one, other);
        link.run(ms(5000));
        assert_eq!(link.states(), [State::Up; 2]);
        link.changes.clear();
        link.sent = [Vec::new(), Vec::new()];
        link
    }
}

/// A packet of the other side, in `state`, that knows us.
fn heard(state: State) -> ControlPacket {
    ControlPacket {
        diagnostic: Diagnostic::NONE,
        state,
        poll: false,
        is_final: false,
        demand: false,
        multiplier: 3,
        my_discriminator: 22,
        your_discriminator: 11,
        desired_min_tx: ms(300),
        required_min_rx: ms(300),
    }
}

/// Section 6.2, the whole table: own state, reported state, next state.
#[test]
fn the_state_machine_of_rfc_5880() {
    use State::{AdminDown, Down, Init, Up};
    let table = [
        (Down, AdminDown, Down),
        (Down, Down, Init),
        (Down, Init, Up),
        (Down, Up, Down),
        (Init, AdminDown, Down),
        (Init, Down, Init),
        (Init, Init, Up),
        (Init, Up, Up),
        (Up, AdminDown, Down),
        (Up, Down, Down),
        (Up, Init, Up),
        (Up, Up, Up),
        (AdminDown, AdminDown, AdminDown),
        (AdminDown, Down, AdminDown),
        (AdminDown, Init, AdminDown),
        (AdminDown, Up, AdminDown),
    ];
    let now = Instant::now();
    for (own, reported, next) in table {
        let mut session = Session::new(11, parameters(300, 300, 3, Role::Active));
        session.state = own;
        let received = session.receive(&heard(reported), now);
        assert_eq!(session.state(), next, "{own} hears {reported}");
        assert_eq!(received.change.is_some(), own != next);
        if matches!(own, Init | Up) && next == Down {
            assert_eq!(session.diagnostic(), Diagnostic::NEIGHBOR_DOWN);
        }
    }
}

#[test]
fn both_ends_come_up_and_use_the_slower_interval() {
    let link =
        Link::up(parameters(100, 50, 3, Role::Active), parameters(200, 300, 5, Role::Active));
    // We send at max(our tx 100, their rx 300); they at max(200, 50).
    assert_eq!(link.ends[0].transmit_interval(), Some(ms(300)));
    assert_eq!(link.ends[1].transmit_interval(), Some(ms(200)));
    // Theirs to us: 5 x max(our rx 50, their tx 200).
    assert_eq!(link.ends[0].detection_time(), ms(1000));
    assert_eq!(link.ends[1].detection_time(), ms(900));
}

#[test]
fn before_up_packets_are_a_second_apart() {
    let mut link =
        Link::new(parameters(50, 50, 3, Role::Active), parameters(50, 50, 3, Role::Active));
    link.cut = [true; 2];
    link.run(ms(10_000));
    let gaps: Vec<_> = link.sent[0].windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(gaps.len() >= 9);
    assert!(gaps.iter().all(|gap| (ms(750)..=ms(1000)).contains(gap)), "{gaps:?}");
}

#[test]
fn a_passive_end_is_silent_until_spoken_to() {
    let mut link =
        Link::new(parameters(50, 50, 3, Role::Passive), parameters(50, 50, 3, Role::Passive));
    link.run(ms(10_000));
    assert!(link.sent.iter().all(Vec::is_empty));
    Link::up(parameters(50, 50, 3, Role::Active), parameters(50, 50, 3, Role::Passive));
}

#[test]
fn silence_is_noticed_within_the_detection_time() {
    for (millis, multiplier) in [(50, 3), (300, 3), (1000, 3), (100, 1), (10, 255)] {
        let same = parameters(millis, millis, multiplier, Role::Active);
        let mut link = Link::up(same, same);
        link.cut[0] = true;
        let cut_at = link.now;
        link.run(ms(millis) * u32::from(multiplier) + ms(1));
        let (end, at, change) = link.changes[0];
        assert_eq!((end, change.to, change.diagnostic), (0, State::Down, Diagnostic::EXPIRED));
        let took = at - cut_at;
        assert!(took <= ms(millis) * u32::from(multiplier), "{took:?}");
        // The other end learns it from our next packet, long before its own timer.
        assert_eq!(link.states(), [State::Down; 2]);
        assert_eq!(link.changes[1].2.diagnostic, Diagnostic::NEIGHBOR_DOWN);
        link.cut[0] = false;
        link.run(ms(5000));
        assert_eq!(link.states(), [State::Up; 2]);
    }
}

#[test]
fn nothing_expires_while_packets_arrive() {
    let same = parameters(50, 50, 3, Role::Active);
    let mut link = Link::up(same, same);
    link.run(ms(60_000));
    assert_eq!(link.changes, []);
    // 75 to 100 % of 50 ms.
    let packets = link.sent[0].len();
    assert!((1200..=1600).contains(&packets), "{packets}");
}

#[test]
fn with_multiplier_one_jitter_leaves_a_margin() {
    let same = parameters(100, 100, 1, Role::Active);
    let mut session = Session::new(11, same);
    for random in 0..1000 {
        session.urgent = true;
        session.due(Instant::now(), random);
        assert!((768..=922).contains(&session.jitter));
    }
}

#[test]
fn slower_timers_wait_for_the_other_side_to_agree() {
    let fast = parameters(50, 50, 3, Role::Active);
    let mut link = Link::up(fast, fast);
    link.cut = [true; 2];
    link.ends[0].set_parameters(parameters(1000, 50, 3, Role::Active));
    assert_eq!(link.ends[0].transmit_interval(), Some(ms(50)), "unconfirmed");
    link.cut = [false; 2];
    link.run(ms(100));
    assert_eq!(link.ends[0].transmit_interval(), Some(ms(1000)));
    assert_eq!(link.ends[1].detection_time(), ms(3000));
    link.run(ms(20_000));
    assert_eq!(link.changes, [], "no flap");
}

#[test]
fn a_faster_receiver_waits_for_the_other_side_to_agree() {
    let slow = parameters(1000, 1000, 3, Role::Active);
    let mut link = Link::up(slow, parameters(50, 1000, 3, Role::Active));
    assert_eq!(link.ends[0].detection_time(), ms(3000));
    link.ends[0].set_parameters(parameters(1000, 50, 3, Role::Active));
    assert_eq!(link.ends[0].detection_time(), ms(3000), "unconfirmed");
    link.run(ms(2000));
    assert_eq!(link.ends[0].detection_time(), ms(150));
    link.run(ms(20_000));
    assert_eq!(link.changes, [], "no flap");
}

#[test]
fn timers_that_change_again_during_a_poll_are_polled_again() {
    let fast = parameters(50, 50, 3, Role::Active);
    let mut link = Link::up(fast, fast);
    link.ends[0].set_parameters(parameters(500, 50, 3, Role::Active));
    link.ends[0].set_parameters(parameters(700, 50, 3, Role::Active));
    link.run(ms(2000));
    assert_eq!(link.ends[0].transmit_interval(), Some(ms(700)));
    assert!(!link.ends[0].polling);
    link.run(ms(20_000));
    assert_eq!(link.changes, []);
}

#[test]
fn admin_down_is_told_and_taken_back() {
    let same = parameters(50, 50, 3, Role::Active);
    let mut link = Link::up(same, same);
    assert!(link.ends[0].set_admin_down(true).is_some());
    link.run(ms(10));
    assert_eq!(link.states(), [State::AdminDown, State::Down]);
    assert_eq!(link.ends[1].diagnostic(), Diagnostic::NEIGHBOR_DOWN);
    link.run(ms(10_000));
    assert_eq!(link.states(), [State::AdminDown, State::Down]);
    link.ends[0].set_admin_down(false);
    link.run(ms(5000));
    assert_eq!(link.states(), [State::Up; 2]);
}

#[test]
fn the_other_side_may_come_back_with_another_discriminator() {
    let same = parameters(50, 50, 3, Role::Active);
    let mut link = Link::up(same, same);
    link.ends[1] = Session::new(33, same);
    // Its packets do not name us yet; ours name the old one, which nobody answers to.
    link.cut[1] = true;
    link.run(ms(500));
    assert_eq!(link.ends[0].diagnostic(), Diagnostic::NEIGHBOR_DOWN);
    link.cut[1] = false;
    link.run(ms(5000));
    assert_eq!(link.states(), [State::Up; 2]);
    assert_eq!(link.ends[0].remote_discriminator(), 33);
}

#[test]
fn zero_receive_interval_and_demand_silence_us() {
    let same = parameters(50, 50, 3, Role::Active);
    let mut link = Link::up(same, same);
    let mut packet = heard(State::Up);
    packet.required_min_rx = Duration::ZERO;
    link.ends[0].receive(&packet, link.now);
    assert_eq!(link.ends[0].transmit_interval(), None);
    packet = ControlPacket { demand: true, ..heard(State::Up) };
    link.ends[0].receive(&packet, link.now);
    assert_eq!(link.ends[0].transmit_interval(), None);
    link.ends[0].set_parameters(parameters(60, 60, 3, Role::Active));
    assert!(link.ends[0].transmit_interval().is_some(), "a poll is sent even so");
}
