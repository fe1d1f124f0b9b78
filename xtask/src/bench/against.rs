//! `bench --against REV`: the agent of another revision runs beside ours, in the same rounds.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use vm_tests::process;

use super::bed::Base;
use super::table::{Row, Table, median};
use crate::workspace::Workspace;

/// What moved by less than this share is noise, however often it was seen.
const NOISE: f64 = 0.02;
/// What the builds have in common.
const TOOLS: [&str; 2] = ["tools", "rust-src"];

/// Builds the agent of a revision in a worktree of its own, which is kept: the next build there is a short one.
pub(crate) fn build(workspace: &Workspace, revision: &str) -> Result<(Base, String)> {
    let commit = git(&workspace.file(""), &["rev-parse", "--verify", "--end-of-options", &format!("{revision}^{{commit}}")])?;
    let commit = commit.trim();
    let tree = workspace.own("bench").join("against");
    let path = tree.to_str().context("the path of the workspace is no UTF-8")?;
    if tree.join(".git").exists() {
        git(&tree, &["checkout", "--quiet", "--force", "--detach", commit])?;
    } else {
        git(&workspace.file(""), &["worktree", "prune"])?;
        git(&workspace.file(""), &["worktree", "add", "--quiet", "--detach", path, commit])?;
    }
    share_tools(workspace, &tree.join("target"))?;
    let mut cargo = workspace.cargo("xtask");
    process::run(cargo.args(["build-ebpf", "--no-install"]).current_dir(&tree).env_remove("CARGO_TARGET_DIR"))?;
    let short = git(&tree, &["rev-parse", "--short", "HEAD"])?.trim().to_owned();
    let agent = tree.join("target/release/weave-agent");
    let outcome = agent.display().to_string();
    Ok((Base { revision: short, agent }, outcome))
}

fn git(dir: &Path, words: &[&str]) -> Result<String> {
    process::output(Command::new("git").arg("-C").arg(dir).args(words))
}

fn share_tools(workspace: &Workspace, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("cannot create {}", target.display()))?;
    for name in TOOLS {
        let (there, here) = (workspace.own(name), target.join(name));
        if there.exists() && !here.exists() {
            symlink(&there, &here).with_context(|| format!("cannot link {} to {}", here.display(), there.display()))?;
        }
    }
    Ok(())
}

/// Which figures are others than the other revision's, beyond noise: by more than [`NOISE`], and in every round the same way.
pub(crate) fn moved(tables: &[Table], base: &str) -> Vec<String> {
    let rows = tables.iter().filter_map(|table| {
        let column = table.columns.iter().position(|title| title == base)?;
        Some(table.rows.iter().filter_map(move |row| Some(format!("{}: {}", row.title(), shift(row, column, table.columns.len() - 1)?))))
    });
    rows.flatten().collect()
}

/// Rounds are compared one by one: what happened on the machine meanwhile happened to both.
fn shift(row: &Row, base: usize, own: usize) -> Option<String> {
    let ratios: Vec<_> = row.runs(own).iter().zip(row.runs(base)).map(|(own, base)| own / base).filter(|ratio| ratio.is_finite()).collect();
    let (low, high) = ratios.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), ratio| (low.min(*ratio), high.max(*ratio)));
    let middle = median(&ratios);
    let is_shift = (low > 1.0 || high < 1.0) && (middle - 1.0).abs() > NOISE;
    is_shift.then(|| format!("{middle:.3} of what it was ({low:.3} to {high:.3} in {} rounds)", ratios.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(base: &[f64], own: &[f64]) -> Vec<String> {
        let row = Row::new("TCP", "Gbit/s", vec![vec![40.0; base.len()], base.to_vec(), own.to_vec()]);
        let columns = ["host", "old", "ours"].map(str::to_owned).to_vec();
        moved(&[Table { scenario: "x", columns, references: vec![0, 1], rows: vec![row], notes: Vec::new() }], "old")
    }

    #[test]
    fn what_moves_the_same_way_in_every_round_has_moved() {
        assert_eq!(said(&[30.0, 20.0, 10.0], &[33.0, 22.0, 11.5]), ["TCP, Gbit/s: 1.100 of what it was (1.100 to 1.150 in 3 rounds)"]);
    }

    #[test]
    fn what_moves_to_and_fro_or_hardly_is_noise() {
        assert_eq!(said(&[30.0, 30.0, 30.0], &[36.0, 29.0, 36.0]), [""; 0]);
        assert_eq!(said(&[30.0, 30.0, 30.0], &[30.1, 30.2, 30.3]), [""; 0]);
    }

    #[test]
    fn a_table_without_the_other_revision_says_nothing() {
        assert_eq!(
            moved(&[Table { scenario: "x", columns: vec!["a".into()], references: vec![], rows: vec![], notes: vec![] }], "old"),
            [""; 0]
        );
    }
}
