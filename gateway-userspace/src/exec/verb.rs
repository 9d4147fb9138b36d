//! The words of the command line as orders: every verb and argument form from Kube-OVN v1.7 on.
//!
//! A rule is one word, its fields separated by commas. Fields that a release sends beyond those that
//! mean something are accepted where some release does send them.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::desired::{DnatKey, Port, Protocol, value};
use crate::rejection::Problem;

/// What is wrong with the words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOrder {
    /// No verb.
    #[error("no verb, expected one of: {}", VERBS.join(", "))]
    NoVerb,
    /// A verb that no release has.
    #[error("{verb} is not a verb, expected one of: {}", VERBS.join(", "))]
    UnknownVerb {
        /// The word.
        verb: String,
    },
    /// Too few fields, or too many.
    #[error("{verb} {rule}: expected {expected}")]
    Fields {
        /// The verb.
        verb: String,
        /// The rule.
        rule: String,
        /// The form of it.
        expected: &'static str,
    },
    /// A field makes no sense.
    #[error("{verb} {rule}: {problem}")]
    Value {
        /// The verb.
        verb: String,
        /// The rule.
        rule: String,
        /// What is wrong.
        problem: Box<Problem>,
    },
    /// An external and an internal address of different families.
    #[error("{verb} {rule}: {external} and {internal} are of different families")]
    Families {
        /// The verb.
        verb: String,
        /// The rule.
        rule: String,
        /// The external address.
        external: IpAddr,
        /// The internal address.
        internal: IpAddr,
    },
}

/// All verbs.
pub const VERBS: &[&str] = &[
    "init",
    "get-iptables-version",
    "subnet-route-add",
    "subnet-route-del",
    "ext-subnet-route-add",
    "ext-subnet-route-del",
    "eip-add",
    "eip-del",
    "floating-ip-add",
    "floating-ip-del",
    "floating-ip-sync",
    "dnat-add",
    "dnat-del",
    "dnat-sync",
    "nft-dnat-map-add",
    "nft-dnat-map-del",
    "snat-add",
    "snat-del",
    "snat-sync",
    "eip-ingress-qos-add",
    "eip-ingress-qos-del",
    "eip-egress-qos-add",
    "eip-egress-qos-del",
    "qos-add",
    "qos-del",
];

/// A call: a verb with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Makes the pod a gateway.
    Init(Init),
    /// Asks for the version of iptables.
    Version,
    /// Changes of the ledger, one after the other.
    Orders(Vec<Order>),
    /// Exactly these rules of a kind.
    Sync(Rules),
}

impl Call {
    /// Whether the call may come before `init`.
    #[must_use]
    pub fn needs_init(&self) -> bool {
        match self {
            Self::Init(_) | Self::Version => false,
            Self::Orders(orders) => !orders.iter().all(Order::is_qos),
            Self::Sync(_) => true,
        }
    }
}

/// What `init` may say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Init {
    /// Nothing, or something that only old releases mean.
    #[default]
    Plain,
    /// `VI,XI`: the interfaces, where Kube-OVN is not the primary network.
    Interfaces {
        /// Towards the VPC.
        internal: String,
        /// Towards the outside.
        external: String,
    },
    /// `CIDR,GATEWAY` (v1.11, v1.12): a route of the internal interface.
    Route(Order),
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// `eip-add`: the address, and the router where the release names it.
    EipAdd(IpNet, Option<IpAddr>),
    /// `eip-del`.
    EipDel(IpAddr),
    /// `floating-ip-add`: external and internal address.
    FipAdd(IpAddr, IpAddr),
    /// `floating-ip-del`.
    FipDel(IpAddr),
    /// `dnat-add`.
    DnatAdd(DnatKey, SocketAddr),
    /// `dnat-del`.
    DnatDel(DnatKey),
    /// `nft-dnat-map-add`: all backends.
    ShareAdd(DnatKey, BTreeSet<SocketAddr>),
    /// `nft-dnat-map-del`.
    ShareDel(DnatKey),
    /// `snat-add`.
    SnatAdd(IpNet, IpAddr),
    /// `snat-del`.
    SnatDel(IpNet, IpAddr),
    /// `subnet-route-add`: destination and next hop by the internal interface.
    RouteAdd(IpNet, IpAddr),
    /// `subnet-route-del`.
    RouteDel(IpNet),
    /// `ext-subnet-route-add`: a network on the external link, and the router there.
    ExternalRouteAdd(IpNet, Option<IpAddr>),
    /// `ext-subnet-route-del`.
    ExternalRouteDel(IpNet),
    /// A QoS verb: which limit, and what it says.
    QosAdd(QosKey, String),
    /// A QoS verb.
    QosDel(QosKey),
}

