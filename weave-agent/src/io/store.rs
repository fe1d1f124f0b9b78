//! What an agent keeps between runs: one small JSON file, replaced as a whole.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use ipnet::IpNet;
use rand::Rng;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::peer::PeerName;

/// Of the file's format. A file of a later one is not read.
const FORMAT: u32 = 1;
/// No file of ours is larger.
const LARGEST: u64 = 16 << 20;

/// Everything kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    format: u32,
    /// Our name in the mesh.
    #[serde(with = "as_text")]
    pub name: PeerName,
    /// The short id we had last.
    #[serde(default)]
    pub short_id: Option<u16>,
    /// What we were told to connect to.
    #[serde(default)]
    pub targets: Vec<String>,
    /// The host's own addresses on the network.
    #[serde(default)]
    pub exposed: Vec<IpNet>,
    /// What the owners of the ports were called, by the port's interface.
    #[serde(default)]
    pub attached: BTreeMap<String, String>,
}

impl State {
    /// Of an agent that has never run.
    pub fn fresh(rng: &mut impl Rng) -> Self {
        let name = PeerName::random(rng);
        Self { format: FORMAT, name, short_id: None, targets: Vec::new(), exposed: Vec::new(), attached: BTreeMap::new() }
    }

    /// What `path` holds, or a fresh one. A file that cannot be understood is set aside, never overwritten.
    pub fn load(path: &Path, rng: &mut impl Rng) -> anyhow::Result<Self> {
        match read(path) {
            Ok(Some(state)) => Ok(state),
            Ok(None) => Self::fresh(rng).kept(path),
            Err(Unreadable::Io(error)) => Err(error).with_context(|| format!("cannot read {}", path.display())),
            Err(Unreadable::Damaged(why)) => {
                let aside = set_aside(path)?;
                tracing::warn!("{} is damaged ({why}): kept as {}, and this agent gets a new name", path.display(), aside.display());
                Self::fresh(rng).kept(path)
            }
        }
    }

    /// Replace the file, so that after a crash there is the old one or the new one.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        replace(path, &json).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Written before it is used: a name that others have heard of must be the same after a crash.
    fn kept(self, path: &Path) -> anyhow::Result<Self> {
        self.save(path)?;
        Ok(self)
    }
}

enum Unreadable {
    Io(io::Error),
    Damaged(String),
}

fn read(path: &Path) -> Result<Option<State>, Unreadable> {
    let size = match path.metadata() {
        Ok(meta) => meta.len(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Unreadable::Io(error)),
    };
    if size > LARGEST {
        return Err(Unreadable::Damaged(format!("{size} bytes are too many")));
    }
    let bytes = fs::read(path).map_err(Unreadable::Io)?;
    let state: State = serde_json::from_slice(&bytes).map_err(|e| Unreadable::Damaged(e.to_string()))?;
    if state.format != FORMAT {
        return Err(Unreadable::Damaged(format!("its format is {}, and this program knows {FORMAT}", state.format)));
    }
    Ok(Some(state))
}

fn set_aside(path: &Path) -> anyhow::Result<PathBuf> {
    for number in 1..1000 {
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".damaged-{number}"));
        let aside = PathBuf::from(aside);
        if !aside.exists() {
            fs::rename(path, &aside).with_context(|| format!("cannot set aside {}", path.display()))?;
            return Ok(aside);
        }
    }
    bail!("{} is damaged and there are 999 others beside it: remove them", path.display())
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension("json.new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

/// Writes a state whenever it changed, off the loop; ends, all written, when the last sender is gone.
pub async fn keep(path: PathBuf, mut state: watch::Receiver<State>) {
    while state.changed().await.is_ok() {
        let (now, path) = (state.borrow_and_update().clone(), path.clone());
        match tokio::task::spawn_blocking(move || now.save(&path)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("{error:#}: after a restart this agent will not know its latest settings"),
            Err(error) => tracing::error!(%error, "writing the state failed"),
        }
    }
}

mod as_text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::peer::PeerName;

    pub(super) fn serialize<S: Serializer>(name: &PeerName, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(name)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PeerName, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn rng(seed: u64) -> StdRng {
        StdRng::seed_from_u64(seed)
    }

    #[test]
    fn the_name_of_the_first_start_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/agent.json");
        let first = State::load(&path, &mut rng(1)).unwrap();
        let mut second = State::load(&path, &mut rng(2)).unwrap();
        assert_eq!(first, second);
        second.short_id = Some(7);
        second.targets = vec!["10.0.0.2:6783".into()];
        second.exposed = vec!["10.32.0.1/16".parse().unwrap()];
        second.save(&path).unwrap();
        assert_eq!(State::load(&path, &mut rng(3)).unwrap(), second);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_or_foreign_file_is_set_aside_and_a_fresh_one_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.json");
        let later = r#"{"format": 2, "name": "02:00:00:00:00:01"}"#;
        for (number, text) in ["", "{\"format\": 1", "[]", later, r#"{"format": 1, "name": "x"}"#].into_iter().enumerate() {
            fs::write(&path, text).unwrap();
            let state = State::load(&path, &mut rng(1)).unwrap();
            assert_eq!(State::load(&path, &mut rng(2)).unwrap(), state);
            let aside = dir.path().join(format!("agent.json.damaged-{}", number + 1));
            assert_eq!(fs::read_to_string(aside).unwrap(), text);
        }
    }

    #[tokio::test]
    async fn what_changed_last_is_on_disk_when_the_keeper_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.json");
        let (sender, receiver) = watch::channel(State::fresh(&mut rng(1)));
        let keeper = tokio::spawn(keep(path.clone(), receiver));
        for id in 0..50 {
            sender.send_modify(|state| state.short_id = Some(id));
            tokio::task::yield_now().await;
        }
        drop(sender);
        keeper.await.unwrap();
        assert_eq!(State::load(&path, &mut rng(2)).unwrap().short_id, Some(49));
    }
}
