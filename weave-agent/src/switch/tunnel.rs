//! The tunnel to one neighbour: up while small heartbeats are answered and a size is proven.
//!
//! A tunnel that only small packets get through would be a black hole for the rest, so it is not up before a heartbeat
//! of full size, or of the size that a quick search finds, was answered.

use std::net::Ipv4Addr;

use super::heartbeat::Heartbeat;
use super::liveness::Liveness;
use super::path_mtu::PathMtu;
use super::status::{TunnelState, TunnelStatus};
use crate::Time;
use crate::datapath::PeerRoute;
use crate::mesh::Neighbour;

#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) neighbour: Neighbour,
    /// There is a link beside it.
    pub(super) linked: bool,
    /// The route by it as of when the rest of the switch last looked; some if it was up then.
    pub(super) told: Option<PeerRoute>,
    /// Of the link before this one: heartbeats may be under way with it.
    previous: u64,
    sequence: u32,
    liveness: Liveness,
    path: PathMtu,
}

impl Tunnel {
    pub(super) fn new(now: Time, neighbour: Neighbour, route_mtu: u16) -> Self {
        Self {
            previous: neighbour.connection,
            neighbour,
            linked: true,
            told: None,
            sequence: 0,
            liveness: Liveness::new(now),
            path: PathMtu::new(now, route_mtu),
        }
    }

