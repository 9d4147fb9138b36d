//! Objects are written here byte by byte: the point is which symbols count as programs.

use super::*;

/// A 64-bit little-endian ELF object with three code sections and one symbol in each.
struct ObjectWriter {
    names: Vec<u8>,
    sections: Vec<[u64; 6]>,
    symbols: Vec<u8>,
    body: Vec<u8>,
}

impl ObjectWriter {
    fn new() -> Self {
        Self { names: vec![0], sections: vec![[0; 6]], symbols: vec![0; 24], body: vec![0; 64] }
    }

    fn name(&mut self, name: &str) -> u32 {
        let offset = self.names.len() as u32;
        self.names.extend(name.bytes().chain([0]));
        offset
    }

    /// Adds a section and returns its index.
    fn section(&mut self, name: &str, kind: u32, flags: u64, bytes: &[u8], links: [u32; 3]) -> u16 {
        let name = u64::from(self.name(name));
        let at = self.body.len() as u64;
        self.body.extend(bytes);
        let [link, info, entry] = links;
        self.sections.push([
            name | u64::from(kind) << 32,
            flags,
            at,
            bytes.len() as u64,
            u64::from(link) | u64::from(info) << 32,
            u64::from(entry),
        ]);
        (self.sections.len() - 1) as u16
    }

    /// Adds a section of `instructions`, which do nothing but for those given by their index.
    fn code(&mut self, name: &str, instructions: usize, special: &[(usize, [u8; 8])]) -> u16 {
        let mut bytes = vec![0; instructions * 8];
        for (index, instruction) in special {
            bytes[index * 8..index * 8 + 8].copy_from_slice(instruction);
        }
        self.section(name, 1, 6, &bytes, [0; 3])
    }

    /// Adds relocations of `section`: each the index of an instruction and of a symbol.
    fn relocations(&mut self, section: u16, symbol_table: u32, entries: &[(u64, u64)]) {
        let bytes: Vec<u8> = entries
            .iter()
            .flat_map(|(index, symbol)| [index * 8, symbol << 32 | 10])
            .flat_map(u64::to_le_bytes)
            .collect();
        self.section(".rel", 9, 0, &bytes, [symbol_table, section.into(), 16]);
    }

    /// Adds a function; `info` is binding (1 global, 0 local) and type (2 function).
    fn function(&mut self, name: &str, info: u8, section: u16, start: u64, instructions: u64) {
        let name = self.name(name);
        self.symbols.extend(name.to_le_bytes());
        self.symbols.extend([info, 0]);
        self.symbols.extend(section.to_le_bytes());
        self.symbols.extend((start * 8).to_le_bytes());
        self.symbols.extend((instructions * 8).to_le_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        let symbols = std::mem::take(&mut self.symbols);
        let string_index = self.sections.len() as u32 + 1;
        self.section(".symtab", 2, 0, &symbols, [string_index, 1, 24]);
        // Its own name is added first, so that the table is complete when it is copied.
        let name = self.name(".strtab");
        let names = self.names.clone();
        let strings = self.section("", 3, 0, &names, [0; 3]);
        self.sections[usize::from(strings)][0] = u64::from(name) | 3 << 32;
        let table = self.body.len() as u64;
        let mut bytes = self.body;
        bytes[..20].copy_from_slice(&[
            0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 247, 0,
        ]);
        bytes[20] = 1;
        bytes[40..48].copy_from_slice(&table.to_le_bytes());
        bytes[52..54].copy_from_slice(&64u16.to_le_bytes());
        bytes[58..60].copy_from_slice(&64u16.to_le_bytes());
        bytes[60..62].copy_from_slice(&(self.sections.len() as u16).to_le_bytes());
        bytes[62..64].copy_from_slice(&strings.to_le_bytes());
        for [head, flags, offset, size, links, entry] in self.sections {
            for field in [head, flags, 0, offset, size, links, 8, entry] {
                bytes.extend(field.to_le_bytes());
            }
        }
        bytes
    }
}

/// `call` of a subprogram, `distance` instructions after the next one.
fn call(distance: i32) -> [u8; 8] {
    let [a, b, c, d] = distance.to_le_bytes();
    [0x85, 0x10, 0, 0, a, b, c, d]
}

fn found(contents: &Contents) -> Vec<(&str, &str, u64, usize)> {
    contents
        .programs
        .iter()
        .map(|Program { section, name, instructions, subprograms }| {
            (section.as_str(), name.as_str(), *instructions, *subprograms)
        })
        .collect()
}

#[test]
fn programs_are_global_functions_outside_text() {
    let mut object = ObjectWriter::new();
    let text = object.code(".text", 7, &[]);
    let classifier = object.code("classifier", 31, &[]);
    let xdp = object.code("xdp", 5, &[]);
    object.section(".BTF", 1, 0, &[0; 40], [0; 3]);
    object.function("checksum", 0x12, text, 0, 7);
    object.function("local", 0x02, classifier, 0, 0);
    object.function("external", 0x12, classifier, 0, 20);
    object.function("internal", 0x12, classifier, 20, 11);
    object.function("accelerate", 0x12, xdp, 0, 5);
    let contents = Contents::parse(&object.finish()).unwrap();
    assert_eq!(
        found(&contents),
        [
            ("classifier", "external", 20, 0),
            ("classifier", "internal", 11, 0),
            ("xdp", "accelerate", 5, 0)
        ]
    );
    assert_eq!(contents.btf_bytes, 40);
}

#[test]
fn a_program_counts_with_the_subprograms_it_reaches() {
    let mut object = ObjectWriter::new();
    // `first` (0..4) calls `second` (4..10) within the section, which calls itself.
    let text = object.code(".text", 30, &[(1, call(2)), (6, call(-3))]);
    // Two relocated calls: by the symbol of a function, and by the symbol of its section.
    let classifier = object.code("classifier", 20, &[(3, call(-1)), (12, call(9))]);
    let symbol_table = 4;
    object.relocations(classifier, symbol_table, &[(3, 1), (12, 4)]);
    object.function("first", 0x12, text, 0, 4);
    object.function("second", 0x12, text, 4, 6);
    object.function("third", 0x12, text, 10, 20);
    object.function("", 0x03, text, 0, 0);
    object.function("calls_first", 0x12, classifier, 0, 10);
    object.function("calls_third", 0x12, classifier, 10, 10);
    let contents = Contents::parse(&object.finish()).unwrap();
    assert_eq!(
        found(&contents),
        [("classifier", "calls_first", 20, 2), ("classifier", "calls_third", 30, 1)]
    );
}

#[test]
fn a_callback_is_reached_by_its_address() {
    let place = target(3, 0, &[0x18, 0, 0, 0, 16, 0, 0, 0], Some((1, 8)));
    assert_eq!(place, Some((1, 24)));
    assert_eq!(target(3, 0, &[0x18, 0, 0, 0, 16, 0, 0, 0], None), None);
    assert_eq!(target(3, 0, &[0x85, 0, 0, 0, 1, 0, 0, 0], None), None);
}

#[test]
fn an_object_without_programs_is_empty() {
    let contents = Contents::parse(&ObjectWriter::new().finish()).unwrap();
    assert_eq!(contents, Contents::default());
}

#[test]
fn other_bytes_are_refused() {
    assert!(Contents::parse(b"#!/bin/sh\n").is_err());
}
