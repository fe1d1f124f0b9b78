//! Puts the eBPF object that `cargo xtask build-ebpf` makes where `src/io/object.rs` includes it from.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=WEAVE_BPF_OBJECT");
    if env::var_os("CARGO_FEATURE_IO").is_none() {
        println!("cargo::rerun-if-changed=build.rs");
        return Ok(());
    }
    let object = object()?;
    println!("cargo::rerun-if-changed={}", object.display());
    fs::write(out_file()?, read(&object)?)?;
    Ok(())
}

fn object() -> Result<PathBuf, Box<dyn Error>> {
    if let Some(path) = env::var_os("WEAVE_BPF_OBJECT") {
        return Ok(PathBuf::from(path));
    }
    let package = env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?;
    let workspace = Path::new(&package).parent().ok_or("the package is in a workspace")?;
    Ok(workspace.join("target/weave.bpf.o"))
}

fn out_file() -> Result<PathBuf, Box<dyn Error>> {
    Ok(Path::new(&env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?).join("weave.bpf.o"))
}

/// No object is an empty one: everything compiles, and the agent says at run time what to do. The empty file is left
/// behind because cargo runs a build script that watches a missing file again every time.
fn read(object: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    if !object.exists() {
        if let Some(dir) = object.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(object, [])?;
    }
    fs::read(object).map_err(|error| format!("cannot read {}: {error}", object.display()).into())
}
