//! `cargo xtask bench`: the gateway beside what users run today, and beside the limits of the hooks.
//!
//! | module | what |
//! |---|---|
//! | [`plan`], [`rules`] | addresses and flows; the same rules in three languages |
//! | [`rig`], [`traffic`] | three namespaces in a row; generator and sinks |
//! | [`subject`] | what is measured: the gateway, its competitors, bare redirects |
//! | [`experiments`] | what is measured of them |
//! | [`report`], [`screen`] | results, and how they are shown |
//! | [`targets`] | what was to be reached, and what was |
//! | [`plot`], [`publish`] | what stays of a run |
//!
//! Nothing here fails because something is slow.

pub mod experiments;
#[path = "../../../gateway-ebpf/src/bench/flow.rs"]
pub mod flow;
pub mod plan;
pub mod plot;
mod pod;
pub mod publish;
pub mod report;
pub mod rig;
pub mod rules;
pub mod screen;
pub mod subject;
pub mod targets;
pub mod traffic;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};

use self::experiments::{ALL, Bench, Experiment};
use self::report::Report;
use crate::lab::tier;

/// What to measure and how.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// A run of less than three minutes: fewer cases, shorter bursts; else 10 to 20 minutes
    #[arg(long)]
    pub quick: bool,
    /// Only these experiments, as with --only
    #[arg(value_name = "NAME", conflicts_with = "publish")]
    pub names: Vec<String>,
    /// Only these experiments
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub only: Vec<String>,
    /// Name the experiments and what they measure
    #[arg(long)]
    pub list: bool,
    /// Write the results
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Print every median as a multiple of an earlier run's
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// Keep the results: docs/bench (JSON and plots) and the block of the README
    #[arg(long, conflicts_with = "only")]
    pub publish: bool,
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
    let chosen = choose(&[&options.names[..], &options.only].concat())?;
    let earlier = options.compare.as_deref().map(publish::read_json).transpose()?;
    tier::namespaces_possible()?;
    tier::bpffs()?;
    let started = Instant::now();
    let mut failed = 0;
    let report = Report { about: publish::about(options.quick), ..Report::default() };
    let mut bench = Bench { quick: options.quick, report };
    for experiment in chosen {
        let begun = Instant::now();
        if let Err(error) = (experiment.run)(&mut bench) {
            // The others are worth having all the same.
            screen::progress(&format!("FAILED: {}: {error:#}", experiment.name));
            failed += 1;
        }
        println!("{}", screen::table(&bench.report, experiment.name));
        let seconds = begun.elapsed().as_secs_f64();
        screen::progress(&format!("{}: {seconds:.0} s", experiment.name));
    }
    let report = bench.report;
    if let Some(file) = &options.json {
        publish::write_json(&report, file)?;
    }
    if let Some(earlier) = &earlier {
        println!("{}", publish::comparison(&report, earlier));
    }
    let targets = targets::targets(&report);
    println!("{}\n{}", publish::caption(&report), targets::table(&targets));
    if options.publish && failed == 0 {
        publish::publish(&report, &targets)?;
        screen::progress(&format!("kept in {} and README.md", publish::FOLDER));
    }
    screen::progress(&format!("done in {:.0} s", started.elapsed().as_secs_f64()));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn choose(names: &[String]) -> Result<Vec<Experiment>> {
    for name in names {
        let known = ALL.iter().any(|experiment| experiment.name == name);
        ensure!(known, "no experiment {name}; --list names them");
    }
    let wanted = |experiment: &Experiment| {
        (names.is_empty() && !experiment.on_demand)
            || names.iter().any(|name| name == experiment.name)
    };
    Ok(ALL.into_iter().filter(wanted).collect())
}
