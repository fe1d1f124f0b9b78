//! Putting the agent where cargo installs programs.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context, Result};

/// Installs a program over whatever is there, running or not: the new file takes the old one's name in one step.
pub(crate) fn install(program: &Path) -> Result<((), String)> {
    let dir = bin_dir()?;
    let name = program.file_name().context("the program has no name")?;
    let target = dir.join(name);
    if fs::read(program)? == fs::read(&target).unwrap_or_default() {
        return Ok(((), told(&target, " is up to date", &dir)));
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    replace(program, &target).with_context(|| format!("cannot write {}", target.display()))?;
    Ok(((), told(&target, "", &dir)))
}

/// `fs::copy` keeps the mode, so the program is executable before it has its name.
fn replace(program: &Path, target: &Path) -> Result<()> {
    let new = target.with_extension(format!("new-{}", process::id()));
    let replaced = fs::copy(program, &new).and_then(|_| fs::rename(&new, target));
    if replaced.is_err() {
        let _ = fs::remove_file(&new);
    }
    Ok(replaced?)
}

fn told(target: &Path, state: &str, dir: &Path) -> String {
    let warning = if is_on_path(dir) {
        String::new()
    } else {
        format!("\n    warning: {0} is not on PATH; run `export PATH=\"{0}:$PATH\"`", dir.display())
    };
    format!("{}{state}{warning}", target.display())
}

fn is_on_path(dir: &Path) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|entry| entry == dir)
}

/// The same folder that `cargo install` uses.
fn bin_dir() -> Result<PathBuf> {
    let from = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = from("CARGO_INSTALL_ROOT").or_else(|| from("CARGO_HOME"));
    let root = root.or_else(|| from("HOME").map(|home| home.join(".cargo")));
    Ok(root.context("neither CARGO_HOME nor HOME is set: cannot tell where programs go; use --no-install")?.join("bin"))
}
