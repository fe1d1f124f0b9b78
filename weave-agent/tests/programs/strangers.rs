//! Strangers' packets before an skb is made of them: the XDP program, the library and the programs after it agree about who is one;
//! it is put on interfaces, found again, and taken off.

use std::env;
use std::path::Path;

use aya::programs::SchedClassifier;
use aya::programs::xdp::XdpMode;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weave_agent::config::Xdp;
use weave_agent::datapath::{Action, PortId};
use weave_agent::io::datapath::Datapath;
use weave_agent::io::datapath::ebpf::{Ebpf, Options, unload};
use weave_agent::io::object::OBJECT;
use weave_ebpf::flow::{Ipv4, vni};
use weave_ebpf::stats::DropReason;
use weave_ebpf::stranger;
use weave_ebpf::vxlan::{self, OUTER};

use crate::capture::Seen;
use crate::carry::{OK, SHOT};
use crate::context::Context;
use crate::frames;
use crate::host::{Host, OWN, attach, container, tunnelled, udp};
use crate::kernel::{Kernel, Maps, run, run_early, takes_pieces};
use crate::outside::Outside;
use crate::place::{ip, is_emulated, one_cpu, private, private_async, run as command};
use crate::stack;
use crate::tables::now;
use crate::trampoline;
use crate::wires::{LOCAL, TUNNEL_PORT, Wires, index_of};
use crate::world::World;

/// `linux/bpf.h`.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

const WORLDS: usize = 30;
/// Where each takes long.
const FEW_WORLDS: usize = 5;
const PACKETS: usize = 250;
/// What every kernel takes with XDP on a veth.
const SMALL: u32 = 1_600;

/// The programs and their tables.
struct Bench {
    kernel: Kernel,
    trampoline: SchedClassifier,
    maps: Maps,
    wires: Wires,
}

impl Bench {
    fn new(pins: &Path) -> Self {
        one_cpu();
        let wires = Wires::make();
        let mut kernel = Kernel::load(pins);
        let mut maps = kernel.maps();
        LOCAL.into_iter().for_each(|address| maps.set_local(address));
        let trampoline = trampoline::load(kernel.program("from_vxlan"), pins);
        Self { kernel, trampoline, maps, wires }
    }

    fn count(&self, reason: DropReason) -> u64 {
        self.maps.counts()[reason.index() as usize]
    }

    /// What those say that come later: `from_underlay`, and if it lets the packet pass `from_vxlan`.
    fn assert_dropped_later(&self, packet: &[u8], reason: DropReason, what: &str) {
        let before = self.count(reason);
        let context = Context { ifindex: self.wires.underlay[0], ..Context::default() };
        let code = run(self.kernel.program("from_underlay"), packet, &context, 1).code;
        if code != SHOT {
            assert_eq!(code, OK, "{what}");
            let (outer, _) = vxlan::parse_any(packet, TUNNEL_PORT).unwrap();
            let mut context = Context { ifindex: self.wires.vxlan, ..Context::default() };
            context.cb[..3].copy_from_slice(&[outer.vni, u32::from_be_bytes(outer.src), outer.ttl.into()]);
            assert_eq!(run(&self.trampoline, &packet[OUTER..], &context, 1).code, SHOT, "{what}");
        }
        assert_eq!(self.count(reason), before + 1, "{} by the later programs, {what}", reason.name());
    }
}

#[test]
fn who_is_a_stranger_is_one_to_all() {
    let seed = env::var("PROGRAMS_SEED").map_or_else(|_| now(), |seed| seed.parse().unwrap());
    println!("PROGRAMS_SEED={seed}");
    // What a trampoline has to put beside the packet no older kernel takes.
    let later = vm_tests::kernel::has_for("strangers to from_vxlan", "a tunnel key's local address, which a trampoline sets", (6, 0));
    private(move |pins| {
        let mut bench = Bench::new(pins);
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut strangers, mut unknown, mut passed) = (0, 0, 0);
        for number in 0..if is_emulated() { FEW_WORLDS } else { WORLDS } {
            let world = World::generate(&mut rng, &bench.wires);
            world.install(&mut bench.maps);
            for packet in 0..PACKETS {
                let what = format!("PROGRAMS_SEED={seed}, world {number}, packet {packet}");
                match compare(&mut bench, &world, &generate(&mut rng, &world), later, &what) {
                    Some(DropReason::Stranger) => strangers += 1,
                    Some(_) => unknown += 1,
                    None => passed += 1,
                }
            }
        }
        println!("{strangers} strangers, {unknown} of unknown peers, {passed} passed");
        assert!(strangers > 50 && unknown > 50 && passed > 500);
    });
}

/// As on an underlay; more of them of nobody's, and with UDP checksums.
fn generate(rng: &mut StdRng, world: &World) -> Vec<u8> {
    let mut packet = frames::from_underlay(rng, world).packet;
    if packet.len() > OUTER && rng.random_bool(0.2) {
        packet[26..30].copy_from_slice(&nobody(rng));
    }
    if packet.len() > OUTER && rng.random_bool(0.2) {
        packet[40..42].copy_from_slice(&rng.random::<[u8; 2]>());
    }
    packet
}

