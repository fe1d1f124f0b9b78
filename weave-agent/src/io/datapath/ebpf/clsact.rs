//! The clsact qdisc, which filters need and TCX does not: made where it is missing, and removed again only if it was us
//! who made it and nobody else has put a filter on it since.
//!
//! That it was us is noted by a directory beside the pins: a bpffs has no files of other kinds, and the note has to
//! live as long as the filters do.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::io::datapath::tc::{self, EGRESS, INGRESS, Place};

/// Makes the qdisc if there is none, and notes that.
pub(super) fn ensure(ifindex: u32, note: &Path) -> Result<()> {
    match tc::make_clsact(ifindex) {
        Ok(()) => mark(note),
        Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error).context("cannot make a clsact qdisc"),
    }
}

/// Removes the qdisc if the note is ours and no filter is left on it.
pub(super) fn release(ifindex: u32, note: &Path) -> Result<()> {
    if !note.is_dir() {
        return Ok(());
    }
    match (filters(ifindex, INGRESS), filters(ifindex, EGRESS)) {
        (Ok(0), Ok(0)) => {}
        // An interface that is gone took its qdisc along.
        (Err(Errno::ENODEV), _) => return unmark(note),
        (ingress, egress) => return ingress.and(egress).map(drop).context("cannot list the filters of a clsact qdisc"),
    }
    match tc::remove_clsact(ifindex) {
        Ok(()) | Err(Errno::ENODEV | Errno::ENOENT | Errno::EINVAL) => unmark(note),
        Err(error) => Err(error).context("cannot remove a clsact qdisc"),
    }
}

/// Notes something.
pub(super) fn mark(note: &Path) -> Result<()> {
    match fs::create_dir(note) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error).with_context(|| note.display().to_string()),
        _ => Ok(()),
    }
}

/// Forgets it.
pub(super) fn unmark(note: &Path) -> Result<()> {
    match fs::remove_dir(note) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| note.display().to_string()),
        _ => Ok(()),
    }
}

fn filters(ifindex: u32, parent: u32) -> nix::Result<usize> {
    tc::request(tc::GET_FILTER, tc::DUMP, Place { ifindex, handle: 0, parent, info: 0 }, &[])
}
