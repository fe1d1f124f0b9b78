//! Where the log goes: standard error, which `launch` makes the log file.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Start to log what is at least as bad as `level`; `RUST_LOG` says it in detail.
///
/// # Errors
/// When something logs already.
pub fn start(level: tracing::Level) -> anyhow::Result<()> {
    let stderr = std::io::stderr;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level.as_str()));
    let started = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(stderr().is_terminal()).try_init();
    started.map_err(|e| anyhow::anyhow!("cannot start to log: {e}"))
}
