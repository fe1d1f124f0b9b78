//! Where a test runs: network and mount namespaces of its own, which end with it however it ends.

use std::fs::File;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare};
use nix::unistd::Pid;
use tempfile::TempDir;

/// No test needs a tenth of it.
const LIMIT: Duration = Duration::from_secs(300);

/// A bpffs on a directory of its own.
struct Bpffs(TempDir);

impl Drop for Bpffs {
    fn drop(&mut self) {
        // The directory itself cannot be removed while something is mounted there.
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// Runs a test in namespaces of its own, with a bpffs for its pins, on one CPU. Without root it is skipped, but not in CI.
pub(crate) fn private(test: impl FnOnce(&Path) + Send + 'static) {
    if !vm_tests::is_root() {
        return;
    }
    // A thread of its own: libtest may use one thread for several tests.
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&Path>, "/", None::<&Path>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&Path>).unwrap();
        let pins = Bpffs(tempfile::tempdir().unwrap());
        mount(Some("bpf"), pins.0.path(), Some("bpf"), MsFlags::empty(), None::<&Path>).unwrap();
        quiet();
        ip("link set lo up");
        test(pins.0.path());
    });
    // A test that hangs fails alone; its thread ends with the process.
    vm_tests::wait_for("the test to end", LIMIT, || Ok(thread.is_finished())).unwrap();
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

/// As [`private`], but with a tokio runtime around the test: the loader wants one for its upcall rings.
pub(crate) fn private_async<F: Future<Output = ()>>(test: impl FnOnce(Box<Path>) -> F + Send + 'static) {
    private(|pins| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(pins.into()));
    });
}

/// Keeps the calling thread, and with it the packets that it causes, on one CPU.
pub(crate) fn one_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
}

/// Whether the processor is a program itself, a hundred times as slow (`cargo xtask vm` says so): figures mean little, and
/// there is no time for many.
pub(crate) fn is_emulated() -> bool {
    std::env::var_os("PROGRAMS_EMULATED").is_some()
}

/// No router solicitations and the like among the test's packets.
fn quiet() {
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
}

/// Runs lines of `ip` commands (without the word `ip`) in the calling thread's namespace.
pub(crate) fn ip(lines: &str) {
    vm_tests::process::feed(Command::new("ip").args(["-batch", "-"]), lines).unwrap();
}

/// Waits until interfaces carry packets: the kernel notices some time after they are set up.
pub(crate) fn wait_for_carrier(interfaces: &[&str]) {
    let are_up = || {
        let shown = run("ip", "-br link show up");
        let up: Vec<_> = shown.lines().filter(|line| line.contains(" UP ")).filter_map(|line| line.split([' ', '@']).next()).collect();
        Ok(interfaces.iter().all(|interface| up.contains(interface)))
    };
    vm_tests::wait_for(&format!("carrier on {}", interfaces.join(" ")), Duration::from_secs(10), are_up).unwrap();
}

/// Runs a program and returns what it wrote.
pub(crate) fn run(program: &str, arguments: &str) -> String {
    let mut command = Command::new(program);
    vm_tests::process::output(command.args(arguments.split_whitespace())).unwrap()
}

/// Another network namespace: what is at the other end of the wires.
pub(crate) struct Elsewhere {
    namespace: File,
}

impl Elsewhere {
    pub(crate) fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            quiet();
            ip("link set lo up");
            own_namespace()
        });
        Self { namespace: made.join().unwrap() }
    }

    /// Moves an interface there.
    pub(crate) fn take(&self, interface: &str) {
        ip(&format!("link set {interface} netns {}", self.path()));
    }

    /// For `ip`, which runs in a process of its own.
    pub(crate) fn path(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }

    /// Does something there.
    pub(crate) fn enter<T>(&self, there: impl FnOnce() -> T) -> T {
        let _back = Back(own_namespace());
        setns(&self.namespace, CloneFlags::CLONE_NEWNET).unwrap();
        there()
    }
}

/// Returns to a namespace, also after a panic.
struct Back(File);

impl Drop for Back {
    fn drop(&mut self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
    }
}

fn own_namespace() -> File {
    File::open("/proc/thread-self/ns/net").unwrap()
}
