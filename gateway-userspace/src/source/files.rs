//! Manifests that are read again and again: of a file that changed, only the documents that did.
//!
//! What is the same before and after a change is left out of the reading, document by document. That needs
//! every other document to stay at its line; where one does not, everything is read anew.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Changed, Changes, Snapshot, SourceError, SourceObject, yaml};
use crate::clock;
use crate::watch::{Stamp, stamp_of};

/// Texts beyond this are not kept to be compared.
const MOST_BYTES: usize = 32 << 20;

/// Files that change within less than this may have one time of change: the tick of the clock by which file
/// systems stamp them, generously.
const TICK: Duration = Duration::from_millis(50);

/// Files and directories of manifests, and what they said last.
#[derive(Debug, Default)]
pub struct Files {
    paths: Vec<PathBuf>,
    known: Option<Known>,
}

#[derive(Debug)]
struct Known {
    files: Vec<Text>,
    snapshot: Snapshot,
}

#[derive(Debug)]
struct Text {
    path: PathBuf,
    stamp: Option<Stamp>,
    text: String,
}

impl Files {
    /// These files, and all manifests in these directories.
    #[must_use]
    pub const fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths, known: None }
    }

    /// The paths as they were given.
    #[must_use]
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// All objects, as [`Self::changes`] last saw them.
    ///
    /// # Errors
    ///
    /// As [`yaml::read`].
    pub fn snapshot(&mut self) -> Result<Snapshot, SourceError> {
        if let Some(known) = &self.known {
            return Ok(known.snapshot.clone());
        }
        let mut files = Vec::new();
        for path in yaml::files(&self.paths)? {
            // A change while it is being read is seen the next time.
            let stamp = old_enough(stamp_of(&path));
            files.push(Text { text: yaml::read_file(&path)?, stamp, path });
        }
        let mut snapshot = Snapshot::default();
        for file in &files {
            yaml::parse(&file.path.display().to_string(), &file.text, &mut snapshot);
        }
        if files.iter().map(|file| file.text.len()).sum::<usize>() <= MOST_BYTES {
            self.known = Some(Known { files, snapshot: snapshot.clone() });
        }
        Ok(snapshot)
    }

    /// Looks at the files, and tells what changed since they were last looked at.
    pub fn changes(&mut self) -> Changes {
        let Some(mut known) = self.known.take() else { return Changes::Any };
        let paths = yaml::files(&self.paths).unwrap_or_default();
        if !paths.iter().eq(known.files.iter().map(|file| &file.path)) {
            return Changes::Any;
        }
        let (mut few, count) = (Vec::new(), known.files.len());
        for (index, file) in known.files.iter_mut().enumerate() {
            let stamp = stamp_of(&file.path);
            if stamp.is_some() && stamp == file.stamp {
                continue;
            }
            let stamp = old_enough(stamp);
            let Ok(text) = yaml::read_file(&file.path) else { return Changes::Any };
            if text != file.text {
                let source = file.path.display().to_string();
                let place = Place { source: &source, last: index + 1 == count };
                match replace(&mut known.snapshot, &place, &file.text, &text) {
                    Some(changed) => few.extend(changed),
                    None => return Changes::Any,
                }
            }
            (file.text, file.stamp) = (text, stamp);
        }
        self.known = Some(known);
        Changes::Few(few)
    }
}

/// A stamp that no later change can share; none of a file that has just been written, which is read again
/// the next time.
fn old_enough(stamp: Option<Stamp>) -> Option<Stamp> {
    stamp.filter(|(.., secs, nanos)| {
        let changed = i128::from(*secs) * 1_000_000_000 + i128::from(*nanos);
        clock::unix_nanos() - changed > i128::try_from(TICK.as_nanos()).unwrap_or_default()
    })
}

/// Which file, and whether no other one follows.
struct Place<'a> {
    source: &'a str,
    last: bool,
}

