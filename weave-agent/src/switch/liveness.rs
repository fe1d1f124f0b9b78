//! Whether a tunnel's small heartbeats are answered.

use std::collections::VecDeque;

use crate::Time;

/// Between heartbeats. A TCP stream tries again 0.2, 0.6, 1.4 and 3 s after a loss: a tunnel that is given up within 1.2 s
/// costs it 1.4 s, one given up later 3.
pub(super) const INTERVAL: Time = Time::from_millis(300);
/// Between heartbeats that are answered and that nothing depends on, for each neighbour: up to fifty neighbours a host sends five a
/// second of each kind at rest.
const SHARE: Time = Time::from_millis(200);
/// But no longer: NATs forget who is silent for half a minute.
const LONGEST: Time = Time::from_secs(10);
/// The same while there is something to find out.
const FAST: Time = Time::from_millis(30);
/// How many of the first heartbeats are fast.
const FIRST: u8 = 5;
/// This many unanswered in a row, for at least as long as they take at the normal pace: down.
const MISSED: usize = 3;
/// This many answers in a row bring a tunnel that was down up again.
const HEALED: u8 = 3;
/// More than this many open requests are given up: round trips of over three seconds are no use.
const OPEN: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Never answered.
    Starting,
    Alive,
    /// Was alive and is no more; the number of answers in a row since.
    Dead(u8),
}

/// Request in flight.
#[derive(Debug)]
struct Open {
    sequence: u32,
    sent: Time,
}

/// Small heartbeats to one neighbour.
#[derive(Debug)]
pub(super) struct Liveness {
    phase: Phase,
    began: Time,
    /// When the last request went out.
    last: Option<Time>,
    /// Between requests that are answered.
    pace: Time,
    sent: u8,
    open: VecDeque<Open>,
    last_answer: Option<Time>,
    rtt: Option<Time>,
    lost: u64,
}

impl Liveness {
    pub(super) const fn new(now: Time) -> Self {
        Self {
            phase: Phase::Starting,
            began: now,
            last: None,
            pace: INTERVAL,
            sent: 0,
            open: VecDeque::new(),
            last_answer: None,
            rtt: None,
            lost: 0,
        }
    }

    /// Requests that are answered go out so often from the last one on; what is not answered is asked at the normal pace.
    pub(super) const fn set_pace(&mut self, pace: Time) {
        self.pace = pace;
    }

    /// When the next request is due; `hurry` wants a fast pace.
    pub(super) fn due(&self, hurry: bool) -> Time {
        let pace = if hurry || self.sent < FIRST {
            FAST
        } else if self.is_waiting() {
            INTERVAL
        } else {
            self.pace
        };
        self.last.map_or(self.began, |last| last + pace)
    }

    /// The last request is not answered yet.
    fn is_waiting(&self) -> bool {
        self.open.back().is_some_and(|open| self.last_answer.is_none_or(|answer| open.sent >= answer))
    }

    pub(super) fn is_alive(&self) -> bool {
        self.phase == Phase::Alive
    }

    pub(super) const fn is_dead(&self) -> bool {
        matches!(self.phase, Phase::Dead(_))
    }

    /// Answers come, though perhaps not enough of them yet.
    pub(super) const fn is_answered(&self) -> bool {
        matches!(self.phase, Phase::Alive | Phase::Dead(1..))
    }

    pub(super) const fn rtt(&self) -> Option<Time> {
        self.rtt
    }

    pub(super) const fn last_answer(&self) -> Option<Time> {
        self.last_answer
    }

    pub(super) const fn lost(&self) -> u64 {
        self.lost
    }

    /// So much earlier a request goes along with others: waking costs more than sending.
    fn slack(&self, hurry: bool) -> Time {
        let at_rest = !hurry && self.sent >= FIRST && !self.is_waiting();
        if at_rest { slack(self.pace) } else { Time::ZERO }
    }

    /// True if a request is due; it goes out with this sequence number. `hurry` wants a fast pace.
    pub(super) fn poll(&mut self, now: Time, sequence: u32, hurry: bool) -> bool {
        let due = self.due(hurry);
        if now + self.slack(hurry) < due {
            return false;
        }
        // Who was kept from looking for so long has answers waiting that he has not seen either.
        if now < due + INTERVAL {
            self.give_up(now);
        }
        self.open.push_back(Open { sequence, sent: now });
        if self.open.len() > OPEN {
            self.open.pop_front();
            self.lost += 1;
        }
        self.sent = self.sent.saturating_add(1);
        self.last = Some(now);
        true
    }

    fn give_up(&mut self, now: Time) {
        let since_answer = |open: &&Open| self.last_answer.is_none_or(|answer| open.sent >= answer);
        let silent = self.open.iter().filter(since_answer);
        let for_long = self.open.iter().find(since_answer).is_some_and(|open| now.saturating_sub(open.sent) >= INTERVAL * MISSED as u32);
        if silent.count() < MISSED || !for_long {
            return;
        }
        match self.phase {
            Phase::Starting => {}
            Phase::Alive | Phase::Dead(_) => self.phase = Phase::Dead(0),
        }
    }