fn nobody(rng: &mut StdRng) -> Ipv4 {
    [10, rng.random_range(0..2), 0, rng.random_range(100..250)]
}

/// The kernel's verdict is the library's, and nothing of the packet changes; who is dropped would be dropped later.
fn compare(bench: &mut Bench, world: &World, packet: &[u8], later: bool, what: &str) -> Option<DropReason> {
    let memory = &world.memory;
    let expected = stranger::refuse(packet, memory, &memory.config, |address| LOCAL.contains(&address));
    let before = bench.maps.counts();
    let (code, after, _) = run_early(bench.kernel.filter(), packet, 1);
    assert_eq!(code, if expected.is_some() { XDP_DROP } else { XDP_PASS }, "{expected:?}, {what}: {packet:02x?}");
    assert_eq!(after, packet, "{what}");
    let mut counts = before;
    if let Some(reason) = expected {
        counts[reason.index() as usize] += 1;
    }
    assert_eq!(bench.maps.counts(), counts, "{what}");
    // What else these test runs take is their own affair.
    let takes = |packet: &[u8]| stack::takes(packet);
    if let Some(reason) = expected.filter(|_| later && takes(packet) && takes(&packet[OUTER..])) {
        bench.assert_dropped_later(packet, reason, &format!("{what}: {packet:02x?}"));
    }
    expected
}

/// Wires that every kernel lets XDP on.
fn small_wires() -> Wires {
    let wires = Wires::make();
    ip(&format!("link set u0 mtu {SMALL}\nlink set u1 mtu {SMALL}"));
    wires.outside.enter(|| ip(&format!("link set w0 mtu {SMALL}\nlink set w1 mtu {SMALL}")));
    wires
}

fn filtered(wires: Wires, pins: &Path) -> Host {
    let mut host = Host::with(wires, pins, None, Xdp::Filter);
    LOCAL.into_iter().for_each(|address| host.ebpf.address_added(address.into()).unwrap());
    host
}

/// Whether an interface has an XDP program in its driver.
fn has_program(interface: &str) -> bool {
    let text = command("ip", &format!("-d link show dev {interface}"));
    assert!(!text.contains("xdpgeneric"), "{text}");
    text.contains("prog/xdp")
}

fn alien(host: &Host) -> Vec<u8> {
    tunnelled(&host.wires, 9, vni(OWN.into(), 2), &udp(9, container(1)))
}

/// Then the vxlan device does not see it.
fn assert_ends_early(host: &Host, outside: &Outside, ended: u64) {
    outside.send_to_underlay(0, &alien(host));
    assert_eq!(outside.arrivals(0), []);
    assert_eq!((host.count("stranger"), host.count("vxlan-in")), (ended, 0));
}

#[test]
fn strangers_end_in_the_driver_with_and_without_an_agent_and_neighbours_pass() {
    private_async(|pins| async move {
        let mut host = filtered(small_wires(), &pins);
        let outside = Outside::open(&host.wires);
        let frame = udp(9, container(1));
        host.cache_tunnel(2, &frame, Action::Port(PortId(host.wires.ports[0])));
        assert_eq!(host.ebpf.xdp(), ["u0: strangers' packets end in the driver", "u1: strangers' packets end in the driver"]);
        assert_ends_early(&host, &outside, 1);
        outside.send_to_underlay(0, &tunnelled(&host.wires, 2, vni(OWN.into(), 2), &frame));
        assert_eq!(outside.arrivals(1), [Seen { ifindex: outside.container(0), bytes: frame.clone() }]);
        // To somebody behind us.
        let mut through = alien(&host);
        through[33] = 77;
        outside.send_to_underlay(0, &through);
        assert_eq!(outside.arrivals(0), []);
        assert_eq!(host.count("stranger"), 1);

        // No agent; then one that takes over.
        let Host { wires, ebpf, upcalls, options } = host;
        drop((ebpf, upcalls));
        let unseen = tunnelled(&wires, 9, vni(OWN.into(), 2), &frame);
        outside.send_to_underlay(0, &unseen);
        assert_eq!(outside.arrivals(0), []);
        let (ebpf, upcalls) = Ebpf::load(OBJECT, &options).unwrap();
        let mut host = Host { wires, ebpf, upcalls, options };
        host.attach();
        LOCAL.into_iter().for_each(|address| host.ebpf.address_added(address.into()).unwrap());
        assert_ends_early(&host, &outside, 3);
        // An address that is gone is somebody else's.
        host.ebpf.address_gone(LOCAL[0].into());
        outside.send_to_underlay(0, &alien(&host));
        assert_eq!(outside.arrivals(0), []);
        assert_eq!((host.count("stranger"), host.count("vxlan-in")), (4, 1));
    });
}

