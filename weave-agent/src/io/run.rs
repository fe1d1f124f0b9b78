//! The agent's life: set up, run, end. The data plane outlives it where the kernel is the data plane.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rand::rngs::{StdRng, SysRng};
use rand::{Rng, RngExt, SeedableRng, TryRng};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::agent::{Agent, Inbox, Parts};
use super::api::{Call, server};
use super::carrier::Carrier;
use super::clock::Clock;
use super::datapath::choice::{self, Opened};
use super::esp::{self as esp_io, Esp};
use super::event::{self, Event, Events, OwnDevice};
use super::hands::Hands;
use super::leases::Leases;
use super::names::Names;
use super::net::docker::Docker;
use super::net::{self, Device, DeviceWatch, Known, Netlink, Port, PortWatch, Underlay, Vxlan, VxlanDevice, ports};
use super::passwords;
use super::paths::Paths;
use super::pidfile::{Claim, PidFile, already_running};
use super::presence::{Doing, Presence};
use super::signals::Signals;
use super::sleeve::{self as sleeve_io, Sleeve};
use super::store::{self, Changes, State, Store};
use super::targets::{self, Typed};
use super::{connect, follow, mounts};
use crate::config::{Config, Settings};
use crate::datapath::Source;
use crate::mesh::Psk;
use crate::peer::{PeerName, PeerUid, ShortId};
use crate::router::{self, Router};
use crate::{Time, dns, esp, ipam, mesh, sleeve, switch};

/// What is still on its way out when the agent ends has this long.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Requests that may wait for the loop.
const CALLS: usize = 64;

/// Run an agent until it is told to stop. `said` and what was said before is made its settings by `configure`.
pub async fn run(said: Settings, configure: impl Fn(&Settings) -> anyhow::Result<Config>, paths: Paths) -> anyhow::Result<()> {
    let (pid_file, presence) = claim(&paths)?;
    let served = Box::pin(serve(said, configure, &paths)).await;
    // Best effort: the lock is what counts, and it ends with the process.
    let _ = std::fs::remove_file(paths.socket());
    // Whoever finds the pid file free finds the network namespace free.
    drop(presence);
    let _ = pid_file.remove();
    served
}

/// One agent per run directory, and one per network namespace.
fn claim(paths: &Paths) -> anyhow::Result<(PidFile, Presence)> {
    let presence = Presence::claim(Doing::Agent, paths)?;
    std::fs::create_dir_all(&paths.run).with_context(|| format!("cannot create {}", paths.run.display()))?;
    match PidFile::claim(&paths.pid_file())? {
        Claim::Ours(pid_file) => Ok((pid_file, presence)),
        Claim::Held(pid) => bail!("{}", already_running(pid)),
    }
}

async fn serve(said: Settings, configure: impl Fn(&Settings) -> anyhow::Result<Config>, paths: &Paths) -> anyhow::Result<()> {
    let mut rng = StdRng::try_from_rng(&mut SysRng).context("the system has no randomness")?;
    let (store, state) = Store::open(paths, &mut rng)?;
    let settings = said.or(state.settings.clone());
    let mut config = configure(&settings)?;
    let is_as_before = settings.ipalloc_range == state.settings.ipalloc_range;
    if let Some(warning) = overlap(&config, is_as_before).await? {
        tracing::warn!("{warning}");
        store.notices().set("range", warning);
    }
    // The agent needs only what becomes of them.
    let passwords = passwords::stretch(std::mem::take(&mut config.passwords)).await?;
    let state = remembered(&config, &store, state, &mut rng)?;
    let listener = connect::listen(config.host, config.port).await?;
    let (state, kept) = watch::channel(state);
    let keeper = tokio::spawn(store::keep(store.clone(), kept));
    let (snapshots, taken) = watch::channel(store::Snapshot::default());
    let (events, received) = event::channel();
    let told = events.clone();
    let stored = move |number| {
        let told = told.clone();
        // Without a loop nobody waits for it.
        async move { told.send(Event::Stored(number)).await.unwrap_or_default() }
    };
    let ipam_keeper = tokio::spawn(store::keep_ipam(store.clone(), taken, stored));
    let by_hand = store.names()?.into_iter().map(|(name, address)| dns::Kept { name, address }).collect();
    let (by_hand, names) = watch::channel(by_hand);
    let names_keeper = tokio::spawn(store::keep_names(store.clone(), names));
    let keepers = async move { tokio::join!(keeper, ipam_keeper, names_keeper) };
    if mounts::is_private("self") {
        tracing::warn!("{}", mounts::PRIVATE);
        store.notices().set("mounts", mounts::PRIVATE.to_owned());
    }
    let kept = Kept { store, state, settings, passwords, snapshots, by_hand };
    let ran = Box::pin(start(config, paths, listener, kept, (events, received), rng)).await;
    // The last senders have gone with the agent: what is not on disk yet is being written.
    if timeout(LAST_WORDS, keepers).await.is_err() {
        tracing::warn!("the latest settings may not be on disk");
    }
    ran
}

