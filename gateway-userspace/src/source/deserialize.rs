//! [`Node`] -> serde structs, with the path and the line of everything that does not fit.
//!
//! Unlike a plain `serde` error, which ends at the first problem and knows no place, this collects
//! every unknown field and every repeated one as a [`Finding`] and goes on. As the API server
//! does, it takes a field that is `null` for absent.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::value::BorrowedStrDeserializer;
use serde::de::{self, DeserializeSeed, Expected, MapAccess, SeqAccess, Unexpected, Visitor};

use super::node::{Entry, Node, Plain, Value};
use crate::crd::{UnusedFields, unused_fields};
use crate::rejection::Problem;

/// A problem of one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) path: String,
    pub(super) line: u32,
    pub(super) problem: Problem,
}

/// What was read, and everything that does not fit, in the order of the input.
#[derive(Debug)]
pub(super) struct Read<T> {
    /// `None` if something has the wrong type.
    pub(super) value: Option<T>,
    pub(super) findings: Vec<Finding>,
}

/// Reads a node, whose path is `path`, as a `T`.
pub(super) fn read<'a, T: Deserialize<'a>>(node: &'a Node<'a>, path: &str) -> Read<T> {
    let findings = RefCell::new(Vec::new());
    let root = Path { parent: None, segment: Segment::Field(path) };
    let result = T::deserialize(Reader { node, path: &root, findings: &findings });
    let mut findings = findings.into_inner();
    let value =
        result.map_err(|error| findings.push(error.located(node, &root).into_finding())).ok();
    Read { value, findings }
}

/// The way from the root to a node, kept on the stack and written out for messages only.
#[derive(Clone, Copy)]
struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    segment: Segment<'p>,
}

#[derive(Clone, Copy)]
enum Segment<'p> {
    Field(&'p str),
    Item(usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.segment {
            Segment::Field(field) if self.parent.is_some() => write!(f, ".{field}"),
            Segment::Field(field) => f.write_str(field),
            Segment::Item(index) => write!(f, "[{index}]"),
        }
    }
}

/// A type error, and where it is once that is known.
#[derive(Debug)]
struct Error {
    place: Option<(String, u32)>,
    problem: Problem,
}

impl Error {
    fn located(mut self, node: &Node<'_>, path: &Path<'_>) -> Self {
        self.place.get_or_insert_with(|| (path.to_string(), node.line));
        self
    }

    fn into_finding(self) -> Finding {
        let (path, line) = self.place.unwrap_or_default();
        Finding { path, line, problem: self.problem }
    }

    fn wrong_type(found: impl Into<String>, expected: impl Into<String>) -> Self {
        let problem = Problem::WrongType { found: found.into(), expected: expected.into() };
        Self { place: None, problem }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problem.fmt(f)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::wrong_type(message.to_string(), "another value")
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Map => "is an object".to_owned(),
            Unexpected::Seq => "is a list".to_owned(),
            other => format!("is {other}"),
        };
        Self::wrong_type(found, expected.to_string())
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }
}

#[derive(Clone, Copy)]
struct Reader<'a, 'p> {
    node: &'a Node<'a>,
    path: &'p Path<'p>,
    findings: &'p RefCell<Vec<Finding>>,
}

impl<'a> Reader<'a, '_> {
    fn wrong_type(&self, expected: &str) -> Error {
        let found = match &self.node.value {
            Value::Plain(text) if text.is_empty() => "is empty".to_owned(),
            Value::Plain(text) => format!("{text} is {}", self.node.describe()),
            _ => format!("is {}", self.node.describe()),
        };
        Error::wrong_type(found, expected).located(self.node, self.path)
    }

    fn plain(&self) -> Option<Plain> {
        match &self.node.value {
            Value::Plain(text) => Some(Plain::of(text)),
            _ => None,
        }
    }

    /// Reports the fields that are unknown or repeated and returns the others.
    fn known_fields(
        &self,
        entries: &'a [Entry<'a>],
        name: &str,
        fields: &[&'static str],
    ) -> Fields<'a> {
        let mut first_lines = BTreeMap::new();
        let mut known = Vec::with_capacity(entries.len());
        for entry in entries {
            let key = entry.key.as_ref();
            let problem = if let Some(&first) = first_lines.get(key) {
                Problem::DuplicateField { first }
            } else {
                first_lines.insert(key, entry.line);
                if fields.contains(&key) {
                    // A null field is an absent one.
                    known.extend((!entry.node.is_null()).then_some(entry));
                    continue;
                }
                let UnusedFields::Named(unused) = unused_fields(name) else { continue };
                if unused.contains(&key) {
                    continue;
                }
                Problem::UnknownField { suggestion: suggestion(key, fields, unused) }
            };
            let path = Path { parent: Some(self.path), segment: Segment::Field(key) }.to_string();
            self.findings.borrow_mut().push(Finding { path, line: entry.line, problem });
        }
        known
    }
}

