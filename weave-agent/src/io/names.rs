//! Names: the server, and the place where containers reach it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;
use tokio::time::timeout;

use super::dns::{self, Server};
use super::net::{NAMESERVER, NAMESERVER_6, Nameserver, Netlink, Netns, Port, lead_to_nameserver, nameserver_mac};
use crate::addr::Mac;
use crate::config::Dns;
use crate::dns::{Name, Zone};
use crate::peer::PeerName;

/// Where every resolver asks.
const PORT: u16 = 53;
/// For a change of a name to be answered: it takes as long as it takes to look at all names.
const PATIENCE: Duration = Duration::from_secs(2);

/// What answers queries. Copies are the same server, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct Names {
    /// Settings.
    pub config: Dns,
    /// What is answered now.
    pub zone: watch::Receiver<Arc<Zone>>,
    server: Arc<Server>,
    place: Option<Arc<Nameserver>>,
    mac: Mac,
}

impl Names {
    /// Starts to answer. Without a place where containers reach it, it answers on the host all the same.
    ///
    /// # Errors
    /// When it cannot listen where the user wants it to.
    pub async fn start(host: &Netlink, config: &Dns, name: PeerName, mtu: u32, zone: watch::Receiver<Arc<Zone>>) -> anyhow::Result<Self> {
        let server = Server::new(zone.clone(), dns::Config { resolv_conf: config.resolv_conf.clone(), ..dns::Config::default() });
        for address in &config.listen {
            server.listen(*address).await.with_context(|| format!("--dns-listen-address {address}"))?;
        }
        let mac = nameserver_mac(name);
        let place = match place(host, &server, mac, mtu).await {
            Ok(place) => Some(Arc::new(place)),
            Err(error) => {
                tracing::error!("containers cannot reach the name server: {error:#}");
                None
            }
        };
        Ok(Self { config: config.clone(), zone, server: Arc::new(server), place, mac })
    }

    /// Its port, for the switch; it is no container's.
    pub fn port(&self) -> Option<&Port> {
        self.place.as_deref().map(Nameserver::port)
    }

    /// Lets a container reach it.
    pub async fn lead(&self, container: &Netns, ifname: &str) {
        if self.place.is_none() {
            return;
        }
        if let Err(error) = lead_to_nameserver(container, ifname, self.mac).await {
            tracing::warn!(%error, "{} cannot reach the name server", container.name());
        }
    }

    /// Waits until a name is answered with these addresses, or with none of them: whoever is told that a name is there, or gone, may ask
    /// for it at once. An agent that is busy is not waited for forever.
    pub async fn answered(&self, name: &Name, addresses: &[IpAddr], there: bool) {
        let mut zone = self.zone.clone();
        let is_so = |zone: &Arc<Zone>| {
            let found = zone.addresses(name);
            addresses.iter().all(|address| found.contains(address) == there)
        };
        if timeout(PATIENCE, zone.wait_for(is_so)).await.is_err() {
            tracing::debug!(%name, "the change of a name is not answered yet");
        }
    }

    /// For people.
    pub fn status(&self) -> dns::Status {
        self.server.status()
    }
}

async fn place(host: &Netlink, server: &Server, mac: Mac, mtu: u32) -> anyhow::Result<Nameserver> {
    let place = Nameserver::new(host, mac, mtu).await?;
    server.listen_in(place.netns(), SocketAddr::new(NAMESERVER.into(), PORT)).await?;
    if let Err(error) = server.listen_in(place.netns(), SocketAddr::new(NAMESERVER_6.into(), PORT)).await {
        tracing::warn!(%error, "the name server has no IPv6 address");
    }
    Ok(place)
}
