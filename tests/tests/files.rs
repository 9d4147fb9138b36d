//! Manifests read again document by document, beside all of them read anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use gateway_tests::harness::traffic::Dice;
use gateway_tests::lab::scratch::Scratch;
use gateway_userspace::crd::{Object, ObjectRef};
use gateway_userspace::source::files::Files;
use gateway_userspace::source::{Changes, Snapshot, yaml};

fn dnat(name: usize, port: usize) -> String {
    format!(
        "apiVersion: kubeovn.io/v1\nkind: IptablesDnatRule\nmetadata:\n  name: d{name}\nspec:\n  \
         eip: e1\n  externalPort: '{port}'\n  protocol: tcp\n  internalIp: 10.0.1.5\n  \
         internalPort: '80'\n"
    )
}

/// Replaces what was written by a rename, as editors do.
fn write(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    fs::write(&draft, text).expect("a file");
    fs::rename(draft, path).expect("a rename");
}

fn by_name(snapshot: &Snapshot) -> BTreeMap<ObjectRef, Object> {
    snapshot.objects.iter().map(|one| (one.object_ref(), one.object.clone())).collect()
}

/// An edit of a list of documents: most leave the others where they are.
fn edit(random: &mut Dice, documents: &mut Vec<String>, next: &mut usize) {
    let at = random.below(documents.len());
    let port = 1 + random.below(60_000);
    match random.below(16) {
        0 => documents.insert(at, dnat(*next, port)),
        1 if documents.len() > 2 => drop(documents.remove(at)),
        2 if documents.len() > 2 => drop(documents.pop()),
        3 | 4 => documents.push(dnat(*next, port)),
        5 => documents[at].push_str("  type: share\n"),
        6 => documents[at] = documents[at].replace("spec:", "spec: x"),
        7 => documents[at] = "# nothing\n".into(),
        8 => documents[at] = documents[at].replace("protocol", "protokol"),
        9 => documents[at] = dnat(random.below(*next), port),
        10 => documents[at] = format!("%YAML 1.2\n{}", documents[at]),
        11 => {
            let other = random.below(documents.len());
            documents[at] = documents[at].replace("80", "8080");
            documents[other] = documents[other].replace("10.0.1.5", "10.0.1.77");
        }
        12 => documents[at] = documents[at].replace("metadata:\n", "metadata: # --- \n"),
        _ => documents[at] = dnat(*next, port),
    }
    *next += 1;
}

#[test]
fn what_is_read_in_part_is_what_is_read_anew() {
    let scratch = Scratch::create(&format!("vgw-files-{}", std::process::id())).expect("a place");
    let paths: Vec<PathBuf> = ["a.yaml", "b.yaml"].map(|name| scratch.join(name)).into();
    let mut random = Dice::new(1);
    let mut all: Vec<Vec<String>> =
        (0..2).map(|file| (0..6).map(|n| dnat(file * 6 + n, 100 + n)).collect()).collect();
    let put = |all: &[Vec<String>]| {
        for (path, documents) in paths.iter().zip(all) {
            write(path, &documents.join("---\n"));
        }
    };
    put(&all);
    let mut files = Files::new(paths.clone());
    let mut before = by_name(&files.snapshot().expect("objects"));
    let (mut next, mut in_part, mut told) = (12, 0, 0);
    for step in 0..2_000 {
        let file = random.below(2);
        edit(&mut random, &mut all[file], &mut next);
        if step % 9 == 0 {
            // Out of whatever mess it is in by now.
            all = (0..2).map(|f| (0..6).map(|n| dnat(f * 6 + n, 100 + n)).collect()).collect();
        }
        put(&all);
        let anew = yaml::read(&paths).expect("objects");
        if let Changes::Few(few) = files.changes() {
            in_part += 1;
            told += few.len();
            for changed in few {
                match changed.now {
                    Some(now) => before.insert(changed.object, now.object.clone()),
                    None => before.remove(&changed.object),
                };
            }
            assert_eq!(before, by_name(&anew), "step {step}: {all:#?}");
        }
        let known = files.snapshot().expect("objects");
        assert_eq!(format!("{known:#?}"), format!("{anew:#?}"), "step {step}: {all:#?}");
        before = by_name(&anew);
    }
    println!("{in_part} of 2000 changes were read in part, {told} objects");
    assert!(in_part > 500 && told > 400, "{in_part} {told}");
}

#[test]
fn one_document_of_ten_thousand_is_one_document() {
    let scratch = Scratch::create(&format!("vgw-docs-{}", std::process::id())).expect("a place");
    let path = scratch.join("rules.yaml");
    let mut documents: Vec<_> = (0..10_000).map(|n| dnat(n, n + 1)).collect();
    write(&path, &documents.join("---\n"));
    let mut files = Files::new(vec![path.clone()]);
    let begin = Instant::now();
    files.snapshot().expect("objects");
    println!("measured: 10 000 documents: {:?}", begin.elapsed());
    documents[5_000] = dnat(5_000, 60_000);
    write(&path, &documents.join("---\n"));
    let begin = Instant::now();
    let Changes::Few(few) = files.changes() else { panic!("everything was read") };
    println!("measured: one of them changed: {:?}", begin.elapsed());
    assert_eq!(few.len(), 1);
    assert!(matches!(files.changes(), Changes::Few(few) if few.is_empty()));
}

#[test]
fn a_second_change_within_the_same_moment_is_not_missed() {
    let scratch = Scratch::create(&format!("vgw-same-{}", std::process::id())).expect("a place");
    let path = scratch.join("rules.yaml");
    fs::write(&path, dnat(1, 10)).expect("a file");
    let mut files = Files::new(vec![path.clone()]);
    files.snapshot().expect("objects");
    let moment = fs::metadata(&path).and_then(|file| file.modified()).expect("a time");
    // In place and of the same length, in a tick of the clock by which files are stamped.
    fs::write(&path, dnat(1, 20)).expect("a file");
    let file = fs::File::options().write(true).open(&path).expect("a file");
    file.set_modified(moment).expect("the same time");
    let Changes::Few(few) = files.changes() else { panic!("everything was read") };
    assert_eq!(few.len(), 1);
}
