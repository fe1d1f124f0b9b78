//! What is written down about a lab, so that another process can use it and take it down.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::LabConfig;

/// What is written down about a lab; the rest follows from the address plan.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// What it was made from.
    pub config: LabConfig,
    /// Pairs of hosts that cannot reach each other, the lower first.
    pub cuts: BTreeSet<(u8, u8)>,
    /// The process that takes the lab down when it ends; none for one that stays.
    pub owner: Option<u32>,
}

impl Record {
    pub(crate) fn read(name: &str) -> Result<Self> {
        let path = lab_dir(name).join("lab.json");
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!("there is no lab `{name}`: `cargo xtask lab up --name {name}` makes one")
            }
            Err(error) => Err(anyhow!(error).context(format!("cannot read {}", path.display()))),
        }
    }

    /// Written beside and renamed, so that no reader sees half of it.
    pub(crate) fn write(&self) -> Result<()> {
        let dir = lab_dir(&self.config.name);
        let new = dir.join("lab.json.new");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        fs::write(&new, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&new, dir.join("lab.json")))
            .with_context(|| format!("cannot write {}", new.display()))
    }

    /// All labs of this workspace. One whose record cannot be read is left alone.
    pub(crate) fn all() -> Vec<Self> {
        let entries = fs::read_dir(labs_dir()).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| Self::read(&name).ok()).collect()
    }

    /// Whether its owner died without taking it down.
    pub(crate) fn is_orphan(&self) -> bool {
        self.owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    }
}

/// Where a lab keeps its record, its agents' files and its logs.
pub fn lab_dir(name: &str) -> PathBuf {
    labs_dir().join(name)
}

fn labs_dir() -> PathBuf {
    env::var_os("WEAVE_LAB_DIR").map_or_else(|| workspace_target().join("lab"), PathBuf::from)
}

/// The workspace's target folder. The package folder is asked of cargo first: the program may have been built elsewhere.
pub(crate) fn workspace_target() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let workspace = Path::new(&package).parent().unwrap_or(Path::new(".")).to_owned();
    workspace.join("target")
}
