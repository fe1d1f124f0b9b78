//! Attach and detach: what takes time, done beside the loop. Expose and hide are in [`super::exposure`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::api::{Answer, Refusal, Wanted, answer, body};
use super::asks::Ask;
use super::event::{Event, Events};
use super::leases::{Lease, Leases};
use super::names::Names;
use super::naming::NameChange;
use super::net::docker::Docker;
use super::net::{
    self, AttachError, AttachSpec, Attached, CONTAINER_IFNAME, DetachError, Detached, Known, Netlink, Netns, Port, PortKind, Target,
};
use super::net::{EXPOSE_PORT, TargetError, ports};
use super::store::State;
use crate::datapath::{Source, TunnelKind};
use crate::status::Attachment;
use crate::{dns, esp, ipam, sleeve};

/// For a disk that is slow: others take over what a host leaves, or `rmpeer` does.
const HANDING_ON: Duration = Duration::from_secs(2);
/// For messages to leave the host.
const LAST_WORDS: Duration = Duration::from_millis(200);

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
    /// Where addresses come from.
    pub leases: Leases,
    /// Who answers names, if anybody does.
    pub names: Option<Names>,
    /// What is kept.
    pub state: watch::Sender<State>,
    /// The neighbours by their outer addresses.
    pub neighbours: watch::Receiver<BTreeMap<Ipv4Addr, Source>>,
    /// What neighbours get is expected to be sealed, as long as there are none.
    pub secret: bool,
    /// And the kernel can do it.
    pub esp: bool,
    /// MTU for containers, if the user said so.
    pub mtu: Option<u32>,
    /// The ports' addresses.
    pub known: Known,
    /// Whether containers may send segments longer than an IPv4 packet can be.
    pub big_tcp: bool,
    /// The MTU may have changed.
    pub look_at_mtu: Arc<Notify>,
}

impl Hands {
    /// The MTU that a container gets now: full packets fit the path's, sealed if any neighbour's must be.
    pub async fn mtu(&self) -> u32 {
        if let Some(mtu) = self.mtu {
            return mtu;
        }
        let neighbours = self.neighbours.borrow().clone();
        let addresses: Vec<Ipv4Addr> = neighbours.keys().copied().collect();
        let mtu = net::mtu_for(&self.host, &addresses).await;
        let is_sealed = |source: &Source| source.least != TunnelKind::Vxlan;
        match (if neighbours.is_empty() { self.secret } else { neighbours.values().any(is_sealed) }, self.esp) {
            (false, _) => mtu,
            (true, false) => sleeve::sealed_mtu(mtu),
            // Whichever it is at the moment: a container's MTU does not follow that.
            (true, true) => sleeve::sealed_mtu(mtu).min(esp::sealed_mtu(mtu)),
        }
    }

    /// `POST /attach`
    pub async fn attach(&self, asked: body::Attach) -> Answer {
        let target = self.find(&asked.target).await?;
        let _turn = self.leases.turn(target.id()).await;
        let port = net::port_of(&self.host, &target).await.map_err(refused_attach)?;
        let (owner, has) = port.unwrap_or_else(|| (self.leases.new_port(), Vec::new()));
        refuse_again(&asked, &has)?;
        let name = self.name_for(&asked, &target).await?;
        let lease = self.leases.take(&owner, &asked.addresses, &has).await?;
        if lease.addresses.is_empty() {
            self.register(&owner, name, &has).await;
            return answer(&body::Changed { changed: Vec::new(), addresses: has });
        }
        let attached = self.attach_with(&target, &lease, &asked).await;
        if attached.is_err() {
            self.leases.give_back(&owner, &lease.addresses).await;
        }
        let attached = attached?;
        self.register(&owner, name, &attached.port.addrs).await;
        answer(&body::Changed { changed: attached.added, addresses: attached.port.addrs })
    }

    async fn attach_with(&self, target: &Netns, lease: &Lease, asked: &body::Attach) -> Result<Attached, Refusal> {
        let spec = AttachSpec::new(lease.addresses.clone(), self.mtu().await).on_port(lease.owner.clone()).knowing(&self.known);
        let attached = net::attach(&self.host, target, &spec).await.map_err(refused_attach)?;
        self.plug_or_undo(&attached, target).await?;
        self.remember(&attached.port, &asked.target).await;
        if let Some(names) = &self.names {
            names.lead(target, &attached.port.ifname).await;
        }
        let announced = net::announce(target, &attached.port.ifname, attached.port.mac, &attached.added).await;
        log_unannounced(announced, &asked.target);
        Ok(attached)
    }

