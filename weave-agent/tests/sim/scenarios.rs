//! Cases written by hand: the ones that the issue names.

use std::collections::BTreeSet;

use weave_agent::Time;

use crate::case::{Case, Ending, Setting, Step};
use crate::frame::Payload;
use crate::kernel::Break;
use crate::model::Model;
use crate::run::{Run, run};
use crate::world::World;

/// `hosts` hosts, all wired to all but the `absent` pairs, each told of the host before it.
fn setting(hosts: usize, absent: &[(usize, usize)]) -> Setting {
    Setting {
        seed: 7,
        secret: false,
        sealed: false,
        esp: BTreeSet::new(),
        hosts,
        absent: absent.iter().copied().collect(),
        targets: (0..hosts).map(|host| host.checked_sub(1).into_iter().collect::<BTreeSet<usize>>()).collect(),
        mtu: 1500,
        latency: Time::from_micros(200),
        via_stack: BTreeSet::new(),
        short_ids: 4096,
        shorts: Vec::new(),
        fault: None,
        watch: None,
    }
}

/// All agents start, each host gets a container.
fn opening(hosts: usize) -> Vec<(Time, Step)> {
    (0..hosts).flat_map(|host| [Step::Launch(host), Step::Attach(host)]).map(|step| (Time::from_millis(1), step)).collect()
}

/// Two networks of two, with the same short ids, talk among themselves and then meet: flows that name a peer by an id
/// that is another's now must never match again.
pub(crate) fn networks_meet(fault: Option<Break>) -> Case {
    let mut setting = Setting { shorts: vec![7, 8, 7, 8], fault, ..setting(4, &[]) };
    setting.targets = vec![[].into(), [0].into(), [1].into(), [2].into()];
    let mut steps = vec![(Time::ZERO, Step::Split(2))];
    steps.extend(opening(4));
    steps.extend([Step::Settle, Step::Heal].map(|step| (Time::from_secs(5), step)));
    // Not all at once, lest what settles one sweeps up after another.
    steps.extend((0..40).map(|n| (Time::from_millis(100), Step::Unicast(n, n / 4 + n, Payload::Ipv4))));
    Case { setting, steps, ending: Ending::Plain }
}

fn holds(hosts: usize, absent: &[(usize, usize)], ending: Ending) {
    let case = Case { setting: setting(hosts, absent), steps: opening(hosts), ending };
    if let Err(violation) = run(&case) {
        panic!("{violation}");
    }
}

#[test]
fn three_hosts_all_wired() {
    holds(3, &[], Ending::Plain);
}

#[test]
fn eight_hosts_in_a_ring() {
    let absent: Vec<(usize, usize)> = (0..8).flat_map(|a| (a + 2..8).map(move |b| (a, b))).filter(|pair| *pair != (0, 7)).collect();
    holds(8, &absent, Ending::Plain);
}

#[test]
fn agents_crash_during_traffic() {
    holds(3, &[], Ending::Crash);
}

#[test]
fn a_cut_wire_is_gone_round() {
    holds(3, &[], Ending::Failover);
}

#[test]
fn networks_with_the_same_short_ids_meet() {
    if let Err(violation) = run(&networks_meet(None)) {
        panic!("{violation}");
    }
}

#[test]
fn a_mac_moves() {
    holds(3, &[], Ending::Move);
}

#[test]
fn one_container_floods_random_macs() {
    holds(3, &[], Ending::Flood);
}

/// Property 13: A and C have no wire, B has one to each, and B's kernel relays alone.
#[test]
fn a_relay_hears_of_the_first_frame_only() {
    let setting = setting(3, &[(0, 2)]);
    let mut run = Run { world: World::new(&setting), model: Model::default(), noisy: false };
    let outcome = (|| {
        for (pause, step) in opening(3) {
            run.world.run_for(pause)?;
            run.step(&step)?;
        }
        run.settled(true)?;
        let [a, b, c] = [0, 1, 2].map(|host| run.model.containers[host]);
        let shorts = [0, 2].map(|host| run.world.hosts[host].kernel.config.short);
        run.exchange(&[(a, c)])?;
        let (misses, relayed) = (run.misses()[b.place.0], run.world.hosts[1].kernel.relayed(shorts[1], shorts[0]));
        for _ in 0..50 {
            run.exchange(&[(a, c)])?;
        }
        assert_eq!(run.misses()[b.place.0], misses, "property 13: upcalls at the relay");
        let now_relayed = run.world.hosts[1].kernel.relayed(shorts[1], shorts[0]);
        assert_eq!(now_relayed - relayed, 50, "property 13: frames relayed by the kernel");
        Ok::<(), crate::properties::Violation>(())
    })();
    if let Err(violation) = outcome {
        panic!("{violation}");
    }
}

/// Hosts that must seal what they send, all with IPsec but the last one.
fn sealed(hosts: usize) -> Setting {
    Setting { secret: true, sealed: true, esp: (0..hosts - 1).collect(), ..setting(hosts, &[]) }
}

#[test]
fn sealed_hosts_with_and_without_ipsec() {
    let case = Case { setting: sealed(4), steps: opening(4), ending: Ending::Plain };
    if let Err(violation) = run(&case) {
        panic!("{violation}");
    }
}

#[test]
fn two_hosts_with_ipsec_use_it_and_lose_nothing_when_their_agents_crash() {
    let setting = Setting { esp: [0, 1].into(), ..sealed(2) };
    let case = Case { setting, steps: opening(2), ending: Ending::Crash };
    if let Err(violation) = run(&case) {
        panic!("{violation}");
    }
}
