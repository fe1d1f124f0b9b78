//! The test bed: two bare hosts with a bridge and a kernel vxlan, and two hosts with agents, each pair on one cable.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use vm_tests::{Lab, LabConfig, Node, Place, Underlay};

use super::Scenario;

/// The bridge network's containers.
const BRIDGED: [&str; 2] = ["10.33.0.1", "10.33.0.2"];

/// A way from one place to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contender {
    /// Host to host, no overlay.
    Host,
    /// A bridge and a kernel vxlan device on each host.
    Bridge,
    /// weave-agent.
    Ours,
}

impl Contender {
    pub(crate) const ALL: [Self; 3] = [Self::Host, Self::Bridge, Self::Ours];

    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Host => "host to host",
            Self::Bridge => "bridge + kernel vxlan",
            Self::Ours => "weave-agent",
        }
    }
}

/// Two places and the address of the second.
pub(crate) struct Path<'a> {
    pub(crate) from: Node<'a>,
    pub(crate) to: Node<'a>,
    pub(crate) address: String,
}

/// Both labs.
pub(crate) struct Bed {
    bare: Lab,
    ours: Lab,
}

impl Bed {
    /// Makes them; they go when this is dropped.
    pub(crate) fn make() -> Result<Self> {
        let config = |name| LabConfig { containers: 1, underlay: Underlay::Direct, ..LabConfig::named(name) };
        let bare = Lab::scenario(config("bare").without_agents())?;
        bridge(&bare)?;
        let ours = Lab::scenario(config("bench"))?;
        let bed = Self { bare, ours };
        for contender in Contender::ALL {
            let path = bed.path(contender)?;
            let address = path.address.parse::<std::net::IpAddr>()?;
            vm_tests::wait_for("the two ends to reach each other", Duration::from_secs(20), || path.from.reaches(address))?;
        }
        Ok(bed)
    }

    /// Where this contender's traffic runs.
    pub(crate) fn path(&self, contender: Contender) -> Result<Path<'_>> {
        let (lab, places, address) = match contender {
            Contender::Host => (&self.bare, [Place::Host(1), Place::Host(2)], self.bare.host(2)?.address().to_string()),
            Contender::Bridge => (&self.bare, [Place::Container(1, 1), Place::Container(2, 1)], BRIDGED[1].to_owned()),
            Contender::Ours => {
                (&self.ours, [Place::Container(1, 1), Place::Container(2, 1)], self.ours.overlay_address("h2c1")?.to_string())
            }
        };
        Ok(Path { from: lab.node(places[0])?, to: lab.node(places[1])?, address })
    }

    /// Offloads as the scenario wants them. No packet steering: it picks a CPU by each run's ports, and runs fall into two classes.
    pub(crate) fn prepare(&self, scenario: Scenario) -> Result<()> {
        for lab in [&self.bare, &self.ours] {
            for host in [1, 2] {
                offloads(&lab.node(Place::Host(host))?, scenario != Scenario::Wire)?;
            }
            for place in lab.config().places() {
                like_conditions(&lab.node(place)?)?;
            }
        }
        Ok(())
    }
}

/// `false`: what enters the underlay is cut to its MTU first and gathered by GRO at the other end, as on a wire.
fn offloads(host: &Node<'_>, on: bool) -> Result<()> {
    let (on, gro) = if on { ("on", "off") } else { ("off", "on") };
    let flags = ["tso", "tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];
    let mut words = vec!["ethtool", "-K", "eth0", "gro", gro];
    words.extend(flags.iter().flat_map(|flag| [*flag, on]));
    host.exec(words).map(drop)
}

/// What makes runs comparable, the same for every contender.
///
/// `tcp_no_metrics_save`: a connection must not start with what an earlier one, perhaps of another contender, learned
/// of the path. `tcp_rmem`: the receive window is open from the start (its largest value is the kernel's own). With
/// both ends on one CPU and a window that still grows, the sender has more unsent than the window takes, and sends it
/// from the receiver's window updates: in the receiver's process, under its socket's lock, into its backlog. That state
/// halves the figure of any path, host to host as well, and lasts for seconds or for none, by chance.
pub(crate) fn like_conditions(place: &Node<'_>) -> Result<()> {
    let settings = ["tcp_no_metrics_save=1", "tcp_rmem=4096 16777216 33554432"];
    let words = settings.iter().map(|setting| format!("net.ipv4.{setting}"));
    place.exec(["sysctl".to_owned(), "-qw".to_owned()].into_iter().chain(words)).map(drop)
}

pub(crate) fn bridge(lab: &Lab) -> Result<()> {
    for number in [1, 2] {
        let host = lab.host(number)?;
        let container = lab.node(Place::Container(number, 1))?;
        let (local, remote) = (host.address(), lab.host(3 - number)?.address());
        let commands = format!(
            "link add br0 type bridge\nlink add vx0 type vxlan id 42 local {local} remote {remote} dstport 4789\n\
             link set vx0 master br0 up\nlink set br0 up\nlink add port type veth peer name ethwe netns {}\n\
             link set port master br0 up\n",
            container.netns()
        );
        batch(&host, &commands)?;
        let address = BRIDGED[usize::from(number) - 1];
        batch(&container, &format!("link set ethwe mtu 1500 up\naddr add {address}/24 dev ethwe\n"))?;
    }
    Ok(())
}

fn batch(place: &Node<'_>, commands: &str) -> Result<()> {
    let file = tempfile()?;
    fs::write(&file, commands)?;
    let result = place.exec(["ip", "-batch", &file]).with_context(|| commands.to_owned());
    fs::remove_file(&file)?;
    result.map(drop)
}

fn tempfile() -> Result<String> {
    Ok(std::env::temp_dir().join(format!("weave-bench-{}", std::process::id())).display().to_string())
}
