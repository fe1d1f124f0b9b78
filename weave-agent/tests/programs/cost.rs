//! What the programs cost: the verifier when they are loaded, each packet when they run.

use crate::kernel::Kernel;
use crate::place::private;

/// The kernel gives up at a million (`BPF_COMPLEXITY_LIMIT_INSNS`); older verifiers need more than newer ones.
const MOST_INSTRUCTIONS: u32 = 200_000;

#[test]
fn the_verifier_has_no_trouble_with_any_program() {
    private(|pins| {
        let kernel = Kernel::load(pins);
        for name in kernel.programs() {
            let info = kernel.program(&name).info().unwrap();
            let verified = info.verified_instruction_count().unwrap();
            let translated = info.size_translated().unwrap() / 8;
            println!("{name:20} {verified:7} instructions processed by the verifier, {translated:5} in the program");
            assert!(verified <= MOST_INSTRUCTIONS, "{name}: {verified} instructions");
        }
    });
}
