//! Tests that need root.

use std::env;

use nix::unistd::Uid;

/// Whether this process may make network namespaces.
pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Whether this is a CI run, in which nothing may be skipped.
pub fn is_ci() -> bool {
    env::var_os("CI").is_some_and(|value| value == "true")
}

/// Whether a test that needs root can run; elsewhere than in CI it is skipped without.
pub fn root_or_skip() -> bool {
    assert!(is_root() || !is_ci(), "this test needs root, and in CI (CI=true) it must not be skipped");
    if !is_root() {
        eprintln!("skipped: needs root");
    }
    is_root()
}
