//! The tunnel to one neighbour: the kernel's VXLAN while that works and may be used, the sleeve else. Both are probed all
//! the time.

use std::net::Ipv4Addr;

use super::choice::{Choice, Chosen, Works};
use super::heartbeat::Heartbeat;
use super::liveness::INTERVAL;
use super::path_mtu::FLOOR;
use super::status::{TunnelState, TunnelStatus};
use super::way::Way;
use crate::Time;
use crate::datapath::{PeerRoute, TunnelKind};
use crate::mesh::Neighbour;
use crate::{esp, sleeve};

#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) neighbour: Neighbour,
    /// There is a link beside it.
    pub(super) linked: bool,
    /// The route by it as of when the rest of the switch last looked; some if it was up then.
    pub(super) told: Option<PeerRoute>,
    /// The sleeve's datagram size as of then.
    pub(super) told_datagram: Option<u16>,
    /// Of the link before this one: heartbeats may be under way with it.
    previous: u64,
    /// The kernel's: VXLAN, under ESP if it must be sealed. `None` if it may not be used.
    vxlan: Option<Way>,
    /// Measured in bytes of UDP payload. `None` if the neighbour has none.
    sleeve: Option<Way>,
    choice: Choice,
    /// Flows depend on it.
    used: bool,
    /// The pace of heartbeats that nothing depends on.
    rest: Time,
}

impl Tunnel {
    /// `route_mtu`: the largest inner packet that VXLAN takes along the underlay's route. `protected`: it cannot go in clear.
    pub(super) fn new(now: Time, neighbour: Neighbour, route_mtu: u16, protected: bool) -> Self {
        Self {
            previous: neighbour.connection,
            vxlan: kernel_way(now, &neighbour, route_mtu, protected),
            sleeve: (neighbour.sleeve_port != 0).then(|| Way::new(now, sleeve::datagram_of(route_mtu))),
            neighbour,
            linked: true,
            told: None,
            told_datagram: None,
            choice: Choice::new(now),
            used: true,
            rest: INTERVAL,
        }
    }

    /// A new link to the same neighbour. The tunnel goes on as it is if it has the same two ends.
    pub(super) fn relink(&mut self, now: Time, neighbour: Neighbour, route_mtu: u16, protected: bool) {
        let ends = |n: &Neighbour| (n.local, n.remote, n.port, n.sleeve_port, n.sealed, n.esp);
        if ends(&neighbour) == ends(&self.neighbour) {
            self.previous = self.neighbour.connection;
            self.neighbour = neighbour;
            self.linked = true;
        } else {
            *self = Self { told: self.told, ..Self::new(now, neighbour, route_mtu, protected) };
        }
    }

    /// The kernel's tunnel can be sealed from now on, or no longer.
    pub(super) fn protect(&mut self, now: Time, protected: bool, route_mtu: u16) {
        if !self.neighbour.sealed || protected && self.vxlan.is_some() {
            return;
        }
        self.vxlan = kernel_way(now, &self.neighbour, route_mtu, protected);
        self.choose(now);
    }

    /// What the kernel's tunnel is.
    fn kernel(&self) -> TunnelKind {
        if self.neighbour.sealed { TunnelKind::Esp } else { TunnelKind::Vxlan }
    }

    fn ways(&self) -> impl Iterator<Item = &Way> {
        self.vxlan.iter().chain(&self.sleeve)
    }

    pub(super) fn is_up(&self) -> bool {
        self.route().is_some()
    }

    /// It worked, and does no more.
    pub(super) fn is_dead(&self) -> bool {
        self.ways().any(Way::is_dead) && !self.ways().any(Way::is_alive)
    }

    /// Nothing speaks for it: no link, and no answers.
    pub(super) fn is_abandoned(&self) -> bool {
        !self.linked && !self.ways().any(Way::is_alive)
    }

    pub(super) fn due(&self) -> Option<Time> {
        self.ways().map(Way::due).chain(self.choice.due(self.works())).min()
    }

    fn works(&self) -> Works {
        Works { vxlan: self.vxlan.as_ref().map(Way::is_up), sleeve: self.sleeve.as_ref().is_some_and(Way::is_up) }
    }

    /// Chooses between what works; to be called when anything may have changed.
    pub(super) fn choose(&mut self, now: Time) {
        let works = self.works();
        self.choice.update(now, works);
        self.set_paces();
    }

    /// Whether flows depend on it, and the pace of heartbeats that nothing depends on.
    pub(super) fn set_use(&mut self, used: bool, rest: Time) {
        (self.used, self.rest) = (used, rest);
        self.set_paces();
    }

    /// Flows depend on it from now on.
    pub(super) fn take_into_use(&mut self) {
        if !self.used {
            self.set_use(true, self.rest);
        }
    }

