//! `cargo xtask bench`: the gateway beside what users run today, and beside the limits of the hooks.
//!
//! | module | what |
//! |---|---|
//! | [`plan`], [`rules`] | addresses and flows; the same rules in three languages |
//! | [`rig`], [`traffic`] | three namespaces in a row; generator and sinks |
//! | [`subject`] | what is measured: the gateway, its competitors, bare redirects |
//! | [`experiments`] | what is measured of them |
//! | [`report`], [`screen`] | results, and how they are shown |
//!
//! Nothing here fails because something is slow.

pub mod experiments;
#[path = "../../../gateway-ebpf/src/bench/flow.rs"]
pub mod flow;
pub mod plan;
mod pod;
pub mod report;
pub mod rig;
pub mod rules;
pub mod screen;
pub mod subject;
pub mod traffic;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use self::experiments::{ALL, Bench, Experiment};
use self::report::Report;
use crate::lab::tier;

/// What to measure and how.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// A run of less than three minutes: fewer cases, fewer repeats
    #[arg(long)]
    pub quick: bool,
    /// Only these experiments
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub only: Vec<String>,
    /// Name the experiments and what they measure
    #[arg(long)]
    pub list: bool,
    /// Write the results
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Runs the bench.
///
/// # Errors
/// It cannot run here. That something is slow is no error.
pub fn run(options: &Options) -> Result<ExitCode> {
    if options.list {
        for experiment in ALL {
            println!("{:<14} {}", experiment.name, experiment.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = choose(&options.only)?;
    tier::namespaces_possible()?;
    tier::bpffs()?;
    let started = Instant::now();
    let mut bench = Bench { quick: options.quick, report: Report::default() };
    for experiment in chosen {
        (experiment.run)(&mut bench).with_context(|| format!("experiment {}", experiment.name))?;
        println!("{}", screen::table(&bench.report, experiment.name));
    }
    if let Some(file) = &options.json {
        let text = format!("{:#}\n", bench.report.to_json());
        std::fs::write(file, text)
            .with_context(|| format!("failed to write {}", file.display()))?;
    }
    screen::progress(&format!("done in {:.0} s", started.elapsed().as_secs_f64()));
    Ok(ExitCode::SUCCESS)
}

fn choose(names: &[String]) -> Result<Vec<Experiment>> {
    for name in names {
        let known = ALL.iter().any(|experiment| experiment.name == name);
        ensure!(known, "no experiment {name}; --list names them");
    }
    let wanted = |experiment: &Experiment| {
        names.is_empty() || names.iter().any(|name| name == experiment.name)
    };
    Ok(ALL.into_iter().filter(wanted).collect())
}
