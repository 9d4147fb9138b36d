//! Kube-OVN manifests for the lab, with the gateway's name and the rules as parameters.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::addresses::{A, B, D, LAN, ROUTER, VPC_NET, VPC_NET_2, v6};
use super::echo::ECHO_PORT;
use super::http::HTTP_PORT;
use super::packet_table::Ip;
use super::perf::IPERF_PORT;

const fn external(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, host)
}

/// EIP with the floating-IP rule to A.
pub const EIP_FIP: Ipv4Addr = external(10);
/// EIP of the SNAT rule for 10.0.1.0/28: A and B.
pub const EIP_SNAT: Ipv4Addr = external(20);
/// EIP of the SNAT rule for 10.0.1.0/27: A, B and C.
pub const EIP_SNAT_WIDE: Ipv4Addr = external(21);
/// EIP of the DNAT rules.
pub const EIP_DNAT: Ipv4Addr = external(30);
/// EIP without any rule.
pub const EIP_UNUSED: Ipv4Addr = external(40);

/// External port of the DNAT rules to B's echo servers, TCP and UDP.
pub const DNAT_ECHO: SocketAddrV4 = SocketAddrV4::new(EIP_DNAT, 7000);
/// External port of the DNAT rule to B's nginx.
pub const DNAT_HTTP: SocketAddrV4 = SocketAddrV4::new(EIP_DNAT, 8080);
/// External port of the DNAT rule to D's echo server, in the second subnet.
pub const DNAT_ECHO_D: SocketAddrV4 = SocketAddrV4::new(EIP_DNAT, 7001);
/// External port of the DNAT rule to B's iperf3.
pub const DNAT_IPERF: SocketAddrV4 = SocketAddrV4::new(EIP_DNAT, IPERF_PORT);

/// A port forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dnat {
    /// Name of the object.
    pub name: String,
    /// Name of the EIP object.
    pub eip: String,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Port on the EIP.
    pub port: u16,
    /// Where it leads.
    pub to: SocketAddrV4,
    /// Whether others share the port.
    pub shared: bool,
    /// Annotations of the object: `name: value, name: value`.
    pub annotations: String,
}

/// The objects of one gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifests {
    /// Name of the `VpcNatGateway`.
    pub gateway: String,
    /// Names and addresses of the EIPs.
    pub eips: Vec<(String, Ipv4Addr)>,
    /// EIP name and inside address of the floating IPs.
    pub fips: Vec<(String, Ipv4Addr)>,
    /// EIP name and source CIDR.
    pub snats: Vec<(String, String)>,
    /// Port forwards.
    pub dnats: Vec<Dnat>,
    /// Whether every EIP has an IPv6 address too and every rule a twin in IPv6, by the plan of
    /// [`v6`]. Twins are called `NAME-v6`.
    pub ipv6: bool,
}

impl Manifests {
    /// The rules that the packet table of the lab is about.
    pub fn standard(gateway: &str) -> Self {
        let eips = [
            ("fip", EIP_FIP),
            ("snat", EIP_SNAT),
            ("snat-wide", EIP_SNAT_WIDE),
            ("dnat", EIP_DNAT),
            ("unused", EIP_UNUSED),
        ];
        let mut manifests = Self {
            gateway: gateway.to_owned(),
            eips: eips.map(|(name, v4)| (name.to_owned(), v4)).to_vec(),
            fips: vec![("fip".into(), A)],
            snats: vec![
                ("snat".into(), "10.0.1.0/28".into()),
                ("snat-wide".into(), "10.0.1.0/27".into()),
            ],
            dnats: Vec::new(),
            ipv6: true,
        };
        manifests.forward("echo-tcp", "tcp", DNAT_ECHO, B, ECHO_PORT);
        manifests.forward("echo-udp", "udp", DNAT_ECHO, B, ECHO_PORT);
        manifests.forward("http", "tcp", DNAT_HTTP, B, HTTP_PORT);
        manifests.forward("echo-d", "tcp", DNAT_ECHO_D, D, ECHO_PORT);
        manifests.forward("iperf", "tcp", DNAT_IPERF, B, IPERF_PORT);
        manifests
    }

