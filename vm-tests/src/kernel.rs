//! What the running kernel has: a test that needs more says so instead of failing.

use std::fs;
use std::sync::LazyLock;

use crate::vm::console::{LEFT_OUT, NEEDS, SKIPPED};

/// Whether the running kernel is of this release of Linux or a later one.
pub fn is_at_least(major: u32, minor: u32) -> bool {
    static RUNNING: LazyLock<Option<(u32, u32)>> =
        LazyLock::new(|| parse(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()));
    RUNNING.is_some_and(|running| running >= (major, minor))
}

/// Whether a test that needs a feature can run; if not, it is skipped, and said to need this release.
pub fn has(feature: &str, (major, minor): (u32, u32)) -> bool {
    let there = is_at_least(major, minor);
    if !there {
        println!("{SKIPPED}{NEEDS}{major}.{minor} ({feature})");
    }
    there
}

/// Whether a part of a test can run; if not, it is said to be left out, and to need this release.
pub fn has_for(part: &str, feature: &str, (major, minor): (u32, u32)) -> bool {
    let there = is_at_least(major, minor);
    if !there {
        println!("{LEFT_OUT}{part}: {NEEDS}{major}.{minor} ({feature})");
    }
    there
}

fn parse(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        assert_eq!(parse("6.1.0-50-cloud-amd64\n"), Some((6, 1)));
        assert_eq!(parse("7.2.12+deb13-cloud-amd64"), Some((7, 2)));
        assert_eq!(parse("7.0-rc1"), Some((7, 0)));
        assert_eq!(parse(""), None);
    }
}
