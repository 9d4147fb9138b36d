//! An archive of the format `newc`, which the kernel unpacks as its first file system.

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const PLAIN: u32 = 0o100_644;

/// An archive in memory. Folders come by themselves before what lies in them.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    /// Adds an empty folder and those above it.
    pub(super) fn folder(&mut self, name: &str) {
        if name.is_empty() || self.names.contains(name) {
            return;
        }
        self.parent(name);
        self.entry(name, DIRECTORY, &[]);
    }

    /// Adds a file that can be run.
    pub(super) fn executable(&mut self, name: &str, content: &[u8]) {
        self.add(name, EXECUTABLE, content);
    }

    /// Adds a file.
    pub(super) fn file(&mut self, name: &str, content: &[u8]) {
        self.add(name, PLAIN, content);
    }

    /// Ends the archive and returns it.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        if self.names.contains(name) {
            return;
        }
        self.parent(name);
        self.entry(name, mode, content);
    }

    fn parent(&mut self, name: &str) {
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.folder(parent);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.names.insert(name.to_owned());
        // The number only has to differ from entry to entry.
        let inode = self.names.len();
        let (size, name_size) = (content.len(), name.len() + 1);
        // magic, inode, mode, uid, gid, links, mtime, size, four device numbers, name size, checksum
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}\
             {0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}",
            0, 1
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_a_name_and_aligned_content() {
        let mut archive = Archive::default();
        archive.file("ab", b"xyz");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[54..62], b"00000003", "size");
        assert_eq!(&bytes[94..102], b"00000003", "name size");
        assert_eq!(&bytes[110..122], b"ab\0\0\0\0xyz\x0007");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn folders_come_first_and_once() {
        let mut archive = Archive::default();
        archive.file("a/b/c", b"");
        archive.file("a/b/d", b"");
        let text = String::from_utf8(archive.finish()).unwrap();
        let names: Vec<_> =
            text.split("070701").skip(1).map(|e| e[104..].trim_end_matches('\0')).collect();
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/b/d", "TRAILER!!!"]);
    }
}
