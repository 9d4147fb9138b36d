//! Manifests in YAML or JSON: files with any number of documents, and directories of them.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::decode::decode;
use super::node::documents;
use super::{Snapshot, SourceError};
use crate::rejection::{Origin, Problem, Rejection};

/// The largest file that is read.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// Reads the manifests of all paths, in the order given.
///
/// A path is a file, or a directory, of which every `*.yaml`, `*.yml` and `*.json` is read in the
/// order of their names; as with `kubectl -f`, directories inside it are not. A document that
/// cannot be used is a rejection in the snapshot and does not affect the others.
///
/// # Errors
///
/// When a file or directory cannot be read, or a directory has no manifests. Nothing is returned
/// of the others then: a daemon must not take missing files for deleted objects.
pub fn read(paths: &[PathBuf]) -> Result<Snapshot, SourceError> {
    let mut snapshot = Snapshot::default();
    for file in files(paths)? {
        parse(&file.display().to_string(), &read_file(&file)?, &mut snapshot);
    }
    Ok(snapshot)
}

/// The files that [`read`] reads.
pub(super) fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, SourceError> {
    let mut files = Vec::new();
    for path in paths {
        let metadata = fs::metadata(path).map_err(|error| failed("read", path, error))?;
        if metadata.is_dir() {
            files.extend(manifests_in(path)?);
        } else {
            files.push(path.clone());
        }
    }
    Ok(files)
}

/// Adds the documents of one text to the snapshot. `source` is the name of the text in messages.
pub fn parse(source: &str, text: &str, snapshot: &mut Snapshot) {
    let (source, first): (Arc<str>, _) = (source.into(), snapshot.objects.len());
    let documents = documents(text);
    let reject = |snapshot: &mut Snapshot, document, line, problem| {
        let origin = Origin { source: Arc::clone(&source), document, line };
        let rejection = Rejection { origin, object: None, field: None, gateway: None, problem };
        snapshot.rejections.push(rejection);
    };
    if documents.iter().all(|document| matches!(document, Ok(None))) {
        reject(snapshot, 0, 0, Problem::NoObjects);
    }
    for (document, number) in documents.iter().zip(1..) {
        match document {
            Ok(Some(root)) => {
                let origin =
                    Origin { source: Arc::clone(&source), document: number, line: root.line };
                decode(root, &origin, snapshot);
            }
            Ok(None) => {}
            Err(bad) => reject(snapshot, number, bad.line, bad.problem.clone()),
        }
    }
    for (object, rank) in snapshot.objects.iter_mut().zip(0..).skip(first) {
        if let Some(object) = Arc::get_mut(object) {
            object.rank = rank;
        }
    }
}

fn manifests_in(directory: &Path) -> Result<Vec<PathBuf>, SourceError> {
    let is_manifest = |path: &Path| {
        path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json")
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| failed("read", directory, error))? {
        let path = entry.map_err(|error| failed("read", directory, error))?.path();
        if is_manifest(&path) && !path.is_dir() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(SourceError::NoFiles { path: directory.to_owned() });
    }
    files.sort();
    Ok(files)
}

pub(super) fn read_file(path: &Path) -> Result<String, SourceError> {
    let io = |error| failed("read", path, error);
    let mut file = fs::File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(SourceError::TooLarge { path: path.into(), bytes, limit: MAX_FILE_BYTES });
    }
    let mut text = String::new();
    // The size of a pipe or of a file in /proc is 0, and a file may grow.
    file.by_ref().take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(io)?;
    Ok(text)
}

