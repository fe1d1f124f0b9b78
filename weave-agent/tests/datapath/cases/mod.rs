//! What the contract promises, one function a promise.

pub(crate) mod floods;
pub(crate) mod flows;
pub(crate) mod orders;
pub(crate) mod peers;
pub(crate) mod ports;
pub(crate) mod sleeve;
