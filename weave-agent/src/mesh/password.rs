//! What a network password has become before the mesh sees it.

use std::fmt;

/// A password stretched to a pre-shared key (by `io`, for that takes a fifth of a second). It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Psk(pub [u8; 32]);

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Psk(…)")
    }
}
