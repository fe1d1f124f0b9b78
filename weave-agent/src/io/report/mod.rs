//! What the agent says of itself: the router's view, the kernel's counters and the names of interfaces, put together.

mod addresses;

use std::collections::BTreeMap;

use weave_ebpf::flow::{FlowKey as Key, INGRESS_TUNNEL};
use weave_ebpf::stats::DropReason;

use super::api::{Answer, Show, answer};
use super::hands::Hands;
use super::sleeve;
use crate::Time;
use crate::addr::Mac;
use crate::config::Config;
use crate::datapath::{Action, FlowEntry, PortId, TunnelKind};
use crate::mesh::{ConnectionState, ConnectionStatus, EdgeStatus, Encryption, TargetStatus};
use crate::peer::ShortId;
use crate::router;
use crate::status::{
    Answered, Connection, Dns, FdbEntry, Flow, FlowAction, FlowKey, Ipam, Peer, PeerConnection, Report, Summary, Target, Tunnel,
};
use crate::switch::{FdbStatus, Kind, Location, PeerStatus, TunnelState};

/// Everything there is to say, as of one moment. Taken by the loop, told by somebody else.
#[derive(Debug)]
pub struct Snapshot {
    /// The settings.
    pub config: Config,
    /// Since the start.
    pub uptime: Time,
    /// Mesh and switch.
    pub router: router::Status,
    /// How long requests for addresses waited.
    pub answered: Answered,
    /// One of the ports is the name server's.
    pub has_nameserver: bool,
    /// Who carries frames.
    pub datapath: String,
    /// See [`Summary::xdp`].
    pub xdp: Vec<String>,
    /// The kernel's flows, if they are asked for.
    pub flows: Vec<FlowEntry>,
    /// The kernel's counters.
    pub counters: Vec<(String, u64)>,
    /// The sleeve's threads, if there are any.
    pub sleeve: Option<sleeve::Status>,
    /// What somebody should look at, besides the router's own.
    pub notices: Vec<String>,
}

impl Snapshot {
    /// The answer to `GET`.
    pub async fn show(&self, show: Show, hands: &Hands) -> Answer {
        match show {
            Show::Status => answer(&self.summary(hands.mtu().await)),
            Show::Connections => answer(&self.connections()),
            Show::Peers => answer(&self.peers()),
            Show::Targets => answer(&self.targets()),
            Show::Flows => answer(&self.flows()),
            Show::Fdb => answer(&self.fdb()),
            Show::Ipam => answer(&self.ipam()),
            Show::Dns => answer(&self.dns(hands)),
            Show::Ps => answer(&hands.attachments().await?),
            Show::Report => answer(&self.report(hands.mtu().await, hands)),
        }
    }

    fn report(&self, mtu: u32, hands: &Hands) -> Report {
        Report {
            status: self.summary(mtu),
            connections: self.connections(),
            peers: self.peers(),
            targets: self.targets(),
            flows: self.flows(),
            fdb: self.fdb(),
            ipam: self.ipam(),
            dns: self.dns(hands),
            mesh: serde_json::to_value(&self.router.mesh.counters).unwrap_or_default(),
            switch: serde_json::to_value(self.router.switch.counters).unwrap_or_default(),
            sleeve: serde_json::to_value(self.sleeve.as_ref()).unwrap_or_default(),
        }
    }

