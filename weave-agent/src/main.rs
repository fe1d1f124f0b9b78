//! The `weave-agent` program.
fn main() {}
