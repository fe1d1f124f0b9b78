//! The programs out of the object and into the kernel.

use anyhow::{Context, Result};
use aya::EbpfLoader;
use aya::programs::{Program, ProgramError, SchedClassifier};
use aya::util::KernelVersion;

use super::hooks::Hook;

/// A signal twice in a row was seen; libbpf gives up after 5.
const VERIFY_ATTEMPTS: usize = 30;

pub(super) fn program(object: &mut aya::Ebpf, hook: Hook) -> Result<&mut SchedClassifier> {
    Ok(any_program(object, hook.program())?.try_into()?)
}

pub(super) fn any_program<'a>(object: &'a mut aya::Ebpf, name: &str) -> Result<&'a mut Program> {
    object.program_mut(name).with_context(|| format!("the BPF object has no program {name}"))
}

/// A loader that tells the programs what this kernel has.
pub fn loader<'a>() -> EbpfLoader<'a> {
    let told = |there| if there { &1u32 } else { &0u32 };
    let mut loader = EbpfLoader::new();
    // Linux 5.11, commit d05512618056: bpf_ktime_get_coarse_ns.
    loader.override_global("COARSE_CLOCK", told(is_at_least(5, 11)), true);
    // Linux 6.0, commit 26101f5ab6bd: a tunnel key's local address.
    loader.override_global("LOCAL_IN_KEY", told(is_at_least(6, 0)), true);
    loader
}

/// Loads a program. The verifier stops with EAGAIN when the thread has a signal to see to (Linux 4.20, commit
/// c3494801cd17), which says nothing about the program.
///
/// # Errors
/// When the kernel refuses the program.
pub fn verify(program: &mut Program) -> Result<(), ProgramError> {
    for _ in 1..VERIFY_ATTEMPTS {
        match load(program) {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => return result,
        }
    }
    load(program)
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

pub(super) fn is_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(major, minor, 0))
}
