//! [`Packet`] over an `xdp_md`: as much of a packet as the driver put in one piece, which is all headers.

use aya_ebpf::programs::XdpContext;
use weave_ebpf::packet::Packet;

use crate::kernel::bytes;

/// The packet an XDP program was called with.
pub struct Frame {
    /// aya's view of it.
    pub ctx: XdpContext,
}

impl Packet for Frame {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        // SAFETY: the kernel's own bounds of the packet.
        unsafe { bytes::read(self.ctx.data(), self.ctx.data_end(), offset) }
    }

    /// Of the first piece.
    #[inline(always)]
    fn len(&self) -> u32 {
        (self.ctx.data_end() - self.ctx.data()) as u32
    }
}
