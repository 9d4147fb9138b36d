//! The manifests under `deploy`: valid YAML that fits together, and that asks for what the code uses.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::Parser as _;
use gateway_tests::deploy::{self, Permission};
use gateway_userspace::cli::Cli;
use gateway_userspace::source::kube::{NAMESPACES, PODS, RESOURCES};
use serde_json::Value;

fn documents(file: &str) -> Vec<Value> {
    deploy::documents(file).unwrap_or_else(|e| panic!("{e:#}"))
}

fn only(file: &str) -> Value {
    let mut documents = documents(file);
    assert_eq!(documents.len(), 1, "{file}");
    documents.remove(0)
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

fn list<'v>(value: &'v Value, pointer: &str) -> &'v [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn names(value: &Value, pointer: &str) -> BTreeSet<String> {
    list(value, pointer).iter().map(|item| text(item, "/name").to_owned()).collect()
}

#[test]
fn every_file_is_listed_and_there() {
    let base = only("base/kustomization.yaml");
    let resources: BTreeSet<_> =
        list(&base, "/resources").iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let folder = fs::read_dir(Path::new(deploy::FOLDER).join("base")).expect("deploy/base");
    let files =
        folder.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    let files: BTreeSet<_> = files.filter(|name| name != "kustomization.yaml").collect();
    assert_eq!(resources, files);
    for file in files {
        for document in documents(&format!("base/{file}")) {
            for pointer in ["/apiVersion", "/kind", "/metadata/name"] {
                text(&document, pointer);
            }
        }
    }
}

#[test]
fn names_labels_and_mounts_agree() {
    let daemon_set = only("base/daemonset.yaml");
    let labels = daemon_set.pointer("/spec/template/metadata/labels").expect("labels");
    let selector = daemon_set.pointer("/spec/selector/matchLabels").expect("a selector");
    for (key, value) in selector.as_object().expect("labels") {
        assert_eq!(labels.get(key), Some(value), "{key} selects other pods");
    }
    let account = only("base/serviceaccount.yaml");
    let (name, namespace) =
        (text(&account, "/metadata/name"), text(&account, "/metadata/namespace"));
    assert_eq!(text(&daemon_set, "/spec/template/spec/serviceAccountName"), name);
    assert_eq!(text(&daemon_set, "/metadata/namespace"), namespace);
    let rbac = documents("base/rbac.yaml");
    let [role, binding] = &rbac[..] else { panic!("a role and a binding, not {rbac:?}") };
    assert_eq!(text(binding, "/roleRef/name"), text(role, "/metadata/name"));
    let subjects = list(binding, "/subjects");
    assert_eq!(subjects.len(), 1);
    assert_eq!(text(&subjects[0], "/name"), name);
    assert_eq!(text(&subjects[0], "/namespace"), namespace);

    let config = only("base/configmap.yaml");
    let pod = only("gateway-pod/pod.yaml");
    assert_eq!(text(&pod, "/spec/serviceAccountName"), name);
    for (spec, what) in [("/spec/template/spec", &daemon_set), ("/spec", &pod)] {
        let spec = what.pointer(spec).expect("a pod");
        for container in list(spec, "/containers") {
            assert_eq!(names(container, "/volumeMounts"), names(spec, "/volumes"));
            for from in list(container, "/envFrom") {
                assert_eq!(text(from, "/configMapRef/name"), text(&config, "/metadata/name"));
            }
        }
    }
    for patch in list(&only("uninstall/kustomization.yaml"), "/patches") {
        let target = match text(patch, "/target/kind") {
            "ConfigMap" => &config,
            "DaemonSet" => &daemon_set,
            other => panic!("a patch of {other}"),
        };
        assert_eq!(text(patch, "/target/name"), text(target, "/metadata/name"));
        for change in
            deploy::parse(text(patch, "/patch")).expect("YAML").remove(0).as_array().unwrap()
        {
            // What is replaced is there, and so is what something is added to.
            let path = text(change, "/path");
            let there =
                if text(change, "/op") == "add" { path.rsplit_once('/').unwrap().0 } else { path };
            assert!(target.pointer(there).is_some(), "{path}");
        }
    }
}

