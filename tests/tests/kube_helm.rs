//! The Helm chart: what the real `helm` makes of it is what kustomize makes of `deploy`, and an API server gets it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gateway_tests::deploy;
use gateway_tests::lab::kube::ApiServer;
use gateway_tests::lab::scratch::Scratch;
use gateway_tests::lab::wait::wait_until;
use gateway_tests::lab::{netns, tier};
use serde_json::{Value, json};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/vpc-gateway");
const SOON: Duration = Duration::from_secs(20);
const CRI: &str = "cri.enabled=true";
const METRICS: &str = "metrics.enabled=true,podMonitor.enabled=true";

/// Objects by kind and name.
type Objects = BTreeMap<(String, String), Value>;

struct Helm {
    program: PathBuf,
    /// The kubeconfig, for what needs a cluster.
    cluster: Option<PathBuf>,
}

impl Helm {
    fn new(program: PathBuf) -> Self {
        Self { program, cluster: None }
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        if let Some(file) = &self.cluster {
            command.arg("--kubeconfig").arg(file);
        }
        netns::run(command.args(arguments))
    }

    /// What would be installed with these values.
    fn render(&self, namespace: &str, values: &str) -> Result<Objects> {
        self.run(&["lint", "--strict", CHART, "--set", values])?;
        let arguments = ["template", "any", CHART, "--namespace", namespace, "--set", values];
        Ok(by_name(deploy::parse(&self.run(&arguments)?)?))
    }
}

fn by_name(documents: Vec<Value>) -> Objects {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let named = documents.into_iter().map(|mut document| {
        sort(&mut document);
        ((word(&document["kind"]), word(&document["metadata"]["name"])), document)
    });
    named.collect()
}

