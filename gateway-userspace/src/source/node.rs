//! YAML text -> one tree per document, each node with its line.
//!
//! Scalars keep their text: what `80` or `1.10` means is decided by the field that holds it.
//! A document with a syntax error is one `Err`; parsing goes on at the next `---`.
//!
//! A file cannot take more memory than it deserves: it has at most [`MAX_NODES`] nodes; what has
//! an anchor is kept and copied for each alias, at most [`MAX_ALIAS_NODES`] nodes in all, which is
//! what stops a "YAML bomb"; the parser itself stops at 255 nested collections.

use std::borrow::Cow;
use std::collections::BTreeMap;

use granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, StrInput};

use crate::rejection::Problem;

/// How many nodes one file may have.
const MAX_NODES: usize = 5_000_000;
/// How many nodes the anchors and aliases of one file may copy.
pub(super) const MAX_ALIAS_NODES: usize = 100_000;

/// A value and the line where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node<'a> {
    pub(super) line: u32,
    pub(super) value: Value<'a>,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A scalar without quotes: a string, a number, a boolean or null.
    Plain(Cow<'a, str>),
    /// A scalar that can only be a string.
    Quoted(Cow<'a, str>),
    /// A list.
    List(Vec<Node<'a>>),
    /// An object. Keys may repeat here.
    Map(Vec<Entry<'a>>),
}

/// One field of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) key: Cow<'a, str>,
    pub(super) line: u32,
    pub(super) node: Node<'a>,
}

/// What a plain scalar means by the core schema of YAML 1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plain {
    Null,
    Bool(bool),
    Integer(i64),
    Float,
    Text,
}

impl Plain {
    pub(super) fn of(text: &str) -> Self {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => Self::Null,
            "true" | "True" | "TRUE" => Self::Bool(true),
            "false" | "False" | "FALSE" => Self::Bool(false),
            _ => match text.as_bytes() {
                [b'0'..=b'9', ..] | [b'-' | b'+' | b'.', b'0'..=b'9' | b'.', ..] => text
                    .parse()
                    .map(Self::Integer)
                    .unwrap_or_else(|_| text.parse::<f64>().map_or(Self::Text, |_| Self::Float)),
                _ => Self::Text,
            },
        }
    }
}

impl Node<'_> {
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Plain(text) if Plain::of(text) == Plain::Null)
    }

    /// What the node is, for messages.
    pub(super) fn describe(&self) -> &'static str {
        match &self.value {
            Value::Plain(text) => match Plain::of(text) {
                Plain::Null => "nothing",
                Plain::Bool(_) => "a boolean",
                Plain::Integer(_) | Plain::Float => "a number",
                Plain::Text => "a string",
            },
            Value::Quoted(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "an object",
        }
    }

    /// What a copy costs: the number of nodes, a long text counting as several.
    fn size(&self) -> usize {
        1 + match &self.value {
            Value::Plain(text) | Value::Quoted(text) => text.len() / 64,
            Value::List(items) => items.iter().map(Self::size).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.node.size()).sum(),
        }
    }
}

/// A document that could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadDocument {
    pub(super) line: u32,
    pub(super) problem: Problem,
}

/// One document: its tree, or why there is none. A document without content is `Ok(None)`.
pub(super) type Document<'a> = Result<Option<Node<'a>>, BadDocument>;

/// Reads all documents of a file.
pub(super) fn documents(text: &str) -> Vec<Document<'_>> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    let mut parser = Parser::new_from_str_with_options(text, options);
    let mut reader = Reader { left: MAX_NODES, copies_left: MAX_ALIAS_NODES, ..Reader::default() };
    let mut documents = Vec::new();
    while let Some(event) = parser.next_event() {
        let bad = match event {
            Ok((Event::StreamEnd, _)) => break,
            Ok((Event::DocumentEnd, _)) => {
                documents.push(Ok(reader.finish()));
                continue;
            }
            Ok((event, span)) => {
                let line = line(span.start.line());
                match reader.accept(event, line) {
                    Ok(()) => continue,
                    Err(problem) => BadDocument { line, problem },
                }
            }
            Err(error) => bad_syntax(&error),
        };
        documents.push(Err(bad));
        reader.reset();
        if !skip_document(&mut parser) {
            break;
        }
    }
    documents
}

