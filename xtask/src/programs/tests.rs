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

    fn code(&mut self, name: &str, instructions: usize) -> u16 {
        self.section(name, 1, 6, &vec![0; instructions * 8], [0; 3])
    }

    /// Adds a function; `info` is binding (1 global, 0 local) and type (2 function).
    fn function(&mut self, name: &str, info: u8, section: u16, instructions: u64) {
        let name = self.name(name);
        self.symbols.extend(name.to_le_bytes());
        self.symbols.extend([info, 0]);
        self.symbols.extend(section.to_le_bytes());
        self.symbols.extend(0u64.to_le_bytes());
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

#[test]
fn programs_are_global_functions_outside_text() {
    let mut object = ObjectWriter::new();
    let text = object.code(".text", 7);
    let classifier = object.code("classifier", 31);
    let xdp = object.code("xdp", 5);
    object.section(".BTF", 1, 0, &[0; 40], [0; 3]);
    object.function("checksum", 0x12, text, 7);
    object.function("inlined_not", 0x02, classifier, 1);
    object.function("external", 0x12, classifier, 20);
    object.function("internal", 0x12, classifier, 11);
    object.function("accelerate", 0x12, xdp, 5);
    let contents = Contents::parse(&object.finish()).unwrap();
    let found: Vec<_> = contents
        .programs
        .iter()
        .map(|p| (p.section.as_str(), p.name.as_str(), p.instructions))
        .collect();
    assert_eq!(
        found,
        [("classifier", "external", 20), ("classifier", "internal", 11), ("xdp", "accelerate", 5)]
    );
    assert_eq!(contents.subprogram_instructions, 7);
    assert_eq!(contents.btf_bytes, 40);
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
