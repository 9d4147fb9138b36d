//! Every metric by name: the one list that the exporter, the tests and `docs/metrics.md` share.

/// What Prometheus calls the type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Only rises, until something starts anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by upper bounds, with a sum.
    Histogram,
}

impl Type {
    /// The word in the `TYPE` line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Type,
    /// Its labels, in their order; `le` of histograms left out.
    pub labels: &'static [&'static str],
    /// The `HELP` line.
    pub help: &'static str,
}

macro_rules! catalog {
    ($($list:ident { $($constant:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)+ })+) => {
        $($(
            #[doc = $help]
            pub const $constant: Metric = Metric {
                name: concat!("vpc_gateway_", $name),
                kind: Type::$kind,
                labels: &[$($label),*],
                help: $help,
            };
        )+)+
        $(
            #[doc = concat!("The metrics of one origin: `", stringify!($list), "`.")]
            pub const $list: &[Metric] = &[$($constant),+];
        )+
    };
}

catalog! {
    COMMON {
        BUILD Gauge "build_info" ["version"] "Always 1; says which version runs.";
        START Gauge "start_time_seconds" [] "When the process started, in seconds since 1970.";
        READY Gauge "ready" [] "1 if /readyz answers 200: everything was listed once and applied.";
        PROBLEMS Gauge "problems" ["step"] "What is wrong at the moment, as in vpc-gateway status.";
        CPU Counter "process_cpu_seconds_total" [] "CPU time of the process, all threads.";
        MEMORY Gauge "process_resident_memory_bytes" [] "Resident memory of the process; the maps are the kernel's.";
        SCRAPE Gauge "scrape_seconds" [] "How long it took to gather this page.";
    }
    GATEWAY {
        GENERATION Gauge "generation" [] "Number of the applied state.";
        INTERFACE Gauge "interface_info" ["side", "interface", "mode", "attach"] "Always 1; says which hook an interface has and how the program is attached.";
        RULES Gauge "rules" ["kind", "state"] "Rules in the maps.";
        RULE_PACKETS Counter "rule_packets_total" ["kind", "rule", "id"] "Packets of a rule, both directions, since it was made.";
        RULE_BYTES Counter "rule_bytes_total" ["kind", "rule", "id"] "Bytes of a rule, both directions, since it was made.";
        OTHER_RULE_PACKETS Counter "other_rules_packets_total" ["kind"] "Packets of all rules that are not shown one by one, since the process started.";
        OTHER_RULE_BYTES Counter "other_rules_bytes_total" ["kind"] "Bytes of all rules that are not shown one by one, since the process started.";
        EIP_PACKETS Counter "eip_packets_total" ["eip"] "Packets of the rules of an EIP, both directions, since the process started.";
        EIP_BYTES Counter "eip_bytes_total" ["eip"] "Bytes of the rules of an EIP, both directions, since the process started.";
        EIP_OPENED Counter "eip_sessions_opened_total" ["eip"] "Sessions that were opened on an EIP, since the process started.";
        EIP_REFUSED Counter "eip_refused_flows_total" ["eip"] "New flows that found no free port on an EIP, since the process started; another EIP of the pool may have taken them.";
        EIP_SESSIONS Gauge "eip_sessions" ["eip"] "Open sessions on an EIP. Each has an external port; sessions with different remotes may have the same one.";
        EIP_PORTS Gauge "eip_ports_in_use" ["eip"] "External ports of an EIP that sessions used at the end of the last sweep, each once for each protocol.";
        OTHER_EIP_PACKETS Counter "other_eips_packets_total" [] "As eip_packets_total, for all EIPs that are not shown one by one.";
        OTHER_EIP_BYTES Counter "other_eips_bytes_total" [] "As eip_bytes_total, for all EIPs that are not shown one by one.";
        OTHER_EIP_OPENED Counter "other_eips_sessions_opened_total" [] "As eip_sessions_opened_total, for all EIPs that are not shown one by one.";
        OTHER_EIP_REFUSED Counter "other_eips_refused_flows_total" [] "As eip_refused_flows_total, for all EIPs that are not shown one by one.";
        OTHER_EIP_SESSIONS Gauge "other_eips_sessions" [] "As eip_sessions, for all EIPs that are not shown one by one.";
        EIPS Gauge "eips" [] "EIPs that a rule uses.";
        PORTS Gauge "ports" [] "External ports from 1024 on that each EIP has to give, for each protocol and remote.";
        PORT_TRIES Counter "port_tries_total" ["tries"] "Sessions by how many candidates it took to find their port, since the maps were made.";
        SESSIONS Gauge "sessions" [] "Open sessions, both families.";
        SESSIONS_LIMIT Gauge "sessions_limit" [] "How many sessions each family can have.";
        OPENED Counter "sessions_opened_total" [] "Sessions that were opened since the maps were made.";
        CLOSED Counter "sessions_closed_total" [] "Sessions that have ended since the maps were made.";
        DROPPED_PACKETS Counter "dropped_packets_total" ["reason"] "Dropped packets, since the maps were made.";
        DROPPED_BYTES Counter "dropped_bytes_total" ["reason"] "Bytes of dropped packets, since the maps were made.";
        PASSED_PACKETS Counter "passed_packets_total" ["reason"] "Packets that were left to the kernel, since the maps were made.";
        PASSED_BYTES Counter "passed_bytes_total" ["reason"] "Bytes of packets that were left to the kernel, since the maps were made.";
        XDP_PACKETS Counter "xdp_packets_total" ["result"] "Packets that XDP has finished, or passed on to TC, since the maps were made.";
        MAP_ENTRIES Gauge "map_entries" ["map"] "Entries of a map that the daemon fills.";
        MAP_LIMIT Gauge "map_max_entries" ["map"] "How many entries a map takes.";
        ROUNDS Counter "rounds_total" ["result"] "Rounds: comparisons of what shall be with what the maps hold.";
        APPLY Histogram "apply_duration_seconds" [] "How long rounds that changed something took, planning included.";
        DELAY Histogram "event_to_map_seconds" [] "How long changes of the API server took from when the process heard of the first of them until the maps had them.";
        CHANGES Counter "map_changes_total" ["action"] "Map entries that were written or deleted.";
        CUT Counter "sessions_cut_total" [] "Sessions that ended with their rules.";
        SWEEP Histogram "sweep_duration_seconds" [] "How long sweeps took, whatever else was done in between.";
        SWEPT Counter "sessions_swept_total" [] "Sessions that sweeps have ended.";
        REJECTIONS Gauge "rejections" ["kind"] "Objects or fields that are rejected at the moment.";
        SOURCE_SYNCED Gauge "source_synced" [] "1 if all kinds of objects were listed once.";
        SOURCE_CONNECTED Gauge "source_connected" [] "1 if all kinds of objects can be read or watched at the moment.";
        SOURCE_OBJECTS Gauge "source_objects" ["kind"] "Objects on the API server, those of other gateways included.";
        SOURCE_HEARD Gauge "source_last_event_age_seconds" [] "Time since the API server was last heard of, bookmarks included.";
        SOURCE_RELISTS Counter "source_relists_total" [] "How often a kind was listed anew because its watch could not be taken up.";
        ROUTER_ALIVE Gauge "router_alive" ["side", "family", "address"] "1 if a router of a next-hop group is alive, 0 if BFD or the neighbour table says it is dead or it is not on link.";
        ROUTER_SLOTS Gauge "router_slots" ["side", "family", "address"] "How many of the 1024 slots of its group a router has.";
    }
    SELECTOR {
        NEXT_HOP_PACKETS Counter "next_hop_packets_total" ["group", "family", "address"] "Packets that were sent to a next hop.";
        NEXT_HOP_BYTES Counter "next_hop_bytes_total" ["group", "family", "address"] "Bytes that were sent to a next hop.";
        NEXT_HOP_ALIVE Gauge "next_hop_alive" ["group", "family", "address"] "1 if a next hop is alive or nobody asks, 0 if BFD says it is dead or it is not on link.";
        NEXT_HOP_SLOTS Gauge "next_hop_slots" ["group", "family", "address"] "How many of the 1024 slots of its group a next hop has.";
        SELECTOR_DROPPED Counter "selector_dropped_packets_total" ["reason"] "Packets that the selector has dropped.";
        BFD_UP Gauge "bfd_session_up" ["local", "remote"] "1 if a BFD session is up.";
        BFD_FLAPS Counter "bfd_session_flaps_total" ["local", "remote"] "How often a BFD session went down after having been up.";
    }
    AGENT {
        AGENT_SYNCED Gauge "agent_synced" [] "1 if the pods of the node were listed once.";
        AGENT_CONNECTED Gauge "agent_connected" [] "1 if the pods of the node can be watched at the moment.";
        AGENT_PODS Gauge "agent_pods" ["state"] "Gateway pods of the node: those that wait for their containers, those that a process runs for, and those whose process has failed.";
        AGENT_SERVED Gauge "agent_pod_served" ["gateway_namespace", "gateway_pod", "gateway"] "1 if a process runs for a gateway pod.";
        AGENT_RESTARTS Counter "agent_pod_restarts_total" ["gateway_namespace", "gateway_pod"] "How often the process of a gateway pod has ended by itself since the agent knows the pod.";
        AGENT_SHOWN Gauge "agent_pod_shown" ["gateway_namespace", "gateway_pod"] "1 if the metrics of the process of a gateway pod are on this page.";
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    fn all() -> impl Iterator<Item = &'static Metric> {
        COMMON.iter().chain(GATEWAY).chain(SELECTOR).chain(AGENT)
    }

    fn row(metric: &Metric) -> String {
        let Metric { name, kind, labels, help } = metric;
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        let help = help.replace('|', "\\|");
        format!("| `{name}` | {} | {} | {help} |", kind.as_str(), labels.join(", "))
    }

    #[test]
    fn the_page_about_metrics_has_all_of_them_as_they_are() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        let page = fs::read_to_string(page).unwrap();
        let said: Vec<_> =
            page.lines().filter(|line| line.starts_with("| `vpc_gateway_")).collect();
        let wanted: Vec<_> = all().map(row).collect();
        assert_eq!(said, wanted, "docs/metrics.md should say:\n{}", wanted.join("\n"));
        // What the alerts ask for exists.
        let names: BTreeSet<_> = all().map(|metric| metric.name).collect();
        let known = |word: &str| {
            let stem = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
            names.contains(word) || stem.is_some_and(|stem| names.contains(stem))
        };
        let word = |character: char| !(character.is_ascii_alphanumeric() || character == '_');
        for named in page.split(word).filter(|word| word.starts_with("vpc_gateway_")) {
            assert!(known(named), "docs/metrics.md: there is no {named}");
        }
    }

    #[test]
    fn names_are_as_prometheus_wants_them() {
        let mut names = BTreeSet::new();
        for Metric { name, kind, help, .. } in all() {
            assert!(names.insert(name), "{name} is there twice");
            assert_eq!(name.ends_with("_total"), *kind == Type::Counter, "{name}");
            assert!(help.ends_with('.') && !help.contains(['\n', '\\']), "{name}: {help}");
        }
    }
}
