//! What an eBPF object holds, read from its ELF sections and symbols.
//!
//! A program is a global function in an executable section that is not `.text`; its section names
//! the hook. `.text` holds the subprograms, which the loader appends to each program that calls them.

use anyhow::{Context as _, Result};
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind};

/// The size of one instruction; a 64-bit immediate load counts as two, as the kernel counts it.
const INSTRUCTION_BYTES: u64 = 8;

/// One program of an object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Program {
    /// The ELF section, for example `classifier` or `xdp`.
    pub(crate) section: String,
    /// The symbol.
    pub(crate) name: String,
    /// The number of instructions, without its subprograms.
    pub(crate) instructions: u64,
}

/// The programs and sizes of an object.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Contents {
    /// The programs, by section and name.
    pub(crate) programs: Vec<Program>,
    /// The number of instructions of all subprograms together.
    pub(crate) subprogram_instructions: u64,
    /// The size of the type information, 0 if there is none.
    pub(crate) btf_bytes: u64,
}

impl Contents {
    /// Reads an object.
    ///
    /// # Errors
    ///
    /// The bytes are not a 64-bit ELF file, or one that is cut off.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let file: ElfFile64<'_> = ElfFile64::parse(bytes).context("not a 64-bit ELF object")?;
        let mut contents = Self::default();
        for section in file.sections() {
            match section.name().context("a section without a name")? {
                ".BTF" => contents.btf_bytes = section.size(),
                ".text" => contents.subprogram_instructions = section.size() / INSTRUCTION_BYTES,
                _ => {}
            }
        }
        for symbol in file.symbols() {
            let (SymbolKind::Text, true, Some(index)) =
                (symbol.kind(), symbol.is_global(), symbol.section_index())
            else {
                continue;
            };
            let section = file.section_by_index(index).context("a symbol without a section")?;
            let section_name = section.name().context("a section without a name")?;
            if section.kind() == SectionKind::Text && section_name != ".text" {
                contents.programs.push(Program {
                    section: section_name.to_owned(),
                    name: symbol.name().context("a program without a name")?.to_owned(),
                    instructions: symbol.size() / INSTRUCTION_BYTES,
                });
            }
        }
        contents.programs.sort_by(|a, b| (&a.section, &a.name).cmp(&(&b.section, &b.name)));
        Ok(contents)
    }
}

#[cfg(test)]
mod tests;
