//! The layers, as a table: a new one is a new entry.

use std::process::Command;

use anyhow::{Result, ensure};
use vm_tests::{is_ci, process};

use super::attempts;
use crate::build_ebpf;
use crate::vm;
use crate::workspace::Workspace;

/// No layer needs a third of it: one that hangs fails by name, and the others still run.
const LIMIT: &str = "25m";

/// What a host's own kernel may not have, or has otherwise, in minutes. Labs in guests take half an hour: `cargo xtask vm` runs those, too.
const ON_ALL_KERNELS: &[&str] = &["programs", "tcx", "clsact", "odp"];

/// One thing that CI checks.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    /// It makes network namespaces or loads programs.
    pub(super) root: bool,
    /// It runs the agent or the eBPF programs.
    pub(super) programs: bool,
    /// The integration test it is about (package, target): without it there is no such layer.
    test: Option<(&'static str, &'static str)>,
    work: Work,
}

#[derive(Debug)]
enum Work {
    BuildPrograms,
    Cargo {
        words: &'static str,
        env: &'static [(&'static str, &'static str)],
    },
    /// [`ON_ALL_KERNELS`].
    Kernels,
    /// Tests in real time: few that fail get a second attempt.
    RealTime {
        words: &'static str,
    },
}

const fn cargo(words: &'static str) -> Work {
    Work::Cargo { words, env: &[] }
}

/// The cheapest first, but for the programs: everything else is built with them inside.
const LAYERS: &[Layer] = &[
    Layer {
        name: "build",
        what: "the eBPF programs, and the agent with them inside",
        root: false,
        programs: false,
        test: None,
        work: Work::BuildPrograms,
    },
    Layer { name: "fmt", what: "formatting", root: false, programs: false, test: None, work: cargo("fmt --all --check") },
    Layer {
        name: "clippy",
        what: "lints, on all targets",
        root: false,
        programs: false,
        test: None,
        work: cargo("clippy --quiet --workspace --all-targets -- -D warnings"),
    },
    Layer {
        name: "doc",
        what: "documentation builds without a warning",
        root: false,
        programs: false,
        test: None,
        work: Work::Cargo { words: "doc --quiet --workspace --no-deps", env: &[("RUSTDOCFLAGS", "-D warnings")] },
    },
    Layer {
        name: "pure",
        what: "the agent's library builds without io",
        root: false,
        programs: false,
        test: None,
        work: cargo("build --quiet --package weave-agent --lib --no-default-features"),
    },
    Layer {
        name: "unit",
        what: "unit tests of all packages",
        root: false,
        programs: false,
        test: None,
        work: cargo("test --quiet --workspace --lib --bins"),
    },
    Layer {
        name: "examples",
        what: "examples in the documentation",
        root: false,
        programs: false,
        test: None,
        work: cargo("test --quiet --workspace --doc"),
    },
    Layer {
        name: "sim",
        what: "the simulator: generated cases against the reference model",
        root: false,
        programs: false,
        test: Some(("weave-agent", "sim")),
        work: cargo("test --package weave-agent --no-default-features --release --test sim"),
    },
    Layer {
        name: "replicas",
        what: "addresses and names on toy networks that lose messages, disks and hosts",
        root: false,
        programs: false,
        test: None,
        work: Work::Cargo {
            words: "test --package weave-agent --no-default-features --release --lib -- ipam:: dns::",
            env: &[("IPAM_SIM_CASES", "2000"), ("PROPTEST_CASES", "2000")],
        },
    },
    Layer {
        name: "ebpf",
        what: "the eBPF programs in the kernel, next to the library",
        root: true,
        programs: true,
        test: Some(("weave-agent", "programs")),
        work: cargo("test --package weave-agent --release --test programs"),
    },
    Layer {
        name: "datapath",
        what: "the datapaths' contract, on each of them",
        root: true,
        programs: true,
        test: Some(("weave-agent", "datapath")),
        work: cargo("test --package weave-agent --release --test datapath"),
    },
    Layer {
        name: "sleeve",
        what: "the sleeve's threads between real sockets and devices",
        root: true,
        programs: false,
        test: Some(("weave-agent", "sleeve")),
        work: cargo("test --package weave-agent --release --test sleeve"),
    },
    Layer {
        name: "net",
        what: "what the agent does to a host's network, and real resolvers",
        root: true,
        programs: false,
        test: Some(("weave-agent", "net")),
        work: cargo("test --package weave-agent --release --test net"),
    },
    Layer {
        name: "scenarios",
        what: "agents on hosts made of network namespaces",
        root: true,
        programs: true,
        test: Some(("vm-tests", "underlay")),
        work: Work::RealTime { words: "test --package vm-tests --release" },
    },
    Layer {
        name: "vm",
        what: "what depends on the kernel, on every kernel, in virtual machines",
        root: true,
        programs: true,
        test: Some(("vm-tests", "scenarios")),
        work: Work::Kernels,
    },
];

/// The layers whose tests are in the workspace.
pub(super) fn there(workspace: &Workspace) -> Vec<&'static Layer> {
    let is_there = |layer: &&Layer| layer.test.is_none_or(|(package, target)| workspace.has_test(package, target));
    LAYERS.iter().filter(is_there).collect()
}

impl Layer {
    pub(super) fn builds_programs(&self) -> bool {
        matches!(self.work, Work::BuildPrograms)
    }

    /// The tests that needed a second attempt.
    pub(super) fn run(&self, workspace: &Workspace) -> Result<Vec<String>> {
        match self.work {
            Work::BuildPrograms => {
                let options = build_ebpf::Options { no_install: true, ..Default::default() };
                build_ebpf::run(workspace, &options)?;
            }
            Work::Cargo { words, env } => process::run(&mut command(workspace, words, env))?,
            Work::Kernels => {
                let passed = vm::run(workspace, &vm::Options::only(ON_ALL_KERNELS))?;
                ensure!(passed, "not every kernel passes: what stands below the table above says which tests do not");
            }
            Work::RealTime { words } => {
                return attempts::run(|| command(workspace, words, &[]), &["--test-threads=1"], &mut std::io::stdout());
            }
        }
        Ok(Vec::new())
    }
}

fn command(workspace: &Workspace, words: &str, env: &[(&str, &str)]) -> Command {
    let mut words = words.split(' ');
    let mut cargo = workspace.cargo(words.next().unwrap_or_default());
    cargo.args(words).envs(env.iter().copied());
    if is_ci() { limited(&cargo) } else { cargo }
}

/// The same command, ended with all it started after [`LIMIT`]. Only where nobody watches: `timeout` makes a process
/// group of its own, which a terminal's Ctrl-C does not reach.
fn limited(command: &Command) -> Command {
    let mut limited = Command::new("timeout");
    limited.args(["--verbose", "--kill-after=10", LIMIT]).arg(command.get_program()).args(command.get_args());
    limited.current_dir(command.get_current_dir().unwrap_or_else(|| ".".as_ref()));
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_layers_have_one_name() {
        let mut names: Vec<_> = LAYERS.iter().map(|layer| layer.name).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }

    #[test]
    fn every_integration_test_of_the_agent_is_in_a_layer() -> Result<()> {
        for test in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../weave-agent/tests"))? {
            let name = test?.file_name();
            let is_run = LAYERS.iter().any(|layer| layer.test.is_some_and(|(package, test)| package == "weave-agent" && *test == *name));
            assert!(is_run, "no layer runs weave-agent/tests/{}", name.display());
        }
        Ok(())
    }

    #[test]
    fn the_programs_are_built_first() {
        assert!(LAYERS[0].builds_programs());
    }
}
