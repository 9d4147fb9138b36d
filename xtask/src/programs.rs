//! What an eBPF object holds, read from its ELF sections, symbols and relocations.
//!
//! A program is a global function in an executable section that is not `.text`; its section names
//! the hook. `.text` holds the subprograms; the loader appends to each program those it can reach, so
//! what the kernel verifies is the sum of a program and its subprograms.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use object::read::elf::ElfFile64;
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionKind, SymbolKind,
};

/// The size of one instruction; a 64-bit immediate load counts as two, as the kernel counts it.
const INSTRUCTION_BYTES: u64 = 8;

/// `call` with this source register calls a subprogram by its distance.
const CALL: u8 = 0x85;
const PSEUDO_CALL: u8 = 1;

/// A 64-bit immediate load, which can take the address of a callback.
const LOAD_64: u8 = 0x18;

/// One program of an object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Program {
    /// The ELF section, for example `classifier` or `xdp`.
    pub(crate) section: String,
    /// The symbol.
    pub(crate) name: String,
    /// The number of instructions with all subprograms that it reaches: what the kernel loads.
    pub(crate) instructions: u64,
    /// The number of subprograms that it reaches.
    pub(crate) subprograms: usize,
}

/// The programs and sizes of an object.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Contents {
    /// The programs, by section and name.
    pub(crate) programs: Vec<Program>,
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
        let functions = functions(&file)?;
        let calls = calls(&file, &functions)?;
        let mut programs = Vec::new();
        for (place, function) in &functions {
            if !function.is_program {
                continue;
            }
            let reached = reachable(*place, &calls);
            let sizes = reached.iter().filter_map(|place| functions.get(place));
            programs.push(Program {
                section: function.section.clone(),
                name: function.name.clone(),
                instructions: sizes.map(|function| function.bytes).sum::<u64>() / INSTRUCTION_BYTES,
                subprograms: reached.len() - 1,
            });
        }
        programs.sort_by(|a, b| (&a.section, &a.name).cmp(&(&b.section, &b.name)));
        let btf_bytes = file.section_by_name(".BTF").map_or(0, |section| section.size());
        Ok(Self { programs, btf_bytes })
    }
}

/// Where a function starts: the index of its section and the offset there.
type Place = (usize, u64);

/// The functions that each function calls or takes the address of.
type Calls = BTreeMap<Place, BTreeSet<Place>>;

struct Function {
    section: String,
    name: String,
    bytes: u64,
    is_program: bool,
}

fn functions(file: &ElfFile64<'_>) -> Result<BTreeMap<Place, Function>> {
    let mut functions = BTreeMap::new();
    for symbol in file.symbols() {
        let (SymbolKind::Text, Some(index)) = (symbol.kind(), symbol.section_index()) else {
            continue;
        };
        let section = file.section_by_index(index).context("a symbol without a section")?;
        if section.kind() != SectionKind::Text {
            continue;
        }
        let section = section.name().context("a section without a name")?.to_owned();
        let is_program = symbol.is_global() && section != ".text";
        let name = symbol.name().context("a function without a name")?.to_owned();
        let function = Function { section, name, bytes: symbol.size(), is_program };
        functions.insert((index.0, symbol.address()), function);
    }
    Ok(functions)
}

fn calls(file: &ElfFile64<'_>, functions: &BTreeMap<Place, Function>) -> Result<Calls> {
    let mut calls = Calls::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let index = section.index().0;
        let code = section.data().context("a section that is cut off")?;
        let relocations: BTreeMap<u64, Place> = section
            .relocations()
            .filter_map(|(offset, relocation)| {
                let RelocationTarget::Symbol(symbol) = relocation.target() else { return None };
                let symbol = file.symbol_by_index(symbol).ok()?;
                Some((offset, (symbol.section_index()?.0, symbol.address())))
            })
            .collect();
        for (offset, instruction) in (0..).step_by(8).zip(code.chunks_exact(8)) {
            let target = target(index, offset, instruction, relocations.get(&offset).copied());
            let caller = functions.range(..=(index, offset)).next_back();
            if let (Some(target), Some((caller, _))) = (target, caller)
                && functions.contains_key(&target)
            {
                calls.entry(*caller).or_default().insert(target);
            }
        }
    }
    Ok(calls)
}

/// The function that an instruction refers to, if it refers to one.
fn target(
    section: usize,
    offset: u64,
    instruction: &[u8],
    relocation: Option<Place>,
) -> Option<Place> {
    let immediate = i32::from_le_bytes(instruction.get(4..8)?.try_into().ok()?);
    let source_register = instruction.get(1)? >> 4;
    // The immediate of a call counts instructions from the next one, that of a load bytes.
    let (from, distance) = match (*instruction.first()?, source_register) {
        (CALL, PSEUDO_CALL) => {
            (relocation.unwrap_or((section, offset)), (i64::from(immediate) + 1) * 8)
        }
        (LOAD_64, _) => (relocation?, i64::from(immediate)),
        _ => return None,
    };
    Some((from.0, from.1.checked_add_signed(distance)?))
}

/// A function and everything it reaches.
fn reachable(start: Place, calls: &Calls) -> BTreeSet<Place> {
    let mut reached = BTreeSet::from([start]);
    let mut open = vec![start];
    while let Some(place) = open.pop() {
        for callee in calls.get(&place).into_iter().flatten() {
            if reached.insert(*callee) {
                open.push(*callee);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests;
