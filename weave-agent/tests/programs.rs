//! The BPF programs in the kernel.
#![cfg(feature = "io")]

use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use weave_agent::io::datapath::ebpf::{Ebpf, Options};
use weave_agent::io::object::OBJECT;

#[tokio::test(flavor = "current_thread")]
async fn the_kernel_takes_the_programs() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let directory = tempfile::tempdir().unwrap();
    mount(None::<&Path>, "/", None::<&Path>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&Path>).unwrap();
    mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&Path>).unwrap();
    let options = Options { pins: directory.path().to_owned(), vxlan_ifindex: 1, tunnel_port: 6784, tcx: None };
    let (mut ebpf, _upcalls) = Ebpf::load(OBJECT, &options).unwrap_or_else(|error| panic!("{error:?}"));
    assert!(ebpf.flows().unwrap().is_empty());
}