    /// `POST /detach`
    pub async fn detach(&self, asked: body::Detach) -> Answer {
        let target = self.find(&asked.target).await?;
        let _turn = self.leases.turn(target.id()).await;
        let detached = net::detach(&self.host, &target, CONTAINER_IFNAME, &bare(&asked.addresses)).await.map_err(refused_detach)?;
        self.gone(detached).await
    }

    /// `POST /rmpeer`
    pub async fn rmpeer(&self, asked: body::Rmpeer) -> Answer {
        let peer = asked.peer.clone();
        match self.leases.ask(Ask::Remove { peer: asked.peer }).await? {
            ipam::Answer::Count(count) => answer(&body::TakenOver { peer, addresses: count.to_string() }),
            other => Err(Refusal::internal(format!("asked for a peer's addresses and got {other:?}"))),
        }
    }

    /// `POST /reset`: hands this host's addresses on to another, if it can, before the agent ends.
    pub async fn leave(&self) -> Answer {
        match timeout(HANDING_ON, self.leases.ask(Ask::Leave)).await {
            Ok(Ok(ipam::Answer::Count(count))) => {
                tracing::info!("{count} addresses were handed on");
                // What tells the others is on its way.
                sleep(LAST_WORDS).await;
            }
            Ok(Ok(_)) => {}
            Ok(Err(refusal)) => tracing::info!("no addresses were handed on: {refusal}"),
            Err(_) => tracing::warn!("addresses could not be handed on in time"),
        }
        self.events.send(Event::End).await.map_err(|_| Refusal::ending())?;
        answer(&body::Stopping { pid: std::process::id(), carried_on: false })
    }

    /// `POST /prime`
    pub async fn prime(&self) -> Answer {
        self.leases.ask(Ask::Prime).await?;
        answer(&serde_json::json!({}))
    }

    /// `GET /ps`
    pub async fn attachments(&self) -> Result<Vec<Attachment>, Refusal> {
        let mut ports = ports::list(&self.host).await.map_err(Refusal::internal)?;
        let nameserver = self.names.as_ref().and_then(Names::port).map(|port| port.id);
        ports.retain(|port| Some(port.id) != nameserver);
        let state = self.state.borrow();
        Ok(ports.iter().map(|port| attachment(port, &state)).collect())
    }

    /// A name of the domain.
    pub(super) fn qualified(&self, text: &str) -> Result<dns::Name, Refusal> {
        let names = self.names.as_ref().ok_or_else(|| Refusal::conflict("this agent keeps no names (--no-dns)"))?;
        names.config.domain.qualify(text).map_err(Refusal::bad_request)
    }

    /// `POST /dns/add`, `POST /dns/remove`: answered when it is answered so.
    pub async fn dns_changed(&self, changed: Result<NameChange, Refusal>, there: bool) -> Answer {
        let NameChange { name, addresses } = changed?;
        if let Some(names) = &self.names {
            names.answered(&name, &addresses, there).await;
        }
        answer(&serde_json::json!({}))
    }

    /// `POST /dns/lookup`
    pub fn dns_lookup(&self, asked: &body::DnsLookup) -> Answer {
        let zone = self.names.as_ref().map(|names| names.zone.borrow().clone()).unwrap_or_default();
        let found = match asked.name.parse::<IpAddr>() {
            Ok(address) => body::DnsFound { names: zone.names(address).map(ToString::to_string).collect(), ..Default::default() },
            Err(_) => body::DnsFound { addresses: zone.addresses(&self.qualified(&asked.name)?), ..Default::default() },
        };
        if found == body::DnsFound::default() {
            return Err(Refusal::not_found(format!("nothing is known of {:?}: `weave-agent status dns` lists all names", asked.name)));
        }
        answer(&found)
    }