    /// A new link to the same neighbour. The tunnel goes on as it is if it has the same two ends.
    pub(super) fn relink(&mut self, now: Time, neighbour: Neighbour, route_mtu: u16) {
        let ends = |n: &Neighbour| (n.local, n.remote, n.port);
        if ends(&neighbour) == ends(&self.neighbour) {
            self.previous = self.neighbour.connection;
            self.neighbour = neighbour;
            self.linked = true;
        } else {
            *self = Self { told: self.told, ..Self::new(now, neighbour, route_mtu) };
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.liveness.is_alive() && self.path.proven().is_some()
    }

    /// It worked, and does no more.
    pub(super) fn is_dead(&self) -> bool {
        self.liveness.is_dead()
    }

    /// Nothing speaks for it: no link, and no answers.
    pub(super) fn is_abandoned(&self) -> bool {
        !self.linked && !self.liveness.is_alive()
    }

    pub(super) fn due(&self) -> Time {
        let path = self.liveness.is_answered().then(|| self.path.due());
        path.map_or(self.liveness.due(), |path| path.min(self.liveness.due()))
    }

    /// The heartbeats that are due.
    pub(super) fn poll(&mut self, now: Time) -> Vec<Heartbeat> {
        let mut heartbeats = Vec::new();
        let was_dead = self.liveness.is_dead();
        if self.liveness.poll(now, self.sequence, self.path.is_busy() && self.liveness.is_answered()) {
            heartbeats.push(self.request(now, 0));
        }
        if self.liveness.is_dead() && !was_dead {
            self.path.forget(now);
        }
        if self.liveness.is_answered()
            && let Some(size) = self.path.poll(now, self.sequence, self.liveness.last_answer(), self.liveness.rtt())
        {
            heartbeats.push(self.request(now, size));
        }
        heartbeats
    }

    fn request(&mut self, now: Time, size: u16) -> Heartbeat {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        Heartbeat::request(self.neighbour.connection, sequence, now.as_nanos() as u64, size)
    }

    /// Takes a reply; false if it answers nothing that was asked.
    pub(super) fn answer(&mut self, now: Time, reply: &Heartbeat) -> bool {
        if reply.connection != self.neighbour.connection && reply.connection != self.previous {
            return false;
        }
        self.path.answer(now, reply.sequence, reply.size) || self.liveness.answer(now, reply.sequence)
    }

    pub(super) fn set_route_mtu(&mut self, now: Time, mtu: u16) {
        self.path.set_ceiling(now, mtu);
    }

    /// How a slot that points to this neighbour looks.
    pub(super) fn route(&self) -> Option<PeerRoute> {
        let Neighbour { remote, local, port, .. } = self.neighbour;
        self.path.proven().filter(|_| self.liveness.is_alive()).map(|mtu| PeerRoute { remote, local, port, mtu })
    }

    pub(super) const fn remote(&self) -> Ipv4Addr {
        self.neighbour.remote
    }

    pub(super) fn status(&self, now: Time) -> TunnelStatus {
        TunnelStatus {
            state: match (self.is_up(), self.liveness.is_dead()) {
                (true, _) => TunnelState::Up,
                (false, true) => TunnelState::Down,
                (false, false) => TunnelState::Starting,
            },
            linked: self.linked,
            mtu: self.path.proven().unwrap_or(0),
            rtt_us: self.liveness.rtt().map(|rtt| rtt.as_micros() as u64),
            last_answer_ms: self.liveness.last_answer().map(|at| now.saturating_sub(at).as_millis() as u64),
            lost: self.liveness.lost(),
        }
    }
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
            sleeve_port: 6783,
            aes: true,
            sealed: false,
            outbound: true,
        }
    }

    /// Runs for `ms` milliseconds on a path that takes `path` bytes.
    fn run(tunnel: &mut Tunnel, from: u64, to: u64, path: u16) -> Option<u64> {
        let was = tunnel.is_up();
        for ms in from..to {
            let now = Time::from_millis(ms);
            for request in tunnel.poll(now) {
                if request.size <= path {
                    assert!(tunnel.answer(now, &request.reply()));
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
        let mut tunnel = Tunnel::new(Time::ZERO, neighbour(7), 1450);
        assert!(run(&mut tunnel, 0, 1000, 1450).unwrap() < 10);
        assert_eq!(tunnel.route().unwrap().mtu, 1450);
    }

    #[test]
    fn a_tunnel_for_small_packets_only_comes_up_with_the_size_that_gets_through() {
        let mut tunnel = Tunnel::new(Time::ZERO, neighbour(7), 1450);
        assert!(run(&mut tunnel, 0, 10_000, 1401).unwrap() < 4000);
        assert_eq!(tunnel.route().unwrap().mtu, 1401);
    }

    #[test]
    fn a_dead_tunnel_is_down_in_two_seconds_and_back_in_three() {
        let mut tunnel = Tunnel::new(Time::ZERO, neighbour(7), 1450);
        run(&mut tunnel, 0, 1000, 1450);
        run(&mut tunnel, 1000, 5000, 1450);
        assert!(run(&mut tunnel, 5000, 60_000, 0).unwrap() <= 7000);
        assert!(tunnel.route().is_none());
        run(&mut tunnel, 7000, 60_000, 0);
        assert!(run(&mut tunnel, 60_000, 70_000, 1450).unwrap() <= 63_000);
    }

    #[test]
    fn a_new_link_to_the_same_ends_leaves_the_tunnel_up_and_other_ends_do_not() {
        let mut tunnel = Tunnel::new(Time::ZERO, neighbour(7), 1450);
        run(&mut tunnel, 0, 1000, 1450);
        tunnel.relink(Time::from_secs(1), neighbour(8), 1450);
        assert!(tunnel.is_up());
        tunnel.relink(Time::from_secs(1), Neighbour { remote: Ipv4Addr::new(10, 0, 0, 3), ..neighbour(9) }, 1450);
        assert!(!tunnel.is_up());
    }

    #[test]
    fn a_reply_with_another_connection_or_repeated_is_refused() {
        let mut tunnel = Tunnel::new(Time::ZERO, neighbour(7), 1450);
        let request = tunnel.poll(Time::ZERO)[0];
        assert!(!tunnel.answer(Time::ZERO, &Heartbeat { connection: 8, ..request.reply() }));
        assert!(tunnel.answer(Time::ZERO, &request.reply()));
        assert!(!tunnel.answer(Time::ZERO, &request.reply()));
    }
}