    /// There is no link beside it any more: whether the neighbour is there is to be known soon.
    pub(super) fn unlink(&mut self) {
        self.linked = false;
        self.set_paces();
    }

    /// The way that carries, if anything is carried, is probed at the normal pace; one that is only there in case, at rest.
    fn set_paces(&mut self) {
        let carries = self.choice.current().filter(|_| self.used || !self.linked);
        for (chosen, way) in [(Chosen::Kernel, &mut self.vxlan), (Chosen::Sleeve, &mut self.sleeve)] {
            if let Some(way) = way {
                way.set_pace(if carries == Some(chosen) { INTERVAL } else { self.rest });
            }
        }
    }

    /// The heartbeats that are due.
    pub(super) fn poll(&mut self, now: Time) -> Vec<(TunnelKind, Heartbeat)> {
        let connection = self.neighbour.connection;
        let mut due = Vec::new();
        for (kind, way) in [(self.kernel(), &mut self.vxlan), (TunnelKind::Sleeve, &mut self.sleeve)] {
            let heartbeats = way.iter_mut().flat_map(|way| way.poll(now, connection));
            due.extend(heartbeats.map(|heartbeat| (kind, heartbeat)));
        }
        self.choose(now);
        due
    }

    /// Takes a reply of this size; false if it answers nothing that was asked.
    pub(super) fn answer(&mut self, now: Time, kind: TunnelKind, reply: &Heartbeat) -> bool {
        if reply.connection != self.neighbour.connection && reply.connection != self.previous {
            return false;
        }
        let way = match kind {
            TunnelKind::Vxlan | TunnelKind::Esp => &mut self.vxlan,
            TunnelKind::Sleeve => &mut self.sleeve,
        };
        let taken = way.as_mut().is_some_and(|way| way.answer(now, reply.sequence, reply.size));
        self.choose(now);
        taken
    }

    pub(super) fn set_route_mtu(&mut self, now: Time, mtu: u16) {
        if let Some(vxlan) = &mut self.vxlan {
            vxlan.set_ceiling(now, ceiling(&self.neighbour, mtu));
        }
        if let Some(sleeve) = &mut self.sleeve {
            sleeve.set_ceiling(now, sleeve::datagram_of(mtu));
        }
    }

    /// How a slot that points to this neighbour looks.
    pub(super) fn route(&self) -> Option<PeerRoute> {
        let Neighbour { remote, local, port, .. } = self.neighbour;
        let (tunnel, mtu) = match self.choice.current()? {
            Chosen::Kernel => (self.kernel(), self.vxlan.as_ref()?.mtu()?),
            Chosen::Sleeve => (TunnelKind::Sleeve, sleeve::inner_mtu(self.datagram()?)),
        };
        Some(PeerRoute { remote, local, port, mtu, tunnel, big: self.neighbour.big_tcp && tunnel == TunnelKind::Vxlan })
    }

    /// What the way in use takes is being found out.
    pub(super) fn is_measuring(&self) -> bool {
        let way = if self.choice.current() == Some(Chosen::Sleeve) { &self.sleeve } else { &self.vxlan };
        way.as_ref().is_some_and(|way| way.path().is_searching())
    }

    /// The largest datagram that the sleeve's path takes, if that is known.
    pub(super) fn datagram(&self) -> Option<u16> {
        self.sleeve.as_ref()?.path().proven()
    }

    pub(super) const fn remote(&self) -> Ipv4Addr {
        self.neighbour.remote
    }

    pub(super) fn status(&self, now: Time) -> TunnelStatus {
        let route = self.route();
        let by = route.map(|route| route.tunnel);
        let way = if by == Some(TunnelKind::Sleeve) { self.sleeve.as_ref() } else { self.vxlan.as_ref().or(self.sleeve.as_ref()) };
        let liveness = way.map(Way::liveness);
        TunnelStatus {
            state: match (by, self.is_dead()) {
                (Some(_), _) => TunnelState::Up,
                (None, true) => TunnelState::Down,
                (None, false) => TunnelState::Starting,
            },
            by,
            why: self.why(now, by),
            linked: self.linked,
            mtu: route.map_or(0, |route| route.mtu),
            rtt_us: liveness.and_then(|liveness| Some(liveness.rtt()?.as_micros() as u64)),
            last_answer_ms: liveness.and_then(|liveness| Some(now.saturating_sub(liveness.last_answer()?).as_millis() as u64)),
            lost: liveness.map_or(0, |liveness| liveness.lost()),
        }
    }

