//! Reading a hash map in a few system calls: aya has one call for each key and one for each value.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use aya::maps::Map;

/// Linux 5.6, commit 057996380a42.
const LOOKUP_BATCH: i32 = 24;
/// Entries asked for at once. A bucket must fit, and has far fewer.
const CHUNK: usize = 8_192;

/// The second variant of `union bpf_attr` that is named `batch`.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// A descriptor of the map of its own; `None` for other kinds of maps.
pub(super) fn descriptor(map: &Map) -> Result<Option<OwnedFd>> {
    match map {
        Map::HashMap(data) => Ok(Some(data.fd().as_fd().try_clone_to_owned().context("cannot duplicate a map's descriptor")?)),
        _ => Ok(None),
    }
}

/// All entries of a hash map with keys of `M` and values of `N` bytes; those that come or go meanwhile may be among them.
///
/// # Errors
/// When the kernel is older, or refuses.
pub(super) fn entries<const M: usize, const N: usize>(map: BorrowedFd<'_>) -> io::Result<Vec<([u8; M], [u8; N])>> {
    let (mut keys, mut values) = (vec![[0_u8; M]; CHUNK], vec![[0_u8; N]; CHUNK]);
    let (mut all, mut place, mut first) = (Vec::new(), 0_u32, true);
    loop {
        // Where the last call stopped is where this one goes on.
        let here = &raw mut place as u64;
        let mut batch = Batch {
            in_batch: if first { 0 } else { here },
            out_batch: here,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: CHUNK as u32,
            map: map.as_raw_fd().cast_unsigned(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the attribute is as long as it says, and what it points to is as long as `count` says and outlives the call.
        let result = unsafe { libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, &raw mut batch, size_of::<Batch>()) };
        let error = (result < 0).then(io::Error::last_os_error);
        let ended = error.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::ENOENT));
        if let Some(error) = error.filter(|_| !ended) {
            return Err(error);
        }
        let count = (batch.count as usize).min(CHUNK);
        all.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
        if ended {
            return Ok(all);
        }
        first = false;
    }
}
