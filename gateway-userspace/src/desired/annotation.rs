//! The annotations of this program on Kube-OVN's objects.

use super::findings::{Findings, Site};
use super::{Affinity, MAX_WEIGHT, behavior, next_hops};
use crate::crd::{Kind, Metadata};
use crate::rejection::Problem;

/// What all of them begin with.
const PREFIX: &str = "vpc-gateway.io/";

/// The share of a backend, on a DNAT rule of type `share`.
pub(super) const WEIGHT: &str = "vpc-gateway.io/weight";

/// Whether a client keeps its backend, on a DNAT rule of type `share`.
pub(super) const SESSION_AFFINITY: &str = "vpc-gateway.io/session-affinity";

/// The weights of the replicas of an egress gateway in their order, such as `2,1,1`; equal if absent.
pub(super) const WEIGHTS: &str = "vpc-gateway.io/weights";

/// What chooses the replica of a flow: `5-tuple` (the default) or `source`.
pub(super) const HASH: &str = "vpc-gateway.io/hash";

/// Those of an egress gateway.
const EGRESS: [&str; 7] = {
    let [external, internal, hash, bfd, back] = next_hops::ALL;
    [WEIGHTS, HASH, external, internal, hash, bfd, back]
};

/// The annotations that mean something on an object of that kind.
const fn known(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::IptablesDnatRule => &[WEIGHT, SESSION_AFFINITY],
        Kind::VpcEgressGateway => &EGRESS,
        Kind::VpcNatGateway => &next_hops::ALL,
        Kind::IptablesSnatRule => &[behavior::MAPPING, behavior::FILTERING],
        Kind::Vpc => &[next_hops::NEXT_HOP_BFD],
        Kind::IptablesEip | Kind::IptablesFipRule | Kind::Subnet => &[],
    }
}

/// The path of an annotation, for messages.
pub(super) fn path(annotation: &str) -> String {
    format!("metadata.annotations.{annotation}")
}

/// Rejects annotations of ours that nobody knows: a slip would go unnoticed.
pub(super) fn check(site: &Site, metadata: &Metadata, findings: &mut Findings) -> bool {
    let known = known(site.object.kind);
    let ours = metadata.annotations.keys().filter(|key| key.starts_with(PREFIX));
    let unknown: Vec<_> = ours.filter(|key| !known.contains(&key.as_str())).collect();
    for key in &unknown {
        findings.reject(site, &path(key), Problem::UnknownAnnotation { known });
    }
    unknown.is_empty()
}

/// Reads [`WEIGHT`]; 1 if it is not there.
pub(super) fn weight(metadata: &Metadata) -> Result<u16, Problem> {
    let Some(text) = metadata.annotations.get(WEIGHT) else { return Ok(1) };
    // `u16` would take "+1".
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let weight = text.parse().ok().filter(|weight| digits && (1..=MAX_WEIGHT).contains(weight));
    weight.ok_or_else(|| Problem::Invalid {
        value: text.clone(),
        not: "a weight",
        expected: "1 to 256",
    })
}

/// Reads [`SESSION_AFFINITY`], if it is there.
pub(super) fn affinity(metadata: &Metadata) -> Result<Option<Affinity>, Problem> {
    match metadata.annotations.get(SESSION_AFFINITY).map(String::as_str) {
        None => Ok(None),
        Some("None") => Ok(Some(Affinity::None)),
        Some("ClientIP") => Ok(Some(Affinity::ClientIp)),
        Some(other) => Err(Problem::Invalid {
            value: other.to_owned(),
            not: "a session affinity",
            expected: "None or ClientIP",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(annotation: &str, value: &str) -> Metadata {
        let annotations = [(annotation.to_owned(), value.to_owned())].into();
        Metadata { annotations, ..Metadata::default() }
    }

    #[test]
    fn a_weight_is_1_to_256() {
        for (text, number) in [("1", 1), ("256", 256), ("007", 7)] {
            assert_eq!(weight(&with(WEIGHT, text)), Ok(number));
        }
        for bad in ["0", "257", "-1", "+1", "1.5", "", "half", "99999999999"] {
            assert!(weight(&with(WEIGHT, bad)).is_err(), "{bad:?}");
        }
        assert_eq!(weight(&Metadata::default()), Ok(1));
    }

    #[test]
    fn an_affinity_is_spelled_as_in_a_service() {
        let read = |text| affinity(&with(SESSION_AFFINITY, text));
        assert_eq!(read("ClientIP"), Ok(Some(Affinity::ClientIp)));
        assert_eq!(read("None"), Ok(Some(Affinity::None)));
        assert!(read("clientip").is_err() && read("").is_err());
        assert_eq!(affinity(&Metadata::default()), Ok(None));
    }
}
