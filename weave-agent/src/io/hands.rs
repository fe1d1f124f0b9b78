//! Attach and detach: what takes time, done beside the loop. Expose and hide are in [`super::exposure`].

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use tokio::sync::watch;

use super::api::{Answer, Refusal, answer, body};
use super::event::{Event, Events};
use super::net::docker::Docker;
use super::net::{
    self, AttachError, AttachSpec, Attached, CONTAINER_IFNAME, DetachError, Detached, Netlink, Netns, Port, PortKind, Target,
};
use super::net::{TargetError, ports};
use super::store::State;
use crate::status::Attachment;

/// What the host itself is called among the attached.
pub const EXPOSED: &str = "weave:expose";

/// Changes the host's network and tells the loop.
#[derive(Clone, Debug)]
pub struct Hands {
    /// The host's namespace.
    pub host: Netlink,
    /// Who knows containers by name.
    pub docker: Docker,
    /// The way to the loop.
    pub events: Events,
    /// What is kept.
    pub state: watch::Sender<State>,
    /// The neighbours' outer addresses.
    pub neighbours: watch::Receiver<Vec<Ipv4Addr>>,
    /// MTU for containers, if the user said so.
    pub mtu: Option<u32>,
}

impl Hands {
    /// The MTU that a container gets now.
    pub async fn mtu(&self) -> u32 {
        let neighbours = self.neighbours.borrow().clone();
        match self.mtu {
            Some(mtu) => mtu,
            None => net::mtu_for(&self.host, &neighbours).await,
        }
    }

    /// `POST /attach`
    pub async fn attach(&self, asked: body::Attach) -> Answer {
        if asked.addresses.is_empty() {
            return Err(Refusal::bad_request("no address: this version does not allocate, so say which one, like 10.32.1.1/16"));
        }
        let target = self.find(&asked.target).await?;
        let spec = AttachSpec::new(asked.addresses, self.mtu().await);
        let attached = net::attach(&self.host, &target, &spec).await.map_err(refused_attach)?;
        self.plug_or_undo(&attached, &target).await?;
        self.remember(&attached.port, &asked.target).await;
        let announced = net::announce(&target, &attached.port.ifname, attached.port.mac, &attached.added).await;
        log_unannounced(announced, &asked.target);
        answer(&body::Changed { changed: attached.added, addresses: attached.port.addrs })
    }

    /// `POST /detach`
    pub async fn detach(&self, asked: body::Detach) -> Answer {
        let target = self.find(&asked.target).await?;
        let detached = net::detach(&self.host, &target, CONTAINER_IFNAME, &bare(&asked.addresses)).await.map_err(refused_detach)?;
        self.gone(detached).await
    }

    /// `GET /ps`
    pub async fn attachments(&self) -> Result<Vec<Attachment>, Refusal> {
        let ports = ports::list(&self.host).await.map_err(Refusal::internal)?;
        let state = self.state.borrow();
        Ok(ports.iter().map(|port| attachment(port, &state)).collect())
    }

    /// What `ps` calls it; the names of ports that are gone are forgotten on the way.
    async fn remember(&self, port: &Port, called: &str) {
        let links = self.host.links().await.unwrap_or_default();
        self.state.send_modify(|state| {
            state.attached.retain(|name, _| links.iter().any(|link| link.name == *name));
            state.attached.insert(port.host_ifname.clone(), called.to_owned());
        });
    }

    async fn find(&self, text: &str) -> Result<Netns, Refusal> {
        let target = Target::parse(text).map_err(Refusal::bad_request)?;
        target.resolve(&self.docker).await.map_err(|error| match error {
            TargetError::Unknown { .. } => Refusal::not_found(error),
            TargetError::Syntax(_) | TargetError::HostNamespace { .. } => Refusal::bad_request(error),
        })
    }

    pub(super) async fn plug(&self, port: &Port) -> Result<(), Refusal> {
        let (port, redirect_peer) = (port.id, port.kind != PortKind::Host);
        let plugged = self.events.carry_out(|done| Event::Plug { port, redirect_peer, done }).await;
        plugged.map_err(|error| Refusal::internal(format!("{error:#}")))
    }

    /// A container whose port carries no frames is worse than one that was never attached.
    async fn plug_or_undo(&self, attached: &Attached, target: &Netns) -> Result<(), Refusal> {
        let Err(mut refusal) = self.plug(&attached.port).await else { return Ok(()) };
        if let Err(error) = net::detach(&self.host, target, &attached.port.ifname, &bare(&attached.added)).await {
            refusal.message += &format!("; undoing it failed too: {error}");
        }
        Err(refusal)
    }

    pub(super) async fn gone(&self, detached: Detached) -> Answer {
        if detached.left.is_empty() {
            self.events.send(Event::Unplug(detached.port)).await.map_err(|_| Refusal::ending())?;
        }
        answer(&body::Changed { changed: detached.removed, addresses: detached.left })
    }
}

fn attachment(port: &Port, state: &State) -> Attachment {
    let called = || state.attached.get(&port.host_ifname).cloned().unwrap_or_else(|| port.owner());
    Attachment {
        target: if port.kind == PortKind::Host { EXPOSED.to_owned() } else { called() },
        port: port.id.0,
        interface: port.host_ifname.clone(),
        mac: port.mac,
        addresses: port.addrs.clone(),
        mtu: port.mtu,
    }
}

pub(super) fn bare(addresses: &[IpNet]) -> Vec<IpAddr> {
    addresses.iter().map(IpNet::addr).collect()
}

/// The frames flow all the same; neighbours' caches are right within a minute.
pub(super) fn log_unannounced(announced: Result<(), net::Error>, who: &str) {
    if let Err(error) = announced {
        tracing::warn!(%error, "cannot announce the addresses of {who}");
    }
}

pub(super) fn refused_attach(error: AttachError) -> Refusal {
    match error {
        AttachError::NoAddress(_) | AttachError::InvalidAddress { .. } | AttachError::HostNamespace(_) => Refusal::bad_request(error),
        AttachError::AlreadyAttached { .. }
        | AttachError::AddressInUse { .. }
        | AttachError::RouteOverlap { .. }
        | AttachError::ForeignInterface { .. } => Refusal::conflict(error),
        AttachError::Kernel(_) | AttachError::LeftBehind { .. } => Refusal::internal(error),
    }
}

pub(super) fn refused_detach(error: DetachError) -> Refusal {
    match error {
        DetachError::NotAttached(_) | DetachError::NoSuchAddress { .. } => Refusal::not_found(error),
        DetachError::ForeignInterface { .. } => Refusal::conflict(error),
        DetachError::Kernel(_) => Refusal::internal(error),
    }
}