/// Puts the entries of lists that have names in their order.
fn sort(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(sort),
        Value::Array(entries) => {
            entries.iter_mut().for_each(sort);
            entries.sort_by_key(|entry| entry["name"].as_str().map(str::to_owned));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What kustomize makes of `deploy/base` and these components.
fn kustomized(components: &[&str]) -> Result<Objects> {
    let base = deploy::documents("base/kustomization.yaml")?.remove(0);
    let mut documents = Vec::new();
    for file in base["resources"].as_array().context("resources")? {
        documents.extend(deploy::documents(&format!("base/{}", file.as_str().context("a file")?))?);
    }
    let is_daemon_set = |document: &&mut Value| document["kind"] == "DaemonSet";
    let daemon_set = documents.iter_mut().find(is_daemon_set).context("a DaemonSet")?;
    for component in components {
        let patch = deploy::documents(&format!("{component}/daemonset.yaml"))?.remove(0);
        deploy::merge(daemon_set, &patch);
    }
    let image = &base["images"][0];
    let container = &mut daemon_set["spec"]["template"]["spec"]["containers"][0];
    ensure!(container["image"] == image["name"], "another image: {container}");
    let word = |field: &str| image[field].as_str().context("an image");
    container["image"] = format!("{}:{}", word("newName")?, word("newTag")?).into();
    if components.contains(&"metrics") {
        documents.extend(deploy::documents("metrics/podmonitor.yaml")?);
    }
    Ok(by_name(documents))
}

#[test]
fn the_chart_says_what_the_kustomizations_say() {
    let Some(helm) = tier::helm().map(Helm::new) else { return };
    let all = format!("{CRI},{METRICS}");
    for (values, components) in [
        ("", &[][..]),
        (CRI, &["cri"][..]),
        (METRICS, &["metrics"][..]),
        (&all, &["cri", "metrics"][..]),
    ] {
        let chart = helm.render("kube-system", values).unwrap_or_else(|e| panic!("{e:#}"));
        let expected = kustomized(components).unwrap_or_else(|e| panic!("{e:#}"));
        assert_eq!(chart, expected, "{values}");
    }
    let alone = helm.render("kube-system", "podMonitor.enabled=true");
    let refused = format!("{:#}", alone.expect_err("a monitor of nothing"));
    assert!(refused.contains("podMonitor.enabled takes metrics.enabled"), "{refused}");
}

#[test]
fn values_get_where_they_belong() {
    let Some(helm) = tier::helm().map(Helm::new) else { return };
    let values = "image.repository=r.test/gw,image.tag=v1,args={--,--max-sessions,1000},\
        cri.enabled=true,cri.socket=/run/crio/crio.sock,metrics.enabled=true,metrics.port=9999,\
        nodeSelector.zone=a,tolerations[0].key=gw,resources.limits.cpu=1,detachOnExit=true";
    let objects = helm.render("net", values).unwrap_or_else(|e| panic!("{e:#}"));
    let object = |kind: &str| &objects[&(kind.to_owned(), "vpc-gateway".to_owned())];
    for kind in ["ServiceAccount", "ConfigMap", "DaemonSet"] {
        assert_eq!(object(kind)["metadata"]["namespace"], "net");
    }
    assert_eq!(object("ClusterRoleBinding")["subjects"][0]["namespace"], "net");
    assert_eq!(object("ConfigMap")["data"]["VPC_GATEWAY_DETACH_ON_EXIT"], "true");
    let template = &object("DaemonSet")["spec"]["template"];
    let detach = &template["metadata"]["annotations"]["vpc-gateway.io/detach-on-exit"];
    assert_eq!(detach, "true", "every agent is started anew");
    let pod = &template["spec"];
    assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux", "zone": "a"}));
    assert_eq!(pod["tolerations"], json!([{"key": "gw"}]));
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "r.test/gw:v1");
    assert_eq!(container["args"], json!(["--", "--max-sessions", "1000"]));
    assert_eq!(container["resources"]["limits"]["cpu"], 1);
    let value = |name: &str| {
        let variables = container["env"].as_array().expect("variables");
        variables.iter().find(|it| it["name"] == name).expect(name)["value"].clone()
    };
    assert_eq!(value("VPC_GATEWAY_CRI"), "/run/crio/crio.sock");
    assert_eq!(value("VPC_GATEWAY_METRICS"), "$(HOST_IP):9999");
    assert_eq!(container["ports"][0]["hostPort"], 9999);
    let mounted =
        |list: &Value| list.as_array().expect("a list").iter().any(|it| it["name"] == "cri");
    assert!(mounted(&container["volumeMounts"]) && mounted(&pod["volumes"]));
}

#[test]
fn a_release_is_installed_upgraded_and_uninstalled() {
    let (Some(mut helm), Some(binary)) = (tier::helm().map(Helm::new), tier::cluster()) else {
        return;
    };
    let scratch = Scratch::create(&format!("vgw-helm-{}", std::process::id())).unwrap();
    let name = scratch.path().file_name().unwrap().to_string_lossy().into_owned();
    let api = ApiServer::start(&name, &binary).unwrap_or_else(|e| panic!("{e:#}"));
    deploy::apply(&api, &deploy::pod_monitors()).unwrap_or_else(|e| panic!("{e:#}"));
    helm.cluster = Some(api.kubeconfig(true).unwrap());
    let release = |verb: &str, more: &[&str]| {
        let arguments = [&[verb, "vpc-gateway", "--namespace", "kube-system"], more].concat();
        helm.run(&arguments).map(Some)
    };
    let daemon_set = || -> Result<Value> {
        Ok(serde_json::from_str(
            &api.get("/apis/apps/v1/namespaces/kube-system/daemonsets/vpc-gateway")?,
        )?)
    };
    release("install", &[CHART]).unwrap_or_else(|e| panic!("{e:#}"));
    assert!(daemon_set().unwrap()["spec"]["template"]["spec"]["hostPID"].as_bool().unwrap());

    let values = format!("{CRI},{METRICS},args={{--,--max-sessions,1000}}");
    // The kind of PodMonitors takes a moment to be known.
    let upgraded =
        wait_until("PodMonitors", SOON, || release("upgrade", &[CHART, "--set", &values]));
    upgraded.unwrap_or_else(|e| panic!("{e:#}"));
    let monitor = "/apis/monitoring.coreos.com/v1/namespaces/kube-system/podmonitors/vpc-gateway";
    api.get(monitor).unwrap_or_else(|e| panic!("{e:#}"));

    let last = ["--reuse-values", "--set", "detachOnExit=true"];
    release("upgrade", &[&[CHART], &last[..]].concat()).unwrap_or_else(|e| panic!("{e:#}"));
    let template = &daemon_set().unwrap()["spec"]["template"];
    assert_eq!(template["metadata"]["annotations"]["vpc-gateway.io/detach-on-exit"], "true");
    let arguments = &template["spec"]["containers"][0]["args"];
    assert_eq!(arguments, &json!(["--", "--max-sessions", "1000"]));

    release("uninstall", &[]).unwrap_or_else(|e| panic!("{e:#}"));
    daemon_set().expect_err("the DaemonSet is still there");
    api.get(monitor).expect_err("the PodMonitor is still there");
}
