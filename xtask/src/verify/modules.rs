//! Kernel modules out of an unpacked package: the wanted ones and what they depend on, in the order
//! in which they can be loaded.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _};

/// What the gateway and its two interfaces need, as cloud kernels have it in modules.
const WANTED: [&str; 3] = ["veth", "sch_ingress", "cls_bpf"];

/// A module that is ready for `insmod`.
#[derive(Clone, Debug)]
pub(super) struct Module {
    /// Its name with underscores.
    pub(super) name: String,
    /// Its ELF file, not compressed.
    pub(super) content: Vec<u8>,
}

/// Reads the wanted modules and their dependencies from `folder` (`lib/modules/RELEASE`).
///
/// # Errors
///
/// A module is neither there nor built in, or cannot be read.
pub(super) fn read(folder: &Path) -> Result<Vec<Module>> {
    // Newer packages have no list: then a module that is not there is missing.
    let builtin = std::fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    let mut files = Vec::new();
    collect(&folder.join("kernel"), &mut files)?;
    let mut set = Set { builtin: builtin.lines().map(name_of).collect(), files, read: Vec::new() };
    for name in WANTED {
        set.add(name)?;
    }
    Ok(set.read)
}

struct Set {
    builtin: Vec<String>,
    files: Vec<(String, PathBuf)>,
    read: Vec<Module>,
}

impl Set {
    fn add(&mut self, name: &str) -> Result<()> {
        let known = self.builtin.iter().chain(self.read.iter().map(|module| &module.name));
        if known.into_iter().any(|known| known == name) {
            return Ok(());
        }
        let Some((_, file)) = self.files.iter().find(|(known, _)| known == name) else {
            bail!("failed to find the kernel module {name}");
        };
        let content = content(file)?;
        let depends = dependencies(&content)
            .with_context(|| format!("failed to read the module {}", file.display()))?;
        for dependency in depends {
            self.add(&dependency)?;
        }
        self.read.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

fn collect(folder: &Path, files: &mut Vec<(String, PathBuf)>) -> Result<()> {
    let entries = std::fs::read_dir(folder)
        .with_context(|| format!("failed to list {}", folder.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push((name_of(&path.to_string_lossy()), path));
        }
    }
    Ok(())
}

/// `kernel/net/sched/sch_ingress.ko.xz` is `sch_ingress`; a dash in a file name is an underscore.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// The ELF file, unpacked where the package has it packed.
fn content(file: &Path) -> Result<Vec<u8>> {
    let packer = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => {
            return std::fs::read(file)
                .with_context(|| format!("failed to read {}", file.display()));
        }
    };
    let output = Command::new(packer)
        .arg("-dc")
        .arg(file)
        .output()
        .with_context(|| format!("failed to start `{packer}`"))?;
    if !output.status.success() {
        bail!("`{packer} -dc {}` ended with {}", file.display(), output.status);
    }
    Ok(output.stdout)
}

/// The field `depends` of a module.
fn dependencies(elf: &[u8]) -> Result<Vec<String>> {
    let file = object::read::elf::ElfFile64::<object::Endianness>::parse(elf)?;
    let section = file.section_by_name(".modinfo").context("there is no section .modinfo")?;
    let fields = section.data()?.split(|byte| *byte == 0);
    let depends = fields.filter_map(|field| field.strip_prefix(b"depends=")).next();
    let names = String::from_utf8_lossy(depends.unwrap_or_default()).into_owned();
    Ok(names.split(',').filter(|name| !name.is_empty()).map(name_of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_named_by_its_file() {
        assert_eq!(name_of("kernel/net/sched/sch_ingress.ko.xz"), "sch_ingress");
        assert_eq!(name_of("kernel/crypto/crc32c-intel.ko"), "crc32c_intel");
        assert_eq!(name_of("veth"), "veth");
    }
}
