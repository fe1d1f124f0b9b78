//! [`Packet`] over a `__sk_buff`: direct packet access, checked against `data_end` as the verifier wants it.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use weave_ebpf::packet::Packet;
use weave_ebpf::vxlan::OUTER;

/// The packet a TC program was called with.
pub struct Skb {
    /// aya's view of it.
    pub ctx: TcContext,
}

impl Packet for Skb {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.ctx.data() + offset;
        if start + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: start..start + N lies inside the packet, checked on the line above; bytes have no alignment.
        Some(unsafe { *(start as *const [u8; N]) })
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

    /// The received outer headers.
    #[inline(always)]
    pub fn outer(&self) -> Option<[u8; OUTER]> {
        self.read::<OUTER>(0)
    }
}
