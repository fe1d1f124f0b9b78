//! What somebody should look at, for as long as it is so: `status` shows it as warnings.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is the matter, by what it is about. Copies are the same.
#[derive(Clone, Debug, Default)]
pub struct Notices(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Notices {
    /// This is so from now on.
    pub fn set(&self, about: &'static str, text: String) {
        self.locked().insert(about, text);
    }

    /// It is so no more.
    pub fn clear(&self, about: &'static str) {
        self.locked().remove(about);
    }

    /// All there are.
    pub fn all(&self) -> Vec<String> {
        self.locked().values().cloned().collect()
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