fn failed(operation: &'static str, path: &Path, source: std::io::Error) -> SourceError {
    SourceError::Io { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::Object;

    fn snapshot(text: &str) -> Snapshot {
        let mut snapshot = Snapshot::default();
        parse("gw.yaml", text, &mut snapshot);
        snapshot
    }

    fn rejections(text: &str) -> Vec<String> {
        snapshot(text).rejections.iter().map(ToString::to_string).collect()
    }

    fn dnat(spec: &str) -> String {
        let kind = "kind: IptablesDnatRule\napiVersion: kubeovn.io/v1\n";
        format!("{kind}metadata:\n  name: dnat01\nspec:\n{spec}")
    }

    #[test]
    fn ports_are_text_or_numbers() {
        for port in ["8080", "'8080'"] {
            let snapshot = snapshot(&dnat(&format!("  externalPort: {port}\n  eip: e\n")));
            let Object::Dnat(dnat) = &snapshot.objects[0].object else { panic!() };
            assert_eq!(dnat.spec.external_port.0, "8080");
        }
    }

    #[test]
    fn every_unknown_field_is_named_with_what_was_meant() {
        assert_eq!(
            rejections(&dnat("  externalport: 80\n  eip: e\n  colour: red\n")),
            [
                "gw.yaml:6: document 1: IptablesDnatRule/dnat01: spec.externalport: unknown \
                 field, did you mean externalPort?",
                "gw.yaml:8: document 1: IptablesDnatRule/dnat01: spec.colour: unknown field",
            ]
        );
    }

    #[test]
    fn a_wrong_type_is_named_with_what_was_expected() {
        let prefix = "gw.yaml:6: document 1: IptablesDnatRule/dnat01: spec.";
        for (spec, message) in [
            ("  eip: [a]\n", "eip: is a list, expected a string"),
            ("  eip: 5\n", "eip: 5 is a number, expected a string (put it in quotes)"),
            (
                "  externalPort: {}\n",
                "externalPort: is an object, expected a port, as a string or a number",
            ),
            ("  eip: a\n  eip: b\n", ""),
        ] {
            let rejections = rejections(&dnat(spec));
            assert_eq!(rejections.len(), 1, "{rejections:?}");
            if !message.is_empty() {
                assert_eq!(rejections[0], format!("{prefix}{message}"));
            }
        }
    }

    #[test]
    fn a_field_of_kube_ovn_that_is_not_used_is_fine() {
        let text = "kind: Subnet\napiVersion: kubeovn.io/v1\nmetadata:\n  name: s\n  uid: x\n\
                    spec:\n  gatewayNode: ''\n  natOutgoing: true\n  cidrBlock: 10.0.0.0/8\n\
                    status: 7\n";
        assert_eq!(rejections(text), [""; 0]);
    }

    #[test]
    fn a_null_field_is_an_absent_one() {
        let text = "kind: Vpc\napiVersion: kubeovn.io/v1\nmetadata: {name: v}\nspec:\n  \
                    staticRoutes:\n  namespaces: ~\n";
        assert_eq!(rejections(text), [""; 0]);
    }

    #[test]
    fn other_kinds_are_named_and_left_alone() {
        let text = "kind: ConfigMap\napiVersion: v1\nmetadata: {name: c}\ndata: {a: true}\n---\n\
                    kind: QoSPolicy\napiVersion: kubeovn.io/v1\nmetadata: {name: g}\n---\n\
                    kind: Subnet\napiVersion: ec2.example.org/v1\nmetadata: {name: s}\n";
        let snapshot = snapshot(text);
        let notes: Vec<_> = snapshot.notes.iter().map(ToString::to_string).collect();
        assert_eq!(
            notes,
            [
                "gw.yaml:1: document 1: ConfigMap/c: not a kind of NAT gateways, left alone",
                "gw.yaml:6: document 2: QoSPolicy/g: not handled yet, left alone",
                "gw.yaml:10: document 3: Subnet/s: not a kind of NAT gateways, left alone",
            ]
        );
        assert!(snapshot.objects.is_empty() && snapshot.rejections.is_empty());
    }

    #[test]
    fn an_exported_list_counts_as_its_items() {
        let text = "kind: List\napiVersion: v1\nitems:\n- kind: Vpc\n  apiVersion: kubeovn.io/v1\n  \
                    metadata: {name: a}\n- kind: Vpc\n  apiVersion: kubeovn.io/v1\n  \
                    metadata: {name: b}\n";
        let snapshot = snapshot(text);
        assert_eq!(snapshot.objects.len(), 2);
        assert_eq!(snapshot.objects[1].origin.line, 7);
    }

    #[test]
    fn json_is_read_as_well() {
        let text = r#"{"kind": "Vpc", "apiVersion": "kubeovn.io/v1", "metadata": {"name": "v"}}"#;
        assert_eq!(snapshot(text).objects.len(), 1);
    }

    #[test]
    fn an_object_that_cannot_be_told_is_named_by_its_place() {
        for (text, message) in [
            ("", "gw.yaml: no object in this file, expected at least one document"),
            ("# nothing\n---\n", "gw.yaml: no object in this file"),
            ("hello\n", "gw.yaml:1: document 1: a string, expected an object with kind"),
            ("a: 1\n", "gw.yaml:1: document 1: kind: missing, expected the kind"),
            ("kind: Vpc\n", "gw.yaml:1: document 1: apiVersion: missing, expected kubeovn.io/v1"),
            ("kind: Vpc\napiVersion: kubeovn.io/v1\n", "metadata.name: missing"),
            ("kind: Vpc\napiVersion: kubeovn.io/v2\nmetadata: {name: v}\n", "not supported"),
            ("kind: Vpc\napiVersion: kubeovn.io/v1\nmetadata: {name: My_VPC}\n", "is not a name"),
            ("kind: Vpc\napiVersion: kubeovn.io/v1\nmetadata:\n  name: ${V}\n", "envsubst"),
            ("kind: Vpc\n  bad: x\n", "not valid YAML"),
        ] {
            let rejections = rejections(text);
            assert_eq!(rejections.len(), 1, "{text:?}: {rejections:?}");
            assert!(rejections[0].contains(message), "{text:?}: {rejections:?}");
        }
    }
}