    fn summary(&self, mtu: u32) -> Summary {
        let (mesh, switch) = (&self.router.mesh, &self.router.switch);
        let (drops, counters) = self.counted();
        Summary {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: self.uptime.as_secs_f64(),
            ready: true,
            name: mesh.name.clone(),
            nickname: mesh.nickname.clone(),
            short_id: switch.short.get(),
            port: self.config.port,
            tunnel_port: self.config.tunnel_port(),
            discovery: self.config.discovery,
            encrypted: mesh.encrypted,
            datapath: self.datapath.clone(),
            xdp: self.xdp.clone(),
            mtu,
            targets: mesh.targets.len(),
            connections: self.connection_counts(),
            peers: mesh.peers.len(),
            reachable: switch.peers.iter().filter(|peer| peer.kind != Kind::Stale).count() + 1,
            // The name server's port is nobody's.
            ports: switch.ports.len().saturating_sub(usize::from(self.has_nameserver)),
            fdb: switch.fdb.len(),
            flows: switch.flows.port + switch.flows.peer + switch.flows.flood + switch.flows.drop,
            counters,
            drops,
            warnings: self.warnings(),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let collisions = self.router.mesh.collisions.iter().map(|collision| collision.text.clone());
        collisions.chain(self.router.ipam.iter().flat_map(addresses::warnings)).chain(self.notices.iter().cloned()).collect()
    }

    fn dns(&self, hands: &Hands) -> Option<Dns> {
        let server = serde_json::to_value(hands.names.as_ref()?.status()).unwrap_or_default();
        let mut names = self.router.dns.clone()?;
        // The keeper of names knows what others are called, and not what we are.
        for entry in names.entries.iter_mut().filter(|entry| entry.nickname.is_empty()) {
            entry.nickname = self.nickname(&entry.origin.to_string()).unwrap_or_default();
        }
        Some(Dns { names, server })
    }

    fn ipam(&self) -> Ipam {
        addresses::ipam(self.router.ipam.as_ref(), &self.router.mesh.name, self.answered)
    }

    /// Drops and everything else; of the drops those that have happened.
    fn counted(&self) -> (BTreeMap<String, u64>, BTreeMap<String, u64>) {
        let is_drop = |name: &str| DropReason::ALL.iter().any(|reason| reason.name() == name);
        let (mut drops, counters): (BTreeMap<_, _>, _) = self.counters.iter().cloned().partition(|(name, _)| is_drop(name));
        *drops.entry(DropReason::Switch.name().to_owned()).or_default() += self.router.switch.counters.dropped;
        for (name, count) in self.sleeve.iter().flat_map(|sleeve| &sleeve.counters) {
            if let Some(reason) = name.strip_prefix("dropped-").or_else(|| name.strip_prefix("refused-")) {
                drops.insert(format!("sleeve-{reason}"), *count);
            }
        }
        drops.retain(|_, count| *count > 0);
        (drops, counters)
    }

    fn connection_counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for connection in &self.router.mesh.connections {
            *counts.entry(word(connection.state).to_owned()).or_default() += 1;
        }
        counts
    }

    fn connections(&self) -> Vec<Connection> {
        self.router.mesh.connections.iter().map(|connection| self.connection(connection)).collect()
    }

    fn connection(&self, connection: &ConnectionStatus) -> Connection {
        let switched = connection.peer.as_ref().and_then(|name| self.switched(name));
        Connection {
            outbound: connection.outbound,
            address: connection.address,
            state: word(connection.state).to_owned(),
            peer: connection.peer.clone(),
            nickname: connection.nickname.clone().filter(|nickname| !nickname.is_empty()),
            encryption: connection.encryption.map(|encryption| protection(encryption).to_owned()),
            tunnel: switched.map(|peer| self.tunnel(peer)),
            info: Some(connection.info.clone()).filter(|info| !info.is_empty()),
            retry: connection.retry_in,
        }
    }

    fn switched(&self, name: &str) -> Option<&PeerStatus> {
        self.router.switch.peers.iter().find(|peer| peer.peer.to_string() == name)
    }

    fn tunnel(&self, peer: &PeerStatus) -> Tunnel {
        let state = peer.tunnel.as_ref().map(|tunnel| tunnel.state);
        let down = state == Some(TunnelState::Down);
        let direct = match peer.tunnel.as_ref().and_then(|tunnel| tunnel.by) {
            Some(TunnelKind::Sleeve) => "sleeve",
            Some(TunnelKind::Esp) => "esp",
            Some(TunnelKind::Vxlan) | None => "vxlan",
        };
        let (kind, via) = match peer.kind {
            Kind::Direct => (direct, None),
            Kind::Relay(via) => ("relay", Some(self.called(&via.to_string()))),
            Kind::Stale if state == Some(TunnelState::Starting) => ("starting", None),
            Kind::Stale => ("down", None),
        };
        let tunnel = peer.tunnel.as_ref();
        Tunnel {
            kind: kind.to_owned(),
            via,
            mtu: peer.route.map(|route| route.mtu),
            rtt: tunnel.filter(|_| !down).and_then(|tunnel| tunnel.rtt_us).map(|us| us as f64 / 1e3),
            since: tunnel.filter(|_| down).and_then(|tunnel| tunnel.last_answer_ms).map(|ms| ms as f64 / 1e3),
            reason: if down { Some("heartbeats are not answered".to_owned()) } else { tunnel.and_then(|tunnel| tunnel.why.clone()) },
        }
    }

