//! The database's file: opened and checked, made, read, written.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::Context;
use bytes::Bytes;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, StorageError, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Changes, State};

/// Of the table below. A file of a later one is not read.
const FORMAT: u32 = 1;
/// There is little to keep; the library's own choice is a gigabyte.
const CACHE: usize = 4 << 20;
/// Everything, by name: state and names as JSON, which takes new fields; the mark in postcard; addresses as whoever keeps them likes.
const KEPT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("weave-agent");
const MARK: &str = "mark";
const STATE: &str = "state";
const IPAM: &str = "ipam";
const NAMES: &str = "names";

/// Which of all the files that ever were this one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) format: u32,
    /// Random; a new one wherever copies may have gone other ways.
    pub(super) lineage: u64,
    /// Counts the transactions.
    pub(super) generation: u64,
}

impl Mark {
    pub(super) const fn new(lineage: u64) -> Self {
        Self { format: FORMAT, lineage, generation: 0 }
    }
}

/// What every database of ours holds.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    pub(super) mark: Mark,
    pub(super) state: State,
}

/// Nothing is wrong with the file.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "a later version of weave-agent wrote it (its format is {0}, and this program knows {FORMAT}): run that version, or move the file away \
     to begin with a new name"
)]
struct LaterFormat(u32);

/// Why a file cannot be used.
#[derive(Debug)]
pub(super) enum Unusable {
    Missing,
    /// What is in it is not ours, or no longer.
    Damaged(String),
    /// It may be whole: whatever failed is elsewhere.
    Failed(anyhow::Error),
}

impl Unusable {
    pub(super) fn into_error(self) -> anyhow::Error {
        match self {
            Self::Missing => anyhow::anyhow!("it is gone"),
            Self::Damaged(why) => anyhow::anyhow!("it is damaged ({why}): stop the agent and start it again"),
            Self::Failed(error) => error,
        }
    }

    fn damaged(why: impl std::fmt::Display) -> Self {
        Self::Damaged(why.to_string())
    }
}

/// Every page is checked, and what is kept is understood: nothing turns out to be damaged later.
pub(super) fn open(path: &Path) -> Result<(Database, Contents), Unusable> {
    match path.metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(Unusable::Missing),
        Err(error) => return Err(Unusable::Failed(error.into())),
        Ok(meta) if !meta.is_file() => return Err(Unusable::damaged("it is no file")),
        Ok(_) => {}
    }
    // The library means to find damage without a panic. Should it not, the file is damaged all the same.
    catch_unwind(AssertUnwindSafe(|| opened(path))).unwrap_or_else(|_| Err(Unusable::damaged("reading it failed")))
}

fn opened(path: &Path) -> Result<(Database, Contents), Unusable> {
    let mut database = builder().open(path).map_err(told_apart)?;
    if !database.check_integrity().map_err(told_apart)? {
        tracing::warn!("{} was damaged; it is as it was before the damage", path.display());
    }
    let contents = contents(&database).map_err(|error| match error.downcast::<StorageError>() {
        Ok(error) => told_apart(error.into()),
        Err(error) => match error.downcast_ref::<LaterFormat>() {
            Some(later) => Unusable::Failed(later.clone().into()),
            None => Unusable::Damaged(format!("{error:#}")),
        },
    })?;
    Ok((database, contents))
}

fn told_apart(error: DatabaseError) -> Unusable {
    match error {
        DatabaseError::DatabaseAlreadyOpen => Unusable::Failed(anyhow::anyhow!("another agent uses it: say another --state-dir")),
        DatabaseError::Storage(StorageError::Io(error)) if !matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
            Unusable::Failed(error.into())
        }
        error => Unusable::damaged(error),
    }
}

fn contents(database: &Database) -> anyhow::Result<Contents> {
    let mark = get(database, MARK, mark)?.context("it is somebody else's")?;
    let state = get(database, STATE, json)?.context("it has no state")?;
    names(database)?;
    Ok(Contents { mark, state })
}

/// The format comes first in all formats that will ever be.
fn mark(bytes: &[u8]) -> anyhow::Result<Mark> {
    let (format, _) = postcard::take_from_bytes::<u32>(bytes)?;
    if format > FORMAT {
        return Err(LaterFormat(format).into());
    }
    anyhow::ensure!(format == FORMAT, "its format is {format}, and this program knows {FORMAT}");
    Ok(postcard::from_bytes(bytes)?)
}

/// A new database with this in it. Until all of it is on disk there is none at `path`.
pub(super) fn create(path: &Path, contents: &Contents) -> anyhow::Result<Database> {
    let temporary = path.with_extension("redb.new");
    // Left by an agent that died here.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let database = builder().create(&temporary)?;
    write(&database, &contents.mark, &Changes { state: Some(contents.state.clone()), ..Changes::default() })?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
    Ok(database)
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

/// One transaction, on disk when this returns.
pub(super) fn write(database: &Database, mark: &Mark, changes: &Changes) -> anyhow::Result<()> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(KEPT)?;
        table.insert(MARK, postcard::to_stdvec(mark)?.as_slice())?;
        if let Some(state) = &changes.state {
            table.insert(STATE, serde_json::to_vec(state)?.as_slice())?;
        }
        if let Some(ipam) = &changes.ipam {
            table.insert(IPAM, &ipam[..])?;
        }
        if let Some(names) = &changes.names {
            table.insert(NAMES, serde_json::to_vec(names)?.as_slice())?;
        }
    }
    Ok(transaction.commit()?)
}

pub(super) fn ipam(database: &Database) -> anyhow::Result<Option<Bytes>> {
    get(database, IPAM, |bytes| Ok(Bytes::copy_from_slice(bytes)))
}

pub(super) fn names(database: &Database) -> anyhow::Result<Vec<(String, IpAddr)>> {
    Ok(get(database, NAMES, json)?.unwrap_or_default())
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> anyhow::Result<T> {
    Ok(serde_json::from_slice(bytes)?)
}

fn get<T>(database: &Database, key: &str, read: impl FnOnce(&[u8]) -> anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    let table = match database.begin_read().map_err(storage)?.open_table(KEPT) {
        Ok(table) => table,
        Err(redb::TableError::Storage(error)) => return Err(error.into()),
        Err(error) => return Err(error.into()),
    };
    let value = table.get(key)?;
    value.map(|value| read(value.value()).with_context(|| format!("what it holds as {key:?} cannot be read"))).transpose()
}

fn storage(error: redb::TransactionError) -> anyhow::Error {
    match error {
        redb::TransactionError::Storage(error) => error.into(),
        error => error.into(),
    }
}
