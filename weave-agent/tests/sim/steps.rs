//! Making the steps of a case happen.

use bytes::Bytes;
use rand::{Rng, RngExt};
use weave_agent::Time;
use weave_agent::addr::Mac;
use weave_agent::mesh::{self, LinkId};
use weave_agent::router::Input;
use weave_ebpf::fastpath::{HEARTBEAT_REQUEST, tunnel_vni};
use weave_ebpf::vxlan::{self, Fields, Path};

use crate::case::{Forgery, Step};
use crate::frame::{self, FrameId, Payload};
use crate::kernel::TUNNEL_PORT;
use crate::properties::Violation;
use crate::run::Run;
use crate::stream::{End, Segment, Stream, StreamId};
use crate::wire::HostId;
use crate::world::{CONTROL_PORT, Event, address};

/// 01:00:5e:01:02:03, an IPv4 multicast group.
const GROUP: Mac = Mac([0x01, 0x00, 0x5e, 1, 2, 3]);
/// Host number of whoever is no host.
const STRANGER: HostId = 200;

impl Run {
    /// Makes one step happen.
    pub(crate) fn step(&mut self, step: &Step) -> Result<(), Violation> {
        match step {
            Step::Launch(host) => self.world.launch(*host),
            Step::Crash(host) => self.world.crash(*host),
            Step::Connect(host, to) => self.world.connect(*host, &[address(*to).to_string()]),
            Step::Cut(a, b) => self.cut(&[(*a, *b), (*b, *a)]),
            Step::CutOneWay(from, to) => self.cut(&[(*from, *to)]),
            Step::Mend(a, b) => self.mend(*a, *b),
            Step::Block(a, b, blocked) => self.world.wires.block(*a, *b, *blocked),
            Step::Isolate(host) => self.separate(|other| other == *host),
            Step::Split(first) => self.separate(|other| other < *first),
            Step::Heal => self.heal(),
            Step::Noise(noise) => {
                self.world.wires.noise = *noise;
                self.noisy = true;
            }
            Step::Attach(host) => self.attach_new(*host),
            Step::Detach(number) => _ = self.model.pick(*number).map(|index| self.detach(index)),
            Step::Move(number, host) => self.move_to(*number, *host)?,
            Step::Twin(number, host) => self.twin(*number, *host)?,
            Step::Unicast(from, to, payload) => self.unicast(*from, *to, *payload),
            Step::Broadcast(from, payload) => self.group(*from, Mac::BROADCAST, *payload),
            Step::Multicast(from) => self.group(*from, GROUP, Payload::Ipv4),
            Step::Jump(host, seconds) => self.jump(*host, Time::from_secs(*seconds)),
            Step::Stranger(host, forgery) => self.stranger(*host, *forgery),
            Step::Garbage(host) => self.garbage(*host),
            Step::Reset(host) => self.reset(*host),
            Step::RandomMacs(from, frames) => self.random_macs(*from, *frames),
            Step::Settle => self.settle_midway()?,
        }
        Ok(())
    }

    pub(crate) fn cut(&mut self, directions: &[(HostId, HostId)]) {
        for (from, to) in directions {
            self.world.wires.cut(*from, *to);
        }
    }

    pub(crate) fn mend(&mut self, a: HostId, b: HostId) {
        self.world.wires.mend(a, b);
        self.world.resume_streams();
    }

    pub(crate) fn heal(&mut self) {
        self.world.wires.heal();
        self.world.resume_streams();
    }

    /// Cuts every wire between those inside and the others.
    fn separate(&mut self, inside: impl Fn(HostId) -> bool) {
        for a in (0..self.world.hosts.len()).filter(|host| inside(*host)) {
            for b in (0..self.world.hosts.len()).filter(|host| !inside(*host)) {
                self.cut(&[(a, b), (b, a)]);
            }
        }
    }

    fn attach_new(&mut self, host: HostId) {
        let mac = self.model.new_mac();
        if let Some(container) = self.attach(host, mac, false) {
            self.announce(container);
        }
    }

    fn move_to(&mut self, number: usize, host: HostId) -> Result<(), Violation> {
        let Some(index) = self.model.pick(number).filter(|index| !self.model.containers[*index].twin) else {
            return Ok(());
        };
        if self.world.hosts[host].agent.is_none() {
            return Ok(());
        }
        let mac = self.model.containers[index].mac;
        self.detach(index);
        self.world.run_for(Time::from_millis(50))?;
        if let Some(container) = self.attach(host, mac, false) {
            self.announce(container);
        }
        Ok(())
    }

    /// Two containers take turns with one MAC.
    fn twin(&mut self, number: usize, host: HostId) -> Result<(), Violation> {
        let Some(index) = self.model.pick(number) else {
            return Ok(());
        };
        let original = self.model.containers[index];
        let Some(twin) = self.attach(host, original.mac, true) else {
            return Ok(());
        };
        self.model.containers[index].twin = true;
        for turn in 0..10 {
            self.announce(if turn % 2 == 0 { twin } else { original });
            self.world.run_for(Time::from_millis(100))?;
        }
        Ok(())
    }

