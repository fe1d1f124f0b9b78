//! What a run leaves behind: a hash of all that happened, and the ERROR events it logged.

use std::cell::Cell;
use std::hash::{DefaultHasher, Hash, Hasher};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// A hash of every event in order: equal for equal runs (property 12).
#[derive(Clone, Default)]
pub(crate) struct Trace(DefaultHasher);

impl Trace {
    /// Adds something that happened.
    pub(crate) fn note(&mut self, what: impl Hash) {
        what.hash(&mut self.0);
    }

    /// The hash so far.
    pub(crate) fn hash(&self) -> u64 {
        self.0.finish()
    }
}

thread_local! {
    static FIRST_ERROR: Cell<Option<String>> = const { Cell::new(None) };
}

/// The first ERROR event since the last call on this thread.
pub(crate) fn take_error() -> Option<String> {
    FIRST_ERROR.take()
}

/// Remembers ERROR events and lets everything else go by; with `SIM_LOG` set, prints all.
pub(crate) struct Errors {
    print: bool,
}

impl Errors {
    /// Reads `SIM_LOG`.
    pub(crate) fn new() -> Self {
        Self { print: std::env::var_os("SIM_LOG").is_some() }
    }
}

impl Subscriber for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.print && *metadata.level() <= Level::DEBUG || *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        if self.print {
            eprintln!("{} {}:{}", event.metadata().level(), event.metadata().target(), text.0);
        }
        if *event.metadata().level() == Level::ERROR {
            FIRST_ERROR.with(|first| first.set(Some(first.take().unwrap_or(text.0))));
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write;
        // Writing to a String does not fail.
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
