//! The test binaries: compiled once, then sorted into tiers by package and name.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::Tier;
use crate::process;
use crate::workspace::Workspace;

/// The crate whose integration tests use the kernel.
const TESTS_PACKAGE: &str = "gateway-tests";

/// One compiled test binary.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Binary {
    /// The file to run.
    pub(crate) executable: PathBuf,
    /// The folder of its package, where cargo would run it.
    pub(super) folder: PathBuf,
    package: String,
    target: String,
    is_integration: bool,
}

impl Binary {
    /// Which tier it belongs to; every binary belongs to one.
    pub(super) fn tier(&self) -> Tier {
        if self.package != TESTS_PACKAGE || !self.is_integration {
            return Tier::Unit;
        }
        let named = |names: &[&str]| names.iter().any(|name| self.target.starts_with(name));
        if named(&["netns", "demo"]) {
            Tier::Netns
        } else if named(&["kube"]) {
            Tier::Kube
        } else if named(&["packet", "datapath", "differential", "verifier"]) {
            Tier::Packet
        } else {
            Tier::Control
        }
    }

    /// Whether it is the integration test of the lab that has this name.
    pub(crate) fn is_integration_test(&self, name: &str) -> bool {
        self.package == TESTS_PACKAGE && self.is_integration && self.target == name
    }

    /// What a person calls it.
    pub(super) fn title(&self) -> String {
        format!("{} {}", self.package, self.target)
    }
}

/// Compiles all tests of the host crates.
///
/// # Errors
///
/// Something does not compile.
pub(crate) fn compile(workspace: &Workspace) -> Result<Vec<Binary>> {
    let mut command = workspace.cargo();
    command.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("failed to start `{}`", process::line(&command)))?;
    if !output.status.success() {
        bail!(
            "failed to compile the tests: `{}` ended with {}",
            process::line(&command),
            output.status
        );
    }
    let text =
        String::from_utf8(output.stdout).context("cargo printed something that is not UTF-8")?;
    let mut binaries = text.lines().filter_map(binary).collect::<Vec<_>>();
    binaries.sort_by_key(Binary::title);
    Ok(binaries)
}

/// Reads one message of cargo; only a compiled test has an answer.
fn binary(line: &str) -> Option<Binary> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf();
    Some(Binary {
        executable: message["executable"].as_str()?.into(),
        package: package(message["package_id"].as_str()?)?,
        target: message["target"]["name"].as_str()?.to_owned(),
        is_integration: message["target"]["kind"][0] == "test",
        folder,
    })
}

/// The name in a package id: `path+file:///w/tests#gateway-tests@0.1.0` or `path+file:///w/xtask#0.1.0`.
fn package(id: &str) -> Option<String> {
    let (url, fragment) = id.split_once('#')?;
    let name = match fragment.split_once('@') {
        Some((name, _)) => name,
        None => url.rsplit('/').next()?,
    };
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(package_id: &str, kind: &str, name: &str) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","package_id":"{package_id}","manifest_path":"/w/tests/Cargo.toml",
            "target":{{"kind":["{kind}"],"name":"{name}"}},"profile":{{"test":true}},"executable":"/t/{name}-1"}}"#
        )
    }

    #[test]
    fn integration_tests_of_the_lab_go_by_name() {
        let tier = |name: &str| {
            let id = "path+file:///w/tests#gateway-tests@0.1.0";
            binary(&message(id, "test", name)).unwrap().tier()
        };
        assert_eq!(tier("netns_macvlan"), Tier::Netns);
        assert_eq!(tier("datapath"), Tier::Packet);
        assert_eq!(tier("control"), Tier::Control);
        assert_eq!(tier("something_new"), Tier::Control);
    }

    #[test]
    fn everything_else_is_a_unit_test() {
        let lib =
            binary(&message("path+file:///w/tests#gateway-tests@0.1.0", "lib", "gateway_tests"));
        assert_eq!(lib.unwrap().tier(), Tier::Unit);
        let other =
            binary(&message("path+file:///w/gateway-common#0.1.0", "test", "netns")).unwrap();
        assert_eq!(other.tier(), Tier::Unit);
        assert_eq!(other.title(), "gateway-common netns");
    }

    #[test]
    fn other_messages_are_passed_over() {
        assert_eq!(binary(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(binary("not json"), None);
    }
}