impl Order {
    const fn is_qos(&self) -> bool {
        matches!(self, Self::QosAdd(..) | Self::QosDel(_))
    }
}

/// Which limit a QoS verb is about: that of an EIP, or of an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QosKey {
    /// The verb without `-add` or `-del`.
    pub kind: &'static str,
    /// The fields that tell limits apart, with commas.
    pub fields: String,
}

/// The rules of a `*-sync` verb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rules {
    /// External and internal addresses.
    Fips(Vec<(IpAddr, IpAddr)>),
    /// Ports and endpoints.
    Dnats(Vec<(DnatKey, SocketAddr)>),
    /// Sources and external addresses.
    Snats(Vec<(IpNet, IpAddr)>),
}

/// Reads a verb and its rules.
///
/// # Errors
///
/// The first rule that cannot be understood, or the verb.
pub fn parse(words: &[String]) -> Result<Call, BadOrder> {
    let (verb, rules) = words.split_first().ok_or(BadOrder::NoVerb)?;
    if !VERBS.contains(&verb.as_str()) {
        return Err(BadOrder::UnknownVerb { verb: verb.clone() });
    }
    let rules = rules.iter().map(|text| Rule { verb, text });
    match verb.as_str() {
        "init" => match rules.into_iter().next().filter(|rule| !rule.text.is_empty()) {
            Some(rule) => rule.init().map(Call::Init),
            None => Ok(Call::Init(Init::Plain)),
        },
        "get-iptables-version" => Ok(Call::Version),
        "floating-ip-sync" => {
            let all = rules.map(|rule| rule.fip()).collect::<Result<_, _>>();
            all.map(|all| Call::Sync(Rules::Fips(all)))
        }
        "dnat-sync" => {
            let all = rules.map(|rule| rule.dnat()).collect::<Result<_, _>>();
            all.map(|all| Call::Sync(Rules::Dnats(all)))
        }
        "snat-sync" => {
            let all = rules.map(|rule| rule.snat()).collect::<Result<_, _>>();
            all.map(|all| Call::Sync(Rules::Snats(all)))
        }
        _ => rules.map(|rule| rule.order()).collect::<Result<_, _>>().map(Call::Orders),
    }
}

/// One rule of a call.
struct Rule<'w> {
    verb: &'w str,
    text: &'w str,
}

