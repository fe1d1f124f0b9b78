//! When parts want to be called, found out no more often than it can have changed.

use std::ops::{Deref, DerefMut};

use crate::dns::Dns;
use crate::esp::Associations;
use crate::ipam::Ipam;
use crate::mesh::Mesh;
use crate::sleeve::Sessions;
use crate::switch::Switch;
use crate::{Time, dns, esp, ipam, mesh, sleeve, switch};

/// What parts have in common.
pub(super) trait Part {
    type Output;
    fn poll_output(&mut self) -> Option<Self::Output>;
    fn poll_timeout(&self) -> Option<Time>;
    fn handle_timeout(&mut self, now: Time);
}

macro_rules! parts {
    ($($part:ty => $output:ty),* $(,)?) => {
        $(impl Part for $part {
            type Output = $output;

            fn poll_output(&mut self) -> Option<$output> {
                <$part>::poll_output(self)
            }

            fn poll_timeout(&self) -> Option<Time> {
                <$part>::poll_timeout(self)
            }

            fn handle_timeout(&mut self, now: Time) {
                <$part>::handle_timeout(self, now);
            }
        })*
    };
}

parts! {
    Mesh => mesh::Output,
    Switch => switch::Output,
    Sessions => sleeve::Output,
    Associations => esp::Output,
    Ipam => ipam::Output,
    Dns => dns::Output,
}

/// A part whose time is known until somebody touches it: to ask it means going through all neighbours.
#[derive(Debug)]
pub(super) struct Timed<P> {
    part: P,
    due: Option<Time>,
    touched: bool,
}

impl<P: Part> Timed<P> {
    pub(super) fn new(part: P) -> Self {
        Self { due: part.poll_timeout(), part, touched: false }
    }

    /// What it wants done changes nothing about its time.
    pub(super) fn poll_output(&mut self) -> Option<P::Output> {
        self.part.poll_output()
    }

    /// As of the last [`Self::look`].
    pub(super) const fn due(&self) -> Option<Time> {
        self.due
    }

    pub(super) fn handle_timeout(&mut self, now: Time) {
        self.look();
        if self.due.is_some_and(|due| due <= now) {
            self.part.handle_timeout(now);
            self.touched = true;
        }
    }

    /// Asks it for its time, if that may be another one.
    pub(super) fn look(&mut self) {
        if std::mem::take(&mut self.touched) {
            self.due = self.part.poll_timeout();
        }
    }
}

impl<P> Deref for Timed<P> {
    type Target = P;

    fn deref(&self) -> &P {
        &self.part
    }
}

impl<P> DerefMut for Timed<P> {
    fn deref_mut(&mut self) -> &mut P {
        self.touched = true;
        &mut self.part
    }
}
