//! Mount namespaces: pins live in one, and end with it.

use std::fs::read_link;

/// Whether this process has a mount namespace that may end before the host does, as those of `ip netns exec` do.
pub fn is_private(process: &str) -> bool {
    let namespace = |process: &str| read_link(format!("/proc/{process}/ns/mnt")).ok();
    let (its, hosts) = (namespace(process), namespace("1"));
    its.is_some() && hosts.is_some() && its != hosts
}

/// What follows from it.
pub const PRIVATE: &str = "this agent was started in a mount namespace of its own (as `ip netns exec` and some service managers make), and the \
     data plane ends with that: start it with `nsenter --net=/run/netns/NAME weave-agent launch` instead";
