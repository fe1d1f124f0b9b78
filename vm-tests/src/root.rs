//! Tests that need root.

use std::env;

use nix::unistd::Uid;

/// Whether a test that needs root can run. In CI (`CI=true`) it must: there, not being root is a failure.
pub fn is_root() -> bool {
    let root = Uid::effective().is_root();
    let ci = env::var_os("CI").is_some_and(|value| value == "true");
    assert!(
        root || !ci,
        "this test needs root, and in CI (CI=true) it must not be skipped"
    );
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}
