//! Two hosts with a container each, and a wire between them.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::sync::mpsc;
use weave_agent::io::net::Netlink;
use weave_agent::io::sleeve::{Count, Options, Sleeve};
use weave_agent::sleeve::{Cipher, Heard, Inbound, Key, Op, Outbound, SessionId};

use crate::plug::Plug;
use crate::wire::{Treatment, Wire};

pub(crate) const PORT: u16 = 6783;
pub(crate) const VNI: u32 = 0x00_1002;
/// Long enough for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A network namespace, gone when it is dropped.
pub(crate) struct Namespace(String);

impl Namespace {
    pub(crate) fn new(kind: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("slv-{}-{}-{kind}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        sh(&format!("ip netns add {name} && ip -n {name} link set lo up"));
        Self(name)
    }

    /// Run something inside.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
        let inside = || {
            setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Run a command inside; did it succeed?
    pub(crate) fn succeeds(&self, command: &str) -> bool {
        Command::new("sh")
            .args(["-c", &format!("nsenter --net=/run/netns/{} {command} >/dev/null 2>&1", self.0)])
            .status()
            .unwrap()
            .success()
    }

    pub(crate) fn sh(&self, command: &str) -> String {
        sh(&format!("nsenter --net=/run/netns/{} {command}", self.0))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// A command; its output.
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// How a bed is made.
#[derive(Clone, Copy)]
pub(crate) struct Make {
    pub(crate) cipher: Cipher,
    pub(crate) underlay_mtu: u32,
    pub(crate) datagram: u16,
    pub(crate) container_mtu: u32,
    pub(crate) treatment: Treatment,
}

pub(crate) const MAKE: Make =
    Make { cipher: Cipher::Aes256Gcm, underlay_mtu: 1500, datagram: 1472, container_mtu: 1400, treatment: Treatment::FAITHFUL };

/// A host with a container.
pub(crate) struct Host {
    pub(crate) sleeve: Sleeve,
    pub(crate) heard: mpsc::Receiver<Heard>,
    pub(crate) container: Namespace,
    pub(crate) host: Namespace,
    /// Where it believes the other to be.
    pub(crate) neighbour: Ipv4Addr,
    _plug: Plug,
}

/// Two hosts; what they say to each other goes by the wire.
pub(crate) struct Bed {
    pub(crate) hosts: [Host; 2],
    pub(crate) wire: Wire,
}

pub(crate) fn session(id: u32) -> SessionId {
    SessionId(NonZeroU32::new(id).unwrap())
}

pub(crate) fn key(id: u32) -> Key {
    Key(std::array::from_fn(|i| id as u8 ^ i as u8))
}

/// Runs a test on a bed; without root it is skipped, but not in CI.
pub(crate) fn on_a_bed(make: Make, test: impl FnOnce(&mut Bed)) {
    if vm_tests::root_or_skip() {
        test(&mut Bed::new(make));
    }
}

impl Bed {
    fn new(make: Make) -> Self {
        let underlays = [1, 2].map(|_| Namespace::new("h"));
        let middle = Namespace::new("w");
        for (host, i) in underlays.iter().zip(1..) {
            let (host, wire, mtu) = (&host.0, &middle.0, make.underlay_mtu);
            sh(&format!("ip link add u netns {host} type veth peer name w{i} netns {wire}"));
            sh(&format!("ip -n {wire} addr add 192.168.{i}.254/24 dev w{i} && ip -n {wire} link set w{i} up mtu {mtu}"));
            sh(&format!("ip -n {host} addr add 192.168.{i}.1/24 dev u && ip -n {host} link set u up mtu {mtu}"));
        }
        let wire = middle.enter(|| Wire::new(make.treatment));
        let mut hosts = underlays.into_iter().zip(1..).map(|(host, i)| Host::new(host, i, make));
        let hosts = [hosts.next().unwrap(), hosts.next().unwrap()];
        let bed = Self { hosts, wire };
        bed.open(1, make.cipher);
        // Keeps the namespace of the wire for as long as the sockets in it.
        drop(middle);
        bed
    }

    /// A session in each direction, numbered from `first` on, is used from now on.
    pub(crate) fn open(&self, first: u32, cipher: Cipher) {
        for (id, [from, to]) in (first..).zip([[0, 1], [1, 0]]) {
            let (from, to) = (&self.hosts[from], &self.hosts[to]);
            to.sleeve.apply(&Op::Accept(Inbound { session: session(id), neighbour: to.neighbour, cipher, key: key(id) }));
            let remote = SocketAddrV4::new(from.neighbour, PORT);
            let outbound = Outbound { session: session(id), cipher, key: key(id), remote };
            from.sleeve.apply(&Op::Send { neighbour: from.neighbour, session: Some(outbound) });
        }
    }

    /// Do the containers answer each other?
    pub(crate) fn pings(&self, options: &str) -> bool {
        self.hosts[0].container.succeeds(&format!("ping -c 3 -i 0.05 -W 2 {options} 10.32.0.2"))
    }

    /// A stream from the first container to the second arrives as it was sent.
    pub(crate) fn carries_a_stream(&self, length: usize) {
        self.carries_a_stream_to("10.32.0.2:8080", length);
    }

    /// The same to an address of the second container's.
    pub(crate) fn carries_a_stream_to(&self, address: &str, length: usize) {
        let [client, server] = &self.hosts;
        let listener = server.container.enter(|| TcpListener::bind(address).unwrap());
        let received = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let bytes: Vec<u8> = (0..length).map(|i| (i / 5 % 251) as u8).collect();
        client.container.enter(|| TcpStream::connect(address).unwrap().write_all(&bytes).unwrap());
        assert!(received.join().unwrap() == bytes, "the stream arrived changed");
    }
}

impl Host {
    fn new(host: Namespace, i: u8, make: Make) -> Self {
        let container = Namespace::new("c");
        let (outside, inside, mtu) = (&host.0, &container.0, make.container_mtu);
        sh(&format!("ip link add p netns {outside} type veth peer name eth0 netns {inside}"));
        sh(&format!("ip -n {outside} link set p mtu {mtu} && ip -n {inside} link set eth0 mtu {mtu}"));
        // Nothing is sent but what a test sends.
        sh(&format!("ip -n {inside} link set eth0 addrgenmode none && ip -n {outside} link set p addrgenmode none up"));
        sh(&format!("ip -n {inside} link set eth0 up && ip -n {inside} addr add 10.32.0.{i}/24 dev eth0"));
        // The wire stands for the other.
        let neighbour = Ipv4Addr::new(192, 168, i, 254);
        let (sleeve, heard, plug) = host.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let options = Options { queues: Some(2), ..Options::on_port(PORT) };
                let (sleeve, heard) = Sleeve::start(&options).await.unwrap();
                let port = Netlink::here().unwrap().link_named("p").await.unwrap().unwrap();
                let plug = Plug::new(port.index, sleeve.ifindex(), neighbour, VNI).unwrap();
                (sleeve, heard, plug)
            })
        });
        sleeve.apply(&Op::Path { neighbour, datagram: make.datagram });
        Self { sleeve, heard, container, host, neighbour, _plug: plug }
    }

    pub(crate) fn count(&self, count: Count) -> u64 {
        let status = self.sleeve.status();
        status.counters.iter().find(|(name, _)| *name == count.name()).map_or(0, |(_, value)| *value)
    }

    /// What it says next.
    pub(crate) fn hears(&mut self) -> Heard {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(PATIENCE, self.heard.recv()).await.unwrap().unwrap() })
    }
}

/// Until `condition` holds; fails after a while.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    vm_tests::wait_for(what, PATIENCE, || Ok(condition())).unwrap();
}
