//! What the control API asks of the loop.

use super::Agent;
use crate::dns;
use crate::io::api::{Answer, Call, Refusal, Request, Show, answer, body};
use crate::io::event::Event;
use crate::io::hands::Hands;
use crate::io::naming::{self, NameChange};
use crate::io::passwords;
use crate::io::report::Snapshot;
use crate::io::sleeve::Sleeve;
use crate::io::targets::{self, Typed};
use crate::mesh::{self, Target};

impl Agent {
    pub(super) fn call(&mut self, call: Call) {
        let Call { request, answer: to } = call;
        let hands = self.parts.hands.clone();
        match request {
            Request::Show(Show::Ps) => spawn_answer(to, async move { answer(&hands.attachments().await?) }),
            Request::Show(show) => {
                let snapshot = self.snapshot(show);
                spawn_answer(to, async move { snapshot.show(show, &hands).await });
            }
            Request::Connect(asked) => {
                let our_port = self.parts.config.port;
                spawn_answer(to, async move { connect_now(&hands, asked, our_port).await });
            }
            Request::Passwords(asked) => spawn_answer(to, async move { passwords::change(&hands, asked).await }),
            Request::Forget(asked) => drop(to.send(self.forget(asked))),
            Request::Attach(asked) => spawn_answer(to, async move { hands.attach(asked).await }),
            Request::Detach(asked) => spawn_answer(to, async move { hands.detach(asked).await }),
            Request::Expose(asked) => spawn_answer(to, async move { hands.expose(asked).await }),
            Request::Hide(asked) => spawn_answer(to, async move { hands.hide(asked).await }),
            Request::Rmpeer(asked) => spawn_answer(to, async move { hands.rmpeer(asked).await }),
            Request::DnsAdd(asked) => {
                let changed = self.dns_add(&asked);
                spawn_answer(to, async move { hands.dns_changed(changed, true).await });
            }
            Request::DnsRemove(asked) => {
                let changed = self.dns_remove(&asked);
                spawn_answer(to, async move { hands.dns_changed(changed, false).await });
            }
            Request::DnsLookup(asked) => drop(to.send(hands.dns_lookup(&asked))),
            Request::Prime => spawn_answer(to, async move { hands.prime().await }),
            Request::Reset => spawn_answer(to, async move { hands.leave().await }),
            Request::Stop => {
                self.ending = true;
                let carried_on = self.carried_on();
                drop(to.send(answer(&body::Stopping { pid: std::process::id(), carried_on })));
            }
        }
    }

    fn dns_add(&mut self, asked: &body::DnsChange) -> Result<NameChange, Refusal> {
        let name = self.parts.hands.qualified(&asked.name)?;
        if asked.addresses.is_empty() {
            return Err(Refusal::bad_request(format!("no address for {name}: say which")));
        }
        naming::findable(&asked.addresses).map_err(Refusal::bad_request)?;
        let addresses = asked.addresses.clone();
        self.names(dns::Input::Register { owner: dns::Owner::external(), name: name.clone(), addresses: addresses.clone() });
        Ok(NameChange { name, addresses })
    }

    /// Whoever gave the name: `dns-add`, or `attach` and `expose`, after which it would come back with the next agent.
    fn dns_remove(&mut self, asked: &body::DnsChange) -> Result<NameChange, Refusal> {
        let name = self.parts.hands.qualified(&asked.name)?;
        let status = self.parts.router.status(self.parts.clock.now());
        let entries: Vec<dns::EntryStatus> =
            status.dns.into_iter().flat_map(|dns| dns.entries).filter(|entry| !entry.dead && entry.name == name).collect();
        let me = self.parts.state.borrow().name;
        let addresses = naming::removable(me, &name, &entries, &asked.addresses).map_err(Refusal::not_found)?;
        for address in &addresses {
            self.names(dns::Input::Unregister { owner: None, name: Some(name.clone()), address: Some(*address) });
        }
        let left = naming::left(me, &entries, &addresses);
        self.parts.state.send_modify(|state| naming::forget(&mut state.names, &name, &left));
        Ok(NameChange { name, addresses })
    }

    /// A typing error would otherwise look like a success.
    fn forget(&mut self, asked: body::Forget) -> Answer {
        let known = self.parts.state.borrow().targets.clone();
        if let Some(unknown) = asked.peers.iter().find(|peer| !known.contains(peer)) {
            let known = if known.is_empty() { "there is none".to_owned() } else { format!("they are {}", known.join(", ")) };
            return Err(Refusal::not_found(format!("{unknown} is not among the peers that this agent was told to connect to: {known}")));
        }
        self.mesh(mesh::Input::Forget { targets: asked.peers });
        answer(&serde_json::json!({}))
    }

    fn snapshot(&mut self, show: Show) -> Snapshot {
        let now = self.parts.clock.now();
        Snapshot {
            config: self.parts.config.clone(),
            uptime: now,
            router: self.parts.router.status(now),
            answered: self.asks.answered(),
            has_nameserver: self.parts.hands.names.as_ref().is_some_and(|names| names.port().is_some()),
            datapath: self
                .parts
                .chosen
                .clone()
                .map_or_else(|| self.parts.carrier.describe(), |why| format!("{}: {why}", self.parts.carrier.describe())),
            xdp: self.parts.carrier.xdp(),
            flows: if matches!(show, Show::Flows | Show::Report) { self.parts.carrier.flows() } else { Vec::new() },
            counters: self.parts.carrier.counters(),
            sleeve: self.parts.sleeve.as_ref().map(Sleeve::status),
            notices: self.parts.notices.all().into_iter().chain(self.troubles.all()).collect(),
        }
    }
}

/// An answer that takes time is somebody else's work.
fn spawn_answer(to: tokio::sync::oneshot::Sender<Answer>, work: impl Future<Output = Answer> + Send + 'static) {
    // If the client has left, so be it.
    tokio::spawn(async move { drop(to.send(work.await)) });
}

/// `POST /connect`: typing errors are refused as a whole; names that mean nothing now are tried again later.
async fn connect_now(hands: &Hands, asked: body::Connect, our_port: u16) -> Answer {
    let typed: Result<Vec<Typed>, _> = asked.peers.iter().map(|text| Typed::parse(text, our_port)).collect();
    let (targets, unresolved): (Vec<Target>, Vec<Option<String>>) =
        targets::resolve_all(&typed.map_err(Refusal::bad_request)?).await.into_iter().unzip();
    let replace = asked.replace;
    let connected = hands.events.carry_out(|done| Event::Connect { targets, replace, done }).await;
    connected.map_err(Refusal::internal)?;
    answer(&body::Connected { unresolved: unresolved.into_iter().flatten().collect() })
}
