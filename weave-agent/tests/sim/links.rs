//! TCP for the agents: dialling, sending, closing and breaking.

use std::net::SocketAddrV4;

use bytes::Bytes;
use weave_agent::Time;
use weave_agent::mesh::{self, LinkId};
use weave_agent::router::Input;

use crate::stream::{BREAKS_AFTER, End, Segment, Stream, StreamId};
use crate::wire::HostId;
use crate::world::{CONTROL_PORT, Event, World, address};

/// How long connecting into nothing takes to fail.
const CONNECT_TIMEOUT: Time = Time::from_secs(5);

impl World {
    /// An agent wants a connection.
    pub(crate) fn dial(&mut self, from: HostId, remote: SocketAddrV4) {
        let incarnation = self.hosts[from].incarnation;
        let to = self.host_at(*remote.ip()).filter(|to| self.wires.joins(from, *to));
        match to {
            Some(to) if remote.port() == CONTROL_PORT => {
                let delay = self.wires.stream_delay();
                self.schedule(delay, Event::Syn { from, incarnation, to });
            }
            _ => self.dial_failed(CONNECT_TIMEOUT, from, incarnation, remote, "timed out"),
        }
    }

    fn dial_failed(&mut self, delay: Time, host: HostId, incarnation: u64, remote: SocketAddrV4, error: &str) {
        let input = Input::Mesh(mesh::Input::DialFailed { remote, error: error.to_owned() });
        self.schedule(delay, Event::Agent { host, incarnation, input: Box::new(input) });
    }

    /// A connection attempt arrives where an agent listens, or not.
    pub(crate) fn syn(&mut self, from: HostId, incarnation: u64, to: HostId) {
        let remote = SocketAddrV4::new(address(to), CONTROL_PORT);
        if !self.wires.joins(from, to) {
            return self.dial_failed(CONNECT_TIMEOUT, from, incarnation, remote, "timed out");
        }
        let back = self.wires.stream_delay();
        if self.hosts[to].agent.is_none() {
            return self.dial_failed(back, from, incarnation, remote, "connection refused");
        }
        let stream = StreamId(self.streams.number());
        let dialler = SocketAddrV4::new(address(from), ephemeral(stream));
        let end = |host, incarnation, link| End { host, incarnation, link: LinkId(link), open: true };
        let ends = [end(from, incarnation, self.streams.number()), end(to, self.hosts[to].incarnation, self.streams.number())];
        let mut made = Stream::new(ends);
        // Nothing the acceptor says may come before the dialler knows that it is connected.
        made.last_arrival[0] = self.now + back;
        self.streams.all.insert(stream, made);
        let dialled = Input::Mesh(mesh::Input::Dialled { link: ends[0].link, local: dialler, remote });
        self.schedule(back, Event::Agent { host: from, incarnation, input: Box::new(dialled) });
        self.input(to, Input::Mesh(mesh::Input::Accepted { link: ends[1].link, local: remote, remote: dialler }));
    }

    /// An agent sends bytes; they arrive in pieces.
    pub(crate) fn send(&mut self, host: HostId, link: LinkId, mut bytes: Bytes) {
        let Some((stream, side)) = self.streams.find(host, self.hosts[host].incarnation, link) else {
            return;
        };
        while !bytes.is_empty() {
            let piece = bytes.split_to(self.wires.split(bytes.len()));
            self.push(stream, 1 - side, Segment::Bytes(piece));
        }
    }

    /// An agent closes a link; it hears of that itself, and the other end after what was sent.
    pub(crate) fn close(&mut self, host: HostId, link: LinkId) {
        let incarnation = self.hosts[host].incarnation;
        let Some((stream, side)) = self.streams.find(host, incarnation, link) else {
            return;
        };
        self.close_stream(stream, side);
        let input = Input::Mesh(mesh::Input::Closed { link, error: "closed".to_owned() });
        self.schedule(Time::ZERO, Event::Agent { host, incarnation, input: Box::new(input) });
    }

    /// One end is gone; the other will be told.
    pub(crate) fn close_stream(&mut self, stream: StreamId, side: usize) {
        if self.streams.close(stream, side).is_some() {
            self.push(stream, 1 - side, Segment::End);
        }
    }

    /// Sends a segment towards an end, or keeps it until the wire is mended.
    pub(crate) fn push(&mut self, id: StreamId, towards: usize, segment: Segment) {
        let Some(stream) = self.streams.all.get_mut(&id) else {
            return;
        };
        let [a, b] = stream.ends.map(|end| end.host);
        if stream.cut_since.is_some() || !self.wires.joins(a, b) {
            stream.waiting[towards].push_back(segment);
            return self.cut_stream(id);
        }
        let arrival = (self.now + self.wires.stream_delay()).max(stream.last_arrival[towards]);
        stream.last_arrival[towards] = arrival;
        self.schedule(arrival.saturating_sub(self.now), Event::Segment { stream: id, side: towards, segment });
    }

    /// Data waits in a stream: it breaks if that lasts.
    fn cut_stream(&mut self, id: StreamId) {
        let now = self.now;
        if let Some(stream) = self.streams.all.get_mut(&id).filter(|stream| stream.cut_since.is_none()) {
            stream.cut_since = Some(now);
            self.schedule(BREAKS_AFTER, Event::Break { stream: id, since: now });
        }
    }

    /// Streams whose wires were mended go on.
    pub(crate) fn resume_streams(&mut self) {
        let wires = &self.wires;
        let mended = self.streams.all.iter_mut().filter(|(_, stream)| {
            let [a, b] = stream.ends.map(|end| end.host);
            stream.cut_since.is_some() && wires.joins(a, b)
        });
        let mut resumed = Vec::new();
        for (id, stream) in mended {
            stream.cut_since = None;
            for side in [0, 1] {
                resumed.extend(stream.waiting[side].drain(..).map(|segment| (*id, side, segment)));
            }
        }
        for (id, side, segment) in resumed {
            self.push(id, side, segment);
        }
    }

    /// The kernel gives up on a stream that was cut all the time.
    pub(crate) fn break_stream(&mut self, id: StreamId, since: Time) {
        if self.streams.all.get(&id).is_some_and(|stream| stream.cut_since == Some(since)) {
            self.reset_stream(id);
        }
    }

    /// Both ends learn that the connection is broken.
    pub(crate) fn reset_stream(&mut self, id: StreamId) {
        for side in [0, 1] {
            if let Some(end) = self.streams.close(id, side) {
                let input = Input::Mesh(mesh::Input::Closed { link: end.link, error: "connection timed out".to_owned() });
                self.input_to(end.host, end.incarnation, input);
            }
        }
    }

    /// A segment arrives.
    pub(crate) fn segment(&mut self, id: StreamId, side: usize, segment: Segment) {
        let Some(end) = self.streams.all.get(&id).map(|stream| stream.ends[side]).filter(|end| end.open) else {
            return;
        };
        match segment {
            Segment::Bytes(bytes) => {
                self.trace.note((id, side, &bytes));
                self.input_to(end.host, end.incarnation, Input::Mesh(mesh::Input::Received { link: end.link, bytes }));
            }
            Segment::End => {
                self.streams.close(id, side);
                let input = Input::Mesh(mesh::Input::Closed { link: end.link, error: "reset by peer".to_owned() });
                self.input_to(end.host, end.incarnation, input);
            }
        }
    }
}

fn ephemeral(stream: StreamId) -> u16 {
    32768 + u16::try_from(stream.0 % 28000).unwrap_or_default()
}
