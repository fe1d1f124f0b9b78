//! Log lines that strangers can cause, so many and no more: whoever can reach our port could fill the disk else.

use std::collections::BTreeMap;

use crate::Time;

/// Lines per cause and [`WINDOW`].
const LINES: u64 = 10;
const WINDOW: Time = Time::from_secs(60);

/// What lines are rationed by. None is of the stranger's choosing: there are few.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// A link that somebody opened and that never came up.
    Stranger,
    /// One of ours that never came up.
    Dialled,
    /// One that never came up because its ends do not agree on a password.
    Password,
    /// A link came up.
    Up,
    /// A link that had been up ended.
    Down,
}

/// Who has had how much.
#[derive(Debug, Default)]
pub(super) struct Ration {
    windows: BTreeMap<Cause, Window>,
}

#[derive(Debug)]
struct Window {
    begun: Time,
    lines: u64,
}

impl Ration {
    /// May one more line be written?
    pub(super) fn allows(&mut self, now: Time, cause: Cause) -> bool {
        self.close(now);
        let window = self.windows.entry(cause).or_insert(Window { begun: now, lines: 0 });
        window.lines += 1;
        window.lines <= LINES
    }

    /// Says what was held back in windows that are over.
    pub(super) fn close(&mut self, now: Time) {
        for (cause, held_back) in self.over(now) {
            tracing::info!(?cause, "{held_back} more links like this in {} s", WINDOW.as_secs());
        }
    }

    fn over(&mut self, now: Time) -> Vec<(Cause, u64)> {
        let over: Vec<Cause> = self.windows.iter().filter(|(_, window)| now >= window.begun + WINDOW).map(|(cause, _)| *cause).collect();
        let ended = over.into_iter().filter_map(|cause| Some((cause, self.windows.remove(&cause)?.lines.checked_sub(LINES)?)));
        ended.filter(|(_, held_back)| *held_back > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_secs(seconds)
    }

    #[test]
    fn of_many_lines_of_one_cause_ten_a_minute_are_written_and_the_rest_counted() {
        let mut ration = Ration::default();
        let written = (0..20_000).filter(|_| ration.allows(at(5), Cause::Stranger)).count();
        assert_eq!(written, 10);
        assert!(ration.allows(at(5), Cause::Down));
        assert_eq!(ration.over(at(64)), []);
        assert_eq!(ration.over(at(65)), [(Cause::Stranger, 19_990)]);
        assert!(ration.allows(at(66), Cause::Stranger));
    }
}
