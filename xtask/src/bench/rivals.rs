//! What others give those who join two hosts: between the hosts of a lab, without our agents.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use vm_tests::{Host, Lab, Node, OpenVswitch, Place, Running, lab_dir, process, wait_for};

/// Of the bridge network's containers.
pub(crate) const BRIDGED: [&str; 2] = ["10.33.0.1", "10.33.0.2"];
/// Of the two hosts, inside WireGuard.
pub(crate) const SEALED: [&str; 2] = ["10.34.0.1", "10.34.0.2"];
/// Of Open vSwitch's containers.
pub(crate) const SWITCHED: [&str; 2] = ["10.36.0.1", "10.36.0.2"];

/// A bridge and a kernel vxlan device on each host, for their first containers.
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
        addressed(&container, BRIDGED[usize::from(number) - 1])?;
    }
    Ok(())
}

/// Open vSwitch with its own programs on each host: a bridge with a vxlan port, for their second containers.
pub(crate) fn openvswitch(lab: &Lab) -> Result<Vec<OpenVswitch>> {
    let mut running = Vec::new();
    for number in [1, 2] {
        let host = lab.host(number)?;
        let container = lab.node(Place::Container(number, 2))?;
        batch(&host, &format!("link add port2 type veth peer name ethwe netns {}\nlink set port2 up\n", container.netns()))?;
        let switch = OpenVswitch::start(&host)?;
        let remote = format!("options:remote_ip={}", lab.host(3 - number)?.address());
        let tunnel = ["--", "set", "interface", "ovs-vx", "type=vxlan", &remote, "options:key=43", "options:dst_port=4790"];
        switch.set(
            &host,
            &[&["add-br", "ovs-br", "--", "add-port", "ovs-br", "port2", "--", "add-port", "ovs-br", "ovs-vx"], &tunnel[..]].concat(),
        )?;
        addressed(&container, SWITCHED[usize::from(number) - 1])?;
        running.push(switch);
    }
    Ok(running)
}

/// WireGuard between the two hosts. `device` makes a device of this name, or starts what makes it.
pub(crate) fn wireguard(lab: &Lab, device: fn(&Host<'_>, &str) -> Result<Option<Running>>) -> Result<Vec<Running>> {
    let (one, two) = (lab.host(1)?, lab.host(2)?);
    let keys = [one.exec(["wg", "genkey"])?, two.exec(["wg", "genkey"])?];
    let mut running = Vec::new();
    for (at, host) in [&one, &two].into_iter().enumerate() {
        let (own, other) = (&keys[at], &keys[1 - at]);
        let file = |name: &str| lab_dir(&lab.config().name).join(format!("{name}{at}")).display().to_string();
        let (private, public) = (file("private"), file("public"));
        fs::write(&private, own)?;
        fs::write(&public, other)?;
        let public = host.exec(["sh", "-c", &format!("wg pubkey < {public}")])?;
        // Names of WireGuard's control sockets are the machine's, not the namespace's.
        let name = format!("wgbench{at}");
        running.extend(device(host, &name)?);
        let peer = lab.host(2 - at as u8)?.address();
        let own_port = format!("5182{at}");
        let endpoint = format!("{peer}:5182{}", 1 - at);
        let words = ["wg", "set", &name, "listen-port", &own_port, "private-key", &private, "peer", public.trim()];
        host.exec(words.into_iter().chain(["endpoint", &endpoint, "allowed-ips", "10.34.0.0/24"]))?;
        host.exec(["ip", "address", "add", &format!("{}/24", SEALED[at]), "dev", &name])?;
        host.exec(["ip", "link", "set", &name, "mtu", "1470", "up"])?;
    }
    Ok(running)
}

/// The kernel's own WireGuard.
pub(crate) fn in_kernel(host: &Host<'_>, name: &str) -> Result<Option<Running>> {
    host.exec(["ip", "link", "add", name, "type", "wireguard"]).map(|_| None)
}

/// Debian's wireguard-go.
pub(crate) fn in_user_space(host: &Host<'_>, name: &str) -> Result<Option<Running>> {
    let running = host.spawn(["wireguard-go", "-f", name])?;
    wait_for("wireguard-go", Duration::from_secs(10), || Ok(host.exec(["ip", "link", "show", name]).is_ok()))?;
    Ok(Some(running))
}

/// Gives a container's cable an address.
pub(crate) fn addressed(container: &Node<'_>, address: &str) -> Result<()> {
    batch(container, &format!("link set ethwe mtu 1500 up\naddr add {address}/24 dev ethwe\n"))
}

/// Lines of `ip` commands, without the word `ip`.
pub(crate) fn batch(place: &Node<'_>, commands: &str) -> Result<()> {
    process::feed(place.command("ip")?.args(["-batch", "-"]), commands)
}
