//! The control packet (RFC 5880 section 4.1).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Length in bytes without an authentication section, which is not supported.
pub const BYTES: usize = 24;

const VERSION: u8 = 1;
const POLL: u8 = 1 << 5;
const FINAL: u8 = 1 << 4;
const AUTHENTICATION: u8 = 1 << 2;
const DEMAND: u8 = 1 << 1;
const MULTIPOINT: u8 = 1;

/// State of a session, as packets carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum State {
    /// Held down by an operator.
    AdminDown = 0,
    /// Nothing heard.
    Down = 1,
    /// The other side is heard, but does not hear yet.
    Init = 2,
    /// Both sides hear each other.
    Up = 3,
}

impl State {
    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::AdminDown,
            1 => Self::Down,
            2 => Self::Init,
            _ => Self::Up,
        }
    }

    /// The state as RFC 5880 writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AdminDown => "AdminDown",
            Self::Down => "Down",
            Self::Init => "Init",
            Self::Up => "Up",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// Why a session last changed its state. Values nobody has assigned are kept as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Diagnostic(pub u8);

impl Diagnostic {
    /// Nothing to say.
    pub const NONE: Self = Self(0);
    /// Nothing was heard for the detection time.
    pub const EXPIRED: Self = Self(1);
    /// The other side said that it is down.
    pub const NEIGHBOR_DOWN: Self = Self(3);
    /// An operator holds the session down.
    pub const ADMIN_DOWN: Self = Self(7);

    /// The meanings that RFC 5880 section 4.1 assigns, in its words.
    const MEANINGS: [&str; 9] = [
        "none",
        "control detection time expired",
        "echo function failed",
        "neighbor signaled session down",
        "forwarding plane reset",
        "path down",
        "concatenated path down",
        "administratively down",
        "reverse concatenated path down",
    ];

    /// The meaning.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::MEANINGS.get(usize::from(self.0)).copied().unwrap_or("unassigned")
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Diagnostic {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let code = Self::MEANINGS.iter().position(|meaning| *meaning == text);
        Ok(Self(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(0x1f)))
    }
}

impl Serialize for Diagnostic {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A control packet, decoded. Intervals are whole microseconds on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlPacket {
    /// Why the sender last changed its state.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// The sender wants an answer with [`ControlPacket::is_final`].
    pub poll: bool,
    /// This answers a packet with [`ControlPacket::poll`].
    pub is_final: bool,
    /// The sender asks us to be silent while both are up.
    pub demand: bool,
    /// How many of the sender's packets may be lost in a row.
    pub multiplier: u8,
    /// The sender's discriminator, never 0.
    pub my_discriminator: u32,
    /// Ours as the sender knows it, 0 if it does not.
    pub your_discriminator: u32,
    /// The shortest interval the sender would like to send at.
    pub desired_min_tx: Duration,
    /// The shortest interval at which the sender can receive; zero: send nothing.
    pub required_min_rx: Duration,
}

/// Why bytes are not a control packet for us (RFC 5880 section 6.8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than a header, or than it claims.
    #[error("truncated")]
    Truncated,
    /// Not version 1.
    #[error("version {0}, expected 1")]
    Version(u8),
    /// The length field is below the header's.
    #[error("length field of {0} bytes")]
    Length(u8),
    /// Detection multiplier 0.
    #[error("detection multiplier 0")]
    Multiplier,
    /// The bit is reserved.
    #[error("multipoint bit")]
    Multipoint,
    /// Discriminator 0.
    #[error("discriminator 0")]
    Discriminator,
    /// Our discriminator is unknown to a sender that says it hears us.
    #[error("your discriminator 0 in state {0}")]
    YourDiscriminator(State),
    /// Authentication is not configured here, so a packet that has it is not for us.
    #[error("authentication, which is not in use here")]
    Authentication,
}

