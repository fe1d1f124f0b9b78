//! Which of two ways carries: the kernel's tunnel while it works, the sleeve while that does not.

use crate::Time;

/// At the start the kernel's tunnel has so long to prove itself before the sleeve is taken in its place.
const PATIENCE: Time = Time::from_secs(1);
/// It must have worked for so long without a break before it is gone back to.
const STEADY: Time = Time::from_secs(5);
/// If it fails again within this time, twice as long the next time, up to [`LONGEST`].
const RELAPSE: Time = Time::from_secs(60);
const LONGEST: Time = Time::from_secs(80);

/// What works now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Works {
    /// `None` if it may not be used.
    pub(super) vxlan: Option<bool>,
    pub(super) sleeve: bool,
}

/// Who carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chosen {
    /// The kernel's tunnel: VXLAN, under ESP if it must be sealed.
    Kernel,
    Sleeve,
}

/// The choice, and what it remembers.
#[derive(Debug)]
pub(super) struct Choice {
    current: Option<Chosen>,
    began: Time,
    /// Since when the kernel's tunnel has worked without a break.
    vxlan_since: Option<Time>,
    /// When it was last gone back to.
    returned: Option<Time>,
    steady: Time,
}

impl Choice {
    pub(super) const fn new(now: Time) -> Self {
        Self { current: None, began: now, vxlan_since: None, returned: None, steady: STEADY }
    }

    pub(super) const fn current(&self) -> Option<Chosen> {
        self.current
    }

    /// When time alone may change the choice.
    pub(super) fn due(&self, works: Works) -> Option<Time> {
        match self.current {
            None if works.sleeve => Some(self.began + PATIENCE),
            Some(Chosen::Sleeve) => self.vxlan_since.map(|since| since + self.steady),
            _ => None,
        }
    }

    /// Chooses anew.
    pub(super) fn update(&mut self, now: Time, works: Works) {
        let vxlan = works.vxlan == Some(true);
        self.vxlan_since = if vxlan { self.vxlan_since.or(Some(now)) } else { None };
        self.current = match self.current {
            Some(Chosen::Kernel) if vxlan => self.current,
            Some(Chosen::Kernel) => {
                self.failed(now);
                works.sleeve.then_some(Chosen::Sleeve)
            }
            Some(Chosen::Sleeve) if vxlan && (!works.sleeve || self.is_steady(now)) => {
                self.returned = Some(now);
                Some(Chosen::Kernel)
            }
            Some(Chosen::Sleeve) => works.sleeve.then_some(Chosen::Sleeve),
            None if vxlan => Some(Chosen::Kernel),
            None if works.sleeve && (works.vxlan.is_none() || self.began + PATIENCE <= now) => Some(Chosen::Sleeve),
            None => None,
        };
    }

    fn is_steady(&self, now: Time) -> bool {
        self.vxlan_since.is_some_and(|since| since + self.steady <= now)
    }

    fn failed(&mut self, now: Time) {
        let relapse = self.returned.is_some_and(|returned| now < returned + RELAPSE);
        self.steady = if relapse { (self.steady * 2).min(LONGEST) } else { STEADY };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Works = Works { vxlan: Some(true), sleeve: true };
    const BLOCKED: Works = Works { vxlan: Some(false), sleeve: true };

    /// Runs for `ms` milliseconds; says when the choice changed and to what.
    fn run(choice: &mut Choice, from: u64, to: u64, works: Works) -> Vec<(u64, Option<Chosen>)> {
        let mut changes = Vec::new();
        for ms in (from..to).step_by(10) {
            let before = choice.current();
            choice.update(Time::from_millis(ms), works);
            if choice.current() != before {
                changes.push((ms, choice.current()));
            }
        }
        changes
    }

    #[test]
    fn the_kernels_tunnel_is_taken_at_once_and_the_sleeve_after_a_second() {
        assert_eq!(run(&mut Choice::new(Time::ZERO), 0, 5000, BOTH), [(0, Some(Chosen::Kernel))]);
        assert_eq!(run(&mut Choice::new(Time::ZERO), 0, 5000, BLOCKED), [(1000, Some(Chosen::Sleeve))]);
    }

    #[test]
    fn where_only_the_sleeve_may_be_used_nothing_is_waited_for() {
        assert_eq!(run(&mut Choice::new(Time::ZERO), 0, 5000, Works { vxlan: None, sleeve: true }), [(0, Some(Chosen::Sleeve))]);
    }

    #[test]
    fn a_failure_is_acted_on_at_once_and_the_way_back_takes_five_seconds() {
        let mut choice = Choice::new(Time::ZERO);
        run(&mut choice, 0, 1000, BOTH);
        assert_eq!(run(&mut choice, 1000, 90_000, BLOCKED), [(1000, Some(Chosen::Sleeve))]);
        assert_eq!(run(&mut choice, 90_000, 99_000, BOTH), [(95_000, Some(Chosen::Kernel))]);
    }

    #[test]
    fn a_tunnel_that_keeps_failing_is_trusted_later_each_time_but_not_for_ever() {
        let mut choice = Choice::new(Time::ZERO);
        run(&mut choice, 0, 10, BOTH);
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..7 {
            run(&mut choice, now, now + 1000, BLOCKED);
            let back = run(&mut choice, now + 1000, now + 100_000, BOTH)[0].0;
            waits.push((back - now - 1000) / 1000);
            now = back + 1000;
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 80, 80]);
        run(&mut choice, now, now + 70_000, BOTH);
        run(&mut choice, now + 70_000, now + 71_000, BLOCKED);
        assert_eq!(run(&mut choice, now + 71_000, now + 80_000, BOTH)[0].0, now + 76_000);
    }

    #[test]
    fn the_kernels_tunnel_is_not_waited_for_when_the_sleeve_fails() {
        let mut choice = Choice::new(Time::ZERO);
        run(&mut choice, 0, 2000, BLOCKED);
        run(&mut choice, 2000, 3000, BOTH);
        assert_eq!(run(&mut choice, 3000, 3100, Works { vxlan: Some(true), sleeve: false }), [(3000, Some(Chosen::Kernel))]);
        assert_eq!(run(&mut choice, 3100, 3200, Works { vxlan: Some(false), sleeve: false }), [(3100, None)]);
    }
}
