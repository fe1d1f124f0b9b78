//! The maps, and [`Tables`] over them. All are pinned by name, so that they outlive the agent.

use aya_ebpf::bindings::{BPF_F_CURRENT_CPU, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_perf_event_output};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, PerfEventArray};
use weave_ebpf::fastpath::{CachedFlow, Tables, may_go, take_token};
use weave_ebpf::flow::{Bucket, Config, FloodPorts, Flow, FlowKey, Ipv4, MAX_LOCALS, PeerSlot, SHORT_IDS, Source, Tree, UpcallHeader};
use weave_ebpf::stats::{COUNTERS, Counter, DropReason};

use crate::kernel::skb::Skb;

#[map]
pub static CONFIG: Array<Config> = Array::pinned(1, 0);
#[map]
static FLOWS: HashMap<KeyWords, Flow> = HashMap::pinned(1 << 18, BPF_F_NO_PREALLOC);
#[map]
static PEERS: Array<PeerSlot> = Array::pinned(SHORT_IDS, 0);
#[map]
static SOURCES: HashMap<u32, Source> = HashMap::pinned(SHORT_IDS, 0);
/// Our addresses; the values mean nothing.
#[map]
static LOCALS: HashMap<u32, u32> = HashMap::pinned(MAX_LOCALS, 0);
#[map]
pub static TREES: Array<Tree> = Array::pinned(SHORT_IDS, 0);
#[map]
pub static FLOOD_PORTS: Array<FloodPorts> = Array::pinned(1, 0);
#[map]
static BUCKETS: HashMap<u32, Bucket> = HashMap::pinned(3 * SHORT_IDS, 0);
#[map]
static COUNTS: PerCpuArray<u64> = PerCpuArray::pinned(COUNTERS, 0);
#[map]
static UPCALLS: PerfEventArray<UpcallHeader> = PerfEventArray::pinned(0);

/// A [`FlowKey`] as the hash table reads it. Written byte by byte it would stall each of those reads.
type KeyWords = [u64; 3];

#[inline(always)]
fn words(key: &FlowKey) -> KeyWords {
    let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (key.src, key.dst);
    let outer_src = u32::from_ne_bytes(key.outer_src) as u64;
    [
        key.ingress as u64 | (key.vni as u64) << 32,
        outer_src | (u32::from_ne_bytes([a, b, c, d]) as u64) << 32,
        u64::from_ne_bytes([e, f, g, h, i, j, k, l]),
    ]
}

const _: () = assert!(size_of::<KeyWords>() == size_of::<FlowKey>());

/// The maps above as the fast path wants them.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<impl CachedFlow> {
        FLOWS.get_ptr_mut(words(key)).map(FlowPointer)
    }

    #[inline(always)]
    fn peer(&self, short: u32) -> Option<PeerSlot> {
        PEERS.get(short).copied()
    }

    #[inline(always)]
    fn source(&self, address: Ipv4) -> Option<Source> {
        let source = SOURCES.get_ptr(u32::from_ne_bytes(address))?;
        // SAFETY: a pointer the kernel returned for this key; elements stay readable until the program ends (RCU).
        Some(unsafe { *source })
    }

    #[inline(always)]
    fn parent(&self, origin: u32) -> Option<Ipv4> {
        TREES.get(origin).map(|tree| tree.parent)
    }

    #[inline(always)]
    fn admit(&self, key: u32, config: &Config) -> bool {
        let Some(bucket) = BUCKETS.get_ptr_mut(key) else {
            return false;
        };
        // SAFETY: as above. Two CPUs may write at once: a token more or less is within what a rate limit promises.
        let bucket = unsafe { &mut *bucket };
        take_token(bucket, now(), config.upcall_limits(key))
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        count(counter.index());
    }

    #[inline(always)]
    fn refuse(&self, reason: DropReason) {
        count(reason.index());
    }
}

/// Whether an address is the host's own.
#[inline(always)]
pub fn is_ours(address: Ipv4) -> bool {
    LOCALS.get_ptr(u32::from_ne_bytes(address)).is_some()
}

/// The slot of a peer, if a frame of this size that came from `upstream` may go there: as the fast path's `egress_of`,
/// but where it is. A slot is too large to be copied for each packet.
#[inline(always)]
pub fn egress(size: u32, to: u32, upstream: Ipv4) -> Result<&'static PeerSlot, DropReason> {
    let slot = PEERS.get(to).ok_or(DropReason::NoRoute)?;
    may_go(slot, upstream, size).map(|()| slot)
}

/// Adds one to an entry of the counter map.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(counter) = COUNTS.get_ptr_mut(index) {
        // SAFETY: this CPU's own element.
        unsafe { *counter += 1 };
    }
}

/// Sends header and packet up. False if there is no room or nobody listens.
#[inline(always)]
pub fn send_upcall(skb: &Skb, header: &UpcallHeader) -> bool {
    // The upper half says how much of the packet the kernel appends.
    let flags = (header.len as u64) << 32 | BPF_F_CURRENT_CPU as u64;
    let map = (&raw const UPCALLS).cast_mut().cast();
    let data = (&raw const *header).cast_mut().cast();
    // SAFETY: the context, a map of the kind the helper takes, and a header of the size given.
    unsafe { bpf_perf_event_output(skb.pointer().cast(), map, flags, data, size_of::<UpcallHeader>() as u64) == 0 }
}

/// A flow in the map.
struct FlowPointer(*mut Flow);

impl FlowPointer {
    #[inline(always)]
    fn flow(&self) -> &Flow {
        // SAFETY: a pointer the kernel returned; elements stay readable until the program ends (RCU).
        unsafe { &*self.0 }
    }
}

impl CachedFlow for FlowPointer {
    #[inline(always)]
    fn epoch(&self) -> u32 {
        self.flow().epoch
    }

    #[inline(always)]
    fn action(&self) -> u32 {
        self.flow().action
    }

    #[inline(always)]
    fn target(&self) -> u32 {
        self.flow().target
    }

    #[inline(always)]
    fn flags(&self) -> u32 {
        self.flow().flags
    }

    #[inline(always)]
    fn count(&self, packets: u32, bytes: u32) {
        // SAFETY: a pointer the kernel returned; the adds are atomic, the time stamp is one aligned word that any CPU may
        // write last.
        unsafe {
            add(&raw mut (*self.0).packets, packets as u64);
            add(&raw mut (*self.0).bytes, bytes as u64);
            (*self.0).used_ns = tick();
        }
    }
}

/// # Safety
/// `counter` points to a map value.
#[inline(always)]
unsafe fn add(counter: *mut u64, value: u64) {
    // The BPF target declares no compare-and-swap, so core's AtomicU64 has no fetch_add here; the instruction exists.
    // SAFETY: the caller's promise.
    unsafe { core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(counter, value) };
}

/// Whether the kernel has `bpf_ktime_get_coarse_ns` (Linux 5.11, commit d05512618056); the loader says. The verifier
/// knows the value and never looks at the branch that is not taken.
#[unsafe(no_mangle)]
static COARSE_CLOCK: u32 = 1;

/// The same clock as [`now`], but only as of the last timer tick: reading it exactly is a third of what a packet costs.
#[inline(always)]
fn tick() -> u64 {
    // SAFETY: reads a global; volatile, because the loader changes it.
    match unsafe { (&raw const COARSE_CLOCK).read_volatile() } {
        0 => now(),
        // SAFETY: takes no pointers.
        _ => unsafe { bpf_ktime_get_coarse_ns() },
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: takes no pointers.
    unsafe { bpf_ktime_get_ns() }
}
