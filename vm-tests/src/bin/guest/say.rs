//! The guest's voice: its second serial line. The first one is the kernel's.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use vm_tests::vm::orders::Said;

const LINE: &str = "/dev/ttyS1";

/// Where lines go. One at a time, whoever speaks.
pub(crate) struct Voice(Mutex<File>);

impl Voice {
    pub(crate) fn open() -> Result<Self> {
        let file = OpenOptions::new().write(true).open(LINE).context(LINE)?;
        Ok(Self(Mutex::new(file)))
    }

    pub(crate) fn say(&self, said: &Said) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody is there to be told that nobody hears.
        let _ = file.write_all(format!("{}\n", said.line()).as_bytes());
    }
}
