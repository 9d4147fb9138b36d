//! Selectors of egress gateways end to end: pods in files, a selector, three replicas, an outside.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use gateway_tests::lab::echo::{ECHO_PORT, EchoServers};
use gateway_tests::lab::egress::{EgressLab, PLAIN, TENANT, replica_of, server};
use gateway_tests::lab::probe::{self, TcpProbe};
use gateway_tests::lab::tier;
use gateway_tests::lab::wait::wait_until;

const PATIENCE: Duration = Duration::from_secs(15);

/// The gateway of the example, with a selector in place of the policy that hides tenants.
fn by_selector(text: String) -> String {
    let policy = "    - snat: true\n      subnets:\n        - tenants\n";
    assert!(text.contains(policy), "{text}");
    let selector = "  selectors:\n    - namespaceSelector:\n        matchLabels: {env: prod}\n      \
                    podSelector:\n        matchExpressions:\n          - {key: team, operator: In, values: [red]}\n";
    text.replace(policy, "") + selector
}

/// As `kubectl get pods,namespaces -A -o yaml` writes them, or the part of it that matters.
fn list(pods: &[(&str, &str, [&str; 2])]) -> String {
    let mut text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  \
                    metadata: {name: shop, labels: {env: prod}}\n"
        .to_owned();
    for (name, team, [v4, v6]) in pods {
        text += &format!(
            "- apiVersion: v1\n  kind: Pod\n  metadata:\n    name: {name}\n    namespace: shop\n    \
             labels: {{team: {team}}}\n    annotations:\n      ovn.kubernetes.io/allocated: \"true\"\n      \
             ovn.kubernetes.io/ip_address: {v4},{v6}\n      ovn.kubernetes.io/logical_router: vpc1\n  \
             spec:\n    containers: []\n  status:\n    phase: Running\n"
        );
    }
    text
}

struct Test<'l>(&'l EgressLab);

impl Test<'_> {
    fn pods(&self, pods: &[(&str, &str, [&str; 2])]) -> Result<()> {
        Ok(fs::write(self.0.config().join("40-pods.yaml"), list(pods))?)
    }

    /// Makes the tenant speak from an address of each family.
    fn be(&self, [v4, v6]: [&str; 2]) -> Result<()> {
        let tenant = &self.0.tenant;
        let (router4, router6) = if v4.starts_with("10.0.2.") {
            ("10.0.2.1", "fd00:10:2::1")
        } else {
            ("10.0.1.1", "fd00:10:1::1")
        };
        tenant.ip(&format!("address replace {v4}/24 dev eth0"))?;
        tenant.ip(&format!("address replace {v6}/64 dev eth0 nodad"))?;
        tenant.ip(&format!("route replace default via {router4} src {v4}"))?;
        tenant.ip(&format!("-6 route replace default via {router6} src {v6}")).map(drop)
    }

    /// Waits until the tenant is seen outside with the address of a replica, in both families.
    fn await_hidden(&self) -> Result<()> {
        for family in 0..2 {
            wait_until("the pod to be hidden", PATIENCE, || {
                let seen = probe::udp(&self.0.tenant, 0, server(family, ECHO_PORT), b"who")?.seen;
                ensure!(replica_of(seen.ip()).is_some(), "seen as {seen}");
                Ok(Some(()))
            })?;
        }
        Ok(())
    }

    /// Waits until nothing of the tenant has an answer.
    fn await_shut(&self) -> Result<()> {
        for family in 0..2 {
            wait_until("the pod to be shut in", PATIENCE, || {
                let answer = probe::udp(&self.0.tenant, 0, server(family, ECHO_PORT), b"who");
                ensure!(answer.is_err(), "it got {answer:?}");
                Ok(Some(()))
            })?;
        }
        Ok(())
    }
}

const MOVED: [&str; 2] = ["10.0.1.11", "fd00:10:1::11"];

#[test]
fn a_pod_leaves_by_its_labels_and_not_without_them() {
    if !tier::namespaces() || tier::gateway().is_none() {
        return;
    }
    let mut lab = EgressLab::build("vgpods").unwrap_or_else(|error| panic!("{error:#}"));
    let outcome = lab.change(by_selector).and_then(|()| lab.start()).and_then(|()| {
        let _echo = EchoServers::start(&lab.server, ECHO_PORT)?;
        let test = Test(&lab);
        test.await_shut()?;

        test.pods(&[("buyer", "red", TENANT)])?;
        test.await_hidden()?;
        let mut open = Vec::new();
        for family in [0, 1, 0, 1, 0, 1] {
            open.push(TcpProbe::connect(&lab.tenant, 0, server(family, ECHO_PORT))?);
        }
        // Others come, go and stay out; its connections go on.
        test.pods(&[("buyer", "red", TENANT), ("other", "blue", MOVED)])?;
        test.be(MOVED)?;
        test.await_shut()?;
        test.pods(&[("buyer", "red", TENANT), ("other", "red", MOVED)])?;
        test.await_hidden()?;
        test.pods(&[("buyer", "red", TENANT)])?;
        test.await_shut()?;
        for one in &mut open {
            one.echo("still there")?;
        }

        // It moves, loses its label, has it again, and goes.
        test.pods(&[("buyer", "red", MOVED)])?;
        test.await_hidden()?;
        test.be(TENANT)?;
        test.await_shut()?;
        ensure!(
            open.iter_mut().all(|one| one.echo("gone").is_err()),
            "a connection outlived its pod"
        );
        test.be(MOVED)?;
        for (team, inside) in [("blue", true), ("red", false)] {
            test.pods(&[("buyer", team, MOVED)])?;
            if inside { test.await_shut()? } else { test.await_hidden()? }
        }
        test.pods(&[])?;
        test.await_shut()?;

        // A policy without SNAT says how a selected pod leaves.
        test.be(PLAIN)?;
        test.pods(&[("server", "red", PLAIN)])?;
        for (family, own) in PLAIN.iter().enumerate() {
            let seen = probe::udp(&lab.tenant, 0, server(family, ECHO_PORT), b"who")?.seen.ip();
            ensure!(seen.to_string() == *own, "{own} is seen as {seen}");
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error:#}\n{}", lab.diagnostics()));
}