impl ControlPacket {
    /// Reads the payload of a UDP datagram.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for every packet that RFC 5880 section 6.8.6 discards unseen.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let Some(header) = bytes.first_chunk::<BYTES>() else {
            return Err(Malformed::Truncated);
        };
        let [first, flags, multiplier, length, ..] = *header;
        if first >> 5 != VERSION {
            return Err(Malformed::Version(first >> 5));
        }
        if usize::from(length) < BYTES {
            return Err(Malformed::Length(length));
        }
        if usize::from(length) > bytes.len() {
            return Err(Malformed::Truncated);
        }
        let packet = Self {
            diagnostic: Diagnostic(first & 0x1f),
            state: State::from_bits(flags >> 6),
            poll: flags & POLL != 0,
            is_final: flags & FINAL != 0,
            demand: flags & DEMAND != 0,
            multiplier,
            my_discriminator: word(header, 4),
            your_discriminator: word(header, 8),
            desired_min_tx: Duration::from_micros(word(header, 12).into()),
            required_min_rx: Duration::from_micros(word(header, 16).into()),
        };
        packet.check(flags)
    }

    fn check(self, flags: u8) -> Result<Self, Malformed> {
        if self.multiplier == 0 {
            return Err(Malformed::Multiplier);
        }
        if flags & MULTIPOINT != 0 {
            return Err(Malformed::Multipoint);
        }
        if self.my_discriminator == 0 {
            return Err(Malformed::Discriminator);
        }
        if self.your_discriminator == 0 && !matches!(self.state, State::Down | State::AdminDown) {
            return Err(Malformed::YourDiscriminator(self.state));
        }
        if flags & AUTHENTICATION != 0 {
            return Err(Malformed::Authentication);
        }
        Ok(self)
    }

    /// The payload of a UDP datagram. Intervals above 71 minutes become 71 minutes.
    #[must_use]
    pub fn encode(&self) -> [u8; BYTES] {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = (self.state as u8) << 6
            | flag(self.poll, POLL)
            | flag(self.is_final, FINAL)
            | flag(self.demand, DEMAND);
        let length = const { BYTES as u8 };
        let mut bytes = [0; BYTES];
        bytes[..4].copy_from_slice(&[
            VERSION << 5 | self.diagnostic.0 & 0x1f,
            flags,
            self.multiplier,
            length,
        ]);
        let words = [
            self.my_discriminator,
            self.your_discriminator,
            micros(self.desired_min_tx),
            micros(self.required_min_rx),
            // No echo packets: the kernel of the other side would have to send them back.
            0,
        ];
        for (field, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
            field.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }
}

fn word(bytes: &[u8; BYTES], at: usize) -> u32 {
    bytes[at..].first_chunk().copied().map_or(0, u32::from_be_bytes)
}

fn micros(interval: Duration) -> u32 {
    u32::try_from(interval.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> ControlPacket {
        ControlPacket {
            diagnostic: Diagnostic::NEIGHBOR_DOWN,
            state: State::Up,
            poll: true,
            is_final: false,
            demand: false,
            multiplier: 3,
            my_discriminator: 0x0102_0304,
            your_discriminator: 0x0a0b_0c0d,
            desired_min_tx: Duration::from_millis(300),
            required_min_rx: Duration::from_millis(250),
        }
    }

    #[test]
    fn bytes_are_those_of_rfc_5880() {
        let expected = [
            0x23, 0xe0, 3, 24, 1, 2, 3, 4, 10, 11, 12, 13, // header, discriminators
            0, 0x04, 0x93, 0xe0, 0, 0x03, 0xd0, 0x90, 0, 0, 0, 0, // 300 000, 250 000, 0
        ];
        assert_eq!(packet().encode(), expected);
        assert_eq!(ControlPacket::decode(&expected), Ok(packet()));
    }

    /// RFC 5880 section 6.8.6, step by step: one byte is changed, and the packet is discarded.
    #[test]
    fn malformed_packets_are_discarded() {
        let cases: [(usize, u8, Malformed); 7] = [
            (0, 0x43, Malformed::Version(2)),
            (3, 23, Malformed::Length(23)),
            (3, 25, Malformed::Truncated),
            (2, 0, Malformed::Multiplier),
            (1, 0xe1, Malformed::Multipoint),
            (1, 0xe4, Malformed::Authentication),
            (0, 0x03, Malformed::Version(0)),
        ];
        for (at, value, error) in cases {
            let mut bytes = packet().encode();
            bytes[at] = value;
            assert_eq!(ControlPacket::decode(&bytes), Err(error), "byte {at} = {value:#x}");
        }
        let bytes = packet().encode();
        for length in 0..BYTES {
            assert_eq!(ControlPacket::decode(&bytes[..length]), Err(Malformed::Truncated));
        }
    }

    #[test]
    fn discriminators_must_be_known_as_far_as_the_state_says() {
        let decode = |packet: ControlPacket| ControlPacket::decode(&packet.encode());
        assert_eq!(
            decode(ControlPacket { my_discriminator: 0, ..packet() }),
            Err(Malformed::Discriminator)
        );
        for (state, accepted) in [
            (State::AdminDown, true),
            (State::Down, true),
            (State::Init, false),
            (State::Up, false),
        ] {
            let sent = ControlPacket { your_discriminator: 0, state, ..packet() };
            let expected =
                if accepted { Ok(sent) } else { Err(Malformed::YourDiscriminator(state)) };
            assert_eq!(decode(sent), expected);
        }
    }

    #[test]
    fn bytes_behind_the_packet_are_ignored() {
        let mut bytes = packet().encode().to_vec();
        bytes.extend([1, 2, 3]);
        assert_eq!(ControlPacket::decode(&bytes), Ok(packet()));
    }
}
