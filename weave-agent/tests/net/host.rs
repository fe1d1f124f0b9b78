//! Namespaces to work in, gone when the test is, whatever its end.

use std::panic::resume_unwind;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use weave_agent::io::net::{AttachSpec, Attached, Netlink, Netns, attach};

/// Long enough for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Run a test in a network namespace of its own, which plays the host.
pub(crate) fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    if !geteuid().is_root() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "these tests must run as root");
        println!("not run: making network namespaces takes root");
        return;
    }
    let alone = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        sh("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    std::thread::scope(|scope| scope.spawn(alone).join()).unwrap_or_else(|panic| resume_unwind(panic));
}

/// A named namespace.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("wnet-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        sh(&format!("ip netns add {name}"));
        let namespace = Self { name };
        namespace.sh("ip link set lo up");
        namespace
    }

    /// Run a command inside.
    pub(crate) fn sh(&self, command: &str) -> String {
        sh(&format!("nsenter --net=/run/netns/{} {command}", self.name))
    }

    pub(crate) fn netns(&self) -> Netns {
        Netns::open(format!("/run/netns/{}", self.name).as_ref()).unwrap().named(&self.name)
    }

    /// What there is inside.
    pub(crate) fn state(&self) -> String {
        format!("{}{}{}", self.sh("ip -o link"), self.sh("ip -o addr"), self.sh("ip route"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// What there is on the host.
pub(crate) fn host_state() -> String {
    format!("{}{}{}", sh("ip -o link"), sh("ip -o addr"), sh("ip route"))
}

/// A command on the host; its output.
pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Until `condition` holds; fails after a while.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "in vain: {what}");
}

pub(crate) fn spec(addrs: &[&str]) -> AttachSpec {
    AttachSpec::new(addrs.iter().map(|addr| addr.parse().unwrap()).collect(), 1400)
}

pub(crate) async fn attached(container: &Namespace, addrs: &[&str]) -> Attached {
    attach(&Netlink::here().unwrap(), &container.netns(), &spec(addrs)).await.unwrap()
}
