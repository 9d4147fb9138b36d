//! `vpc-gateway`, the program. Everything it does is in the library.

use std::process::ExitCode;

use clap::Parser as _;
use gateway_userspace::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().command.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
