//! The command line: what was typed ([`args`]), what is meant ([`meant`]), what is shown ([`render`]).

pub mod args;
pub mod meant;
pub mod render;
