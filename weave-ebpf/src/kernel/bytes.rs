//! Direct packet access, checked against the packet's end as the verifier wants it.

use core::arch::asm;

/// `N` bytes at `offset` of the packet from `data` to `end`, or `None` if it ends before.
///
/// # Safety
/// `data` and `end` are what the context of a running program says.
#[inline(always)]
pub unsafe fn read<const N: usize>(data: usize, end: usize, offset: usize) -> Option<[u8; N]> {
    let start = data + offset;
    if start + N > end {
        return None;
    }
    // SAFETY: start..start + N lies inside the packet, checked above.
    Some(unsafe { load(start) })
}

/// Reads packet bytes in words. The compiler would read them one by one, because nothing says how they are aligned; but
/// every architecture that has a BPF JIT of ours reads words from anywhere, and the verifier lets it.
///
/// # Safety
/// `N` bytes can be read at `start`.
#[inline(always)]
unsafe fn load<const N: usize>(start: usize) -> [u8; N] {
    let mut bytes = [0; N];
    for word in 0..N / 8 {
        // SAFETY: inside the N bytes that the caller promised; so below.
        unsafe { word!(bytes, 8 * word, start, u64, reg, "{0} = *(u64 *)({1} + 0)") };
    }
    if N & 4 != 0 {
        // SAFETY: as above.
        unsafe { word!(bytes, N & !7, start, u32, wreg, "{0} = *(u32 *)({1} + 0)") };
    }
    if N & 2 != 0 {
        // SAFETY: as above.
        unsafe { word!(bytes, N & !3, start, u16, wreg, "{0} = *(u16 *)({1} + 0)") };
    }
    if N & 1 != 0 {
        // SAFETY: as above.
        unsafe { word!(bytes, N & !1, start, u8, wreg, "{0} = *(u8 *)({1} + 0)") };
    }
    bytes
}

/// Reads one word at `start + at` into the bytes at `at`.
macro_rules! word {
    ($bytes:ident, $at:expr, $start:ident, $type:ty, $class:ident, $load:literal) => {{
        let word: $type;
        asm!($load, lateout($class) word, in(reg) $start + $at, options(pure, readonly, nostack, preserves_flags));
        $bytes[$at..$at + size_of::<$type>()].copy_from_slice(&word.to_ne_bytes());
    }};
}
use word;
