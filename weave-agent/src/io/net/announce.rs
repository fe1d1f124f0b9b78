//! announce.