#[test]
fn a_pod_monitor_finds_the_port_of_the_agents() {
    let component = only("metrics/kustomization.yaml");
    assert_eq!(list(&component, "/resources"), ["podmonitor.yaml"]);
    assert_eq!(text(&component, "/patches/0/path"), "daemonset.yaml");
    let whole = only("with-metrics/kustomization.yaml");
    assert_eq!(
        (list(&whole, "/resources"), list(&whole, "/components")),
        (&["../base".into()][..], &["../metrics".into()][..])
    );

    let (base, patch) = (only("base/daemonset.yaml"), only("metrics/daemonset.yaml"));
    for pointer in
        ["/kind", "/metadata/name", "/metadata/namespace", "/spec/template/spec/containers/0/name"]
    {
        assert_eq!(text(&patch, pointer), text(&base, pointer));
    }
    let monitor = only("metrics/podmonitor.yaml");
    let labels = base.pointer("/spec/template/metadata/labels");
    assert_eq!(monitor.pointer("/spec/selector/matchLabels"), labels);
    assert_eq!(
        monitor.pointer("/spec/namespaceSelector/matchNames/0"),
        base.pointer("/metadata/namespace")
    );
    let container = patch.pointer("/spec/template/spec/containers/0").expect("a container");
    assert_eq!(
        monitor.pointer("/spec/podMetricsEndpoints/0/port"),
        container.pointer("/ports/0/name")
    );
    // The address as the kubelet writes it, which the agent takes.
    let value = text(container, "/env/1/value").replace("$(HOST_IP)", "192.0.2.7");
    assert_eq!(text(container, "/env/0/name"), "HOST_IP");
    assert_eq!(text(container, "/env/1/name"), "VPC_GATEWAY_METRICS");
    let port = container.pointer("/ports/0/containerPort").expect("a port");
    assert!(value.ends_with(&format!(":{port}")), "{value}");
    Cli::try_parse_from(["vpc-gateway", "agent", "--metrics", &value])
        .unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn the_socket_of_a_runtime_is_one_that_the_agent_takes() {
    assert_eq!(text(&only("cri/kustomization.yaml"), "/patches/0/path"), "daemonset.yaml");
    let patch = only("cri/daemonset.yaml");
    let container = patch.pointer("/spec/template/spec/containers/0").expect("a container");
    let socket = text(container, "/env/0/value");
    assert!(Path::new(socket).starts_with(text(container, "/volumeMounts/0/mountPath")));
    assert_eq!(
        text(container, "/volumeMounts/0/mountPath"),
        text(&patch, "/spec/template/spec/volumes/0/hostPath/path")
    );
    Cli::try_parse_from(["vpc-gateway", "agent", "--cri", socket])
        .unwrap_or_else(|e| panic!("{e}"));
    Cli::try_parse_from(["vpc-gateway", "agent", "--cri", "containerd.sock"])
        .expect_err("a path that depends on where one is");
}

#[test]
fn every_command_is_one() {
    let daemon_set = only("base/daemonset.yaml");
    let pod = only("gateway-pod/pod.yaml");
    let mut count = 0;
    for container in [("/spec/template/spec", &daemon_set), ("/spec", &pod)]
        .iter()
        .flat_map(|(spec, what)| list(what.pointer(spec).expect("a pod"), "/containers"))
    {
        let probes = ["startupProbe", "readinessProbe"];
        let pointers = probes.map(|probe| format!("/{probe}/exec/command"));
        for pointer in pointers.iter().map(String::as_str).chain(["/command"]) {
            let words: Vec<_> = list(container, pointer).iter().filter_map(Value::as_str).collect();
            Cli::try_parse_from(&words).unwrap_or_else(|e| panic!("{pointer} {words:?}: {e}"));
            count += 1;
        }
    }
    assert_eq!(count, 6);
}

#[test]
fn the_role_grants_what_the_code_uses() {
    let granted = deploy::permissions(&documents("base/rbac.yaml")[0]);
    let permission = |group: &str, resource: &str, verb: &str| Permission {
        group: group.to_owned(),
        resource: resource.to_owned(),
        verb: verb.to_owned(),
    };
    // The agent watches pods too.
    let watched = RESOURCES.iter().chain([&PODS, &NAMESPACES]);
    let mut used: Vec<_> = watched
        .flat_map(|one| ["list", "watch"].map(|verb| permission(one.group, one.plural, verb)))
        .collect();
    used.extend(["create", "patch"].map(|verb| permission("", "events", verb)));
    let (granted, used): (BTreeSet<_>, BTreeSet<_>) =
        (granted.into_iter().collect(), used.into_iter().collect());
    assert_eq!(granted, used);
}
