//! Links: find, create, change, delete.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::netns::Netns;
use super::socket::{Error, Netlink, Result, explain};
use crate::addr::Mac;

/// How long a link that was set up is given to run: half a second.
const RUNNING_LOOKS: u32 = 250;
const RUNNING_PAUSE: Duration = Duration::from_millis(2);

/// An interface, as far as we care.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Its Ethernet address; `None` if it has no Ethernet header.
    pub mac: Option<Mac>,
    /// Largest packet.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up, has a carrier, and sends: a little later than up.
    pub running: bool,
    /// The loopback interface.
    pub loopback: bool,
    /// `veth`, `vxlan`, …; empty for hardware.
    pub kind: String,
    /// Index of a veth's other end (in its namespace), or of what lies below.
    pub peer: Option<u32>,
    /// The note that its maker left.
    pub alias: String,
    /// The longest IPv4 segment that it is handed whole, bytes (`gso_ipv4_max_size`); `None` before Linux 6.3.
    pub gso: Option<u32>,
    /// The longest that its driver takes, bytes (`tso_max_size`); `None` before Linux 5.19.
    pub tso: Option<u32>,
}

/// A veth pair to be made.
#[derive(Clone, Debug)]
pub struct Veth<'a> {
    /// The end in the socket's namespace.
    pub name: &'a str,
    /// The other end.
    pub peer: &'a str,
    /// Where the other end is made; `None`: here too.
    pub peer_netns: Option<&'a Netns>,
    /// Of both ends.
    pub mtu: u32,
}

impl Netlink {
    /// Every link of the namespace.
    pub async fn links(&self) -> Result<Vec<Link>> {
        let all = self.dump("listing links", |handle| handle.link().get().execute()).await?;
        Ok(all.iter().map(parse).collect())
    }

    /// The link of this name, if there is one.
    pub async fn link_named(&self, name: &str) -> Result<Option<Link>> {
        let message = self.link_message(self.handle().link().get().match_name(name), name).await?;
        Ok(message.as_ref().map(parse))
    }

    /// The link of this index, if there is one.
    pub async fn link_at(&self, index: u32) -> Result<Option<Link>> {
        let message = self.link_message(self.handle().link().get().match_index(index), &format!("link {index}")).await?;
        Ok(message.as_ref().map(parse))
    }

    /// One link's message: for those within this module who need more of it.
    pub(super) async fn link_message(&self, request: rtnetlink::LinkGetRequest, name: &str) -> Result<Option<LinkMessage>> {
        let mut stream = std::pin::pin!(request.execute());
        match stream.try_next().await.map_err(explain(|| format!("looking for {name}"))) {
            Err(error) if error.is_not_found() => Ok(None),
            other => other,
        }
    }

    /// Make a veth pair, both ends down.
    pub async fn create_veth(&self, veth: &Veth<'_>) -> Result<()> {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::new().name(veth.peer).mtu(veth.mtu);
        if let Some(netns) = veth.peer_netns {
            peer = peer.setns_by_fd(netns.as_fd().as_raw_fd());
        }
        let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(veth.name)
            .mtu(veth.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())))
            .build();
        let place = veth.peer_netns.map_or("here", Netns::name);
        let what = || format!("creating {} with {} in {place}", veth.name, veth.peer);
        self.handle().link().add(message).execute().await.map_err(explain(what))
    }

    /// The link that was just made.
    pub(super) async fn made(&self, name: &str) -> Result<Link> {
        self.link_named(name).await?.ok_or_else(|| Error::invalid(format!("creating {name}"), "it was gone at once"))
    }

    /// Let it carry traffic.
    pub async fn set_up(&self, index: u32) -> Result<()> {
        self.change(link(index).up(), || format!("setting link {index} up")).await
    }

    /// Until it does carry traffic: the kernel drops what is sent in the moment before. Gives up quietly after a while, for a link may
    /// have no carrier for reasons of its own.
    pub async fn wait_running(&self, index: u32) -> Result<()> {
        for _ in 0..RUNNING_LOOKS {
            if self.link_at(index).await?.is_none_or(|link| link.running) {
                break;
            }
            tokio::time::sleep(RUNNING_PAUSE).await;
        }
        Ok(())
    }

    /// Let it carry none.
    pub async fn set_down(&self, index: u32) -> Result<()> {
        self.change(link(index).down(), || format!("setting link {index} down")).await
    }

    /// Change its largest packet.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        self.change(link(index).mtu(mtu), || format!("setting the MTU of link {index} to {mtu}")).await
    }

    /// Change the longest IPv4 segment that it is handed whole.
    pub async fn set_gso(&self, index: u32, bytes: u32) -> Result<()> {
        let message = link(index).append_extra_attribute(LinkAttribute::GsoIpv4MaxSize(bytes));
        self.change(message, || format!("setting gso_ipv4_max_size of link {index} to {bytes}")).await
    }

    /// Change how many packets wait for it.
    pub async fn set_queue_len(&self, index: u32, packets: u32) -> Result<()> {
        let message = link(index).append_extra_attribute(LinkAttribute::TxQueueLen(packets));
        self.change(message, || format!("setting the queue of link {index} to {packets}")).await
    }

    /// Change its Ethernet address.
    pub async fn set_mac(&self, index: u32, mac: Mac) -> Result<()> {
        self.change(link(index).address(mac.0.to_vec()), || format!("setting the address of link {index} to {mac}")).await
    }

    /// Change its name; it must be down.
    pub async fn rename(&self, index: u32, name: &str) -> Result<()> {
        self.change(link(index).name(name), || format!("renaming link {index} to {name}")).await
    }

    /// Leave a note on it.
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<()> {
        self.change(link(index).alias(alias), || format!("noting {alias:?} on link {index}")).await
    }

    /// Give it no IPv6 address of its own. A kernel without IPv6 gives none anyway.
    pub async fn without_ipv6(&self, index: u32) -> Result<()> {
        let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let message = link(index).append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![none]));
        match self.change(message, || format!("keeping IPv6 off link {index}")).await {
            Err(error) if matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => Ok(()),
            other => other,
        }
    }

    /// Delete it; a veth's other end goes too.
    pub async fn delete_link(&self, index: u32) -> Result<()> {
        self.handle().link().del(index).execute().await.map_err(explain(|| format!("deleting link {index}")))
    }

    async fn change(&self, message: LinkMessageBuilder<LinkUnspec>, what: impl FnOnce() -> String) -> Result<()> {
        self.handle().link().change(message.build()).execute().await.map_err(explain(what))
    }
}

fn link(index: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(index).interface_family(AddressFamily::Unspec)
}

pub(super) fn parse(message: &LinkMessage) -> Link {
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        running: message.header.flags.contains(LinkFlags::Running),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) if ethernet => {
                link.mac = <[u8; 6]>::try_from(&**bytes).ok().map(Mac);
            }
            LinkAttribute::GsoIpv4MaxSize(bytes) => link.gso = Some(*bytes),
            LinkAttribute::TsoMaxSize(bytes) => link.tso = Some(*bytes),
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
            LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
            _ => {}
        }
    }
    link
}

fn kind(infos: &[LinkInfo]) -> String {
    infos
        .iter()
        .find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind.to_string()),
            _ => None,
        })
        .unwrap_or_default()
}
