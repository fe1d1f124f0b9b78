//! The eBPF programs, inside the agent.

use anyhow::{Result, ensure};

/// The object that `cargo xtask build-ebpf` made, aligned for a loader; empty when the agent was built without.
pub const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weave.bpf.o"));

/// The eBPF object, or what to do about its absence.
pub fn programs() -> Result<&'static [u8]> {
    ensure!(!OBJECT.is_empty(), "built without eBPF programs: run `cargo xtask build-ebpf`");
    Ok(OBJECT)
}