/// Goes to the next `---`. False if there is none, or if the rest cannot be scanned at all.
fn skip_document<'a>(parser: &mut Parser<'a, StrInput<'a>>) -> bool {
    parser.proceed_next_document().unwrap_or(false)
}

fn bad_syntax(error: &ScanError) -> BadDocument {
    let marker = error.marker();
    BadDocument {
        line: line(marker.line()),
        problem: Problem::Syntax { message: error.info(), column: marker.col() + 1 },
    }
}

fn line(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}

/// A collection that is still open.
#[derive(Debug)]
struct Open<'a> {
    anchor: usize,
    node: Node<'a>,
    /// The key whose value comes next.
    key: Option<(Cow<'a, str>, u32)>,
}

/// Builds the tree of one document from the events of the parser.
#[derive(Debug, Default)]
struct Reader<'a> {
    open: Vec<Open<'a>>,
    root: Option<Node<'a>>,
    anchors: BTreeMap<usize, Node<'a>>,
    /// How many more nodes the file may have.
    left: usize,
    /// How many more nodes the file may copy.
    copies_left: usize,
}

impl<'a> Reader<'a> {
    fn accept(&mut self, event: Event<'a>, line: u32) -> Result<(), Problem> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let string = style != ScalarStyle::Plain || tag.is_some();
                let value = if string { Value::Quoted(text) } else { Value::Plain(text) };
                self.place(Node { line, value }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => self.open(line, Value::List(vec![]), anchor),
            Event::MappingStart(_, anchor, _) => self.open(line, Value::Map(vec![]), anchor),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => self.place(open.node, open.anchor),
                None => Ok(()),
            },
            Event::Alias(id) => self.alias(id),
            _ => Ok(()),
        }
    }

    fn open(&mut self, line: u32, value: Value<'a>, anchor: usize) -> Result<(), Problem> {
        self.open.push(Open { anchor, node: Node { line, value }, key: None });
        Ok(())
    }

    fn alias(&mut self, id: usize) -> Result<(), Problem> {
        // An alias inside the node it names has no end.
        let Some(node) = self.anchors.get(&id) else {
            let message = "an alias names the node it stands in".to_owned();
            return Err(Problem::Syntax { message, column: 1 });
        };
        let size = node.size();
        let node = node.clone();
        self.pay_for_copy(size)?;
        self.place(node, 0)
    }

    fn pay_for_copy(&mut self, size: usize) -> Result<(), Problem> {
        let left = self.copies_left.checked_sub(size);
        self.copies_left = left.ok_or(Problem::AliasBudget { limit: MAX_ALIAS_NODES })?;
        Ok(())
    }

    /// Puts a complete node where it belongs.
    fn place(&mut self, node: Node<'a>, anchor: usize) -> Result<(), Problem> {
        self.left = self.left.checked_sub(1).ok_or(Problem::TooLarge { limit: MAX_NODES })?;
        if anchor != 0 {
            // Anchors may be nested, and a deep one is copied by each of those around it.
            self.pay_for_copy(node.size())?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(Open { node: parent, key, .. }) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut parent.value {
            Value::List(items) => items.push(node),
            Value::Map(entries) => match key.take() {
                Some((key, line)) => entries.push(Entry { key, line, node }),
                None => *key = Some(key_of(node)?),
            },
            Value::Plain(_) | Value::Quoted(_) => {}
        }
        Ok(())
    }

    fn finish(&mut self) -> Option<Node<'a>> {
        let root = self.root.take().filter(|node| !node.is_null());
        self.reset();
        root
    }

    fn reset(&mut self) {
        self.open.clear();
        self.root = None;
        self.anchors.clear();
    }
}

