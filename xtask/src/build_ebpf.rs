//! `cargo xtask build-ebpf`: the eBPF object, the agent with the object inside, and the agent on PATH.

mod install;
mod library;
mod linker;
mod object;

use anyhow::Result;
use clap::Args;
use vm_tests::process;

use crate::progress::step;
use crate::workspace::Workspace;

/// What to build.
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Build the agent, but leave it in target/release
    #[arg(long)]
    pub(crate) no_install: bool,

    /// Let the eBPF programs write log lines (slower; the agent prints them at debug level)
    #[arg(long)]
    pub(crate) debug_programs: bool,
}

/// Builds everything that `weave-agent launch` needs.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    programs(workspace, options.debug_programs)?;
    step("agent", || build_agent(workspace))?;
    if !options.no_install {
        step("install", || install::install(&workspace.agent()))?;
    }
    Ok(())
}

/// Builds the programs alone.
pub(crate) fn programs(workspace: &Workspace, log: bool) -> Result<()> {
    let library = step("library sources for the eBPF target", || library::find(workspace))?;
    let linker = step("bpf-linker", || linker::find(workspace))?;
    step("eBPF programs", || object::build(workspace, &library, &linker, log))
}

fn build_agent(workspace: &Workspace) -> Result<((), String)> {
    process::run(workspace.cargo("build").args(["--release", "--package", "weave-agent"]))?;
    Ok(((), workspace.agent().display().to_string()))
}
