//! Where containers reach the name server: a namespace of the agent's own, on the network by an ordinary port.
//!
//! A socket inside a container's namespace would be simpler to reach, and keep that namespace, its interface and its addresses alive after
//! the last process has gone; no option of a socket prevents that. So the agent has one namespace of its own, which ends with the agent,
//! attached to the switch like a container. Its addresses are the same on every host; containers have a route to them and a permanent
//! neighbour entry with the Ethernet address of *their* host's name server, so that no frame for it is ever flooded or answered by another
//! host. That address is made from the peer's name and survives restarts of the agent, as the entries must.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::Path;

use ipnet::IpNet;
use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::{RouteMessage, RouteScope};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::RouteMessageBuilder;

use super::attach::{ONE_AT_A_TIME, Pair, delete_on_failure, free_name};
use super::link::Veth;
use super::netns::Netns;
use super::ports::{Owner, Port, PortKind, container_alias};
use super::socket::{Error, Netlink, Result, explain};
use super::undo::{Undo, to_the_end};
use super::{CONTAINER_IFNAME, sysctl};
use crate::addr::Mac;
use crate::peer::PeerName;

/// What containers have in their `resolv.conf`.
pub const NAMESERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 83, 53);
/// The same for containers that have no IPv4 address.
pub const NAMESERVER_6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0x6561, 0x7665, 0, 0, 0, 0, 0x53);

/// What messages call its namespace.
const NAME: &str = "the name server";

/// The Ethernet address of a peer's name server: not the peer's name itself, which may be in use elsewhere.
pub fn nameserver_mac(PeerName(mut bytes): PeerName) -> Mac {
    bytes[0] ^= 4;
    Mac(bytes)
}

/// The namespace that the name server listens in. It lives as long as this, or a socket inside.
#[derive(Debug)]
pub struct Nameserver {
    netns: Netns,
    port: Port,
    _file: File,
}

impl Nameserver {
    /// Makes the namespace, and attaches it. On failure nothing is left behind; dropping the future does not stop it half-way.
    pub async fn new(host: &Netlink, mac: Mac, mtu: u32) -> Result<Self> {
        let host = host.clone();
        let work = async move {
            let _turn = ONE_AT_A_TIME.lock().await;
            let (netns, file) = make().await?;
            let mut undo = Undo::default();
            match build(&host, &netns, mac, mtu, &mut undo).await {
                Ok(port) => Ok(Self { netns, port, _file: file }),
                Err(error) => {
                    for left in undo.run().await {
                        tracing::warn!(%left, "left behind");
                    }
                    Err(error)
                }
            }
        };
        to_the_end("making the name server's namespace", work).await
    }

    /// Where to listen, at [`NAMESERVER`] and [`NAMESERVER_6`].
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its port, for the switch.
    pub fn port(&self) -> &Port {
        &self.port
    }
}

/// Lets an attached container reach the name server of this host. Repeating it changes nothing but what is out of date.
pub async fn lead_to_nameserver(target: &Netns, ifname: &str, mac: Mac) -> Result<()> {
    let inside = target.netlink().await?;
    let link = inside.made(ifname).await?;
    lead(&inside, link.index, NAMESERVER.into(), mac).await?;
    let has = inside.given_addresses(link.index).await?;
    if has.iter().any(|net| net.addr().is_ipv6()) {
        lead(&inside, link.index, NAMESERVER_6.into(), mac).await?;
    }
    Ok(())
}

async fn lead(inside: &Netlink, ifindex: u32, address: IpAddr, mac: Mac) -> Result<()> {
    let route = inside.handle().route().add(direct(ifindex, IpNet::from(address))).replace();
    route.execute().await.map_err(explain(|| format!("adding a route to {address}")))?;
    let entry = inside.handle().neighbours().add(ifindex, address).link_layer_address(&mac.0).state(NeighbourState::Permanent).replace();
    entry.execute().await.map_err(explain(|| format!("noting that {address} is at {mac}")))
}

/// Straight out of an interface.
fn direct(ifindex: u32, destination: IpNet) -> RouteMessage {
    match destination {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .output_interface(ifindex)
            .scope(RouteScope::Link)
            .build(),
        IpNet::V6(net) => {
            RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(net.addr(), net.prefix_len()).output_interface(ifindex).build()
        }
    }
}

/// A new namespace without a name: it cannot outlive us, and agents in one mount namespace do not meet.
async fn make() -> Result<(Netns, File)> {
    let make = || {
        // On a thread of its own, which ends in there.
        let make = || unshare(CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from).and_then(|()| File::open("/proc/thread-self/ns/net"));
        std::thread::scope(|scope| scope.spawn(make).join()).unwrap_or_else(|_| Err(std::io::Error::other("the thread panicked")))
    };
    let what = || format!("making a network namespace for {NAME}");
    let made = tokio::task::spawn_blocking(make).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    let file = made.map_err(|error| Error::new(what(), error))?;
    // The way in for other processes too, `nsenter --net=` for one.
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    Ok((Netns::open(Path::new(&path))?.named(NAME), file))
}

async fn build(host: &Netlink, netns: &Netns, mac: Mac, mtu: u32, undo: &mut Undo) -> Result<Port> {
    let name = free_name(host, netns.id().ino).await?;
    let inside = netns.netlink().await?;
    let veth = Veth { name: &name, peer: CONTAINER_IFNAME, peer_netns: Some(netns), mtu };
    host.create_veth(&veth).await?;
    delete_on_failure(host, &name, undo);
    let (outer, inner) = (host.made(&name).await?, inside.made(CONTAINER_IFNAME).await?);
    host.without_ipv6(outer.index).await?;
    sysctl::settle_port(&name);
    netns.run(|| sysctl::settle_nameserver(CONTAINER_IFNAME)).await?;
    inside.set_mac(inner.index, mac).await?;
    let addresses = [IpNet::from(IpAddr::V4(NAMESERVER)), IpNet::from(IpAddr::V6(NAMESERVER_6))];
    for address in addresses {
        match inside.add_address(inner.index, address).await {
            // A kernel without IPv6.
            Err(error) if address.addr().is_ipv6() => tracing::info!(%error, "no IPv6 for {NAME}"),
            added => added?,
        }
    }
    let pair = Pair { host: host.clone(), outer, inside, inner, made_as: name.clone() };
    pair.set_up().await?;
    let lo = pair.inside.made("lo").await?;
    pair.inside.set_up(lo.index).await?;
    // Containers have addresses of any network: all of them are on this one link.
    answer_everybody(&pair, addresses).await?;
    pair.host.set_alias(pair.outer.index, &container_alias(netns.id(), CONTAINER_IFNAME, &name)).await?;
    let owner = Owner { kind: PortKind::Container(netns.id()), made_as: name, netns: Some(netns.path().to_owned()) };
    let inner = pair.inside.made(CONTAINER_IFNAME).await?;
    Ok(Port::new(&pair.outer, owner, &inner, addresses.to_vec()))
}

async fn answer_everybody(pair: &Pair, addresses: [IpNet; 2]) -> Result<()> {
    let everybody = [IpNet::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), IpNet::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED))];
    for (address, everybody) in addresses.iter().zip(everybody) {
        let everybody = IpNet::new_assert(everybody.addr(), 0);
        let route = pair.inside.handle().route().add(direct(pair.inner.index, everybody)).replace();
        match route.execute().await.map_err(explain(|| format!("routing {everybody} for {NAME}"))) {
            Err(error) if address.addr().is_ipv6() => tracing::info!(%error, "no IPv6 for {NAME}"),
            added => added?,
        }
    }
    Ok(())
}
