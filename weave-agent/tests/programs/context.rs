//! `struct __sk_buff`, as `BPF_PROG_TEST_RUN` takes and gives it.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The fields that a test sets or reads; the kernel refuses contexts in which any of the others is not zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub(crate) struct Context {
    pub(crate) len_and_type: [u32; 2],
    pub(crate) mark: u32,
    pub(crate) queue_to_priority: [u32; 6],
    pub(crate) ingress_ifindex: u32,
    /// The kernel looks it up in the calling thread's network namespace; 0 and 1 are the loopback interface.
    pub(crate) ifindex: u32,
    pub(crate) tc_index: u32,
    pub(crate) cb: [u32; 5],
    pub(crate) hash_to_napi: [u32; 5],
    pub(crate) socket: [u32; 13],
    pub(crate) data_meta: u32,
    pub(crate) flow_keys: u64,
    pub(crate) tstamp: u64,
    pub(crate) wire_len: u32,
    pub(crate) gso_segs: u32,
    pub(crate) sk: u64,
    pub(crate) gso_size: u32,
    pub(crate) tstamp_type: u32,
    pub(crate) hwtstamp: u64,
}

const _: () = assert!(size_of::<Context>() == 192);