impl Rule<'_> {
    fn fields(&self) -> impl Iterator<Item = &str> {
        self.text.split(',')
    }

    /// A field that is there and not empty.
    fn given(&self, index: usize) -> Option<&str> {
        self.fields().nth(index).filter(|field| !field.is_empty())
    }

    fn malformed(&self, expected: &'static str) -> BadOrder {
        BadOrder::Fields { verb: self.verb.to_owned(), rule: self.text.to_owned(), expected }
    }

    fn field(&self, form: &'static str, index: usize) -> Result<&str, BadOrder> {
        self.given(index).ok_or_else(|| self.malformed(form))
    }

    /// Refuses more than `most` fields.
    fn at_most(&self, form: &'static str, most: usize) -> Result<(), BadOrder> {
        if self.fields().count() > most { Err(self.malformed(form)) } else { Ok(()) }
    }

    fn value<T>(&self, value: Result<T, Problem>) -> Result<T, BadOrder> {
        value.map_err(|problem| BadOrder::Value {
            verb: self.verb.to_owned(),
            rule: self.text.to_owned(),
            problem: Box::new(problem),
        })
    }

    fn address(&self, form: &'static str, index: usize) -> Result<IpAddr, BadOrder> {
        self.value(value::address(self.field(form, index)?))
    }

    /// A CIDR without host bits.
    fn cidr(&self, form: &'static str, index: usize) -> Result<IpNet, BadOrder> {
        self.value(value::cidr(self.field(form, index)?)).map(|cidr| cidr.trunc())
    }

    /// An external address; a prefix length does not matter.
    fn eip(&self, form: &'static str, index: usize) -> Result<IpAddr, BadOrder> {
        let text = self.field(form, index)?;
        self.value(value::address(text.split_once('/').map_or(text, |(address, _)| address)))
    }

    fn eip_network(&self, form: &'static str) -> Result<IpNet, BadOrder> {
        self.eip(form, 0)?;
        self.value(value::cidr(self.field(form, 0)?))
    }

    fn same_family(&self, external: IpAddr, internal: IpAddr) -> Result<(), BadOrder> {
        if external.is_ipv4() == internal.is_ipv4() {
            return Ok(());
        }
        let (verb, rule) = (self.verb.to_owned(), self.text.to_owned());
        Err(BadOrder::Families { verb, rule, external, internal })
    }

    fn route(&self, form: &'static str) -> Result<(IpNet, IpAddr), BadOrder> {
        let (cidr, via) = (self.cidr(form, 0)?, self.address(form, 1)?);
        self.same_family(cidr.addr(), via)?;
        Ok((cidr, via))
    }

    /// A rule of one of the verbs that are one order for each.
    fn order(&self) -> Result<Order, BadOrder> {
        let port = "EIP,PORT,PROTOCOL";
        Ok(match self.verb {
            "subnet-route-add" => {
                let (cidr, via) = self.route("CIDR,NEXTHOP")?;
                Order::RouteAdd(cidr, via)
            }
            "subnet-route-del" => Order::RouteDel(self.cidr("CIDR", 0)?),
            "ext-subnet-route-add" => {
                let form = "CIDR,NEXTHOP";
                Order::ExternalRouteAdd(self.cidr(form, 0)?, self.router(form)?)
            }
            "ext-subnet-route-del" => Order::ExternalRouteDel(self.cidr("CIDR", 0)?),
            "eip-add" => {
                let form = "ADDRESS/LENGTH or ADDRESS/LENGTH,GATEWAY";
                Order::EipAdd(self.eip_network(form)?, self.router(form)?)
            }
            "eip-del" => Order::EipDel(self.eip("ADDRESS/LENGTH", 0)?),
            "floating-ip-add" => {
                let (eip, internal) = self.fip()?;
                Order::FipAdd(eip, internal)
            }
            "floating-ip-del" => Order::FipDel(self.eip("EIP", 0)?),
            "dnat-add" => {
                let (key, to) = self.dnat()?;
                Order::DnatAdd(key, to)
            }
            "dnat-del" => Order::DnatDel(self.port(port)?),
            "nft-dnat-map-add" => {
                let (key, backends) = self.share()?;
                Order::ShareAdd(key, backends)
            }
            "nft-dnat-map-del" => Order::ShareDel(self.port(port)?),
            "snat-add" => {
                let (cidr, eip) = self.snat()?;
                Order::SnatAdd(cidr, eip)
            }
            "snat-del" => {
                let (cidr, eip) = self.snat_identity()?;
                Order::SnatDel(cidr, eip)
            }
            "eip-ingress-qos-add" => self.eip_qos_add("eip-ingress-qos")?,
            "eip-egress-qos-add" => self.eip_qos_add("eip-egress-qos")?,
            "eip-ingress-qos-del" => self.eip_qos_del("eip-ingress-qos")?,
            "eip-egress-qos-del" => self.eip_qos_del("eip-egress-qos")?,
            "qos-add" => self.qos_add()?,
            "qos-del" => self.qos_del()?,
            other => return Err(BadOrder::UnknownVerb { verb: other.to_owned() }),
        })
    }

    /// The second field, where a release sends it.
    fn router(&self, form: &'static str) -> Result<Option<IpAddr>, BadOrder> {
        self.given(1).map(|_| self.address(form, 1)).transpose()
    }

    fn init(&self) -> Result<Init, BadOrder> {
        let form = "nothing, or INTERNAL,EXTERNAL";
        let first = self.field(form, 0)?;
        if first.contains('/') {
            // v1.7 sends the CIDR of the LAN alone, v1.11 that of the Services with its gateway.
            let Some(_) = self.given(1) else { return Ok(Init::Plain) };
            let (cidr, via) = self.route("CIDR,GATEWAY")?;
            return Ok(Init::Route(Order::RouteAdd(cidr, via)));
        }
        self.at_most(form, 2)?;
        let interface = |text: &str| {
            let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/';
            let fits = (1..=15).contains(&text.len()) && text.bytes().all(plain);
            fits.then(|| text.to_owned()).ok_or_else(|| self.malformed(form))
        };
        let (internal, external) = (interface(first)?, interface(self.field(form, 1)?)?);
        if internal == external {
            return Err(self.malformed("two different interfaces"));
        }
        Ok(Init::Interfaces { internal, external })
    }

    fn fip(&self) -> Result<(IpAddr, IpAddr), BadOrder> {
        let form = "EIP,INTERNAL_IP";
        self.at_most(form, 2)?;
        let (eip, internal) = (self.eip(form, 0)?, self.address(form, 1)?);
        self.same_family(eip, internal)?;
        Ok((eip, internal))
    }

    fn port(&self, form: &'static str) -> Result<DnatKey, BadOrder> {
        let eip = self.eip(form, 0)?;
        let port = self.value(self.field(form, 1)?.parse::<Port>())?;
        let protocol = self.value(self.field(form, 2)?.parse::<Protocol>())?;
        Ok(DnatKey { eip, protocol, port })
    }

    fn dnat(&self) -> Result<(DnatKey, SocketAddr), BadOrder> {
        let form = "EIP,PORT,PROTOCOL,INTERNAL_IP,INTERNAL_PORT";
        self.at_most(form, 5)?;
        let (key, internal) = (self.port(form)?, self.address(form, 3)?);
        let port = self.value(self.field(form, 4)?.parse::<Port>())?;
        self.same_family(key.eip, internal)?;
        Ok((key, SocketAddr::new(internal, port.get())))
    }

    fn share(&self) -> Result<(DnatKey, BTreeSet<SocketAddr>), BadOrder> {
        let form = "EIP,PORT,PROTOCOL,IP:PORT@IP:PORT...";
        self.at_most(form, 4)?;
        let key = self.port(form)?;
        let mut backends = BTreeSet::new();
        for text in self.field(form, 3)?.split('@') {
            let (address, port) = text.rsplit_once(':').ok_or_else(|| self.malformed(form))?;
            let address = address.trim_start_matches('[').trim_end_matches(']');
            let address = self.value(value::address(address))?;
            self.same_family(key.eip, address)?;
            let port = self.value(port.parse::<Port>())?;
            backends.insert(SocketAddr::new(address, port.get()));
        }
        Ok((key, backends))
    }

    fn snat_identity(&self) -> Result<(IpNet, IpAddr), BadOrder> {
        let form = "EIP,CIDR";
        let (eip, cidr) = (self.eip(form, 0)?, self.cidr(form, 1)?);
        self.same_family(eip, cidr.addr())?;
        Ok((cidr, eip))
    }

    fn snat(&self) -> Result<(IpNet, IpAddr), BadOrder> {
        let form = "EIP,CIDR or EIP,CIDR,--random-fully";
        self.at_most(form, 3)?;
        // Ports are random in any case.
        match self.given(2) {
            None | Some("--random-fully") => self.snat_identity(),
            Some(_) => Err(self.malformed(form)),
        }
    }

    fn eip_qos_add(&self, kind: &'static str) -> Result<Order, BadOrder> {
        let form = "EIP,PRIORITY,RATE,BURST";
        let (eip, priority) = (self.eip(form, 0)?, self.number(form, 1)?);
        let (rate, burst) = (self.number(form, 2)?, self.number(form, 3)?);
        let key = QosKey { kind, fields: eip.to_string() };
        Ok(Order::QosAdd(key, format!("{priority},{rate},{burst}")))
    }

    fn eip_qos_del(&self, kind: &'static str) -> Result<Order, BadOrder> {
        let fields = self.eip("EIP", 0)?.to_string();
        Ok(Order::QosDel(QosKey { kind, fields }))
    }

    /// Direction, interface, priority, classifier, match type, match direction, CIDR.
    fn qos_key(&self, form: &'static str) -> Result<QosKey, BadOrder> {
        let direction = self.field(form, 0)?;
        if !matches!(direction, "ingress" | "egress") || self.fields().count() < 7 {
            return Err(self.malformed(form));
        }
        let fields: Vec<_> = self.fields().take(7).collect();
        Ok(QosKey { kind: "qos", fields: fields.join(",") })
    }

    fn qos_add(&self) -> Result<Order, BadOrder> {
        let form =
            "DIRECTION,INTERFACE,PRIORITY,CLASSIFIER,MATCH_TYPE,MATCH_DIRECTION,CIDR,RATE,BURST";
        let key = self.qos_key(form)?;
        let (rate, burst) = (self.number(form, 7)?, self.number(form, 8)?);
        Ok(Order::QosAdd(key, format!("{rate},{burst}")))
    }

    fn qos_del(&self) -> Result<Order, BadOrder> {
        let form = "DIRECTION,INTERFACE,PRIORITY,CLASSIFIER,MATCH_TYPE,MATCH_DIRECTION,CIDR";
        self.qos_key(form).map(Order::QosDel)
    }

    /// Digits with an optional fraction.
    fn number(&self, form: &'static str, index: usize) -> Result<&str, BadOrder> {
        let text = self.field(form, index)?;
        let digits =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let fits =
            text.split_once('.').map_or_else(|| digits(text), |(a, b)| digits(a) && digits(b));
        if fits { Ok(text) } else { Err(self.malformed(form)) }
    }
}

