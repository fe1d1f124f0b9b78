//! The project's own commands.

mod build_ebpf;
mod progress;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// weave-agent's own commands: build it, test it, try it
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the eBPF programs and the agent, and install the agent
    #[command(after_help = "Example:\n  cargo xtask build-ebpf && weave-agent launch")]
    BuildEbpf(build_ebpf::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match arguments.verb {
        Verb::BuildEbpf(options) => build_ebpf::run(&workspace, &options)?,
    }
    Ok(ExitCode::SUCCESS)
}
