//! `kernels.toml`: which kernels there are, and what each of them is to show.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

const TEXT: &str = include_str!("../../kernels.toml");

/// Kernels and groups of tests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// Modules that every guest loads.
    pub modules: Vec<String>,
    /// Programs that tests call, to be found on the host's `PATH`.
    pub programs: Vec<String>,
    /// Files that those read.
    pub files: Vec<String>,
    /// Examples of this package that its tests run.
    pub examples: Vec<String>,
    /// Oldest first.
    pub kernel: Vec<Kernel>,
    /// In the order of the table's columns.
    pub group: Vec<Group>,
}

/// One of Debian's kernels.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// What it is called here.
    pub name: String,
    /// The suite it is in.
    pub suite: String,
    /// What its version begins with: the newest of those is taken.
    pub version: String,
}

/// Tests of one feature: a column of the table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// What it is called.
    pub name: String,
    /// The package that has the tests.
    pub package: String,
    /// The integration test.
    pub test: String,
    /// Only tests with one of these in their names; all, if there are none.
    #[serde(default)]
    pub only: Vec<String>,
    /// But none with one of these.
    #[serde(default)]
    pub except: Vec<String>,
    /// One test has so many seconds.
    #[serde(default = "five_minutes")]
    pub limit: u64,
    /// One test at a time, and nothing else meanwhile.
    #[serde(default)]
    pub alone: bool,
    /// What tests with one of these in their names write is shown: figures.
    #[serde(default)]
    pub show: Vec<String>,
    /// They run agents.
    #[serde(default)]
    pub agent: bool,
    /// Fails on purpose: run by `--self-test` alone.
    #[serde(default)]
    pub on_purpose: bool,
}

fn five_minutes() -> u64 {
    300
}

impl Matrix {
    /// The one that was compiled in.
    ///
    /// # Errors
    /// When it is not what it should be.
    pub fn read() -> Result<Self> {
        toml::from_str(TEXT).context("vm-tests/kernels.toml")
    }

    /// The kernels of these names; all, if there are none.
    ///
    /// # Errors
    /// When there is none of a name.
    pub fn kernels(&self, names: &[String]) -> Result<Vec<&Kernel>> {
        let known: Vec<_> = self.kernel.iter().map(|kernel| kernel.name.as_str()).collect();
        for name in names {
            ensure!(known.contains(&name.as_str()), "there is no kernel `{name}`, only {}", known.join(", "));
        }
        Ok(self.kernel.iter().filter(|kernel| names.is_empty() || names.contains(&kernel.name)).collect())
    }
}

impl Group {
    /// Whether a test is one of these.
    pub fn takes(&self, test: &str) -> bool {
        let has = |part: &String| test.contains(part.as_str());
        (self.only.is_empty() || self.only.iter().any(has)) && !self.except.iter().any(has)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_that_was_compiled_in_is_in_order() {
        let matrix = Matrix::read().unwrap();
        let mut names: Vec<_> = matrix.kernel.iter().map(|kernel| &kernel.name).collect();
        names.dedup();
        assert!(names.len() >= 4, "{names:?}");
        assert_eq!(matrix.kernels(&[]).unwrap().len(), matrix.kernel.len());
        let error = matrix.kernels(&["2.4".to_owned()]).unwrap_err().to_string();
        assert!(error.starts_with("there is no kernel `2.4`, only 5.10"), "{error}");
    }

    #[test]
    fn a_group_takes_by_parts_of_names() {
        let parts = |parts: &[&str]| parts.iter().map(ToString::to_string).collect();
        let mut group = Matrix::read().unwrap().group.swap_remove(0);
        (group.only, group.except) = (parts(&["tcx"]), parts(&["slow"]));
        assert!(group.takes("hooks::tcx_links") && !group.takes("hooks::clsact") && !group.takes("tcx_slow"));
    }
}
