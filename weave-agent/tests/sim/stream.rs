//! TCP between agents: reliable ordered bytes that wait while the wire is cut, and break when it is cut for long.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use weave_agent::Time;
use weave_agent::mesh::LinkId;

use crate::wire::HostId;

/// How long a connection survives a cut (a TCP_USER_TIMEOUT).
pub(crate) const BREAKS_AFTER: Time = Time::from_secs(15);

/// One connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamId(pub(crate) u64);

/// One end of it: the dialler's is 0, the acceptor's 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) host: HostId,
    /// Which start of the agent; a later one knows nothing of this link.
    pub(crate) incarnation: u64,
    pub(crate) link: LinkId,
    pub(crate) open: bool,
}

/// What travels in a stream.
#[derive(Clone, Debug)]
pub(crate) enum Segment {
    Bytes(Bytes),
    /// The other end closed or died.
    End,
}

/// A connection's state.
pub(crate) struct Stream {
    pub(crate) ends: [End; 2],
    /// Waiting for the wire, towards each end.
    pub(crate) waiting: [VecDeque<Segment>; 2],
    /// When the last segment towards each end arrives: nothing overtakes it.
    pub(crate) last_arrival: [Time; 2],
    pub(crate) cut_since: Option<Time>,
}

impl Stream {
    /// An established connection.
    pub(crate) fn new(ends: [End; 2]) -> Self {
        Self { ends, waiting: Default::default(), last_arrival: [Time::ZERO; 2], cut_since: None }
    }

    /// Which end has this link.
    fn side(&self, host: HostId, incarnation: u64, link: LinkId) -> Option<usize> {
        self.ends.iter().position(|end| end.open && end.host == host && end.incarnation == incarnation && end.link == link)
    }
}

/// All connections.
#[derive(Default)]
pub(crate) struct Streams {
    pub(crate) all: BTreeMap<StreamId, Stream>,
    next: u64,
}

impl Streams {
    /// A number for a stream or a link.
    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The open end with this link.
    pub(crate) fn find(&self, host: HostId, incarnation: u64, link: LinkId) -> Option<(StreamId, usize)> {
        self.all.iter().find_map(|(id, stream)| Some((*id, stream.side(host, incarnation, link)?)))
    }

    /// The open ends of a host.
    pub(crate) fn of_host(&self, host: HostId) -> Vec<(StreamId, usize)> {
        let ends = self.all.iter().flat_map(|(id, stream)| stream.ends.iter().enumerate().map(move |(side, end)| (*id, side, end)));
        ends.filter(|(_, _, end)| end.open && end.host == host).map(|(id, side, _)| (id, side)).collect()
    }

    /// Closes an end; forgets the stream when both are closed.
    pub(crate) fn close(&mut self, id: StreamId, side: usize) -> Option<End> {
        let stream = self.all.get_mut(&id)?;
        let end = &mut stream.ends[side];
        let was = end.open.then_some(*end);
        end.open = false;
        if stream.ends.iter().all(|end| !end.open) {
            self.all.remove(&id);
        }
        was
    }
}