#[test]
fn it_goes_with_the_underlay_and_with_everything_else() {
    private_async(|pins| async move {
        let mut host = filtered(small_wires(), &pins);
        assert!(has_program("u0") && has_program("u1"));
        let [u0, u1] = host.wires.underlay;
        host.ebpf.detach_underlay(u0).unwrap();
        assert!(!has_program("u0") && has_program("u1"));
        host.ebpf.attach_underlay(u0).unwrap();
        // A later agent finds that u1 carries nothing any more.
        let (ebpf, upcalls) = host.successor();
        (host.ebpf, host.upcalls) = (ebpf, upcalls);
        host.ebpf.attach_underlay(u0).unwrap();
        host.ebpf.underlays_are(&[u0]).unwrap();
        assert!(has_program("u0") && !has_program("u1"));
        assert_eq!(host.ebpf.xdp().len(), 1);
        host.ebpf.attach_underlay(u1).unwrap();
        let Host { wires, ebpf, upcalls, options } = host;
        drop((ebpf, upcalls));
        assert!(has_program("u0") && has_program("u1"));
        unload(&options.pins).unwrap();
        assert!(!has_program("u0") && !has_program("u1") && !options.pins.exists());
        drop(wires);
    });
}

/// On a veth it would cost the other end its offloads.
#[test]
fn off_takes_it_off_and_auto_leaves_a_veth_alone() {
    private_async(|pins| async move {
        for (xdp, lines) in [(Xdp::Off, 0), (Xdp::Auto, 2)] {
            let Host { wires, ebpf, upcalls, options } = filtered(small_wires(), &pins);
            assert!(has_program("u0"));
            drop((ebpf, upcalls));
            let options = Options { xdp, ..options };
            let (mut ebpf, _upcalls) = Ebpf::load(OBJECT, &options).unwrap();
            attach(&mut ebpf, &wires);
            assert!(!has_program("u0") && !has_program("u1"), "{xdp:?}");
            let said = ebpf.xdp();
            assert_eq!(said.len(), lines);
            assert!(said.iter().all(|line| line.contains("veth") && line.contains("--xdp filter")), "{said:?}");
            unload(&options.pins).unwrap();
            ip("link del p0\nlink del p1\nlink del p2\nlink del p3\nlink del u0\nlink del u1\nlink del vx");
        }
    });
}

#[test]
fn another_program_on_the_interface_stays_and_is_told() {
    private_async(|pins| async move {
        let wires = small_wires();
        let theirs = pins.join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        let mut kernel = Kernel::load(&theirs);
        let link = kernel.filter().attach_to_if_index(index_of("u0"), XdpMode::Driver).unwrap();
        let before = command("ip", "-d link show dev u0");
        let host = filtered(wires, &pins);
        let said = host.ebpf.xdp();
        assert!(said[0].starts_with("u0: none (veth: another XDP program"), "{said:?}");
        assert_eq!(said[1], "u1: strangers' packets end in the driver");
        assert_eq!(command("ip", "-d link show dev u0"), before);
        // Nor is it taken off with ours, which finds its place at the next start.
        let options = host.options.clone();
        drop((host.ebpf, host.upcalls));
        unload(&options.pins).unwrap();
        assert_eq!(command("ip", "-d link show dev u0"), before);
        kernel.filter().detach(link).unwrap();
        let (mut ebpf, _upcalls) = Ebpf::load(OBJECT, &options).unwrap();
        attach(&mut ebpf, &host.wires);
        assert!(ebpf.xdp()[0].ends_with("in the driver") && has_program("u0"));
    });
}

/// With an MTU above a page packets come in several pieces; where the kernel has no XDP for that, it is said, and all else goes on.
#[test]
fn large_packets_pass_or_the_driver_says_no() {
    private_async(|pins| async move {
        let mut host = filtered(Wires::make(), &pins);
        let outside = Outside::open(&host.wires);
        let said = host.ebpf.xdp();
        match takes_pieces() {
            true => assert!(has_program("u0"), "{said:?}"),
            false => assert!(said[0].contains("before Linux 5.18") && !has_program("u0"), "{said:?}"),
        }
        let mut frame = udp(9, container(1));
        frame.resize(8_000, 7);
        host.cache_tunnel(2, &frame, Action::Port(PortId(host.wires.ports[0])));
        outside.send_to_underlay(0, &tunnelled(&host.wires, 2, vni(OWN.into(), 2), &frame));
        assert_eq!(outside.arrivals(1), [Seen { ifindex: outside.container(0), bytes: frame.clone() }]);
        let mut packet = tunnelled(&host.wires, 9, vni(OWN.into(), 2), &frame);
        outside.send_to_underlay(0, &packet);
        // With a UDP checksum as well, though it is wrong: without XDP the stack drops that one uncounted.
        packet[41] = 1;
        outside.send_to_underlay(0, &packet);
        assert_eq!(outside.arrivals(0), []);
        assert_eq!(host.count("stranger"), if takes_pieces() { 2 } else { 1 });
    });
}