type Fields<'a> = Vec<&'a Entry<'a>>;

/// The field that `key` was probably meant to be.
fn suggestion(key: &str, fields: &[&'static str], unused: &[&'static str]) -> Option<&'static str> {
    let distance = |field: &str| edit_distance(&key.to_lowercase(), &field.to_lowercase());
    fields
        .iter()
        .chain(unused)
        .map(|field| (distance(field), *field))
        .filter(|(distance, field)| *distance * 3 <= field.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, field)| field)
}

/// Levenshtein's distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

impl<'de> de::Deserializer<'de> for Reader<'de, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Plain(text) => match Plain::of(text) {
                Plain::Null => visitor.visit_unit(),
                Plain::Bool(value) => visitor.visit_bool(value),
                Plain::Integer(value) => visitor.visit_i64(value),
                Plain::Float | Plain::Text => visitor.visit_borrowed_str(text),
            },
            Value::Quoted(text) => visitor.visit_borrowed_str(text),
            Value::List(_) => return self.deserialize_seq(visitor),
            Value::Map(_) => return self.deserialize_map(visitor),
        }
        .map_err(|error: Error| error.located(self.node, self.path))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match (&self.node.value, self.plain()) {
            (Value::Plain(text), Some(Plain::Text)) => visitor.visit_borrowed_str(text),
            (Value::Quoted(text), _) => visitor.visit_borrowed_str(text),
            (Value::Plain(_), _) => Err(self.wrong_type("a string (put it in quotes)")),
            _ => Err(self.wrong_type("a string")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.plain() {
            Some(Plain::Bool(value)) => visitor.visit_bool(value),
            _ => Err(self.wrong_type("true or false")),
        }
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.plain() {
            Some(Plain::Integer(value)) => {
                visitor.visit_i64(value).map_err(|error: Error| error.located(self.node, self.path))
            }
            _ => Err(self.wrong_type("a whole number")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::List(items) => visitor.visit_seq(Items { reader: self, items, next: 0 }),
            _ => Err(self.wrong_type("a list")),
        }
        .map_err(|error| error.located(self.node, self.path))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Map(entries) => {
                let entries = entries.iter().collect();
                visitor.visit_map(Entries { reader: self, entries, next: 0 })
            }
            _ => Err(self.wrong_type("an object")),
        }
        .map_err(|error| error.located(self.node, self.path))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Map(entries) => {
                let entries = self.known_fields(entries, name, fields);
                visitor.visit_map(Entries { reader: self, entries, next: 0 })
            }
            _ => Err(self.wrong_type("an object")),
        }
        .map_err(|error| error.located(self.node, self.path))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct
        newtype_struct tuple tuple_struct enum identifier
    }
}

struct Items<'a, 'p> {
    reader: Reader<'a, 'p>,
    items: &'a [Node<'a>],
    next: usize,
}

impl<'a> SeqAccess<'a> for Items<'a, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'a>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some(node) = self.items.get(self.next) else { return Ok(None) };
        let segment = Segment::Item(self.next);
        self.next += 1;
        let path = Path { parent: Some(self.reader.path), segment };
        seed.deserialize(Reader { node, path: &path, findings: self.reader.findings }).map(Some)
    }
}

struct Entries<'a, 'p> {
    reader: Reader<'a, 'p>,
    entries: Fields<'a>,
    next: usize,
}

impl<'a> MapAccess<'a> for Entries<'a, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'a>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some(entry) = self.entries.get(self.next) else { return Ok(None) };
        seed.deserialize(BorrowedStrDeserializer::new(&entry.key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let entry = self.entries[self.next];
        self.next += 1;
        let path = Path { parent: Some(self.reader.path), segment: Segment::Field(&entry.key) };
        seed.deserialize(Reader { node: &entry.node, path: &path, findings: self.reader.findings })
    }
}
