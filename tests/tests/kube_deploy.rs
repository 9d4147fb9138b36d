//! The manifests under `deploy` on a real API server: every field is one, and every permission is needed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gateway_tests::deploy::{self, Permission, apply, path_of, pod_monitors};
use gateway_tests::lab::gateway::{Gateway, Settings};
use gateway_tests::lab::kube::{ApiServer, SERVICE_ACCOUNT};
use gateway_tests::lab::manifests::Manifests;
use gateway_tests::lab::node::Agent;
use gateway_tests::lab::scratch::Scratch;
use gateway_tests::lab::tier;
use gateway_tests::lab::topology::{Options, Topology};
use gateway_tests::lab::wait::wait_until;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles/vpc-gateway";

fn documents(file: &str) -> Vec<Value> {
    deploy::documents(file).unwrap_or_else(|e| panic!("{e:#}"))
}

#[test]
fn an_api_server_takes_every_manifest_to_the_letter() {
    let Some(binary) = tier::cluster() else { return };
    let scratch = Scratch::create(&format!("vgw-deploy-{}", std::process::id())).unwrap();
    let name = scratch.path().file_name().unwrap().to_string_lossy().into_owned();
    let api = ApiServer::start(&name, &binary).unwrap_or_else(|e| panic!("{e:#}"));
    for file in ["serviceaccount", "rbac", "configmap", "daemonset"] {
        for document in documents(&format!("base/{file}.yaml")) {
            apply(&api, &document).unwrap_or_else(|e| panic!("{file}: {e:#}"));
        }
    }
    apply(&api, &documents("gateway-pod/pod.yaml")[0]).unwrap_or_else(|e| panic!("{e:#}"));
    with_cri(&api).unwrap_or_else(|e| panic!("{e:#}"));
    with_metrics(&api).unwrap_or_else(|e| panic!("{e:#}"));
    // The API server would have told.
    let mut wrong = documents("base/daemonset.yaml").remove(0);
    wrong["spec"]["template"]["spec"]["hostPid"] = json!(true);
    let refused = apply(&api, &wrong).expect_err("a field that is none").to_string();
    assert!(refused.contains("hostPid"), "{refused}");
}

/// Merges what `deploy/cri` adds, as kustomize does.
fn with_cri(api: &ApiServer) -> Result<()> {
    let patch = documents("cri/daemonset.yaml").remove(0);
    let path = format!("{}?fieldValidation=Strict&dryRun=All", path_of(&patch));
    let media = "application/strategic-merge-patch+json";
    let merged = api.request("PATCH", &path, media, &patch.to_string())?;
    let pod = merged.pointer("/spec/template/spec").context("a pod")?;
    let names = |list: &Value| -> Vec<String> {
        let items = list.as_array().into_iter().flatten();
        items.filter_map(|item| item["name"].as_str().map(str::to_owned)).collect()
    };
    let container = &pod["containers"][0];
    ensure!(names(&pod["containers"]) == ["agent"], "another container: {pod}");
    ensure!(names(&container["env"]).len() == 2, "variables: {}", container["env"]);
    for list in [&container["volumeMounts"], &pod["volumes"]] {
        let mut names = names(list);
        names.sort();
        ensure!(names == ["bpf", "cri", "state"], "{list}");
    }
    Ok(())
}

/// Applies what `deploy/metrics` adds, where the kinds of the Prometheus operator are known.
fn with_metrics(api: &ApiServer) -> Result<()> {
    let patch = documents("metrics/daemonset.yaml").remove(0);
    let mut daemon_set = documents("base/daemonset.yaml").remove(0);
    deploy::merge(&mut daemon_set, &patch);
    let containers = daemon_set["spec"]["template"]["spec"]["containers"].as_array();
    ensure!(containers.is_some_and(|all| all.len() == 1), "the patch is for another container");
    apply(api, &daemon_set)?;

    let definition = pod_monitors();
    apply(api, &definition)?;
    let monitor = documents("metrics/podmonitor.yaml").remove(0);
    let applied = wait_until("the kind of PodMonitors", SOON, || Ok(apply(api, &monitor).ok()));
    applied.or_else(|_| apply(api, &monitor))?;
    let mut wrong = monitor;
    wrong["spec"]["podMetricsEndpoints"][0]["scrapeTimeOut"] = json!("1s");
    let refused = apply(api, &wrong).err().context("a field that is none")?.to_string();
    ensure!(refused.contains("scrapeTimeOut"), "{refused}");
    Ok(())
}

/// Sets the role, and waits until the API server acts upon it.
fn grant(api: &ApiServer, role: &Value, granted: &[&Permission], without: Option<&Permission>) {
    let role = deploy::role_with(role, granted.iter().copied());
    api.request("PUT", ROLE, "application/json", &role.to_string())
        .unwrap_or_else(|e| panic!("{e:#}"));
    let settled = wait_until("the role to be in force", SOON, || {
        for permission in granted.iter().copied().chain(without) {
            let wanted = Some(permission) != without;
            ensure!(allows(api, permission)? == wanted, "{permission:?} is not {wanted}");
        }
        Ok(Some(()))
    });
    settled.unwrap_or_else(|e| panic!("{e:#}"));
}

fn allows(api: &ApiServer, permission: &Permission) -> Result<bool> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {
            "user": SERVICE_ACCOUNT, "groups": ["system:serviceaccounts"],
            "resourceAttributes": {
                "group": permission.group, "resource": permission.resource, "verb": permission.verb
            }
        }
    });
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let answer = api.request("POST", path, "application/json", &review.to_string())?;
    Ok(answer["status"]["allowed"] == json!(true))
}