    fn peers(&self) -> Vec<Peer> {
        let mesh = &self.router.mesh;
        let next_hop = |name: &str| mesh.routes.iter().find(|route| route.peer == name)?.next_hop.clone();
        // What a peer claims may be another's.
        let short = |name: &str| if name == mesh.name { Some(self.router.switch.short) } else { self.switched(name)?.short };
        let shown = mesh.peers.iter().map(|peer| Peer {
            name: peer.name.clone(),
            nickname: peer.nickname.clone(),
            short_id: short(&peer.name).map(ShortId::get),
            me: peer.name == mesh.name,
            next_hop: next_hop(&peer.name),
            next_hop_nickname: next_hop(&peer.name).and_then(|name| self.nickname(&name)).filter(|nickname| !nickname.is_empty()),
            connections: peer.connections.iter().map(edge).collect(),
        });
        shown.collect()
    }

    fn targets(&self) -> Vec<Target> {
        let target = |target: &TargetStatus| Target { name: target.name.clone(), addresses: target.addresses.clone() };
        self.router.mesh.targets.iter().map(target).collect()
    }

    fn flows(&self) -> Vec<Flow> {
        let flow = |flow: &FlowEntry| Flow {
            key: key(&flow.key),
            action: self.action(flow.action),
            packets: flow.packets,
            bytes: flow.bytes,
            idle: flow.idle.map(|idle| idle.as_secs_f64()),
        };
        self.flows.iter().map(flow).collect()
    }

    fn action(&self, action: Action) -> FlowAction {
        match action {
            Action::Drop(reason) => FlowAction::Drop { reason: reason.name().to_owned() },
            Action::Port(port) => FlowAction::Port { port: port.0, interface: interface(port) },
            Action::Peer(short) => FlowAction::Peer { short_id: short.get(), peer: self.peer_with(short) },
            Action::Flood(origin) => FlowAction::Flood { origin: origin.get(), peer: self.peer_with(origin) },
        }
    }

    fn fdb(&self) -> Vec<FdbEntry> {
        self.router.switch.fdb.iter().map(|entry| self.fdb_entry(entry)).collect()
    }

    fn fdb_entry(&self, entry: &FdbStatus) -> FdbEntry {
        let (port, peer) = match entry.at {
            Location::Port(port) => (Some(port), None),
            Location::Peer(peer) => (None, Some(peer.to_string())),
        };
        FdbEntry {
            mac: entry.mac,
            port: port.map(|port| port.0),
            interface: port.and_then(interface),
            nickname: peer.as_ref().and_then(|name| self.nickname(name)),
            peer,
            age: entry.idle_ms as f64 / 1e3,
            contested: entry.contested,
        }
    }

    fn nickname(&self, name: &str) -> Option<String> {
        self.router.mesh.peers.iter().find(|peer| peer.name == name).map(|peer| peer.nickname.clone())
    }

    /// `name(nickname)`
    fn called(&self, name: &str) -> String {
        self.nickname(name).map_or_else(|| name.to_owned(), |nickname| format!("{name}({nickname})"))
    }

    fn peer_with(&self, short: ShortId) -> Option<String> {
        if short == self.router.switch.short {
            return Some(self.called(&self.router.mesh.name));
        }
        let peer = self.router.switch.peers.iter().find(|peer| peer.short == Some(short))?;
        Some(self.called(&peer.peer.to_string()))
    }
}

fn protection(encryption: Encryption) -> &'static str {
    match encryption {
        Encryption::Encrypted => "encrypted",
        Encryption::Trusted => "trusted",
    }
}

fn word(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::Established => "established",
        ConnectionState::Pending => "pending",
        ConnectionState::Connecting => "connecting",
        ConnectionState::Retrying => "retrying",
        ConnectionState::Failed => "failed",
    }
}

fn edge(edge: &EdgeStatus) -> PeerConnection {
    PeerConnection {
        name: edge.name.clone(),
        nickname: Some(edge.nickname.clone()).filter(|nickname| !nickname.is_empty()),
        address: Some(edge.address),
        outbound: edge.outbound,
        established: edge.established,
    }
}

fn key(key: &Key) -> FlowKey {
    let (src, dst) = (Mac(key.src), Mac(key.dst));
    if key.ingress == INGRESS_TUNNEL {
        return FlowKey { port: None, interface: None, vni: Some(key.vni), outer_src: Some(key.outer_src.into()), src, dst };
    }
    FlowKey { port: Some(key.ingress), interface: interface(PortId(key.ingress)), vni: None, outer_src: None, src, dst }
}

