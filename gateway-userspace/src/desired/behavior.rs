//! The annotations that say how a SNAT rule maps and filters (RFC 4787 sections 4.1 and 5).

use super::annotation::path;
use super::findings::{Findings, Site};
use super::{NatBehavior, NatFiltering, NatMapping};
use crate::crd::Metadata;
use crate::rejection::Problem;

/// Which remotes see the same external endpoint of an inside one.
pub(super) const MAPPING: &str = "vpc-gateway.io/nat-mapping";

/// Which remotes get in by an external endpoint.
pub(super) const FILTERING: &str = "vpc-gateway.io/nat-filtering";

/// Reads both annotations and rejects a bad one.
pub(super) fn read(
    site: &Site,
    metadata: &Metadata,
    findings: &mut Findings,
) -> Option<NatBehavior> {
    let mapping = findings.accept(site, &path(MAPPING), mapping(metadata));
    // Of two bad ones each is told; of a filter without mapping, only what is known.
    let filtering = filtering(metadata, mapping.unwrap_or(NatMapping::EndpointIndependent));
    let filtering = findings.accept(site, &path(FILTERING), filtering);
    Some(NatBehavior { mapping: mapping?, filtering: filtering? })
}

fn mapping(metadata: &Metadata) -> Result<NatMapping, Problem> {
    match metadata.annotations.get(MAPPING).map(String::as_str) {
        None | Some("address-and-port-dependent") => Ok(NatMapping::AddressAndPortDependent),
        Some("endpoint-independent") => Ok(NatMapping::EndpointIndependent),
        Some(other) => Err(Problem::Invalid {
            value: other.to_owned(),
            not: "a NAT mapping",
            expected: "endpoint-independent or address-and-port-dependent",
        }),
    }
}

fn filtering(metadata: &Metadata, mapping: NatMapping) -> Result<NatFiltering, Problem> {
    let Some(text) = metadata.annotations.get(FILTERING) else {
        return Ok(NatFiltering::default());
    };
    let filtering = match text.as_str() {
        "address-and-port-dependent" => NatFiltering::AddressAndPortDependent,
        "address-dependent" => NatFiltering::AddressDependent,
        "endpoint-independent" => NatFiltering::EndpointIndependent,
        other => {
            return Err(Problem::Invalid {
                value: other.to_owned(),
                not: "a NAT filtering",
                expected: "endpoint-independent, address-dependent or address-and-port-dependent",
            });
        }
    };
    // A port that serves another flow for each remote leads nobody else anywhere.
    if filtering != NatFiltering::default() && mapping != NatMapping::EndpointIndependent {
        return Err(Problem::Invalid {
            value: text.clone(),
            not: "possible with this mapping",
            expected: "it together with vpc-gateway.io/nat-mapping: endpoint-independent",
        });
    }
    Ok(filtering)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(annotations: &[(&str, &str)]) -> Metadata {
        let annotations =
            annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Metadata { annotations: annotations.collect(), ..Metadata::default() }
    }

    #[test]
    fn the_default_is_a_port_for_each_remote() {
        assert_eq!(mapping(&with(&[])), Ok(NatMapping::AddressAndPortDependent));
        let behavior = NatBehavior::default();
        assert_eq!(behavior.options(), 0);
        assert_eq!(filtering(&with(&[]), behavior.mapping), Ok(behavior.filtering));
    }

    #[test]
    fn a_filter_needs_a_mapping_that_is_independent() {
        for name in ["address-dependent", "endpoint-independent"] {
            let metadata = with(&[(FILTERING, name)]);
            assert!(filtering(&metadata, NatMapping::EndpointIndependent).is_ok(), "{name}");
            assert!(filtering(&metadata, NatMapping::AddressAndPortDependent).is_err(), "{name}");
        }
        let strict = with(&[(FILTERING, "address-and-port-dependent")]);
        assert!(filtering(&strict, NatMapping::AddressAndPortDependent).is_ok());
        for bad in ["", "none", "Endpoint-Independent"] {
            let (map, filter) = (with(&[(MAPPING, bad)]), with(&[(FILTERING, bad)]));
            assert!(mapping(&map).is_err() && mapping(&filter).is_ok(), "{bad:?}");
            assert!(filtering(&filter, NatMapping::EndpointIndependent).is_err(), "{bad:?}");
        }
    }
}
