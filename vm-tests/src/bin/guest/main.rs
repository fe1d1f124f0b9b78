//! The first process of a virtual machine: makes a system of what the kernel unpacked, carries its orders out, and says
//! what came of each.

mod say;
mod system;
mod tasks;

use std::env;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::wait;
use vm_tests::vm::orders::{ORDERS, Orders, Said};

use crate::say::Voice;

/// Told to the second process: the first one has other things to do.
const WORK: &str = "work";

fn main() {
    match env::args().nth(1).as_deref() {
        Some(WORK) => work(),
        _ => first(),
    }
}

/// The kernel panics when its first process ends, and leaves it everybody's orphans.
fn first() -> ! {
    let started = system::mount_all().and_then(|()| Ok(Command::new("/init").arg(WORK).spawn()?));
    let worker = match started {
        Ok(child) => Some(nix::unistd::Pid::from_raw(child.id().cast_signed())),
        Err(error) => {
            eprintln!("guest: {error:#}");
            None
        }
    };
    while worker.is_some_and(|worker| wait().is_ok_and(|status| status.pid() != Some(worker))) {}
    // What was said last is still on its way through the serial line.
    std::thread::sleep(Duration::from_millis(200));
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    panic!("cannot end the machine: {error}");
}

fn work() {
    let voice = match Voice::open() {
        // Whoever reads for a task may do so longer than the task lives.
        Ok(voice) => &*Box::leak(Box::new(voice)),
        Err(error) => return eprintln!("guest: {error:#}"),
    };
    match carry_out(voice) {
        Ok(()) => voice.say(&Said::Done),
        Err(error) => voice.say(&Said::Trouble(format!("{error:#}"))),
    }
}

fn carry_out(voice: &'static Voice) -> Result<()> {
    voice.say(&Said::Up { release: nix::sys::utsname::uname()?.release().to_string_lossy().into_owned() });
    let text = fs::read_to_string(ORDERS).context(ORDERS)?;
    let orders: Orders = serde_json::from_str(&text).context(ORDERS)?;
    system::load_modules(&orders.modules)?;
    system::settle(&orders.env)?;
    voice.say(&Said::Ready);
    tasks::run_all(&orders, voice);
    Ok(())
}
