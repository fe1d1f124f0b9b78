//! [`Packet`] over a `__sk_buff`: direct packet access, checked against `data_end` as the verifier wants it.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_get_hash_recalc;
use aya_ebpf::programs::TcContext;
use weave_ebpf::packet::Packet;
use weave_ebpf::vxlan::OUTER;

use crate::kernel::bytes;

/// The packet a TC program was called with.
pub struct Skb {
    /// aya's view of it.
    pub ctx: TcContext,
}

impl Packet for Skb {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        // SAFETY: the kernel's own bounds of the packet.
        unsafe { bytes::read(self.ctx.data(), self.ctx.data_end(), offset) }
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        self.ctx.len()
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        let segments = self.raw().gso_segs;
        if segments == 0 { 1 } else { segments }
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        self.raw().gso_size
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        self.raw().vlan_present != 0
    }
}

impl Skb {
    /// The kernel's context.
    #[inline(always)]
    pub fn raw(&self) -> &__sk_buff {
        // SAFETY: the context the kernel called the program with.
        unsafe { &*self.ctx.as_ptr().cast::<__sk_buff>() }
    }

    /// The same, for helpers that change the packet.
    #[inline(always)]
    pub fn pointer(&self) -> *mut __sk_buff {
        self.ctx.as_ptr().cast()
    }

    /// Makes the first `len` bytes readable by [`Packet::read`], where a driver left them in fragments.
    #[inline(always)]
    pub fn linearize(&self, len: u32) {
        if self.ctx.data() + len as usize > self.ctx.data_end() && self.ctx.len() >= len {
            let _ = self.ctx.pull_data(len);
        }
    }

    /// The VLAN tag beside the packet as [`weave_ebpf::flow::UpcallHeader::vlan`] wants it.
    #[inline(always)]
    pub fn vlan(&self) -> u32 {
        let raw = self.raw();
        let protocol = (raw.vlan_proto as u16).swap_bytes() as u32;
        if self.is_tagged() { protocol << 16 | raw.vlan_tci & 0xffff } else { 0 }
    }

    /// The kernel's hash of the inner flow.
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        // SAFETY: the context.
        unsafe { bpf_get_hash_recalc(self.pointer()) }
    }

    /// The received outer headers.
    #[inline(always)]
    pub fn outer(&self) -> Option<[u8; OUTER]> {
        self.read::<OUTER>(0)
    }
}