/// Replaces the documents that differ between two texts of a file. `None` if that is not all there is to it;
/// the snapshot is of no use then.
fn replace(
    snapshot: &mut Snapshot,
    place: &Place<'_>,
    old: &str,
    new: &str,
) -> Option<Vec<Changed>> {
    let window = Window::between(old, new)?;
    let mut fresh = Snapshot::default();
    yaml::parse(place.source, &new[window.new.clone()], &mut fresh);
    if snapshot.pods.are_in(place.source) || fresh.pods.are_in(place.source) {
        return None;
    }
    let lines = window.first_line..=window.last_line;
    let here = |source: &str, line| source == place.source && lines.contains(&line);
    let told = snapshot.rejections.iter().map(|it| &it.origin);
    let mut told = told.chain(snapshot.notes.iter().map(|it| &it.origin));
    let silent = fresh.rejections.is_empty() && fresh.notes.is_empty();
    if !silent || told.any(|origin| origin.line == 0 || here(&origin.source, origin.line)) {
        return None;
    }
    let is_here = |one: &Arc<SourceObject>| here(&one.origin.source, one.origin.line);
    let begin = snapshot.objects.iter().position(is_here)?;
    let count = snapshot.objects[begin..].iter().take_while(|one| is_here(one)).count();
    let before = snapshot.objects[begin..begin + count].to_vec();
    let grows_or_shrinks = before.len() != fresh.objects.len();
    if grows_or_shrinks && !(window.to_the_end && place.last) {
        return None;
    }
    // One object a document, so that they can be told by their place.
    let first = &before.first()?.origin;
    let document = |index: usize| first.document + u32::try_from(index).unwrap_or(u32::MAX);
    let mut numbered = before.iter().enumerate();
    let mut counted = fresh.objects.iter().zip(1..);
    if !numbered.all(|(index, one)| one.origin.document == document(index))
        || !counted.all(|(one, number)| one.origin.document == number)
    {
        return None;
    }
    let (rank, source) = (before.first()?.rank, Arc::clone(&first.source));
    let mut now = fresh.objects;
    for (index, one) in now.iter_mut().enumerate() {
        let one = Arc::get_mut(one)?;
        one.origin.source = Arc::clone(&source);
        one.origin.document = document(index);
        one.origin.line += window.first_line - 1;
        one.lines.iter_mut().for_each(|(_, line)| *line += window.first_line - 1);
        one.rank = rank + i64::try_from(index).ok()?;
    }
    let changed = compare(&before, &now);
    let names: HashSet<&str> =
        before.iter().chain(&now).map(|one| one.object.metadata().name.as_str()).collect();
    let mut elsewhere =
        snapshot.objects.iter().take(begin).chain(snapshot.objects.iter().skip(begin + count));
    let clash = elsewhere.any(|one| shared(one, &names, &changed));
    if twice(&now) || clash {
        return None;
    }
    snapshot.objects.splice(begin..begin + count, now);
    Some(changed)
}

/// Whether an object that has one of these names is among those that changed.
fn shared(one: &SourceObject, names: &HashSet<&str>, changed: &[Changed]) -> bool {
    names.contains(one.object.metadata().name.as_str())
        && changed.iter().any(|it| it.object == one.object_ref())
}

fn twice(objects: &[Arc<SourceObject>]) -> bool {
    let mut names: Vec<_> = objects.iter().map(|one| one.object_ref()).collect();
    names.sort();
    names.windows(2).any(|pair| pair[0] == pair[1])
}

/// What went, and then what came or changed.
fn compare(before: &[Arc<SourceObject>], now: &[Arc<SourceObject>]) -> Vec<Changed> {
    let named = |all: &[Arc<SourceObject>]| -> BTreeMap<_, _> {
        all.iter().map(|one| (one.object_ref(), Arc::clone(one))).collect()
    };
    let (old, new) = (named(before), named(now));
    let gone = old.keys().filter(|object| !new.contains_key(*object));
    let gone = gone.map(|object| Changed { object: object.clone(), now: None });
    let fresh = new
        .iter()
        .filter(|(object, one)| old.get(*object).is_none_or(|before| before.object != one.object));
    let fresh =
        fresh.map(|(object, one)| Changed { object: object.clone(), now: Some(Arc::clone(one)) });
    gone.chain(fresh).collect()
}

