//! Where things are: the workspace, what is built in it, and the cargo that builds it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

/// The workspace this program was built from.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    pub(crate) fn find() -> Result<Self> {
        let crate_dir = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&crate_dir).parent().context("xtask is not inside a workspace")?;
        Ok(Self { root: root.to_owned() })
    }

    /// A file of the workspace's.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// What these commands fetch and make for themselves; always in the workspace, wherever cargo builds.
    pub(crate) fn own(&self, name: &str) -> PathBuf {
        self.root.join("target").join(name)
    }

    /// The eBPF object that `weave-agent/build.rs` puts into the agent.
    pub(crate) fn bpf_object(&self) -> PathBuf {
        self.own("weave.bpf.o")
    }

    /// The agent that `build-ebpf` builds.
    pub(crate) fn agent(&self) -> PathBuf {
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.own(""), |dir| self.root.join(dir));
        target.join("release/weave-agent")
    }

    /// Whether a package has this integration test.
    pub(crate) fn has_test(&self, package: &str, target: &str) -> bool {
        let tests = self.root.join(package).join("tests");
        tests.join(format!("{target}.rs")).exists() || tests.join(target).join("main.rs").exists()
    }

    /// The cargo that runs this program, without the variables it set to describe this package: build scripts that
    /// look at them would run again each time.
    pub(crate) fn cargo(&self, verb: &str) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.arg(verb).current_dir(&self.root);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                cargo.env_remove(&name);
            }
        }
        cargo
    }
}
