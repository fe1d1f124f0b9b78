//! Kernels in virtual machines: which there are, what is put into a guest, what it is to run, and what came of it.
//!
//! Nothing here starts a machine: that is `cargo xtask vm`. The other end is `src/bin/guest`, the guest's first process.

pub mod console;
pub mod cpio;
pub mod matrix;
pub mod modules;
pub mod orders;
