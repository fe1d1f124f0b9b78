//! The test programs: built, and asked what tests they have.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vm_tests::process;
use vm_tests::vm::matrix::Group;

use crate::workspace::Workspace;

/// One test of one group.
#[derive(Debug, Clone)]
pub(super) struct Test {
    /// Place of the group in the matrix.
    pub(super) group: usize,
    /// As libtest calls it.
    pub(super) name: String,
    /// The program it is in, on the host.
    pub(super) program: PathBuf,
}

/// Builds the programs of these groups and lists their tests.
pub(super) fn find(workspace: &Workspace, groups: &[(usize, &Group)]) -> Result<Vec<Test>> {
    let mut programs = BTreeMap::new();
    let mut tests = Vec::new();
    for &(index, group) in groups {
        let program = match programs.entry((group.package.as_str(), group.test.as_str())) {
            Entry::Occupied(built) => built.into_mut(),
            Entry::Vacant(place) => place.insert(build(workspace, group)?),
        };
        let names: Vec<_> = list(program, group.on_purpose)?.into_iter().filter(|name| group.takes(name)).collect();
        ensure!(!names.is_empty(), "no test of {} {} is in group {}", group.package, group.test, group.name);
        let idle = group.only.iter().find(|part| !names.iter().any(|name| name.contains(part.as_str())));
        ensure!(idle.is_none(), "no test in group {} has `{}` in its name", group.name, idle.map_or("", String::as_str));
        tests.extend(names.into_iter().map(|name| Test { group: index, name, program: program.clone() }));
    }
    Ok(tests)
}

/// As the other layers of `cargo xtask test` build them: then they are there already.
fn build(workspace: &Workspace, group: &Group) -> Result<PathBuf> {
    let mut cargo = workspace.cargo("test");
    cargo.args(["--release", "--no-run", "--package", &group.package, "--test", &group.test]);
    executable(&mut cargo, &group.test)
}

/// The first process of every guest.
pub(super) fn guest(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = workspace.cargo("build");
    cargo.args(["--package", "vm-tests", "--bin", "vm-guest"]);
    executable(&mut cargo, "vm-guest")
}

/// An example that scenarios run.
pub(super) fn example(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let mut cargo = workspace.cargo("build");
    cargo.args(["--release", "--package", "vm-tests", "--example", name]);
    executable(&mut cargo, name)
}

fn executable(cargo: &mut Command, target: &str) -> Result<PathBuf> {
    let messages = process::output(cargo.args(["--quiet", "--message-format", "json-render-diagnostics"]))?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let built = messages.filter(|message| message.pointer("/target/name").and_then(Value::as_str) == Some(target));
    let path = built.filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?))).next_back();
    path.with_context(|| format!("cargo built no {target}"))
}

fn list(program: &PathBuf, ignored: bool) -> Result<Vec<String>> {
    let mut command = Command::new(program);
    command.args(["--list", "--format", "terse"]).args(ignored.then_some("--ignored"));
    let listed = process::output(&mut command)?;
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned);
    if ignored {
        return Ok(names.collect());
    }
    let left_out = if ignored { Vec::new() } else { list(program, true)? };
    Ok(names.filter(|name| !left_out.contains(name)).collect())
}