/// Refuses a range that the host uses itself. An agent that comes back to containers that have addresses of it is better than none:
/// then it is a warning.
///
/// # Errors
/// Says who uses it.
pub async fn overlap(config: &Config, is_as_before: bool) -> anyhow::Result<Option<String>> {
    let Some(ipalloc) = &config.ipalloc else { return Ok(None) };
    let host = Netlink::here()?;
    match net::unused_range(&host, &ipalloc.ranges).await {
        Err(error @ net::RangeError::Kernel(_)) => Err(error.into()),
        Err(error) if is_as_before && net::is_inhabited(&host).await? => Ok(Some(format!("no container gets an address: {error}"))),
        looked => Ok(looked.map(|()| None)?),
    }
}

/// What an earlier agent kept, and what the user says now.
fn remembered(config: &Config, store: &Store, mut state: State, rng: &mut StdRng) -> anyhow::Result<State> {
    let before = state.clone();
    if let Some(name) = config.name.filter(|name| *name != state.name) {
        tracing::info!(old = %state.name, new = %name, "this peer gets a new name");
        state.name = name;
        state.short_id = None;
    }
    if let Some(peers) = &config.peers {
        state.targets.clone_from(peers);
    }
    if state.short_id.and_then(ShortId::new).is_none() {
        state.short_id = Some((rng.next_u32() & 0xfff) as u16);
    }
    if state != before {
        store.commit(&Changes { state: Some(state.clone()), ..Changes::default() })?;
    }
    Ok(state)
}

/// What outlives the agent.
struct Kept {
    store: Store,
    state: watch::Sender<State>,
    /// For the next agent, once this one is known to work with them.
    settings: Settings,
    /// Not kept.
    passwords: Vec<Psk>,
    snapshots: watch::Sender<store::Snapshot>,
    by_hand: watch::Sender<Vec<dns::Kept>>,
}

