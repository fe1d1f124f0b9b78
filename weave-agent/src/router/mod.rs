//! The whole agent as one machine: [`Input`] in, [`Output`] out.
//!
//! Its parts know nothing of each other. What one says that concerns another is carried across here, at the
//! same instant, until none has anything left to say:
//!
//! | from | to | |
//! |---|---|---|
//! | mesh | switch | a new view, links up and down, `macs` that another peer announced |
//! | mesh | ipam, dns | a new view, what their replicas at other peers say |
//! | mesh | sessions, associations | links up and down, what a neighbour told us over its link |
//! | switch | mesh | tunnels up and down, `macs` to announce |
//! | sessions, associations | mesh | what to tell a neighbour |
//! | associations | switch | whether the kernel's tunnel to a neighbour cannot go in clear |
//! | ipam, dns | mesh | what they tell their replicas |

mod macs;
mod timed;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use ipnet::Ipv4Net;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

pub use self::macs::{DecodeError, MAX_MACS};
use self::timed::Timed;
use crate::datapath::Op;
use crate::dns::Dns;
use crate::esp::Associations;
use crate::ipam::Ipam;
use crate::mesh::{Channel, Mesh};
use crate::peer::PeerName;
use crate::sleeve::Sessions;
use crate::switch::Switch;
use crate::{Time, dns, esp, ipam, mesh, sleeve, switch};

/// The gossip channel of [`Ipam`].
const IPAM: &str = "ipam";
/// What a neighbour is told over its link begins with whose it is.
const OF_SESSIONS: u8 = 0;
/// See [`OF_SESSIONS`].
const OF_ASSOCIATIONS: u8 = 1;

/// Everything that can happen to an agent. The simulator makes these up; `io` reports them.
#[derive(Clone, Debug)]
pub enum Input {
    /// To the mesh: links, targets, addresses.
    Mesh(mesh::Input),
    /// To the switch: upcalls, ports, flows.
    Switch(switch::Input),
    /// What the sleeve heard of a neighbour.
    Sleeve(sleeve::Heard),
    /// What became of IPsec's state in the kernel.
    Esp(esp::Input),
    /// To the keeper of addresses, if there is one: requests, owners that are gone, what is on disk.
    Ipam(ipam::Input),
    /// To the keeper of names, if there is one: containers that come and go.
    Dns(dns::Input),
}

/// Everything an agent can want. The simulator acts these out; `io` does them.
#[derive(Clone, Debug)]
pub enum Output {
    /// Dial, send, close, keep; links and views, too, for whoever shows them.
    Mesh(mesh::Output),
    /// An order to the datapath.
    Datapath(Op),
    /// A request for addresses is answered.
    Answer {
        /// The caller's number.
        request: u64,
        /// What it came to.
        result: Result<ipam::Answer, ipam::Error>,
    },
    /// To be on disk before anything that depends on it is said: then [`ipam::Input::Stored`].
    Store {
        /// Counts up.
        number: u64,
        /// Who owns which addresses.
        snapshot: Arc<ipam::Snapshot>,
    },
    /// What names are answered from now on.
    Zone(Arc<dns::Zone>),
    /// An order to `io::sleeve`.
    Sleeve(sleeve::Op),
    /// An order to `io::esp`.
    Esp(esp::Op),
    /// Names given by hand, to be on disk.
    Keep(Vec<dns::Kept>),
}

/// What an agent is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of the control plane.
    pub mesh: mesh::Config,
    /// Of the data plane.
    pub switch: switch::Config,
    /// Keys of sealed tunnels are followed by others after this time.
    pub rekey: Time,
    /// Of the keeper of addresses, with what it kept; `None`: addresses are given by hand only.
    pub ipam: Option<(ipam::Config, Option<ipam::Snapshot>)>,
    /// Of the keeper of names; `None`: there are none.
    pub dns: Option<dns::Config>,
}

/// What an agent says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Peers, links, targets.
    pub mesh: mesh::Status,
    /// Ports, fdb, tunnels.
    pub switch: switch::Status,
    /// Ring and addresses, if there are any.
    pub ipam: Option<ipam::Status>,
    /// Names, if there are any.
    pub dns: Option<dns::Status>,
}

/// The parts, composed.
#[derive(Debug)]
pub struct Router {
    mesh: Timed<Mesh>,
    trusted_subnets: Vec<Ipv4Net>,
    switch: Timed<Switch>,
    sessions: Timed<Sessions>,
    associations: Timed<Associations>,
    ipam: Option<Timed<Ipam>>,
    dns: Option<Timed<Dns>>,
    outputs: VecDeque<Output>,
}

