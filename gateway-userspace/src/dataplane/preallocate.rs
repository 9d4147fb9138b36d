//! Session maps whose memory is taken at the start, in place of one allocation for each session.
//!
//! What kind of map it is stands in the object, in the types of its definition: `map_flags` is a pointer
//! to an array of as many elements as the number says. aya changes sizes of maps, but not their flags,
//! so the definition is led to another array before aya sees it.

use std::ops::Range;

use object::{Object as _, ObjectSection as _};

/// The maps, which all other maps of sessions follow in size.
pub const MAPS: [&str; 2] = ["SESSIONS_V4", "SESSIONS_V6"];

/// Kinds of types in BTF (linux/btf.h).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const POINTER: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const ENUM64: u32 = 19;
}

/// Bytes of a type before what depends on its kind: name, kind and count, size or type.
const HEAD: usize = 12;
/// Bytes of a member of a structure: name, type, offset.
const MEMBER: usize = 12;

/// The object with preallocated session maps; `None` if it is not an object of ours.
#[must_use]
pub fn with_preallocated_sessions(object: &[u8]) -> Option<Vec<u8>> {
    let types = Types::of(object)?;
    let none = types.pointer_to_empty_array()?;
    let mut changed = object.to_vec();
    for map in MAPS {
        let at = types.flags_of(map)?;
        changed.get_mut(at..at + 4)?.copy_from_slice(&none.to_le_bytes());
    }
    Some(changed)
}

/// The types of an object, in the order of their ids, which begin at 1.
struct Types<'a> {
    object: &'a [u8],
    /// Where each begins.
    begins: Vec<usize>,
    strings: Range<usize>,
}

impl<'a> Types<'a> {
    fn of(object: &'a [u8]) -> Option<Self> {
        let file = object::File::parse(object).ok()?;
        let (at, _) = file.section_by_name(".BTF")?.file_range()?;
        let at = usize::try_from(at).ok()?;
        // Magic, version and flags; then lengths and offsets, counted from the end of the header.
        let field = |index: usize| word(object, at + 4 + 4 * index).map(|word| word as usize);
        let header = at + field(0)?;
        let (mut next, length) = (header + field(1)?, field(2)?);
        let strings = header + field(3)?..header + field(3)? + field(4)?;
        let end = next + length;
        let mut begins = Vec::new();
        while next < end {
            begins.push(next);
            next += HEAD + rest(word(object, next + 4)?);
        }
        Some(Self { object, begins, strings })
    }

    /// Where the type of this id begins, if it is of this kind.
    fn begin(&self, id: u32, kind: u32) -> Option<usize> {
        let begin = *self.begins.get(usize::try_from(id).ok()?.checked_sub(1)?)?;
        (kind_of(word(self.object, begin + 4)?) == kind).then_some(begin)
    }

    fn is_named(&self, at: usize, name: &str) -> bool {
        let string = word(self.object, at).and_then(|offset| {
            self.object.get(self.strings.start + offset as usize..self.strings.end)
        });
        string.is_some_and(|string| {
            string.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
        })
    }

    /// Where the type of the flags of a map's definition stands.
    fn flags_of(&self, map: &str) -> Option<usize> {
        let variable = self.begins.iter().find(|&&begin| {
            word(self.object, begin + 4).is_some_and(|info| kind_of(info) == kind::VAR)
                && self.is_named(begin, map)
        })?;
        self.flags_in(word(self.object, variable + 8)?)
    }

    fn flags_in(&self, definition: u32) -> Option<usize> {
        let begin = self.begin(definition, kind::STRUCT)?;
        let members = (word(self.object, begin + 4)? & 0xffff) as usize;
        let mut members = (0..members).map(|index| begin + HEAD + MEMBER * index);
        members.find(|&member| self.is_named(member, "map_flags")).map(|member| member + 4)
    }

    /// A pointer to an array without elements, as maps without flags have it.
    fn pointer_to_empty_array(&self) -> Option<u32> {
        (1..=u32::try_from(self.begins.len()).ok()?).find_map(|id| {
            let flags = word(self.object, self.flags_in(id)?)?;
            let pointer = self.begin(flags, kind::POINTER)?;
            let array = self.begin(word(self.object, pointer + 8)?, kind::ARRAY)?;
            (word(self.object, array + HEAD + 8)? == 0).then_some(flags)
        })
    }
}

fn word(object: &[u8], at: usize) -> Option<u32> {
    let bytes = object.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

const fn kind_of(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// How many bytes follow the head of a type.
const fn rest(info: u32) -> usize {
    let count = (info & 0xffff) as usize;
    match kind_of(info) {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * count,
        kind::ENUM | kind::FUNC_PROTO => 8 * count,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_object_is_refused() {
        assert_eq!(with_preallocated_sessions(b""), None);
        assert_eq!(with_preallocated_sessions(&[0x7f; 4096]), None);
    }

    #[test]
    fn types_are_walked_by_their_kinds() {
        // A structure of two members, an enumeration of three values, a pointer.
        assert_eq!(rest(4 << 24 | 2), 24);
        assert_eq!(rest(6 << 24 | 3), 24);
        assert_eq!(rest(2 << 24), 0);
        // Bit 31 says something of its own.
        assert_eq!(kind_of(1 << 31 | 19 << 24 | 1), 19);
    }
}