async fn start(
    config: Config,
    paths: &Paths,
    tcp: TcpListener,
    kept: Kept,
    (events, received): (Events, mpsc::Receiver<Event>),
    mut rng: StdRng,
) -> anyhow::Result<()> {
    let Kept { store, state, settings, passwords, snapshots, by_hand } = kept;
    let host = Netlink::here()?;
    let Opened { datapath, upcalls, vxlan, why: chosen } =
        choice::open(config.datapath, &choice::Place { host: &host, paths, tunnel_port: config.tunnel_port(), xdp: config.xdp }).await?;
    let mut carrier = Carrier::new(datapath);
    let Sealers { sleeve, heard, esp, keeper, left } = start_sealers(&config, &store, &mut carrier, !passwords.is_empty()).await?;
    let is_open = passwords.is_empty() || !config.trusted_subnets.is_empty();
    let ipam = ipam_config(&config, &store, state.borrow().name)?;
    let dns = dns_config(&config, state.borrow().name, by_hand.borrow().clone());
    let big_tcp = config.big_tcp && carrier.takes_big_segments();
    if config.big_tcp && !big_tcp {
        store
            .notices()
            .set("big-tcp", "no BIG TCP: only the ebpf datapath carries segments that are longer than a packet can be".to_owned());
    }
    let mesh = mesh::Config { big_tcp, ..mesh_config(&config, passwords, &state.borrow(), (sleeve.as_ref(), esp.is_some()), &mut rng)? };
    let router = Router::new(router_config(&config, mesh, ipam, dns)?, secret_seed()?);
    let (underlay, changes) = Underlay::start()?;
    let (neighbours, seen) = watch::channel(BTreeMap::new());
    let (zone, answered) = watch::channel(Arc::default());
    let name = state.borrow().name;
    let names = names(&config, &host, name, answered).await?;
    let leases = Leases::new(events.clone(), rng.next_u32());
    let may_seal = (!is_open, esp.is_some());
    let hands = hands(host, names, leases, events.clone(), (state.clone(), seen), may_seal, (config.mtu, big_tcp));
    let watches = Watches::open(&hands.host, config.tunnel_port(), vxlan, sleeve.as_ref())?;
    let adopted = ports::list(&hands.host).await?;
    hands.known.learn(&adopted);
    let (clock, notices) = (Clock::new(), store.notices().clone());
    let mut agent = Agent::new({
        let (config, hands) = (config.clone(), hands.clone());
        Parts { config, clock, router, carrier, sleeve, esp, chosen, hands, underlay, neighbours, state, snapshots, zone, by_hand, notices }
    });
    let nameserver = hands.names.as_ref().and_then(Names::port).map(|port| port.id);
    let adopted: Vec<_> = adopted.into_iter().filter(|port| Some(port.id) != nameserver).collect();
    agent.adopt(left, &adopted);

    let api = server::bind(&paths.socket())?;
    hands.state.send_if_modified(|state| std::mem::replace(&mut state.settings, settings.clone()) != settings);
    let (calls, called) = mpsc::channel(CALLS);
    let mut tasks = background(&config, tcp, hands, watches, keeper, events, adopted);
    let inbox = Inbox { events: received, calls: called, upcalls, changes, heard, signals: Signals::new()? };
    let ran = live(agent, inbox, api, calls).await;
    tasks.shutdown().await;
    ran
}

/// Nothing is known of ports yet. `secret`: whether neighbours are expected to be sealed, and whether the kernel can do that.
fn hands(
    host: Netlink,
    names: Option<Names>,
    leases: Leases,
    events: Events,
    (state, neighbours): (watch::Sender<State>, watch::Receiver<BTreeMap<Ipv4Addr, Source>>),
    (secret, esp): (bool, bool),
    (mtu, big_tcp): (Option<u32>, bool),
) -> Hands {
    let (docker, known, look_at_mtu) = (Docker::from_env(), Known::default(), Arc::default());
    Hands { host, docker, events, leases, names, state, neighbours, secret, esp, mtu, known, big_tcp, look_at_mtu }
}

/// What seals tunnels, as far as it can be had.
struct Sealers {
    sleeve: Option<Sleeve>,
    heard: mpsc::Receiver<sleeve::Heard>,
    esp: Option<Esp>,
    keeper: Option<esp_io::Keeper>,
    /// What an earlier agent left of IPsec.
    left: Option<esp::Input>,
}

async fn start_sealers(config: &Config, store: &Store, carrier: &mut Carrier, secret: bool) -> anyhow::Result<Sealers> {
    let (sleeve, heard) = start_sleeve(config, store, (!carrier.steers()).then_some(1)).await;
    if let Some(sleeve) = &sleeve {
        carrier.set_sleeve(sleeve.ifindex()).context("the sleeve's device")?;
    }
    let started = match carrier.seals() {
        true => esp_io::start(config.tunnel_port()).await,
        false => Err(anyhow!("what carries frames here has no tunnel that the kernel could encrypt")),
    };
    Ok(match started {
        Ok((esp, keeper, left)) => Sealers { sleeve, heard, esp: Some(esp), keeper: Some(keeper), left: Some(left) },
        Err(error) => {
            let so = "the kernel's tunnel cannot be encrypted here, so that what must be goes by the sleeve";
            match secret {
                true => tracing::warn!("{so}: {error:#}"),
                false => tracing::debug!("{so}: {error:#}"),
            }
            Sealers { sleeve, heard, esp: None, keeper: None, left: None }
        }
    })
}

/// What looks at the kernel.
struct Watches {
    ports: PortWatch,
    vxlan: Option<DeviceWatch<Vxlan>>,
    sleeve: Option<DeviceWatch<sleeve_io::Keeper>>,
}