fn interface(port: PortId) -> Option<String> {
    crate::io::net::sys::ifname(port.0).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::mesh;
    use crate::peer::{PeerName, PeerUid};
    use crate::router::Router;
    use crate::switch;

    fn router() -> router::Status {
        let (name, short) = (PeerName([2, 0, 0, 0, 0, 1]), ShortId::new(7).unwrap());
        let mesh = mesh::Config {
            name,
            uid: PeerUid(1),
            nickname: "h1".into(),
            short: Some(short),
            port: 6783,
            tunnel_port: 6784,
            sleeve_port: 6783,
            aes: true,
            esp: false,
            big_tcp: false,
            passwords: Vec::new(),
            trusted_subnets: Vec::new(),
            discovery: true,
            connection_limit: 0,
            targets: vec![mesh::Target { name: "h2.example".into(), addresses: vec![] }],
        };
        Router::new(
            router::Config { mesh, switch: switch::Config::new(name, short, 6784), rekey: crate::sleeve::LIFETIME, ipam: None, dns: None },
            [7; 32],
        )
        .status(Time::ZERO)
    }

    fn snapshot(flows: Vec<FlowEntry>, counters: &[(&str, u64)]) -> Snapshot {
        let config = Config {
            name: None,
            nickname: "h1".into(),
            port: 6783,
            host: None,
            discovery: true,
            conn_limit: 0,
            mtu: None,
            passwords: vec![],
            trusted_subnets: vec![],
            rekey: crate::config::REKEY_INTERVAL,
            peers: None,
            ipalloc: None,
            dns: None,
            datapath: crate::config::Choice::Auto,
            xdp: crate::config::Xdp::Auto,
            big_tcp: false,
        };
        let counters = counters.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Snapshot {
            config,
            uptime: Time::ZERO,
            router: router(),
            answered: Answered::default(),
            has_nameserver: false,
            datapath: "ebpf (tcx)".into(),
            xdp: vec![],
            flows,
            counters,
            sleeve: None,
            notices: vec![],
        }
    }

    #[test]
    fn drops_are_told_apart_from_what_is_well_and_only_if_there_were_any() {
        let summary = snapshot(vec![], &[("stranger", 3), ("no-route", 0), ("upcalls", 5), ("relayed", 0)]).summary(1450);
        assert_eq!(summary.drops, BTreeMap::from([("stranger".into(), 3)]));
        assert_eq!(summary.counters, BTreeMap::from([("upcalls".into(), 5), ("relayed".into(), 0)]));
        assert_eq!((summary.name.as_str(), summary.targets, summary.peers, summary.reachable), ("02:00:00:00:00:01", 1, 1, 1));
    }

    #[test]
    fn flows_from_ports_and_from_tunnels_say_only_what_they_have() {
        let port = Key { ingress: u32::MAX, src: [2; 6], dst: [4; 6], ..Key::default() };
        let tunnel = Key { ingress: INGRESS_TUNNEL, vni: 0x7001, outer_src: [10, 0, 0, 2], ..Key::default() };
        let entry = |key, action, idle| FlowEntry { key, action, packets: 1, bytes: 60, idle };
        let idle = Some(Duration::from_millis(1500));
        let flood = entry(port, Action::Flood(ShortId::new(7).unwrap()), idle);
        let entries =
            vec![entry(port, Action::Peer(ShortId::new(9).unwrap()), idle), entry(tunnel, Action::Drop(DropReason::NoRoute), None), flood];
        let flows = snapshot(entries, &[]).flows();
        assert_eq!((flows[0].key.port, flows[0].key.vni, flows[0].idle), (Some(u32::MAX), None, Some(1.5)));
        assert_eq!(flows[0].action, FlowAction::Peer { short_id: 9, peer: None });
        assert_eq!((flows[1].key.port, flows[1].key.outer_src), (None, Some([10, 0, 0, 2].into())));
        assert_eq!(flows[1].action, FlowAction::Drop { reason: "no-route".into() });
        assert_eq!(flows[2].action, FlowAction::Flood { origin: 7, peer: Some("02:00:00:00:00:01(h1)".into()) });
    }

    #[test]
    fn the_readme_explains_every_reason_to_drop() {
        let readme = include_str!("../../../../README.md");
        for reason in DropReason::ALL {
            assert!(readme.contains(&format!("\n| `{}` |", reason.name())), "{}", reason.name());
        }
        assert!(readme.contains(&format!("{} local containers", weave_ebpf::flow::MAX_FANOUT)));
    }
}