/// Whole documents around everything that differs between two texts.
#[derive(Debug, PartialEq, Eq)]
struct Window {
    new: Range<usize>,
    /// The first and the last line of it in the old text.
    first_line: u32,
    last_line: u32,
    /// Whether nothing follows.
    to_the_end: bool,
}

impl Window {
    /// `None` if what follows stands at other lines, or depends on more than its own document.
    fn between(old: &str, new: &str) -> Option<Self> {
        // A directive is outside the document that it is for.
        if new.starts_with('%') || new.contains("\n%") || old.contains("\n%") {
            return None;
        }
        let (a, b) = (old.as_bytes(), new.as_bytes());
        let shorter = a.len().min(b.len());
        let same = common(a.iter().zip(b), shorter);
        let same_end = common(a.iter().rev().zip(b.iter().rev()), shorter - same);
        let start = last_marker(&a[..same]);
        let end = next_marker(a, a.len() - same_end);
        let new_end = b.len() - (a.len() - end);
        let window = (&a[start..end], &b[start..new_end]);
        let lines = |text: &[u8]| text.iter().filter(|byte| **byte == b'\n').count();
        let (before, inside) = (lines(&a[..start]), lines(window.0));
        let to_the_end = end == a.len();
        if !to_the_end && inside != lines(window.1) {
            return None;
        }
        let first_line = u32::try_from(before + 1).ok()?;
        let last_line = u32::try_from(before + inside + usize::from(to_the_end)).ok()?;
        Some(Self { new: start..new_end, first_line, last_line, to_the_end })
    }
}

/// How many pairs at the beginning are pairs of the same, of `most`.
fn common<'a>(pairs: impl Iterator<Item = (&'a u8, &'a u8)>, most: usize) -> usize {
    pairs.take(most).take_while(|(one, other)| one == other).count()
}

const MARKER: &[u8] = b"---";

/// Whether a document begins at that place.
fn is_marker(text: &[u8], at: usize) -> bool {
    let line = at == 0 || text[at - 1] == b'\n';
    let after = text.get(at + MARKER.len()).is_none_or(|byte| b" \t\r\n".contains(byte));
    line && after && text[at..].starts_with(MARKER)
}

/// Where the last document begins that is marked as one, with what follows the mark.
fn last_marker(text: &[u8]) -> usize {
    let whole = text.len().saturating_sub(MARKER.len() + 1);
    (0..whole).rev().find(|at| is_marker(text, *at)).unwrap_or(0)
}

/// Where the first document begins behind that place, the end of the line before it included.
fn next_marker(text: &[u8], from: usize) -> usize {
    (from + 1..text.len()).find(|at| is_marker(text, *at)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "---\na: 1\nb: 1\n---\na: 2\n---\na: 3\n";

    fn window(new: &str) -> Option<(String, u32, u32)> {
        let window = Window::between(OLD, new)?;
        Some((new[window.new].to_owned(), window.first_line, window.last_line))
    }

    #[test]
    fn a_window_has_whole_documents_and_as_many_lines_as_before() {
        let same = |line: &str, other: &str| window(&OLD.replace(line, other));
        assert_eq!(same("a: 2", "a: 20"), Some(("---\na: 20\n".into(), 4, 5)));
        assert_eq!(same("b: 1\n", "b: 9\n"), Some(("---\na: 1\nb: 9\n".into(), 1, 3)));
        assert_eq!(same("a: 3", "a: 3\nc: 4"), Some(("---\na: 3\nc: 4\n".into(), 6, 8)));
        assert_eq!(same("b: 1", "b: 1\nc: 4"), None, "what follows moves");
        assert_eq!(same("a: 2", "%a: 2"), None, "a directive");
        // Documents that merge are both in it.
        let merged = same("---\na: 2", "#--\na: 2").unwrap();
        assert_eq!(merged, ("---\na: 1\nb: 1\n#--\na: 2\n".into(), 1, 5));
        let more = window(&format!("{OLD}---\na: 4\n")).unwrap();
        assert_eq!(more, ("---\na: 3\n---\na: 4\n".into(), 6, 8));
    }
}
