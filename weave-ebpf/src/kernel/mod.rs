//! The kernel's side of the seam: packets, maps, and the carrying out of verdicts.

pub mod bytes;
pub mod carry;
pub mod flood;
pub mod frame;
pub mod log;
pub mod maps;
pub mod skb;
pub mod tunnel;
pub mod upcall;
