//! Mount namespaces: pins live in one, and end with it.

use std::fs::{read_link, read_to_string};
use std::path::PathBuf;

/// Whether this process has a mount namespace that may end before the host does, as those of `ip netns exec` do.
pub fn is_private(process: &str) -> bool {
    let hosts = namespace("1").or_else(|| is_kernels("2").then(|| namespace("2")).flatten());
    hosts.zip(namespace(process)).is_some_and(|(hosts, its)| hosts != its)
}

fn namespace(process: &str) -> Option<PathBuf> {
    read_link(format!("/proc/{process}/ns/mnt")).ok()
}

/// Some hosts let nobody look at their first process. The kernel's threads are where it was at first.
fn is_kernels(process: &str) -> bool {
    read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name.trim() == "kthreadd")
}

/// What follows from it.
pub const PRIVATE: &str = "this agent was started in a mount namespace of its own (as `ip netns exec` and some service managers make), and the \
     data plane ends with that: start it with `nsenter --net=/run/netns/NAME weave-agent launch` instead";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_process_and_those_that_are_not_there_are_not_private() {
        assert!(!is_private("1") && !is_private("0"));
    }
}
