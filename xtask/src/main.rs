//! The project's own commands.

mod bench;
mod build_ebpf;
mod debian;
mod lab;
mod packages;
mod progress;
mod readme;
mod test;
mod vm;
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

    /// Install what tests need, and run all of them: what CI runs
    #[command(after_help = "Example:\n  cargo xtask test\n  cargo xtask test clippy unit")]
    Test(test::Options),

    /// Compare weave-agent with no overlay and with a kernel vxlan bridge, in one run
    #[command(after_help = "Example:\n  cargo xtask bench\n  cargo xtask bench bulk latency --rounds 3\n  cargo xtask bench dns")]
    Bench(bench::Options),

    /// One end of a measurement, started by `bench`
    #[command(hide = true, subcommand)]
    BenchNode(bench::node::End),

    /// Run what depends on the kernel on several kernels, in virtual machines
    #[command(after_help = "Example:\n  cargo xtask vm\n  cargo xtask vm 6.1 7.x --only programs\n  cargo xtask vm 6.1 --self-test")]
    Vm(vm::Options),

    /// Try weave-agent on one machine, on hosts made of network namespaces
    #[command(after_help = "Example:\n  cargo xtask lab up --hosts 3\n  \
                      cargo xtask lab exec h1c1 -- ping -c3 10.32.3.1\n  cargo xtask lab down")]
    Lab(lab::Options),
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
        Verb::Test(options) => return test::run(&workspace, &options).map(verdict),
        Verb::Bench(options) => bench::run(&workspace, &options)?,
        Verb::BenchNode(end) => bench::node::run(&end)?,
        Verb::Vm(options) => return vm::run(&workspace, &options).map(verdict),
        Verb::Lab(options) => lab::run(&workspace, options)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn verdict(passed: bool) -> ExitCode {
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