    /// Adds a port forward on the EIP of the DNAT rules.
    pub fn forward(
        &mut self,
        name: &str,
        protocol: &'static str,
        at: SocketAddrV4,
        host: Ipv4Addr,
        port: u16,
    ) {
        let to = SocketAddrV4::new(host, port);
        let (name, eip) = (name.to_owned(), "dnat".to_owned());
        let (port, shared, annotations) = (at.port(), false, String::new());
        self.dnats.push(Dnat { name, eip, protocol, port, to, shared, annotations });
    }

    /// Adds hosts as backends of a port that they share; each object is called `NAME-HOST`, with the
    /// last byte of the host's address.
    pub fn share(
        &mut self,
        name: &str,
        protocol: &'static str,
        at: SocketAddrV4,
        hosts: &[Ipv4Addr],
        port: u16,
    ) {
        for host in hosts {
            let name = format!("{name}-{}", host.octets()[3]);
            self.forward(&name, protocol, at, *host, port);
            self.dnats.iter_mut().rev().take(1).for_each(|dnat| dnat.shared = true);
        }
    }

    /// Removes the port forward of this name.
    pub fn without(&self, name: &str) -> Self {
        let mut rest = self.clone();
        rest.dnats.retain(|dnat| dnat.name != name);
        rest
    }

    /// All objects as one multi-document YAML.
    pub fn yaml(&self) -> String {
        let mut out = subnets(self.ipv6);
        let families: &[Ip] = if self.ipv6 { &Ip::ALL } else { &[Ip::V4] };
        let gateway = &self.gateway;
        let _ = write!(
            out,
            "---\napiVersion: kubeovn.io/v1\nkind: VpcNatGateway\nmetadata: {{name: {gateway}}}\n\
             spec:\n  vpc: lab\n  subnet: net1\n  lanIp: {LAN}\n  externalSubnets: [external]\n  \
             routes:\n  - {{cidr: {VPC_NET_2}, nextHopIP: gateway}}\n"
        );
        if self.ipv6 {
            let net = v6_cidr(VPC_NET_2);
            let _ = writeln!(out, "  - {{cidr: \"{net}\", nextHopIP: gateway}}");
        }
        for (name, v4) in &self.eips {
            let v6ip = if self.ipv6 { format!(", v6ip: \"{}\"", v6(*v4)) } else { String::new() };
            let spec =
                format!("{{natGwDp: {gateway}, externalSubnet: external, v4ip: {v4}{v6ip}}}");
            object(&mut out, "IptablesEIP", name, &spec);
        }
        for ip in families {
            self.rules(*ip, &mut out);
        }
        out
    }

    /// The same as verbs of `vpc-gateway exec`, each with its rules.
    pub fn verbs(&self) -> Vec<(&'static str, Vec<String>)> {
        let families: &[Ip] = if self.ipv6 { &Ip::ALL } else { &[Ip::V4] };
        let mut verbs = Vec::new();
        for ip in families {
            let length = if *ip == Ip::V6 { 64 } else { 24 };
            let cidr = |cidr: &str| if *ip == Ip::V6 { v6_cidr(cidr) } else { cidr.to_owned() };
            let eip = |name: &str| {
                let (_, v4) = self.eips.iter().find(|(eip, _)| eip == name).expect("an EIP");
                ip.address(*v4)
            };
            let fips = self.fips.iter();
            let fips = fips.map(|(name, to)| format!("{},{}", eip(name), ip.address(*to)));
            let snats = self.snats.iter();
            let snats = snats.map(|(name, net)| format!("{},{}", eip(name), cidr(net)));
            let dnats = self.dnats.iter().map(|dnat| {
                let (eip, to) = (eip(&dnat.eip), ip.address(*dnat.to.ip()));
                format!("{eip},{},{},{to},{}", dnat.port, dnat.protocol, dnat.to.port())
            });
            let eips = self.eips.iter().map(|(_, v4)| format!("{}/{length}", ip.address(*v4)));
            let route = format!("{},{}", cidr(VPC_NET_2), ip.address(ROUTER));
            // As the queues of the controller may have it: rules before their EIPs.
            verbs.push(("floating-ip-add", fips.collect()));
            verbs.push(("dnat-add", dnats.collect()));
            verbs.push(("snat-add", snats.collect()));
            verbs.push(("subnet-route-add", vec![route]));
            verbs.push(("eip-add", eips.collect()));
        }
        verbs
    }

