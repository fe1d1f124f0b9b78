//! Kernels that are broken on purpose: if the properties do not notice, they are worth nothing.

use crate::case::Case;
use crate::kernel::Break;
use crate::run::run;
use crate::scenarios::networks_meet;

/// Agents agree on trees so soon that it takes some to have a fault in them matter.
const CASES: u64 = 600;

/// Runs seeds until one fails; the numbers of the properties that may be the one.
fn is_caught(fault: Break, properties: &[u8]) {
    is_caught_from(1, fault, properties);
}

fn is_caught_from(first: u64, fault: Break, properties: &[u8]) {
    for seed in first..first + CASES {
        if let Err(violation) = run(&Case::generate(seed, Some(fault))) {
            println!("{fault:?}, seed {seed}: {violation}");
            assert!(properties.contains(&violation.property), "{fault:?} was noticed, but by property {}", violation.property);
            return;
        }
    }
    panic!("{fault:?} was not noticed in {CASES} cases");
}

#[test]
fn ignoring_the_epoch_is_noticed() {
    let Err(violation) = run(&networks_meet(Some(Break::IgnoreEpoch))) else {
        panic!("not noticed");
    };
    println!("{:?}: {violation}", Break::IgnoreEpoch);
    assert!([1, 2, 6, 7].contains(&violation.property));
}

#[test]
fn delivering_to_the_ingress_port_is_noticed() {
    is_caught(Break::FloodToIngress, &[3]);
}

#[test]
fn taking_floods_from_any_neighbour_is_noticed() {
    // One case in a thousand has a second copy come by another way: the search begins near one that has.
    is_caught_from(1_301, Break::IgnoreParent, &[2, 3]);
}

#[test]
fn trusting_strangers_is_noticed() {
    is_caught(Break::TrustStrangers, &[9]);
}

#[test]
fn keeping_flows_that_were_removed_is_noticed() {
    is_caught(Break::KeepFlows, &[1, 6, 8]);
}

#[test]
fn never_changing_a_slot_is_noticed() {
    is_caught(Break::FreezeSlots, &[1, 4, 14]);
}

#[test]
fn never_caching_a_flow_is_noticed() {
    is_caught(Break::ForgetFlows, &[5]);
}

#[test]
fn leaving_heartbeats_unanswered_is_noticed() {
    is_caught(Break::MuteHeartbeats, &[4]);
}
