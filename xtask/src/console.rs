//! What the verbs print: one line per step, coloured only on a terminal.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

/// A colour of the terminal, used only where it helps to find a line.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Colour {
    /// Something went well.
    Green,
    /// Something needs attention.
    Yellow,
    /// Something failed.
    Red,
    /// The name of a step.
    Bold,
}

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Red => "31",
            Self::Bold => "1",
        }
    }
}

/// Returns `text` in `colour` when standard output is a terminal and `NO_COLOR` is unset.
pub(crate) fn paint(colour: Colour, text: &str) -> String {
    if std::env::var_os("NO_COLOR").is_none() && std::io::stdout().is_terminal() {
        format!("\x1b[{}m{text}\x1b[0m", colour.code())
    } else {
        text.to_owned()
    }
}

/// Prints the steps of one verb as `[verb] text`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steps {
    verb: &'static str,
}

impl Steps {
    /// Starts the steps of `verb`.
    pub(crate) const fn of(verb: &'static str) -> Self {
        Self { verb }
    }

    /// Prints one step and flushes, so that the output of a child comes after it.
    pub(crate) fn say(&self, text: impl Display) {
        let scope = paint(Colour::Bold, &format!("[{}]", self.verb));
        println!("{scope} {text}");
        // A closed pipe must not end a build half way.
        let _ = std::io::stdout().flush();
    }
}

/// Prints an error with its chain of causes on standard error.
pub(crate) fn error(error: &anyhow::Error) {
    let label = if std::io::stderr().is_terminal() {
        paint(Colour::Red, "error:")
    } else {
        "error:".into()
    };
    eprintln!("{label} {error:#}");
}

/// Formats a duration as a person reads it: `0.3 s`, `12 s`, `2 min 05 s`.
pub(crate) fn seconds(elapsed: Duration) -> String {
    let total = elapsed.as_secs();
    if total >= 60 {
        format!("{} min {:02} s", total / 60, total % 60)
    } else if total >= 10 {
        format!("{total} s")
    } else {
        format!("{:.1} s", elapsed.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(seconds(Duration::from_millis(340)), "0.3 s");
        assert_eq!(seconds(Duration::from_secs(12)), "12 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 05 s");
    }
}
