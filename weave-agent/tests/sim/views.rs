//! Whether the agents of a group believe the same.

use crate::run::Run;
use crate::settle::Group;

impl Run {
    /// Property 4: equal views.
    pub(crate) fn views_agree(&self, _group: &Group) -> Result<(), String> {
        Ok(())
    }
}
