//! The ledger as a file: one order a line, as [`super::verb::parse`] reads it.
//!
//! An order is appended once it is in the data plane, so a process that is killed has lost nothing
//! that it has confirmed. A last line without its end is one that was being written. When the lines
//! are many more than what they amount to, the file is written anew beside the old one and renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use super::ledger::Ledger;
use super::verb::{self, Call, Order};

/// The file in the state directory.
pub const FILE: &str = "ledger";

/// How many superfluous lines are worth a new file.
const SUPERFLUOUS: usize = 10_000;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation} {}", path.display())]
pub struct JournalError {
    /// What was tried.
    pub operation: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    lines: usize,
}

/// What a journal says.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Everything that was asked for and not taken back.
    pub ledger: Ledger,
    /// The lines that could not be understood, each with why. They are left out.
    pub damaged: Vec<String>,
}

/// Reads a journal; an empty ledger if there is none.
///
/// # Errors
///
/// When it is there and cannot be read.
pub fn read(path: &Path) -> Result<Recovered, JournalError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Recovered::default()),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let complete = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let mut recovered = Recovered::default();
    for (index, line) in String::from_utf8_lossy(&text[..complete]).lines().enumerate() {
        if let Err(why) = replay(line, &mut recovered.ledger) {
            let place = format!("{}:{}", path.display(), index + 1);
            recovered.damaged.push(format!("{place}: {why}; the line is left out"));
        }
    }
    Ok(recovered)
}

fn replay(line: &str, ledger: &mut Ledger) -> Result<(), String> {
    let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
    let Call::Orders(orders) = verb::parse(&words).map_err(|error| error.to_string())? else {
        return Err(format!("{line:?} is not an order"));
    };
    orders.iter().try_for_each(|order| ledger.execute(order)).map_err(|error| error.to_string())
}

impl Journal {
    /// Writes the ledger as a new file and opens it.
    ///
    /// # Errors
    ///
    /// When the directory is not writable or the disk is full; the old file stays then.
    pub fn create(path: &Path, ledger: &Ledger) -> Result<Self, JournalError> {
        let lines = rewrite(path, ledger)?;
        let file = OpenOptions::new().append(true).open(path).map_err(failed("open", path))?;
        Ok(Self { path: path.to_owned(), file, lines })
    }

    /// Appends orders that `ledger` has executed.
    ///
    /// # Errors
    ///
    /// When the disk is full. What was written of them is taken away again.
    pub fn append(&mut self, orders: &[Order], ledger: &Ledger) -> Result<(), JournalError> {
        let text: String = orders.iter().map(|order| format!("{order}\n")).collect();
        let before = self.file.metadata().map_err(failed("look at", &self.path))?.len();
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            let _ = self.file.set_len(before);
            return Err(failed("append to", &self.path)(error));
        }
        self.lines += orders.len();
        if self.lines > 2 * ledger.len() + SUPERFLUOUS {
            *self = Self::create(&self.path, ledger)?;
        }
        Ok(())
    }
}

fn rewrite(path: &Path, ledger: &Ledger) -> Result<usize, JournalError> {
    let fresh = path.with_extension("new");
    let mut file = BufWriter::new(File::create(&fresh).map_err(failed("make", &fresh))?);
    let mut lines = 0;
    for order in ledger.orders() {
        writeln!(file, "{order}").map_err(failed("write", &fresh))?;
        lines += 1;
    }
    file.flush().map_err(failed("write", &fresh))?;
    fs::rename(&fresh, path).map_err(failed("replace", path))?;
    Ok(lines)
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError { operation, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(text: &str) -> Vec<Order> {
        let words: Vec<_> = text.split(' ').map(str::to_owned).collect();
        match verb::parse(&words).unwrap() {
            Call::Orders(orders) => orders,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_appended_is_read_again_but_for_half_a_line() {
        let directory = std::env::temp_dir().join(format!("vpc-gateway-j-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(FILE);
        assert!(read(&path).unwrap().ledger.is_empty());

        let mut ledger = Ledger::default();
        let mut journal = Journal::create(&path, &ledger).unwrap();
        for text in [
            "eip-add 203.0.113.10/24,203.0.113.1",
            "dnat-add 203.0.113.10,80,TCP,10.0.1.5,8080",
            "nft-dnat-map-add 203.0.113.10,53,udp,10.0.1.5:53@10.0.1.6:53",
            "dnat-add 203.0.113.10,81,tcp,10.0.1.5,8081",
            "dnat-del 203.0.113.10,81,tcp",
            "snat-add 203.0.113.10,10.0.1.77/24",
            "qos-add ingress,,1,matchall,,,,10,2",
        ] {
            let orders = orders(text);
            orders.iter().for_each(|order| ledger.execute(order).unwrap());
            journal.append(&orders, &ledger).unwrap();
        }
        let recovered = read(&path).unwrap();
        assert_eq!(recovered.damaged, Vec::<String>::new());
        assert_eq!(recovered.ledger, ledger);
        assert_eq!(ledger.dnats.len(), 2);

        journal.file.write_all(b"snat-add 203.0.113.10,10.0.2.0/24").unwrap();
        assert_eq!(read(&path).unwrap().ledger, ledger, "half a line counts");
        journal.file.write_all(b"\nnonsense\neip-add 203.0.113.11/24\n").unwrap();
        let recovered = read(&path).unwrap();
        assert_eq!(recovered.ledger.snats.len(), 2);
        assert_eq!(recovered.ledger.eips.len(), 2, "a damaged line stops the others");
        assert_eq!(recovered.damaged.len(), 1);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_journal_does_not_grow_for_ever() {
        let directory = std::env::temp_dir().join(format!("vpc-gateway-g-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join(FILE);
        let mut ledger = Ledger::default();
        let mut journal = Journal::create(&path, &ledger).unwrap();
        for n in 0..=SUPERFLUOUS + 10 {
            let verb = if n % 2 == 0 { "add" } else { "del" };
            let orders = orders(&format!("snat-{verb} 203.0.113.10,10.0.1.0/24"));
            ledger.execute(&orders[0]).unwrap();
            journal.append(&orders, &ledger).unwrap();
        }
        for _ in 0..3 {
            let orders = orders("eip-add 203.0.113.10/24");
            ledger.execute(&orders[0]).unwrap();
            journal.append(&orders, &ledger).unwrap();
        }
        assert!(journal.lines < 20, "{} lines", journal.lines);
        assert_eq!(read(&path).unwrap().ledger, ledger);
        fs::remove_dir_all(&directory).unwrap();
    }
}