    /// Why the kernel's tunnel does not carry, for people.
    fn why(&self, now: Time, by: Option<TunnelKind>) -> Option<String> {
        if by == Some(self.kernel()) {
            return None;
        }
        let Neighbour { sealed, esp, port, .. } = self.neighbour;
        let Some(vxlan) = &self.vxlan else {
            return Some(if esp { "it must be encrypted, and ESP is not set up yet" } else { "it must be encrypted" }.to_owned());
        };
        let (what, blocked) = if sealed { ("esp", "IP protocol 50".to_owned()) } else { ("vxlan", format!("UDP {port}")) };
        Some(match vxlan.liveness().last_answer() {
            None => format!("{what} never answered, {blocked} blocked?"),
            Some(_) if vxlan.is_up() => format!("{what} works again, for how long?"),
            Some(_) if vxlan.is_alive() => format!("{what} takes no packet of {FLOOR} bytes"),
            Some(last) => format!("{what} unanswered for {} s, {blocked} blocked?", now.saturating_sub(last).as_secs()),
        })
    }
}

/// The way by the kernel's tunnel, if it may be used.
fn kernel_way(now: Time, neighbour: &Neighbour, route_mtu: u16, protected: bool) -> Option<Way> {
    let may = !neighbour.sealed || neighbour.esp && protected;
    may.then(|| Way::new(now, ceiling(neighbour, route_mtu)))
}

/// The largest inner packet for the kernel's tunnel where bare VXLAN takes `route_mtu`.
fn ceiling(neighbour: &Neighbour, route_mtu: u16) -> u16 {
    if neighbour.sealed { esp::inner_mtu(route_mtu) } else { route_mtu }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::{PeerName, ShortId};

    fn neighbour(connection: u64) -> Neighbour {
        Neighbour {
            name: PeerName([2; 6]),
            short: ShortId::new(2).unwrap(),
            connection,
            local: Ipv4Addr::new(10, 0, 0, 1),
            remote: Ipv4Addr::new(10, 0, 0, 2),
            port: 6784,
            sleeve_port: 0,
            aes: true,
            sealed: false,
            esp: false,
            big_tcp: false,
            outbound: true,
        }
    }

    /// Runs for `ms` milliseconds on a path that takes `path` bytes.
    fn run(tunnel: &mut Tunnel, from: u64, to: u64, path: u16) -> Option<u64> {
        let was = tunnel.is_up();
        for ms in from..to {
            let now = Time::from_millis(ms);
            for (kind, request) in tunnel.poll(now) {
                if request.size <= path {
                    assert!(tunnel.answer(now, kind, &request.reply()));
                }
            }
            if tunnel.is_up() != was {
                return Some(ms);
            }
        }
        None
    }

    #[test]
    fn a_tunnel_is_up_once_a_full_size_heartbeat_was_answered() {
        let mut tunnel = Tunnel::new(Time::ZERO, neighbour(7), 1450, false);
        assert!(run(&mut tunnel, 0, 1000, 1450).unwrap() < 10);
        assert_eq!(tunnel.route().unwrap().mtu, 1450);
    }

    #[test]
    fn a_tunnel_for_small_packets_only_comes_up_with_the_size_that_gets_through() {
        let mut tunnel = Tunnel::new(Time::ZERO, neighbour(7), 1450, false);
        assert!(run(&mut tunnel, 0, 10_000, 1401).unwrap() < 4000);
        assert_eq!(tunnel.route().unwrap().mtu, 1401);
    }

    #[test]
    fn a_dead_tunnel_is_down_in_two_seconds_and_back_in_three() {
        let mut tunnel = Tunnel::new(Time::ZERO, neighbour(7), 1450, false);
        run(&mut tunnel, 0, 1000, 1450);
        run(&mut tunnel, 1000, 5000, 1450);
        assert!(run(&mut tunnel, 5000, 60_000, 0).unwrap() <= 7000);
        assert!(tunnel.route().is_none());
        run(&mut tunnel, 7000, 60_000, 0);
        assert!(run(&mut tunnel, 60_000, 70_000, 1450).unwrap() <= 63_000);
    }

    #[test]
    fn a_new_link_to_the_same_ends_leaves_the_tunnel_up_and_other_ends_do_not() {
        let mut tunnel = Tunnel::new(Time::ZERO, neighbour(7), 1450, false);
        run(&mut tunnel, 0, 1000, 1450);
        tunnel.relink(Time::from_secs(1), neighbour(8), 1450, false);
        assert!(tunnel.is_up());
        tunnel.relink(Time::from_secs(1), Neighbour { remote: Ipv4Addr::new(10, 0, 0, 3), ..neighbour(9) }, 1450, false);
        assert!(!tunnel.is_up());
    }

    #[test]
    fn a_reply_with_another_connection_or_repeated_is_refused() {
        let mut tunnel = Tunnel::new(Time::ZERO, neighbour(7), 1450, false);
        let (kind, request) = tunnel.poll(Time::ZERO)[0];
        assert!(!tunnel.answer(Time::ZERO, kind, &Heartbeat { connection: 8, ..request.reply() }));
        assert!(tunnel.answer(Time::ZERO, kind, &request.reply()));
        assert!(!tunnel.answer(Time::ZERO, kind, &request.reply()));
    }
}
