//! The JSON file of earlier versions: read once, then removed.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

use super::super::notices::Notices;
use super::{State, set_aside};
use crate::peer::PeerName;

/// The only one there was.
const FORMAT: u32 = 1;
/// No such file was larger.
const LARGEST: u64 = 16 << 20;

#[derive(Deserialize)]
struct Old {
    format: u32,
    #[serde(flatten)]
    state: State,
}

/// What an earlier version kept, if one ran here. A file that cannot be understood is set aside.
pub(super) fn read(path: &Path, notices: &Notices) -> anyhow::Result<Option<State>> {
    let cannot = || format!("cannot read {}", path.display());
    let size = match path.metadata() {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(cannot),
    };
    let parsed = if size > LARGEST { Err(format!("{size} bytes are too many")) } else { parse(&fs::read(path).with_context(cannot)?) };
    match parsed {
        Ok(state) => {
            tracing::info!(name = %state.name, "{} moves into the database", path.display());
            Ok(Some(state))
        }
        Err(why) => {
            let aside = set_aside(path)?;
            let text = format!("{} is damaged ({why}): kept as {}, and this agent gets a new name", path.display(), aside.display());
            tracing::warn!("{text}");
            notices.set("damaged", text);
            Ok(None)
        }
    }
}

fn parse(bytes: &[u8]) -> Result<State, String> {
    let old: Old = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if old.format != FORMAT {
        return Err(format!("its format is {}, and this program knows {FORMAT}", old.format));
    }
    Ok(old.state)
}

/// Once `name` is in the database, its old file says nothing any more.
pub(super) fn remove(path: &Path, name: PeerName) {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Ok(bytes) if parse(&bytes).is_ok_and(|state| state.name == name) => {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(%error, "cannot remove {}, which is no longer used", path.display());
            }
        }
        _ => tracing::warn!("{} is of an earlier version and not used: remove it", path.display()),
    }
}
