//! The module's verbs: datapaths, vports, flows, packets.

use std::io;

use super::socket::{Socket, collect};
use super::wire::object::{datapath, flow, packet, vport};
use super::wire::{Act, Answer, Build, Datapath, Family, Fields, Flow, Kind, Request, Said, Vport, VportKind, command, put_actions};

/// Of a datapath whose vports have several upcall sockets each.
pub(super) const FEATURES: u32 = datapath::UNALIGNED | datapath::VPORT_PIDS;

/// What became of something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A datapath was made or changed.
    Datapath(Datapath),
    /// A datapath was deleted with all it had.
    DatapathGone(Datapath),
    /// A vport was deleted, or its interface.
    VportGone(Vport),
}

/// The module, in the namespace that it was opened in.
pub struct Kernel {
    socket: Socket,
    /// For frames, which nobody waits for.
    frames: Socket,
    datapath: Family,
    vport: Family,
    flow: u16,
    packet: u16,
}

/// A flow to be made, or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Its name.
    pub ufid: [u8; 16],
    /// What it matches.
    pub key: &'a Fields,
    /// Which bits of that.
    pub mask: &'a Fields,
    /// What it does.
    pub actions: &'a [Act],
}

impl Kernel {
    /// Finds the module's families; the kernel loads it if it can.
    ///
    /// # Errors
    /// `NotFound` without the module.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::open()?;
        let datapath = socket.family("ovs_datapath")?;
        let (vport, flow) = (socket.family("ovs_vport")?, socket.family("ovs_flow")?.id);
        let packet = socket.family("ovs_packet")?.id;
        Ok(Self { socket, frames: Socket::open()?, datapath, vport, flow, packet })
    }

    /// A socket that hears what becomes of datapaths and vports, whoever does it.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn events(&self) -> io::Result<Socket> {
        let socket = Socket::open()?;
        socket.never_wait()?;
        let groups = [self.datapath.group("ovs_datapath"), self.vport.group("ovs_vport")];
        groups.into_iter().flatten().try_for_each(|group| socket.join(group))?;
        Ok(socket)
    }

    /// What an event says; `None` if it is of something else.
    pub fn event(&self, answer: &Answer<'_>) -> Option<Event> {
        let (command, datapath, attributes) = answer.of_datapath()?;
        match answer.said {
            Said::Message { family, .. } if family == self.datapath.id => {
                let became = if command == command::DELETE { Event::DatapathGone } else { Event::Datapath };
                Datapath::read(datapath, attributes).map(became)
            }
            Said::Message { family, .. } if family == self.vport.id && command == command::DELETE => {
                Vport::read(datapath, attributes).map(Event::VportGone)
            }
            _ => None,
        }
    }

    /// Gives a datapath the features that it was made with: whoever opens one with Open vSwitch's tools changes them, and
    /// with them who is told of misses.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn restore_features(&self, name: &str) -> io::Result<()> {
        self.set_features(name, FEATURES)
    }

    /// Gives a datapath features (`OVS_DP_F_…`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_features(&self, name: &str, features: u32) -> io::Result<()> {
        let attributes = Build::default().put_text(datapath::NAME, name).put(datapath::FEATURES, &features.to_ne_bytes());
        self.done(self.datapath.id, command::SET, 0, attributes)
    }

    /// All datapaths of the namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn datapaths(&self) -> io::Result<Vec<Datapath>> {
        let mut all = Vec::new();
        self.dump(self.datapath.id, 0, Build::default(), |answer| collect(answer, Datapath::read, &mut all))?;
        Ok(all)
    }

    /// The datapath of this name; `None` if there is none.
    ///
    /// # Errors
    /// What else the kernel says.
    pub fn find_datapath(&self, name: &str) -> io::Result<Option<Datapath>> {
        let attributes = Build::default().put_text(datapath::NAME, name);
        found(self.one(self.datapath.id, command::GET, Kind::Do { echo: true }, 0, attributes, Datapath::read))
    }

    /// Makes a datapath, whose vports have several upcall sockets each.
    ///
    /// # Errors
    /// `AlreadyExists`, and what else the kernel says.
    pub fn add_datapath(&self, name: &str) -> io::Result<Datapath> {
        let attributes = Build::default()
            .put_text(datapath::NAME, name)
            .put(datapath::UPCALL_PID, &[0; 4])
            .put(datapath::FEATURES, &FEATURES.to_ne_bytes());
        self.one(self.datapath.id, command::NEW, Kind::Create, 0, attributes, Datapath::read)
    }

    /// Deletes a datapath with all its vports and flows; `false` if there was none.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_datapath(&self, name: &str) -> io::Result<bool> {
        let attributes = Build::default().put_text(datapath::NAME, name);
        let done = self.done(self.datapath.id, command::DELETE, 0, attributes);
        Ok(found(done.map(|()| true))?.unwrap_or(false))
    }

    /// All vports of a datapath.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn vports(&self, datapath: u32) -> io::Result<Vec<Vport>> {
        let mut all = Vec::new();
        self.dump(self.vport.id, datapath, Build::default(), |answer| collect(answer, Vport::read, &mut all))?;
        Ok(all)
    }

    /// Makes a vport, misses of which are told to these sockets. `udp_port`: of a tunnel.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_vport(&self, datapath: u32, kind: VportKind, name: &str, udp_port: Option<u16>, pids: &[u32]) -> io::Result<Vport> {
        let mut attributes = Build::default()
            .put_text(vport::NAME, name)
            .put(vport::KIND, &kind.number().to_ne_bytes())
            .put(vport::UPCALL_PIDS, &numbers(pids));
        if let Some(port) = udp_port {
            attributes = attributes.nest(vport::OPTIONS, Build::default().put(vport::PORT, &port.to_ne_bytes()));
        }
        self.one(self.vport.id, command::NEW, Kind::Create, datapath, attributes, Vport::read)
    }

    /// Tells a vport's misses to these sockets.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_upcall_pids(&self, datapath: u32, number: u32, pids: &[u32]) -> io::Result<()> {
        let attributes = Build::default().put(vport::NUMBER, &number.to_ne_bytes()).put(vport::UPCALL_PIDS, &numbers(pids));
        self.done(self.vport.id, command::SET, datapath, attributes)
    }

    /// Deletes a vport; `false` if there was none.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_vport(&self, datapath: u32, number: u32) -> io::Result<bool> {
        let attributes = Build::default().put(vport::NUMBER, &number.to_ne_bytes());
        let done = self.done(self.vport.id, command::DELETE, datapath, attributes);
        Ok(found(done.map(|()| true))?.unwrap_or(false))
    }

    /// All flows of a datapath. `brief`: only their names and counters, of those that have names.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn flows(&self, datapath: u32, brief: bool) -> io::Result<Vec<Flow>> {
        let mut all = Vec::new();
        let attributes = if brief { Build::default().put(flow::UFID_FLAGS, &flow::BRIEF.to_ne_bytes()) } else { Build::default() };
        self.dump(self.flow, datapath, attributes, |answer| collect(answer, |_, flow| Some(Flow::read(flow)), &mut all))?;
        Ok(all)
    }

    /// Makes flows; tells for each what became of it.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn add_flows<'a>(&self, datapath: u32, flows: impl IntoIterator<Item = Wanted<'a>>) -> io::Result<Vec<io::Result<()>>> {
        self.change_flows(datapath, command::NEW, flows)
    }

    /// Changes what flows do; their counters go on.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn set_flows<'a>(&self, datapath: u32, flows: impl IntoIterator<Item = Wanted<'a>>) -> io::Result<Vec<io::Result<()>>> {
        self.change_flows(datapath, command::SET, flows)
    }

    fn change_flows<'a>(&self, datapath: u32, command: u8, flows: impl IntoIterator<Item = Wanted<'a>>) -> io::Result<Vec<io::Result<()>>> {
        let mut results = Vec::new();
        let requests: Vec<_> = flows
            .into_iter()
            .map(|wanted| {
                results.push(Ok(()));
                let attributes = Build::default()
                    .nest(flow::KEY, wanted.key.build())
                    .nest(flow::MASK, wanted.mask.build())
                    .nest(flow::ACTIONS, put_actions(wanted.actions))
                    .put(flow::UFID, &wanted.ufid);
                let kind = if command == command::NEW { Kind::Create } else { Kind::Do { echo: false } };
                self.message(self.flow, command, kind, datapath, attributes)
            })
            .collect();
        self.socket.request_all(requests, |index, answer| {
            if let (Err(error), Some(result)) = (answer, results.get_mut(index)) {
                *result = Err(io::Error::from_raw_os_error(error));
            }
        })?;
        Ok(results)
    }

    /// Deletes flows by name; tells for each what it had counted, or `None` if there was none.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn delete_flows(&self, datapath: u32, ufids: &[[u8; 16]]) -> io::Result<Vec<Option<Flow>>> {
        let mut told = vec![None; ufids.len()];
        let requests: Vec<_> = ufids
            .iter()
            .map(|ufid| {
                let attributes = Build::default().put(flow::UFID, ufid).put(flow::UFID_FLAGS, &flow::BRIEF.to_ne_bytes());
                self.message(self.flow, command::DELETE, Kind::Do { echo: true }, datapath, attributes)
            })
            .collect();
        self.socket.request_all(requests, |index, answer| {
            if let (Ok(answer), Some(told)) = (answer, told.get_mut(index)) {
                *told = answer.of_datapath().map(|(_, _, attributes)| Flow::read(attributes));
            }
        })?;
        Ok(told)
    }

    /// Makes a flow without a name, as people type them; `AlreadyExists` if there is one with this key.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_plain_flow(&self, datapath: u32, key: &Fields, mask: &Fields, actions: &[Act]) -> io::Result<()> {
        let attributes =
            Build::default().nest(flow::KEY, key.build()).nest(flow::MASK, mask.build()).nest(flow::ACTIONS, put_actions(actions));
        let request = self.message(self.flow, command::NEW, Kind::Create, datapath, attributes);
        self.socket.request(request, |_| {})
    }

    /// Deletes a flow by its key, or by its name if it has one; `false` if there was none.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_flow(&self, datapath: u32, seen: &Flow) -> io::Result<bool> {
        let attributes = match &seen.ufid {
            Some(ufid) => Build::default().put(flow::UFID, ufid),
            None => Build::default().nest(flow::KEY, seen.key.build()),
        };
        let done = self.done(self.flow, command::DELETE, datapath, attributes);
        Ok(found(done.map(|()| true))?.unwrap_or(false))
    }

    /// Does with a frame what these actions say, now. Whether the kernel could is told by [`Kernel::refused`].
    ///
    /// # Errors
    /// When it is too long, or the socket takes no more.
    pub fn execute(&self, datapath: u32, frame: &[u8], actions: &[Act]) -> io::Result<()> {
        let attributes =
            Build::default().put(packet::PACKET, frame).nest(packet::KEY, Build::default()).nest(packet::ACTIONS, put_actions(actions));
        self.frames.tell(self.message(self.packet, packet::EXECUTE, Kind::Quietly, datapath, attributes))
    }

    /// How many frames the kernel would not execute since this was asked last.
    pub fn refused(&self) -> u64 {
        self.frames.refused()
    }

    fn message(&self, family: u16, command: u8, kind: Kind, datapath: u32, attributes: Build) -> Request {
        Request { family, command, kind, datapath: Some(datapath), attributes }
    }

    fn dump(&self, family: u16, datapath: u32, attributes: Build, each: impl FnMut(&Answer<'_>)) -> io::Result<()> {
        self.socket.request(self.message(family, command::GET, Kind::Dump, datapath, attributes), each)
    }

    fn done(&self, family: u16, command: u8, datapath: u32, attributes: Build) -> io::Result<()> {
        self.socket.request(self.message(family, command, Kind::Do { echo: false }, datapath, attributes), |_| {})
    }

    fn one<T>(
        &self,
        family: u16,
        command: u8,
        kind: Kind,
        datapath: u32,
        attributes: Build,
        read: impl Fn(u32, super::wire::Attributes<'_>) -> Option<T>,
    ) -> io::Result<T> {
        let mut all = Vec::new();
        self.socket.request(self.message(family, command, kind, datapath, attributes), |answer| collect(answer, &read, &mut all))?;
        all.pop().ok_or_else(|| io::Error::other("the kernel's answer makes no sense"))
    }
}

/// What is not there is no error: a flow (ENOENT), a vport or a datapath (ENODEV).
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(None),
        result => result.map(Some),
    }
}

fn numbers(pids: &[u32]) -> Vec<u8> {
    pids.iter().flat_map(|pid| pid.to_ne_bytes()).collect()
}
