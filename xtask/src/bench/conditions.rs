//! What makes runs comparable: the same for every contender, set before each scenario.

use std::process::Command;

use anyhow::Result;
use vm_tests::{Lab, Node, Place, process};

use super::bed::Bed;

/// The CPU that works for the first host, and the one for the second, where there are two.
pub(crate) const CPUS: [&str; 2] = ["0", "1"];

/// How a scenario wants the cables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conditions {
    /// What enters the underlay is cut to its MTU first and gathered by GRO at the other end, as on a wire.
    pub(crate) wire: bool,
    /// What comes to a host's or a container's cable is taken by that host's CPU (RPS). Otherwise by the CPU that sent it.
    pub(crate) steered: bool,
}

impl Conditions {
    /// Offloads on, nothing steered.
    pub(crate) const USUAL: Self = Self { wire: false, steered: false };
}

/// Sets everything up for a scenario.
pub(crate) fn prepare(bed: &Bed, conditions: Conditions) -> Result<()> {
    for lab in bed.labs() {
        for host in [1, 2] {
            offloads(&lab.node(Place::Host(host))?, !conditions.wire)?;
        }
        settle(lab)?;
        for place in lab.config().places() {
            let node = lab.node(place)?;
            steer(&node, if conditions.steered { u32::from(place.host()) } else { 0 })?;
        }
    }
    Ok(())
}

/// What every lab that is measured wants.
pub(crate) fn settle(lab: &Lab) -> Result<()> {
    lab.config().places().into_iter().try_for_each(|place| like_conditions(&lab.node(place)?))
}

fn offloads(host: &Node<'_>, on: bool) -> Result<()> {
    let (on, gro) = if on { ("on", "off") } else { ("off", "on") };
    let flags = ["tso", "tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];
    let mut words = vec!["ethtool", "-K", "eth0", "gro", gro];
    words.extend(flags.iter().flat_map(|flag| [*flag, on]));
    host.exec(words).map(drop)
}

/// `tcp_no_metrics_save`: a connection must not start with what an earlier one, perhaps of another contender, learned
/// of the path. `tcp_rmem`: the receive window is open from the start (its largest value is the kernel's own). With
/// both ends on one CPU and a window that still grows, the sender has more unsent than the window takes, and sends it
/// from the receiver's window updates: in the receiver's process, under its socket's lock, into its backlog. That state
/// halves the figure of any path, host to host as well, and lasts for seconds or for none, by chance.
fn like_conditions(place: &Node<'_>) -> Result<()> {
    let settings = ["tcp_no_metrics_save=1", "tcp_rmem=4096 16777216 33554432"];
    let words = settings.iter().map(|setting| format!("net.ipv4.{setting}"));
    place.exec(["sysctl".to_owned(), "-qw".to_owned()].into_iter().chain(words)).map(drop)
}

/// What comes to this place is taken by these CPUs (a mask), or by the one that sent it (0). One CPU of the two and not both: the kernel would
/// choose by each run's ports, and runs would fall into two classes.
pub(crate) fn steer(place: &Node<'_>, mask: u32) -> Result<()> {
    let shown = place.exec(["ip", "-brief", "link", "show", "type", "veth"])?;
    let devices = shown.lines().filter_map(|line| line.split(['@', ' ']).next());
    let queues = |device: &str| format!("for queue in /sys/class/net/{device}/queues/rx-*; do echo {mask:x} > $queue/rps_cpus; done\n");
    let script: String = devices.map(queues).collect();
    // /sys has the devices of the namespace in which it was mounted: `ip netns exec` mounts it anew.
    process::output(Command::new("ip").args(["netns", "exec", &place.netns(), "sh", "-ec", &script])).map(drop)
}