impl Watches {
    /// To be called before the ports are listed: none goes unseen between the two.
    fn open(host: &Netlink, port: u16, vxlan: Option<VxlanDevice>, sleeve: Option<&Sleeve>) -> anyhow::Result<Self> {
        Ok(Self {
            vxlan: vxlan.map(|made| DeviceWatch::new(host.clone(), Vxlan { port, made })).transpose()?,
            sleeve: sleeve.map(|sleeve| DeviceWatch::new(host.clone(), sleeve.keeper())).transpose()?,
            ports: PortWatch::new()?,
        })
    }
}

/// The sleeve, on the mesh's port number. Without it the network works as long as the kernel's tunnel does.
async fn start_sleeve(config: &Config, store: &Store, queues: Option<usize>) -> (Option<Sleeve>, mpsc::Receiver<sleeve::Heard>) {
    let listen = SocketAddrV4::new(config.host.unwrap_or(Ipv4Addr::UNSPECIFIED), config.port);
    match Sleeve::start(&sleeve_io::Options { listen, queues, ..sleeve_io::Options::on_port(config.port) }).await {
        Ok((sleeve, heard)) => (Some(sleeve), heard),
        Err(error) => {
            let notice = format!("no sleeve, and so no way where UDP {} is blocked or encryption is wanted: {error}", config.tunnel_port());
            tracing::error!("{notice}");
            store.notices().set("sleeve", notice);
            (None, mpsc::channel(1).1)
        }
    }
}

/// Of everything secret: from nothing that stays in memory.
fn secret_seed() -> anyhow::Result<[u8; 32]> {
    let mut seed = [0; 32];
    SysRng.try_fill_bytes(&mut seed).context("the system has no randomness")?;
    Ok(seed)
}

/// Who answers names, if anybody shall.
async fn names(config: &Config, host: &Netlink, name: PeerName, zone: watch::Receiver<Arc<dns::Zone>>) -> anyhow::Result<Option<Names>> {
    let Some(dns) = &config.dns else { return Ok(None) };
    let mtu = match config.mtu {
        Some(mtu) => mtu,
        None => net::mtu_for(host, &[]).await,
    };
    Names::start(host, dns, name, mtu, zone).await.map(Some)
}

/// The loop with the control API beside it; the API outlives the loop by its last answer.
async fn live(mut agent: Agent, inbox: Inbox, api: tokio::net::UnixListener, calls: mpsc::Sender<Call>) -> anyhow::Result<()> {
    let (ended, ending) = oneshot::channel::<()>();
    let api = tokio::spawn(server::serve(api, calls, async { drop(ending.await) }));
    // As a task: what wakes it is most often another task, which then needs no other thread.
    let running = tokio::spawn(async move { agent.run(inbox).await });
    let ran = running.await.context("the agent's loop has failed").flatten();
    drop(ended);
    if timeout(LAST_WORDS, api).await.is_err() {
        tracing::debug!("a client of the control API did not leave");
    }
    ran
}

fn background(
    config: &Config,
    tcp: TcpListener,
    hands: Hands,
    watches: Watches,
    esp: Option<esp_io::Keeper>,
    events: Events,
    adopted: Vec<Port>,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(connect::accept(tcp, events.clone()));
    tasks.spawn(targets::keep_resolved(hands.state.subscribe(), config.port, events.clone()));
    tasks.spawn(watch_ports(watches.ports, hands.host.clone(), events.clone()));
    if let Some(vxlan) = watches.vxlan {
        tasks.spawn(watch_device(OwnDevice::Vxlan, vxlan, events.clone()));
    }
    if let Some(sleeve) = watches.sleeve {
        tasks.spawn(watch_device(OwnDevice::Sleeve, sleeve, events.clone()));
    }
    // The switch knows by now what was found, or that it may not be used.
    match esp {
        Some(esp) => tasks.spawn(esp.run(events)),
        None => tasks.spawn(leave_ipsec()),
    };
    tasks.spawn(follow::keep_mtu(hands.clone()));
    tasks.spawn(async move {
        hands.name_again(&adopted).await;
        hands.expose_again().await;
    });
    tasks
}

/// What an earlier agent left would drop what is in clear.
async fn leave_ipsec() {
    match esp_io::leave().await {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => tracing::info!("what an earlier agent left of IPsec is gone: {}", removed.join(", ")),
        Err(error) => tracing::error!("what an earlier agent left of IPsec may keep frames from passing: {error:#}"),
    }
}

