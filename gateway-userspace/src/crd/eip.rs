//! `IptablesEIP`: an external address of a gateway.

use serde::Deserialize;

use super::Resource;

/// An external address of a gateway.
pub type IptablesEip = Resource<EipSpec, EipStatus>;

pub(super) const UNUSED: &[&str] = &["macAddress", "namespace", "qosPolicy", "redo"];

/// `spec` of an [`IptablesEip`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EipSpec {
    /// The IPv4 address; empty asks for any free one.
    pub v4ip: String,
    /// The IPv6 address.
    pub v6ip: String,
    /// The gateway that holds the address.
    pub nat_gw_dp: String,
    /// The Subnet the address comes from.
    pub external_subnet: String,
}

/// `status` of an [`IptablesEip`], written by kube-ovn-controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EipStatus {
    /// The IPv4 address that was chosen.
    pub ip: String,
}
