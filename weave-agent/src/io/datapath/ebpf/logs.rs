//! Log lines of the programs. Only those built by `cargo xtask build-ebpf --debug-programs` write any.

use anyhow::Result;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tokio::io::unix::AsyncFd;

/// Where aya-log keeps the lines.
const MAP: &str = "AYA_LOGS";

/// Starts a task that passes the lines on, if there can be any. Must be called inside a tokio runtime, after the
/// programs are loaded: it takes their map.
pub(super) fn start(object: &mut aya::Ebpf) -> Result<()> {
    if object.map(MAP).is_some() {
        let logger = EbpfLogger::init_with_logger(object, Lines)?;
        // SAFETY: the logger owns its descriptor, never changes it and closes it only when dropped.
        let lines = unsafe { AsyncFd::register(logger)? };
        tokio::spawn(pass_on(lines));
    }
    Ok(())
}

async fn pass_on(mut lines: AsyncFd<EbpfLogger<Lines>>) {
    loop {
        match lines.readable_mut().await {
            Ok(mut guard) => {
                // Before reading: a line that comes meanwhile makes it ready again.
                guard.clear_ready();
                guard.get_inner_mut().flush();
            }
            Err(error) => return tracing::error!(%error, "the programs' log failed"),
        }
    }
}

/// aya-log speaks to `log`, the agent to `tracing`.
struct Lines;

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        tracing::debug!(target: "weave_ebpf", "{}", record.args());
    }

    fn flush(&self) {}
}