/// Waits until exactly this permission is missed.
fn await_missed(what: &str, missing: &Permission, troubles: impl Fn() -> Result<Vec<String>>) {
    let wanted = format!("RBAC must grant the verb {} on {}", missing.verb, missing.qualified());
    let told = wait_until(&wanted, SOON, || {
        let troubles = troubles()?;
        ensure!(troubles.iter().any(|text| text.contains(&wanted)), "{what} says {troubles:?}");
        ensure!(troubles.len() == 1, "{what} misses more: {troubles:?}");
        Ok(Some(()))
    });
    told.unwrap_or_else(|e| panic!("{e:#}"));
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|one| Some(one.as_str()?.to_owned())).collect()
}

fn prepare(net: &Topology, binary: &Path, arguments: Vec<String>) -> Gateway {
    let (binary, name) = (binary.to_owned(), net.name.clone());
    let settings = Settings { binary, name, object: None, config: PathBuf::new(), arguments };
    Gateway::prepare(net, settings).unwrap_or_else(|e| panic!("{e:#}"))
}

/// An egress gateway with selectors, not started.
fn with_selectors(api: &ApiServer, net: &Topology, binary: &Path) -> Gateway {
    let gateway = json!({
        "apiVersion": "kubeovn.io/v1", "kind": "VpcEgressGateway", "metadata": {"name": "out"},
        "spec": {
            "vpc": "lab", "externalSubnet": "external", "replicas": 1,
            "selectors": [{"podSelector": {"matchLabels": {"team": "red"}}}]
        }
    });
    let path = "/apis/kubeovn.io/v1/namespaces/default/vpc-egress-gateways";
    let made = api.request("POST", path, "application/json", &gateway.to_string());
    made.unwrap_or_else(|e| panic!("{e:#}"));
    let name = format!("{}-out", net.name);
    let arguments =
        [api.arguments(false).expect("a kubeconfig"), vec!["--name".into(), name.clone()]].concat();
    let (binary, object) = (binary.to_owned(), Some("out".to_owned()));
    let settings = Settings { binary, name, object, config: PathBuf::new(), arguments };
    Gateway::prepare(net, settings).unwrap_or_else(|e| panic!("{e:#}"))
}

#[test]
fn every_permission_is_needed_and_all_together_are_enough() {
    let Some(binary) = tier::cluster() else { return };
    let net = Topology::build(&Options::default()).unwrap_or_else(|e| panic!("{e:#}"));
    let api = ApiServer::start(&net.name, &binary).unwrap_or_else(|e| panic!("{e:#}"));
    let rbac = documents("base/rbac.yaml");
    rbac.iter()
        .for_each(|document| drop(apply(&api, document).unwrap_or_else(|e| panic!("{e:#}"))));
    let all = deploy::permissions(&rbac[0]);
    let is_core = |one: &&Permission| one.resource == "pods" || one.resource == "namespaces";
    let (core, others): (Vec<_>, Vec<_>) = all.iter().partition(is_core);
    let but = |missing: &Permission| all.iter().filter(|one| *one != missing).collect::<Vec<_>>();
    api.apply_as_kube_ovn(&Manifests::standard(&net.name)).unwrap_or_else(|e| panic!("{e:#}"));
    // Something to write an Event about.
    api.put("IptablesDnatRule", "bad", &json!({"eip": 1})).unwrap();

    // With all of them nothing is missed, and the Event is written.
    grant(&api, &rbac[0], &all.iter().collect::<Vec<_>>(), None);
    let mut gateway = prepare(&net, &binary, api.arguments(false).unwrap());
    gateway.restart().unwrap_or_else(|e| panic!("{e:#}"));
    let written = wait_until("an Event", SOON, || {
        ensure!(!api.events("bad")?.is_empty(), "no Event");
        Ok(Some(()))
    });
    written.unwrap_or_else(|e| panic!("{e:#}\n{}", gateway.log()));
    assert_eq!(gateway.status().unwrap()["source"]["trouble"], json!([]));
    gateway.terminate().unwrap();

    for missing in others {
        // An Event that is not there yet is created; the one that is, patched.
        let eip = if missing.verb == "create" { 2 } else { 1 };
        api.put("IptablesDnatRule", "bad", &json!({"eip": eip})).unwrap();
        grant(&api, &rbac[0], &but(missing), Some(missing));
        gateway.launch().unwrap();
        let pid = gateway.pid();
        await_missed("the gateway", missing, || {
            let status = gateway.status()?;
            ensure!(status["pid"].as_u64() == pid.map(u64::from), "the status is old");
            Ok(strings(&status["source"]["trouble"]))
        });
        gateway.terminate().unwrap();
    }

    // Selectors need pods and namespaces.
    let mut egress = with_selectors(&api, &net, &binary);
    for missing in &core {
        grant(&api, &rbac[0], &but(missing), Some(missing));
        egress.launch().unwrap();
        let pid = egress.pid();
        await_missed("the egress gateway", missing, || {
            let status = egress.status()?;
            ensure!(status["pid"].as_u64() == pid.map(u64::from), "the status is old");
            Ok(strings(&status["source"]["trouble"]))
        });
        egress.terminate().unwrap();
    }

    let kubeconfig = api.kubeconfig(false).unwrap();
    let mut agent = Agent::new(&binary, &net.scratch, "node-1", kubeconfig).unwrap();
    for missing in core.into_iter().filter(|one| one.resource == "pods") {
        grant(&api, &rbac[0], &but(missing), Some(missing));
        agent.start().unwrap();
        let pid = agent.pid();
        await_missed("the agent", missing, || {
            let status = agent.status()?;
            ensure!(status["pid"].as_u64() == pid.map(u64::from), "the status is old");
            Ok(strings(&status["problems"]))
        });
        agent.terminate().unwrap();
    }
}