impl fmt::Display for QosKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.fields)
    }
}

/// The order as a verb and a rule, which [`parse`] reads again.
impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = |key: &DnatKey| format!("{},{},{}", key.eip, key.port, key.protocol);
        match self {
            Self::EipAdd(eip, None) => write!(f, "eip-add {eip}"),
            Self::EipAdd(eip, Some(via)) => write!(f, "eip-add {eip},{via}"),
            Self::EipDel(eip) => write!(f, "eip-del {eip}"),
            Self::FipAdd(eip, internal) => write!(f, "floating-ip-add {eip},{internal}"),
            Self::FipDel(eip) => write!(f, "floating-ip-del {eip}"),
            Self::DnatAdd(key, to) => {
                write!(f, "dnat-add {},{},{}", port(key), to.ip(), to.port())
            }
            Self::DnatDel(key) => write!(f, "dnat-del {}", port(key)),
            Self::ShareAdd(key, backends) => {
                let backends: Vec<_> = backends.iter().map(ToString::to_string).collect();
                write!(f, "nft-dnat-map-add {},{}", port(key), backends.join("@"))
            }
            Self::ShareDel(key) => write!(f, "nft-dnat-map-del {}", port(key)),
            Self::SnatAdd(cidr, eip) => write!(f, "snat-add {eip},{cidr}"),
            Self::SnatDel(cidr, eip) => write!(f, "snat-del {eip},{cidr}"),
            Self::RouteAdd(cidr, via) => write!(f, "subnet-route-add {cidr},{via}"),
            Self::RouteDel(cidr) => write!(f, "subnet-route-del {cidr}"),
            Self::ExternalRouteAdd(cidr, None) => write!(f, "ext-subnet-route-add {cidr}"),
            Self::ExternalRouteAdd(cidr, Some(via)) => {
                write!(f, "ext-subnet-route-add {cidr},{via}")
            }
            Self::ExternalRouteDel(cidr) => write!(f, "ext-subnet-route-del {cidr}"),
            Self::QosAdd(key, says) => write!(f, "{}-add {},{says}", key.kind, key.fields),
            Self::QosDel(key) => write!(f, "{}-del {}", key.kind, key.fields),
        }
    }
}