    fn unicast(&mut self, from: usize, to: usize, payload: Payload) {
        if let (Some(from), Some(to)) = (self.model.pick(from), self.model.pick(to)) {
            let dst = self.model.containers[to].mac;
            self.send(self.model.containers[from], dst, payload);
        }
    }

    fn group(&mut self, from: usize, group: Mac, payload: Payload) {
        if let Some(from) = self.model.pick(from) {
            self.send(self.model.containers[from], group, payload);
        }
    }

    /// The host slept: its clock is further on, and every timer late.
    fn jump(&mut self, host: HostId, time: Time) {
        self.world.hosts[host].offset += time;
        self.world.drive(host);
    }

    fn stranger(&mut self, host: HostId, forgery: Forgery) {
        let own = self.world.hosts[host].kernel.config.short;
        let neighbour = (host + 1) % self.world.hosts.len();
        let nobody = self.world.rng.random_range(0..4096);
        let taken = self.world.hosts.iter().any(|host| host.kernel.config.short == nobody);
        if taken && matches!(forgery, Forgery::WrongVni | Forgery::Spoofed) {
            return;
        }
        let (from, vni) = match forgery {
            Forgery::RightVni | Forgery::Heartbeat => (STRANGER, tunnel_vni(own, self.world.hosts[neighbour].kernel.config.short)),
            Forgery::WrongVni => (STRANGER, tunnel_vni(nobody, nobody)),
            Forgery::OwnVni => (neighbour, tunnel_vni(own, own)),
            Forgery::Spoofed => (neighbour, tunnel_vni(own, nobody)),
        };
        let dst = self.model.containers.iter().find(|container| container.place.0 == host).map_or(Mac::BROADCAST, |c| c.mac);
        for dst in [dst, Mac::BROADCAST] {
            let frame = match forgery {
                Forgery::Heartbeat => [&[0; 14], &[1, HEARTBEAT_REQUEST][..], &[0; 60]].concat().into(),
                _ => self.forged_frame(dst, neighbour),
            };
            let path = Path {
                local: address(from).octets(),
                remote: address(host).octets(),
                port: TUNNEL_PORT,
                mtu: 1450,
                next_hop: None,
                esp: false,
                big: false,
            };
            let headers = vxlan::headers(&vxlan::slot(&path), vni, Fields::new(frame.len() as u32, 0));
            let packet = [&headers[..], &frame].concat().into();
            self.world.schedule(Time::ZERO, Event::Packet { to: host, packet });
        }
    }

    /// As like a frame from a container of `neighbour` as can be.
    fn forged_frame(&mut self, dst: Mac, neighbour: HostId) -> Bytes {
        let id: FrameId = self.world.ledger.send(None, self.world.now);
        let src = self.model.containers.iter().find(|container| container.place.0 == neighbour);
        frame::build(dst, src.map_or(Mac([2, 0xbb, 0, 0, 0, 1]), |container| container.mac), Payload::Ipv4, id, 60)
    }

    /// A stranger connects and talks nonsense, at times after a good beginning.
    fn garbage(&mut self, host: HostId) {
        if self.world.hosts[host].agent.is_none() {
            return;
        }
        let incarnation = self.world.hosts[host].incarnation;
        let stream = StreamId(self.world.streams.number());
        let link = LinkId(self.world.streams.number());
        let stranger = End { host: STRANGER, incarnation: 0, link, open: true };
        let end = End { host, incarnation, link, open: true };
        self.world.streams.all.insert(stream, Stream::new([stranger, end]));
        let local = std::net::SocketAddrV4::new(address(host), CONTROL_PORT);
        let remote = std::net::SocketAddrV4::new(address(STRANGER), 40_000);
        self.world.input(host, Input::Mesh(mesh::Input::Accepted { link, local, remote }));
        let mut bytes = if self.world.rng.random_bool(0.5) { b"WVAG\x01\x01".to_vec() } else { Vec::new() };
        let mut noise = vec![0; self.world.rng.random_range(0..2000)];
        self.world.rng.fill_bytes(&mut noise);
        bytes.extend(noise);
        self.world.push(stream, 1, Segment::Bytes(bytes.into()));
        if self.world.rng.random_bool(0.5) {
            self.world.close_stream(stream, 0);
        }
    }

    fn reset(&mut self, host: HostId) {
        let streams = self.world.streams.of_host(host);
        if let Some((stream, _)) = streams.first() {
            self.world.reset_stream(*stream);
        }
    }

    fn random_macs(&mut self, from: usize, frames: u32) {
        let Some(from) = self.model.pick(from) else {
            return;
        };
        let place = self.model.containers[from].place;
        for _ in 0..frames {
            let mut macs = [0; 12];
            self.world.rng.fill_bytes(&mut macs);
            let [a, b, c, d, e, f, g, h, i, j, k, l] = macs;
            let (dst, src) = (Mac([a & !1 | 2, b, c, d, e, f]), Mac([g & !1 | 2, h, i, j, k, l]));
            let id = self.world.ledger.send(Some(place), self.world.now);
            self.emit(place, &frame::build(dst, src, Payload::Ipv4, id, 60));
        }
    }
}