    /// The name asked for, or that of a Docker container.
    async fn name_for(&self, asked: &body::Attach, target: &Netns) -> Result<Option<dns::Name>, Refusal> {
        if let Some(name) = &asked.name {
            return self.qualified(name).map(Some);
        }
        // Found by its process, but not called so: Docker knows it.
        let is_process = target.path().starts_with("/proc") && !asked.target.starts_with('/');
        if !is_process || asked.target.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(None);
        }
        // Not every name that Docker takes can be one in a network.
        Ok(self.docker.name_of(&asked.target).await.ok().and_then(|name| self.qualified(&name).ok()))
    }

    /// A name answers while its port is there; it does when this returns.
    pub(super) async fn register(&self, port: &str, name: Option<dns::Name>, addresses: &[IpNet]) {
        let Some(name) = name else { return };
        self.tell_name(port, name.clone(), addresses).await;
        if let Some(names) = &self.names {
            names.answered(&name, &bare(addresses), true).await;
        }
    }

    /// An agent that starts again knows it.
    async fn tell_name(&self, port: &str, name: dns::Name, addresses: &[IpNet]) {
        let owner = if port == EXPOSE_PORT { Ok(dns::Owner::expose()) } else { port.parse() };
        let Ok(owner) = owner else { return };
        self.state.send_modify(|state| {
            let names = state.names.entry(port.to_owned()).or_default();
            names.retain(|other| *other != name);
            names.push(name.clone());
        });
        // An agent that is just ending finds it in its state.
        let _ = self.events.send(Event::Register { owner, name, addresses: bare(addresses) }).await;
    }

    /// At the start: names of what is there, and the way to the name server.
    pub async fn name_again(&self, ports: &[Port]) {
        for port in ports {
            let names = self.state.borrow().names.get(&port.made_as).cloned().unwrap_or_default();
            for name in names {
                self.tell_name(&port.made_as, name, &port.addrs).await;
            }
        }
        let _ = self.events.send(Event::Registered).await;
        let Some(names) = &self.names else { return };
        for port in ports {
            if let Some(Ok(container)) = port.netns.as_deref().map(Netns::open) {
                names.lead(&container, &port.ifname).await;
            }
        }
    }

    /// What `ps` calls it; the names of ports that are gone are forgotten on the way.
    async fn remember(&self, port: &Port, called: &str) {
        let there = ports::names(&self.host).await.unwrap_or_default();
        self.state.send_modify(|state| {
            state.attached.retain(|name, _| there.contains(name));
            state.attached.insert(port.made_as.clone(), called.to_owned());
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
        let (id, name, redirect_peer) = (port.id, port.made_as.clone(), port.kind != PortKind::Host);
        let plugged = self.events.carry_out(|done| Event::Plug { port: id, name, redirect_peer, done }).await;
        plugged.map_err(|error| Refusal::internal(format!("{error:#}")))
    }

    /// A container whose port carries no frames is worse than one that was never attached.
    async fn plug_or_undo(&self, attached: &Attached, target: &Netns) -> Result<(), Refusal> {
        let Err(mut refusal) = self.plug(&attached.port).await else { return Ok(()) };
        match net::detach(&self.host, target, CONTAINER_IFNAME, &bare(&attached.added)).await {
            Ok(detached) => self.known.set(detached.port, &detached.left),
            Err(error) => refusal.message += &format!("; undoing it failed too: {error}"),
        }
        Err(refusal)
    }

    pub(super) async fn gone(&self, detached: Detached) -> Answer {
        self.known.set(detached.port, &detached.left);
        self.leases.give_back(&detached.made_as, &detached.removed).await;
        if detached.left.is_empty() {
            self.events.send(Event::Unplug(detached.port)).await.map_err(|_| Refusal::ending())?;
        }
        answer(&body::Changed { changed: detached.removed, addresses: detached.left })
    }
}

fn attachment(port: &Port, state: &State) -> Attachment {
    let called = || state.attached.get(&port.made_as).cloned().unwrap_or_else(|| port.owner());
    Attachment {
        target: if port.kind == PortKind::Host { EXPOSED.to_owned() } else { called() },
        port: port.id.0,
        interface: port.host_ifname.clone(),
        mac: port.mac,
        addresses: port.addrs.clone(),
        mtu: port.mtu,
    }
}

/// An address is not added twice; a free one, asked for again, is the one that is there.
fn refuse_again(asked: &body::Attach, has: &[IpNet]) -> Result<(), Refusal> {
    let again = asked.addresses.iter().find_map(|wanted| match wanted {
        Wanted::This(address) => has.iter().find(|has| has.addr() == address.addr()),
        Wanted::Of(_) | Wanted::Default => None,
    });
    let target = asked.target.clone();
    again.map_or(Ok(()), |addr| Err(refused_attach(AttachError::AlreadyAttached { target, addr: *addr })))
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
        | AttachError::OwnRoute { .. }
        | AttachError::ForeignInterface { .. } => Refusal::conflict(error),
        AttachError::Kernel(_) | AttachError::LeftBehind { .. } => Refusal::internal(error),
    }
}

pub(super) fn refused_detach(error: DetachError) -> Refusal {
    match error {
        DetachError::NotAttached(_) | DetachError::NotExposed | DetachError::NoSuchAddress { .. } => Refusal::not_found(error),
        DetachError::ForeignInterface { .. } => Refusal::conflict(error),
        DetachError::Kernel(_) => Refusal::internal(error),
    }
}