impl Router {
    /// An agent that has just started. `seed` is all the randomness it ever uses.
    pub fn new(config: Config, seed: [u8; 32]) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let secret = !config.mesh.passwords.is_empty();
        let sealed_but_for = secret.then(|| config.mesh.trusted_subnets.clone());
        let mut ipam = config.ipam.map(|(config, snapshot)| Ipam::new(config, snapshot, rng.random()));
        if let Some(ipam) = &mut ipam {
            ipam.handle(Time::ZERO, ipam::Input::Targets(config.mesh.targets.len()));
        }
        Self {
            // What the mesh draws is seen on the wire: the keys must not follow from it.
            sessions: Timed::new(Sessions::new(rng.random(), config.rekey)),
            associations: Timed::new(Associations::new(rng.random(), config.switch.tunnel_port, config.rekey)),
            trusted_subnets: config.mesh.trusted_subnets.clone(),
            mesh: Timed::new(Mesh::new(config.mesh, rng.random())),
            switch: Timed::new(Switch::new(switch::Config { sealed_but_for, ..config.switch })),
            ipam: ipam.map(Timed::new),
            dns: config.dns.map(Dns::new).map(Timed::new),
            outputs: VecDeque::new(),
        }
    }

    /// Something happened.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Mesh(input) => {
                if let mesh::Input::Passwords(passwords) = &input {
                    // First: from the first password on nothing more goes in clear.
                    let trusted = (!passwords.is_empty()).then(|| self.trusted_subnets.clone());
                    if let Some(trusted) = &trusted {
                        self.sessions.handle(now, sleeve::Input::SealedButFor(trusted.clone()));
                    }
                    self.switch.handle(now, switch::Input::SealedButFor(trusted));
                }
                self.mesh.handle(now, input);
            }
            Input::Switch(input) => self.switch.handle(now, input),
            Input::Sleeve(sleeve::Heard::Worn(session)) => self.sessions.handle(now, sleeve::Input::Worn(session)),
            Input::Sleeve(heard) => self.switch.handle(now, switch::Input::Sleeve(heard)),
            Input::Esp(input) => self.associations.handle(now, input),
            Input::Ipam(input) => self.tell_ipam(now, input),
            Input::Dns(input) => self.tell_dns(now, input),
        }
        self.exchange(now);
    }

    /// It is [`Self::poll_timeout`] or later.
    pub fn handle_timeout(&mut self, now: Time) {
        self.mesh.handle_timeout(now);
        self.switch.handle_timeout(now);
        self.sessions.handle_timeout(now);
        self.associations.handle_timeout(now);
        if let Some(ipam) = &mut self.ipam {
            ipam.handle_timeout(now);
        }
        if let Some(dns) = &mut self.dns {
            dns.handle_timeout(now);
        }
        self.exchange(now);
    }

    /// What is to be done next; to be called until `None` after every `handle` and `handle_timeout`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        let ipam = self.ipam.as_ref().and_then(Timed::due);
        let dns = self.dns.as_ref().and_then(Timed::due);
        [self.mesh.due(), self.switch.due(), self.sessions.due(), self.associations.due(), ipam, dns].into_iter().flatten().min()
    }

    /// What was touched may want to be called at another time.
    fn look(&mut self) {
        self.mesh.look();
        self.switch.look();
        self.sessions.look();
        self.associations.look();
        self.ipam.iter_mut().for_each(Timed::look);
        self.dns.iter_mut().for_each(Timed::look);
    }

    /// For `weave-agent status`.
    pub fn status(&self, now: Time) -> Status {
        Status {
            mesh: self.mesh.status(now),
            switch: self.switch.status(now),
            ipam: self.ipam.as_ref().map(|ipam| ipam.status(now)),
            dns: self.dns.as_ref().map(|dns| dns.status()),
        }
    }

    fn tell_ipam(&mut self, now: Time, input: ipam::Input) {
        if let Some(ipam) = &mut self.ipam {
            ipam.handle(now, input);
        }
    }

    fn tell_dns(&mut self, now: Time, input: dns::Input) {
        if let Some(dns) = &mut self.dns {
            dns.handle(now, input);
        }
    }

    /// Carries the parts' outputs across and out until all are silent.
    fn exchange(&mut self, now: Time) {
        loop {
            if let Some(output) = self.mesh.poll_output() {
                self.take_from_mesh(now, output);
            } else if let Some(output) = self.switch.poll_output() {
                self.take_from_switch(now, output);
            } else if let Some(output) = self.sessions.poll_output() {
                self.take_from_sessions(now, output);
            } else if let Some(output) = self.associations.poll_output() {
                self.take_from_associations(now, output);
            } else if let Some(output) = self.ipam.as_mut().and_then(Timed::poll_output) {
                self.take_from_ipam(now, output);
            } else if let Some(output) = self.dns.as_mut().and_then(Timed::poll_output) {
                self.take_from_dns(now, output);
            } else {
                break;
            }
        }
        self.look();
    }

    fn take_from_mesh(&mut self, now: Time, output: mesh::Output) {
        match output {
            mesh::Output::View(view) => {
                self.tell_ipam(now, ipam::Input::View(view.clone()));
                self.tell_dns(now, dns::Input::View(view.clone()));
                self.sessions.handle(now, sleeve::Input::View(view.clone()));
                self.associations.handle(now, esp::Input::View(view.clone()));
                self.switch.handle(now, switch::Input::View(view));
            }
            mesh::Output::LinkUp(neighbour) => {
                self.sessions.handle(now, sleeve::Input::LinkUp(neighbour.clone()));
                self.associations.handle(now, esp::Input::LinkUp(neighbour.clone()));
                self.switch.handle(now, switch::Input::LinkUp(neighbour));
            }
            mesh::Output::LinkDown { peer } => {
                self.sessions.handle(now, sleeve::Input::LinkDown(peer));
                self.associations.handle(now, esp::Input::LinkDown(peer));
                self.switch.handle(now, switch::Input::LinkDown(peer));
            }
            mesh::Output::Delivered { channel, from, payload } if macs::is_channel(&channel) => self.announced(now, from, &payload),
            mesh::Output::Targets(targets) => {
                self.tell_ipam(now, ipam::Input::Targets(targets.len()));
                self.outputs.push_back(Output::Mesh(mesh::Output::Targets(targets)));
            }
            mesh::Output::Told { peer, payload } => self.told(now, peer, payload),
            mesh::Output::Delivered { channel, from, payload } if channel.0 == IPAM => {
                self.tell_ipam(now, ipam::Input::Delivered { from, payload });
            }
            mesh::Output::Delivered { channel, from, payload } if channel == dns::channel() => {
                self.tell_dns(now, dns::Input::Delivered { from, payload });
            }
            other => self.outputs.push_back(Output::Mesh(other)),
        }
    }

    fn take_from_switch(&mut self, now: Time, output: switch::Output) {
        match output {
            switch::Output::Op(op) => self.outputs.push_back(Output::Datapath(op)),
            switch::Output::Sleeve(op) => self.outputs.push_back(Output::Sleeve(op)),
            switch::Output::Tunnel { peer, up } => self.mesh.handle(now, mesh::Input::Tunnel { peer, up }),
            switch::Output::Announce(list) => {
                for payload in macs::encode(&list) {
                    self.mesh.handle(now, mesh::Input::Broadcast { channel: macs::channel(), payload });
                }
            }
        }
    }

    fn take_from_sessions(&mut self, now: Time, output: sleeve::Output) {
        match output {
            sleeve::Output::Op(op) => self.outputs.push_back(Output::Sleeve(op)),
            sleeve::Output::Tell { peer, payload } => self.tell(now, peer, OF_SESSIONS, &payload),
        }
    }

    fn take_from_associations(&mut self, now: Time, output: esp::Output) {
        match output {
            esp::Output::Op(op) => self.outputs.push_back(Output::Esp(op)),
            esp::Output::Protected { remote, protected } => self.switch.handle(now, switch::Input::Protected { remote, protected }),
            esp::Output::Tell { peer, payload } => self.tell(now, peer, OF_ASSOCIATIONS, &payload),
        }
    }

    fn tell(&mut self, now: Time, peer: PeerName, of: u8, payload: &[u8]) {
        let payload = [&[of], payload].concat().into();
        self.mesh.handle(now, mesh::Input::Tell { peer, payload });
    }

    fn told(&mut self, now: Time, peer: PeerName, mut payload: Bytes) {
        match payload.split_to(payload.len().min(1)).first() {
            Some(&OF_SESSIONS) => self.sessions.handle(now, sleeve::Input::Told { peer, payload }),
            Some(&OF_ASSOCIATIONS) => self.associations.handle(now, esp::Input::Told { peer, payload }),
            _ => tracing::warn!(%peer, "a neighbour told us something that we do not know: it has another version?"),
        }
    }

    fn take_from_ipam(&mut self, now: Time, output: ipam::Output) {
        let channel = || Channel(IPAM.to_owned());
        match output {
            ipam::Output::Answer { request, result } => self.outputs.push_back(Output::Answer { request, result }),
            ipam::Output::Store { number, snapshot } => self.outputs.push_back(Output::Store { number, snapshot }),
            ipam::Output::Broadcast(payload) => self.mesh.handle(now, mesh::Input::Broadcast { channel: channel(), payload }),
            ipam::Output::Unicast { to, payload } => self.mesh.handle(now, mesh::Input::Unicast { channel: channel(), to, payload }),
            ipam::Output::Gossip(payload) => self.mesh.handle(now, mesh::Input::Gossip { channel: channel(), payload }),
        }
    }

    fn take_from_dns(&mut self, now: Time, output: dns::Output) {
        let channel = dns::channel();
        match output {
            dns::Output::Zone(zone) => self.outputs.push_back(Output::Zone(zone)),
            dns::Output::Keep(kept) => self.outputs.push_back(Output::Keep(kept)),
            dns::Output::Broadcast(payload) => self.mesh.handle(now, mesh::Input::Broadcast { channel, payload }),
            dns::Output::Unicast { to, payload } => self.mesh.handle(now, mesh::Input::Unicast { channel, to, payload }),
            dns::Output::Gossip(payload) => self.mesh.handle(now, mesh::Input::Gossip { channel, payload }),
        }
    }

    /// A message that makes no sense is its sender's fault, and nobody else's trouble.
    fn announced(&mut self, now: Time, peer: PeerName, payload: &[u8]) {
        match macs::decode(payload) {
            Ok(macs) => self.switch.handle(now, switch::Input::Announced { peer, macs }),
            Err(error) => tracing::warn!(%peer, %error, "ignored an announcement of addresses"),
        }
    }
}