    fn rules(&self, ip: Ip, out: &mut String) {
        let twin = if ip == Ip::V6 { "-v6" } else { "" };
        for (eip, inside) in &self.fips {
            let spec = format!("{{eip: {eip}, internalIp: \"{}\"}}", ip.address(*inside));
            object(out, "IptablesFIPRule", &format!("{eip}{twin}"), &spec);
        }
        for (eip, cidr) in &self.snats {
            let cidr = if ip == Ip::V6 { v6_cidr(cidr) } else { cidr.clone() };
            let spec = format!("{{eip: {eip}, internalCIDR: \"{cidr}\"}}");
            object(out, "IptablesSnatRule", &format!("for-{eip}{twin}"), &spec);
        }
        for dnat in &self.dnats {
            let Dnat { name, eip, protocol, port, to, shared, annotations } = dnat;
            let (host, inside) = (ip.address(*to.ip()), to.port());
            let sharing = if *shared { ", type: share" } else { "" };
            let metadata = format!("name: {name}{twin}, annotations: {{{annotations}}}");
            let spec = format!(
                "{{eip: {eip}, externalPort: \"{port}\", internalPort: \"{inside}\", \
                 internalIp: \"{host}\", protocol: {protocol}{sharing}}}"
            );
            annotated(out, "IptablesDnatRule", &metadata, &spec);
        }
    }
}

/// The IPv6 CIDR of the same hosts: [`v6`] writes the last byte in decimal, which takes a bit more.
fn v6_cidr(cidr: &str) -> String {
    let (network, bits) = cidr.split_once('/').expect("a CIDR");
    let network = v6(network.parse().expect("an IPv4 network"));
    let host_bits = 32 - bits.parse::<u32>().expect("a length");
    let bits = if host_bits == 8 { 64 } else { 127 - host_bits };
    format!("{network}/{bits}")
}

fn subnets(ipv6: bool) -> String {
    let subnet = |name: &str, v4_cidr: &str, v4_gateway: &str, vpc: &str| {
        let (mut cidr, mut gateway) = (v4_cidr.to_owned(), v4_gateway.to_owned());
        if ipv6 {
            cidr = format!("{cidr},{}", v6_cidr(v4_cidr));
            gateway = format!("{gateway},{}", v6(v4_gateway.parse().expect("an address")));
        }
        let protocol = if ipv6 { "Dual" } else { "IPv4" };
        format!(
            "---\napiVersion: kubeovn.io/v1\nkind: Subnet\nmetadata: {{name: {name}}}\n\
             spec: {{{vpc}protocol: {protocol}, cidrBlock: \"{cidr}\", gateway: \"{gateway}\"}}\n"
        )
    };
    let mut out =
        String::from("apiVersion: kubeovn.io/v1\nkind: Vpc\nmetadata: {name: lab}\nspec: {}\n");
    for (name, cidr, gateway, vpc) in [
        ("net1", VPC_NET, "10.0.1.1", "vpc: lab, "),
        ("net2", VPC_NET_2, "10.0.2.1", "vpc: lab, "),
        ("external", "203.0.113.0/24", "203.0.113.1", ""),
    ] {
        out += &subnet(name, cidr, gateway, vpc);
    }
    out
}

fn object(out: &mut String, kind: &str, name: &str, spec: &str) {
    annotated(out, kind, &format!("name: {name}"), spec);
}

fn annotated(out: &mut String, kind: &str, metadata: &str, spec: &str) {
    let _ = write!(
        out,
        "---\napiVersion: kubeovn.io/v1\nkind: {kind}\nmetadata: {{{metadata}}}\nspec: {spec}\n"
    );
}
