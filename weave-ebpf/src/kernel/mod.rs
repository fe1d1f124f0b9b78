//! The kernel's side of the seam: packets, maps, and the carrying out of verdicts.

pub mod carry;
pub mod maps;
pub mod skb;
