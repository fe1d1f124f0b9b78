//! Replicas on a toy network that partitions, on hosts that crash, with disks that are late: generated stories, one per seed.
//!
//! `IPAM_SIM_CASES` says how many (300), `IPAM_SIM_SEED` repeats one. What must hold at any time: no address is held by two
//! live containers; every request is answered by its deadline. After everything is mended: all rings are equal, what
//! replicas think in use is what is in use, and when all is freed the whole range can be allocated again.
//!
//! What the stories leave out, because no replica can know better (see the module): a peer that is removed or restored to an old
//! state while somebody who owned nothing before got space from it unheard, two removals of one peer, and removals of a remover.

mod case;
mod host;

pub(super) use host::name;
mod world;

/// Stories told when nothing else is said.
const CASES: u64 = 300;

#[test]
fn whatever_happens_no_address_is_held_twice_and_all_is_one_again_after() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("IPAM_SIM_SEED") {
        println!("{}", case::run(seed));
        return;
    }
    let mut total = world::Tally::default();
    for seed in 0..number("IPAM_SIM_CASES").unwrap_or(CASES) {
        let result = std::panic::catch_unwind(|| case::run(seed));
        match result {
            Ok(tally) => total.add(&tally),
            Err(panic) => {
                eprintln!("repeat with IPAM_SIM_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{total}");
    // A simulator in which nothing happens proves nothing.
    assert!(total.allocated > 0 && total.removed > 0 && total.restored > 0 && total.granted > 0, "{total}");
}