fn key_of(node: Node<'_>) -> Result<(Cow<'_, str>, u32), Problem> {
    match node.value {
        Value::Plain(text) | Value::Quoted(text) => Ok((text, node.line)),
        Value::List(_) | Value::Map(_) => {
            let message = "the name of a field is not a string".to_owned();
            Err(Problem::Syntax { message, column: 1 })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field<'n, 'a>(node: &'n Node<'a>, key: &str) -> &'n Node<'a> {
        let Value::Map(entries) = &node.value else { panic!("{node:?} is no object") };
        &entries.iter().find(|entry| entry.key == key).unwrap().node
    }

    #[test]
    fn scalars_keep_their_text_and_line() {
        let documents = documents("a: 1.10\nb: '80'\n---\nc: [x, {d: 07}]\n");
        let first = documents[0].as_ref().unwrap().as_ref().unwrap();
        assert_eq!(*field(first, "a"), Node { line: 1, value: Value::Plain("1.10".into()) });
        assert_eq!(*field(first, "b"), Node { line: 2, value: Value::Quoted("80".into()) });
        let second = documents[1].as_ref().unwrap().as_ref().unwrap();
        let Value::List(items) = &field(second, "c").value else { panic!() };
        assert_eq!(*field(&items[1], "d"), Node { line: 4, value: Value::Plain("07".into()) });
    }

    #[test]
    fn a_bad_document_does_not_hide_the_others() {
        let documents = documents("a: 1\n---\n- b: 1\n   c: 2\n---\nd: 3\n");
        assert_eq!(documents.len(), 3, "{documents:?}");
        assert!(documents[0].is_ok());
        assert_eq!(documents[1].as_ref().unwrap_err().line, 4);
        assert!(documents[2].as_ref().unwrap().is_some());
    }

    #[test]
    fn documents_without_content_are_counted() {
        let documents = documents("# only a comment\n---\n---\na: 1\n---\n");
        assert_eq!(documents.len(), 3, "{documents:?}");
        assert!(documents[0].as_ref().unwrap().is_none());
        assert!(documents[1].as_ref().unwrap().is_some());
    }

    #[test]
    fn aliases_are_copied() {
        let documents = documents("a: &x [1, 2]\nb: *x\n");
        let root = documents[0].as_ref().unwrap().as_ref().unwrap();
        assert_eq!(field(root, "a"), field(root, "b"));
    }

    #[test]
    fn a_yaml_bomb_is_cheap_and_leaves_the_next_document_alone() {
        let mut text = String::from("x0: &x0 [lol, lol]\n");
        for level in 1..60 {
            let below = level - 1;
            text.push_str(&format!("x{level}: &x{level} [*x{below}, *x{below}]\n"));
        }
        text.push_str("---\na: 1\n");
        let documents = documents(&text);
        let bad = documents[0].as_ref().unwrap_err();
        assert_eq!(bad.problem, Problem::AliasBudget { limit: MAX_ALIAS_NODES });
        assert!(documents[1].as_ref().unwrap().is_some());
    }

    #[test]
    fn nested_anchors_and_long_texts_are_no_way_around() {
        let anchors: String = (0..200).map(|level| format!("&a{level} [")).collect();
        let nested = format!("{anchors}{}{}\n", "x, ".repeat(2000), "]".repeat(200));
        let text = format!("a: &a |\n  {}\nb: [{}]\n", "x".repeat(64_000), "*a, ".repeat(200));
        for bomb in [nested, text] {
            let problem = documents(&bomb)[0].as_ref().unwrap_err().problem.clone();
            assert_eq!(problem, Problem::AliasBudget { limit: MAX_ALIAS_NODES });
        }
    }

    #[test]
    fn an_alias_of_itself_and_deep_nesting_are_errors() {
        assert!(documents("a: &x [*x]\n")[0].is_err());
        assert!(documents(&"[".repeat(100_000))[0].is_err());
        assert!(documents("? [a]\n: b\n")[0].is_err());
    }

    #[test]
    fn plain_scalars_follow_the_core_schema() {
        assert_eq!(Plain::of("80"), Plain::Integer(80));
        assert_eq!(Plain::of("-3"), Plain::Integer(-3));
        assert_eq!(Plain::of("1.5"), Plain::Float);
        assert_eq!(Plain::of("10.0.1.5"), Plain::Text);
        assert_eq!(Plain::of("80-90"), Plain::Text);
        assert_eq!(Plain::of("~"), Plain::Null);
        assert_eq!(Plain::of("yes"), Plain::Text);
        assert_eq!(Plain::of("infinity"), Plain::Text);
    }
}
