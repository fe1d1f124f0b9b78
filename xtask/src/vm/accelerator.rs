//! What makes a machine fast, found out by booting one: a device that is there need not work.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use vm_tests::vm::console::Ending;

use super::machine::{Limits, Logs, Machine};

/// How instructions of a guest are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// By the processor.
    Kvm,
    /// By the emulator.
    Tcg,
}

/// A guest that has nothing to do is done in a second, where KVM works.
const PATIENCE: Duration = Duration::from_secs(20);

impl Accelerator {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    pub(super) const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Kvm => &["-accel", "kvm", "-cpu", "host"],
            // Each of the guest's processors is a thread. Without cmpxchg16b, which kernels do without: QEMU 7.2 comes back
            // from it with wrong flags when it is interrupted, and the guest dies of them (seen on 6.12, in `kmalloc`).
            // Without erms and fsrm: kernels then copy and clear by eight bytes, and each round of `rep` costs an emulator the same.
            // Without la57, a walk through the page tables has a level less; without smap and smep, a copy from user space does not
            // end two translated blocks.
            Self::Tcg => &["-accel", "tcg,thread=multi", "-cpu", "max,-cx16,-erms,-fsrm,-la57,-smap,-smep"],
        }
    }
}

/// What was found to work since the host started, or what is found now by booting this.
pub(super) fn find(dir: &Path, image: &Path, initrd: &Path) -> Result<(Accelerator, String)> {
    let cache = dir.join("accelerator");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let known = fs::read_to_string(&cache).unwrap_or_default();
    for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
        if known == format!("{boot}{}", accelerator.name()) {
            return Ok((accelerator, format!("{}, as found before", accelerator.name())));
        }
    }
    let (accelerator, why) = probe(dir, image, initrd)?;
    fs::write(&cache, format!("{boot}{}", accelerator.name()))?;
    Ok((accelerator, why))
}

fn probe(dir: &Path, image: &Path, initrd: &Path) -> Result<(Accelerator, String)> {
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok((Accelerator::Tcg, "tcg: /dev/kvm cannot be opened".to_owned()));
    }
    let logs = Logs { kernel: dir.join("kvm.kernel.log"), guest: dir.join("kvm.log") };
    let machine = Machine { accelerator: Accelerator::Kvm, image: image.to_owned(), initrd, logs: &logs };
    let limits = Limits { whole: PATIENCE, silence: PATIENCE };
    let ending = machine.run(0, limits, |_| {})?.ending;
    logs.remove();
    Ok(match ending {
        Ending::Done => (Accelerator::Kvm, "kvm".to_owned()),
        Ending::Died(why) => (Accelerator::Tcg, format!("tcg, for a guest on kvm dies ({why})")),
        ending => (Accelerator::Tcg, format!("tcg, for a guest on kvm does not get through ({ending:?})")),
    })
}