/// Containers die without a word to us; their ports go with them.
async fn watch_ports(mut watch: PortWatch, host: Netlink, events: Events) {
    loop {
        let event = match watch.gone().await {
            Ok(Some(port)) => Ok(Event::Unplug(port)),
            Ok(None) => ports::list(&host).await.map(|ports| Event::Ports(ports.iter().map(|port| port.id).collect())),
            Err(error) => Err(error),
        };
        match event {
            Ok(event) => {
                if events.send(event).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::error!(%error, "cannot watch the ports: those of dead containers stay in the tables");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// The loop is told what becomes of a device, whoever lays hands on it.
async fn watch_device<D: Device>(device: OwnDevice, mut watch: DeviceWatch<D>, events: Events) {
    loop {
        let became = watch.next().await.map_err(|error| error.to_string());
        if events.send(Event::Device(device, became)).await.is_err() {
            return;
        }
    }
}

/// The settings of the keeper of names.
fn dns_config(config: &Config, name: PeerName, kept: Vec<dns::Kept>) -> Option<dns::Config> {
    let dns = config.dns.as_ref()?;
    let ranges = config.ipalloc.as_ref().map(|ipalloc| ipalloc.ranges.clone()).unwrap_or_default();
    Some(dns::Config { domain: dns.domain.clone(), ttl: dns.ttl, ranges, kept, ..dns::Config::new(name) })
}

type Addresses = (ipam::Config, Option<ipam::Snapshot>);

/// The settings of the keeper of addresses, and what it kept.
fn ipam_config(config: &Config, store: &Store, name: PeerName) -> anyhow::Result<Option<Addresses>> {
    let Some(ipalloc) = &config.ipalloc else { return Ok(None) };
    let snapshot = store.ipam()?.and_then(|bytes| {
        let decoded = postcard::from_bytes(&bytes);
        decoded.inspect_err(|error| tracing::error!(%error, "the kept state of addresses cannot be read and is not used")).ok()
    });
    // A name that nobody had before can have promised nothing; one that was given may have, on a disk that is gone.
    let is_new = snapshot.is_none() && config.name.is_none();
    let settings = ipalloc.config(name, config.nickname.clone(), store.trusted() || is_new)?;
    Ok(Some((settings, snapshot)))
}

/// Without them AES-256-GCM is several times slower than ChaCha20-Poly1305, and leaks its key through the caches.
/// `WEAVE_NO_AES` is for those who want the other all the same, or to compare.
fn has_aes() -> bool {
    if std::env::var_os("WEAVE_NO_AES").is_some_and(|value| !value.is_empty()) {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

fn mesh_config(
    config: &Config,
    passwords: Vec<Psk>,
    state: &State,
    (sleeve, esp): (Option<&Sleeve>, bool),
    rng: &mut StdRng,
) -> anyhow::Result<mesh::Config> {
    let short = state.short_id.and_then(ShortId::new).context("no short id was chosen")?;
    let typed = state.targets.iter().filter_map(|text| Typed::parse(text, config.port).ok());
    Ok(mesh::Config {
        name: state.name,
        uid: PeerUid(rng.random_range(1..=u64::MAX)),
        nickname: config.nickname.clone(),
        short: Some(short),
        port: config.port,
        tunnel_port: config.tunnel_port(),
        sleeve_port: sleeve.map_or(0, |sleeve| sleeve.local().port()),
        aes: has_aes(),
        esp,
        big_tcp: false,
        passwords,
        trusted_subnets: config.trusted_subnets.clone(),
        discovery: config.discovery,
        connection_limit: config.conn_limit,
        targets: typed.map(|typed| typed.unresolved()).collect(),
    })
}

fn router_config(config: &Config, mesh: mesh::Config, ipam: Option<Addresses>, dns: Option<dns::Config>) -> anyhow::Result<router::Config> {
    let short = mesh.short.context("no short id was chosen")?;
    let switch = switch::Config::new(mesh.name, short, config.tunnel_port());
    Ok(router::Config { mesh, switch, rekey: Time::from_secs(config.rekey.into()), ipam, dns })
}
