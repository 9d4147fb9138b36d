//! The three kinds of rules. `eip` is the name of an `IptablesEIP` in all of them.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

use super::Resource;

/// A floating IP: one external address for one internal one.
pub type IptablesFipRule = Resource<FipSpec>;
/// A port of an external address for a port of an internal one.
pub type IptablesDnatRule = Resource<DnatSpec>;
/// An external address for the outbound connections of a CIDR.
pub type IptablesSnatRule = Resource<SnatSpec>;

/// `spec` of an [`IptablesFipRule`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FipSpec {
    /// The `IptablesEIP`.
    pub eip: String,
    /// The internal address.
    pub internal_ip: String,
}

/// `spec` of an [`IptablesDnatRule`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DnatSpec {
    /// The `IptablesEIP`.
    pub eip: String,
    /// The port on it.
    pub external_port: PortText,
    /// `tcp` or `udp`, in any case.
    pub protocol: String,
    /// The internal address.
    pub internal_ip: String,
    /// The port there.
    pub internal_port: PortText,
    /// `exclusive` (the default) or `share`.
    #[serde(rename = "type")]
    pub sharing: String,
}

/// `spec` of an [`IptablesSnatRule`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SnatSpec {
    /// The `IptablesEIP`.
    pub eip: String,
    /// The sources.
    #[serde(rename = "internalCIDR")]
    pub internal_cidr: String,
}

/// A port as written: the CRD says string, people write numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortText(pub String);

impl<'de> Deserialize<'de> for PortText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNumber;

        impl Visitor<'_> for TextOrNumber {
            type Value = PortText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port, as a string or a number")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortText, E> {
                Ok(PortText(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<PortText, E> {
                Ok(PortText(number.to_string()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<PortText, E> {
                Ok(PortText(number.to_string()))
            }
        }

        deserializer.deserialize_any(TextOrNumber)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_text_or_number() {
        let read = |json| serde_json::from_str::<PortText>(json).unwrap().0;
        assert_eq!(read("\"8080\""), "8080");
        assert_eq!(read("8080"), "8080");
        assert_eq!(read("-1"), "-1");
        assert!(serde_json::from_str::<PortText>("[80]").is_err());
    }

    #[test]
    fn unknown_fields_are_left_to_the_source() {
        let spec: FipSpec =
            serde_json::from_str(r#"{"eip": "a", "internalIp": "10.0.0.1", "new": 1}"#).unwrap();
        assert_eq!(spec, FipSpec { eip: "a".into(), internal_ip: "10.0.0.1".into() });
    }
}