    /// Takes an answer; false if nobody asked.
    pub(super) fn answer(&mut self, now: Time, sequence: u32) -> bool {
        let Some(at) = self.open.iter().position(|open| open.sequence == sequence) else { return false };
        // What was asked before and not answered by now is lost (or reordered, which counts the same).
        self.lost += at as u64;
        let Some(open) = self.open.drain(..=at).next_back() else { return false };
        let rtt = now.saturating_sub(open.sent);
        self.rtt = Some(self.rtt.map_or(rtt, |smooth| (smooth * 7 + rtt) / 8));
        self.last_answer = Some(now);
        self.phase = match self.phase {
            Phase::Dead(_) if at > 0 => Phase::Dead(1),
            Phase::Dead(answers) if answers + 1 < HEALED => Phase::Dead(answers + 1),
            _ => Phase::Alive,
        };
        true
    }
}

/// The pace of what nothing depends on, on a host with so many neighbours.
pub(super) fn pace_at_rest(neighbours: usize) -> Time {
    (SHARE * u32::try_from(neighbours).unwrap_or(u32::MAX)).clamp(INTERVAL, LONGEST)
}

/// How much earlier than every `pace` something may be done; nothing that is done at the normal pace.
pub(super) fn slack(pace: Time) -> Time {
    if pace > INTERVAL { pace / 8 } else { Time::ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Time {
        Time::from_millis(n)
    }

    /// Runs from `from` to `to`; requests are answered after `rtt` if they are sent in `answered`. Says when it was alive.
    fn run(liveness: &mut Liveness, from: u64, to: u64, rtt: u64, answered: impl Fn(u64) -> bool) -> Vec<u64> {
        let mut alive = Vec::new();
        for now in from..to {
            if liveness.poll(ms(now), now as u32, false) {
                assert!(liveness.open.len() <= OPEN);
            }
            if now >= rtt && answered(now - rtt) && liveness.open.iter().any(|open| open.sequence as u64 == now - rtt) {
                assert!(liveness.answer(ms(now), (now - rtt) as u32));
            }
            alive.extend(liveness.is_alive().then_some(now));
        }
        alive
    }

    #[test]
    fn one_answer_makes_it_alive_and_the_first_requests_come_fast() {
        let mut liveness = Liveness::new(Time::ZERO);
        assert_eq!(run(&mut liveness, 0, 1000, 20, |sent| sent >= 400).first(), Some(&440));
        assert_eq!(liveness.rtt(), Some(ms(20)));
    }

    #[test]
    fn silence_is_noticed_within_1_2_seconds() {
        let mut liveness = Liveness::new(Time::ZERO);
        let alive = run(&mut liveness, 0, 20_000, 1, |sent| sent < 10_000);
        let last = alive.last().copied().unwrap();
        assert!((10_800..=11_200).contains(&last), "{last}");
    }

    #[test]
    fn at_rest_few_are_sent_and_silence_is_noticed_a_second_after_the_first_of_them() {
        let mut liveness = Liveness::new(Time::ZERO);
        liveness.set_pace(pace_at_rest(200));
        let requests = (0..60_000).filter(|&now| liveness.poll(ms(now), now as u32, false) && liveness.answer(ms(now), now as u32)).count();
        assert_eq!(requests, 5 + 6);
        let alive = run(&mut liveness, 60_000, 80_000, 1, |sent| sent < 70_000);
        let last = alive.last().copied().unwrap();
        assert!((70_900..74_200).contains(&last), "{last}");
        // Something depends on it from now on.
        let mut liveness = Liveness::new(Time::ZERO);
        liveness.set_pace(pace_at_rest(200));
        run(&mut liveness, 0, 11_000, 1, |_| true);
        liveness.set_pace(INTERVAL);
        assert!(liveness.poll(ms(11_000), 1, false));
    }

    #[test]
    fn the_more_neighbours_the_seldomer_each_is_asked() {
        assert_eq!([0, 1, 6, 20, 4000].map(pace_at_rest), [INTERVAL, INTERVAL, ms(1200), ms(4000), LONGEST]);
    }

    #[test]
    fn after_silence_three_answers_in_a_row_are_wanted() {
        let mut liveness = Liveness::new(Time::ZERO);
        let alive = run(&mut liveness, 0, 30_000, 1, |sent| !(10_000..20_000).contains(&sent));
        let back = alive.iter().copied().find(|&at| at > 15_000).unwrap();
        assert!((20_600..21_200).contains(&back), "{back}");
    }

    #[test]
    fn two_lost_requests_or_a_long_round_trip_are_no_silence() {
        let mut liveness = Liveness::new(Time::ZERO);
        assert_eq!(run(&mut liveness, 0, 60_000, 1, |sent| (sent / 300) % 3 == 0 || sent < 300).len(), 59_999);
        let mut liveness = Liveness::new(Time::ZERO);
        assert_eq!(run(&mut liveness, 0, 60_000, 1200, |_| true).len(), 58_800);
    }

    #[test]
    fn an_answer_nobody_asked_for_or_one_repeated_is_refused() {
        let mut liveness = Liveness::new(Time::ZERO);
        liveness.poll(Time::ZERO, 7, false);
        assert!(!liveness.answer(ms(1), 8));
        assert!(liveness.answer(ms(1), 7));
        assert!(!liveness.answer(ms(2), 7));
    }
}
