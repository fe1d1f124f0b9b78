//! Two sleeves in namespaces of their own, with a wire between them that loses, reorders, repeats, flips and remembers.
#![cfg(feature = "io")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod bed;
mod carriage;
mod hostility;
mod plug;
mod sessions;
mod wire;
