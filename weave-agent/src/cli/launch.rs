//! `launch`: the agent itself, or a process that starts it and waits until it is ready.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::args::{Args, Launch};
use super::{meant, secret};
use crate::config::{MESH_PORT, Settings};
use crate::io::api::Show;
use crate::io::api::client::{Client, ClientError};
use crate::io::paths::Paths;
use crate::io::pidfile::{PidFile, already_running};
use crate::io::presence::Other;
use crate::io::targets::{self, Typed};
use crate::io::{logging, presence, run};
use crate::password::Password;
use crate::status::Summary;

/// An agent that is not ready by then will not be.
const PATIENCE: Duration = Duration::from_secs(30);
/// For an agent that is ended because it was not ready.
const LAST_CHANCE: Duration = Duration::from_secs(4);
/// For one that was killed to be gone.
const DYING: Duration = Duration::from_secs(2);
/// Whoever runs answers within this time.
const ANSWER: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(50);
/// Of a log that tells why an agent did not start.
const LAST_LINES: usize = 15;

/// `launch`, either way.
pub fn launch(args: &Args, typed: &Launch) -> anyhow::Result<()> {
    let paths = args.paths();
    let passwords = if typed.no_password { Vec::new() } else { typed.passwords.read()? };
    // What was said last may count as well: only the agent knows that.
    let first = !paths.state_file().exists();
    let meant = first.then(|| meant::config(typed, &typed.settings(), &passwords, &hostname())).transpose()?;
    if !nix::unistd::geteuid().is_root() {
        bail!("launch needs root: it loads BPF programs and makes network interfaces; try `sudo weave-agent launch`");
    }
    super::block_on(refuse_a_second(&paths))?;
    if let Some(config) = &meant {
        // Before there is anything that would be left behind.
        super::block_on(run::overlap(config, true))?;
    }
    if typed.foreground { foreground(typed, &passwords, &paths) } else { super::block_on(background(typed, &passwords, &paths)) }
}

/// An agent that was killed may take a moment until the kernel has let go of all it had: that is waited for, unless it answers.
async fn refuse_a_second(paths: &Paths) -> anyhow::Result<()> {
    let deadline = now() + DYING;
    while let Some((refusal, answers)) = another(paths).await {
        if answers || now() >= deadline {
            bail!(refusal);
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// What to say of an agent that is here, and whether it answers.
async fn another(paths: &Paths) -> Option<(String, bool)> {
    let (holder, other) = (PidFile::holder(&paths.pid_file()), presence::other());
    let answers = other.as_ref().is_some_and(Other::answers);
    match (holder, other) {
        (None, None) => None,
        (None, Some(other)) if !other.is_of(paths, None) => Some((other.refusal(), answers)),
        (None, Some(other)) => Some((already_running(other.pid), answers)),
        // It may be in another network namespace.
        (Some(pid), _) => Some((already_running(pid), answers || is_answered(paths).await)),
    }
}

/// Whether there is an agent behind the control socket.
async fn is_answered(paths: &Paths) -> bool {
    let client = Client::new(paths.socket());
    matches!(timeout(ANSWER, client.show(Show::Targets)).await, Ok(Ok(_) | Err(ClientError::Refused { .. })))
}

fn foreground(typed: &Launch, passwords: &[Password], paths: &Paths) -> anyhow::Result<()> {
    if typed.detached {
        nix::unistd::setsid().context("cannot start a session")?;
    }
    logging::start(typed.log_level, typed.detached.then(|| paths.log()).as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build()?;
    let configure = |settings: &Settings| meant::config(typed, settings, passwords, &hostname());
    let settings = typed.settings();
    let said = Settings { password: settings.password.or((!passwords.is_empty()).then_some(true)), ..settings };
    let result = runtime.block_on(run::run(said, configure, paths.clone()));
    // A verb that hangs (a Docker that does not answer) must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn background(typed: &Launch, passwords: &[Password], paths: &Paths) -> anyhow::Result<()> {
    std::fs::create_dir_all(&paths.run).with_context(|| format!("cannot create {}", paths.run.display()))?;
    let log_path = paths.log();
    // One at a time: whoever waited finds the agent of the one before, and each tail of the log is of one start.
    let _turn = Flock::lock(open_log(&log_path)?, FlockArg::LockExclusive);
    refuse_a_second(paths).await?;
    let mut log = open_log(&log_path)?;
    let from = log.seek(SeekFrom::End(0))?;
    let mut child = spawn(typed, passwords, paths, &log)?;
    progress("starting the agent ");
    let client = Client::new(paths.socket());
    let (ready, unresolved) = tokio::join!(ready(&mut child, &client), unresolved(typed));
    if ready.is_err() {
        end(&mut child).await;
    }
    match ready {
        Ok(status) => {
            progress("\n");
            unresolved.iter().for_each(|why| eprintln!("cannot resolve {why}; the agent goes on trying"));
            status.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
            println!("agent {}({}) is ready (pid {}); its log is {}", status.name, status.nickname, status.pid, log_path.display());
            Ok(())
        }
        Err(error) => {
            progress("\n");
            if is_full(&paths.run) {
                bail!("the agent did not start: {error:#}; no space left on device: {} is full", paths.run.display());
            }
            let said = last_lines(&mut log, from);
            bail!("the agent did not start: {error:#}; {} says:\n{}", log_path.display(), said.trim_end())
        }
    }
}

/// A full disk takes no log either.
fn is_full(folder: &Path) -> bool {
    nix::sys::statvfs::statvfs(folder).is_ok_and(|fs| fs.blocks() > 0 && fs.blocks_available() == 0)
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// The same program with the same words, in a session of its own. Passwords go where no other process sees them.
fn spawn(typed: &Launch, passwords: &[Password], paths: &Paths, log: &File) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(&program);
    command.arg("--run-dir").arg(&paths.run).arg("--state-dir").arg(&paths.state);
    command.args(["launch", "--foreground", "--detached"]).args(words(typed, !passwords.is_empty()));
    command.env_remove(secret::VARIABLE);
    let stdin = if passwords.is_empty() { Stdio::null() } else { Stdio::piped() };
    command.stdin(stdin).stdout(log.try_clone()?).stderr(log.try_clone()?).current_dir("/");
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        let lines: String = passwords.iter().map(|password| format!("{}\n", password.as_str())).collect();
        // They fit into any pipe. If the agent has ended already, its log says why.
        let _ = stdin.write_all(lines.as_bytes());
    }
    Ok(child)
}

fn words(typed: &Launch, has_passwords: bool) -> Vec<String> {
    let mut words = vec![format!("--log-level={}", typed.log_level)];
    let settings = typed.settings();
    let said = [
        ("--name", typed.name.map(|name| name.to_string())),
        ("--nickname", settings.nickname),
        ("--port", settings.port.map(|port| port.to_string())),
        ("--host", settings.host.map(|host| host.to_string())),
        ("--no-discovery", settings.no_discovery.map(|no| no.to_string())),
        ("--conn-limit", settings.conn_limit.map(|limit| limit.to_string())),
        ("--mtu", settings.mtu.map(|mtu| mtu.to_string())),
        ("--password-file", has_passwords.then(|| "-".to_owned())),
        ("--trusted-subnets", settings.trusted_subnets),
        ("--rekey-interval", settings.rekey_interval.map(|seconds| seconds.to_string())),
        ("--ipalloc-range", settings.ipalloc_range),
        ("--ipalloc-default-subnet", settings.ipalloc_default_subnet),
        ("--ipalloc-init", settings.ipalloc_init),
        ("--no-dns", settings.no_dns.map(|no| no.to_string())),
        ("--dns-domain", settings.dns_domain.map(|domain| domain.to_string())),
        ("--dns-ttl", settings.dns_ttl.map(|seconds| seconds.to_string())),
        ("--dns-listen-address", listed(&settings.dns_listen_address)),
        ("--datapath", settings.datapath.map(|datapath| datapath.name().to_owned())),
        ("--xdp", settings.xdp.map(|xdp| xdp.name().to_owned())),
        ("--big-tcp", settings.big_tcp.map(|big| big.to_string())),
        ("--resolv-conf", settings.resolv_conf.map(|file| file.display().to_string())),
    ];
    words.extend(said.into_iter().filter_map(|(option, value)| Some(format!("{option}={}", value?))));
    words.extend(typed.no_password.then(|| "--no-password".to_owned()));
    words.push("--".to_owned());
    words.extend(typed.peers.iter().cloned());
    words
}

fn listed(addresses: &[SocketAddr]) -> Option<String> {
    let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    (!all.is_empty()).then(|| all.join(","))
}

/// Names that mean nothing now, and why.
async fn unresolved(typed: &Launch) -> Vec<String> {
    let peers: Vec<Typed> = typed.peers.iter().filter_map(|peer| Typed::parse(peer, MESH_PORT).ok()).collect();
    targets::resolve_all(&peers).await.into_iter().filter_map(|(_, why)| why).collect()
}

async fn ready(child: &mut Child, client: &Client) -> anyhow::Result<Summary> {
    let deadline = now() + PATIENCE;
    let mut next_dot = now();
    while now() < deadline {
        if let Some(status) = child.try_wait().context("cannot ask after the agent")? {
            bail!("{}", ended(status));
        }
        match timeout_at(deadline, client.show(Show::Status)).await.unwrap_or_else(|_| Err(ClientError::NoAgent(PathBuf::new()))) {
            Ok(json) => {
                let status: Summary = client.parse(&json)?;
                if status.ready && status.pid == child.id() {
                    return Ok(status);
                }
            }
            // One that dies while it is asked breaks the connection: how it ended says more.
            Err(ClientError::NoAgent(_) | ClientError::Refused { .. } | ClientError::Broken { .. }) => {}
            Err(other) => return Err(other.into()),
        }
        if now() >= next_dot {
            progress(".");
            next_dot = now() + Duration::from_millis(500);
        }
        sleep(POLL).await;
    }
    bail!("it was not ready after {} s and has been ended: try `--foreground --log-level debug`", PATIENCE.as_secs())
}

/// Nobody is told of an agent that was not ready: it must not stay.
async fn end(child: &mut Child) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let deadline = now() + LAST_CHANCE;
        let Some(pid) = i32::try_from(child.id()).ok().filter(|_| matches!(child.try_wait(), Ok(None))) else { return };
        // Who has ended meanwhile needs no signal: it is our child, nobody else can have its id.
        let _ = kill(Pid::from_raw(pid), signal);
        while now() < deadline && matches!(child.try_wait(), Ok(None)) {
            sleep(POLL).await;
        }
    }
}

fn ended(status: ExitStatus) -> String {
    status.code().map_or_else(|| format!("it was killed ({status})"), |code| format!("it ended with exit code {code}"))
}

fn now() -> Instant {
    Instant::now()
}

/// For people who watch; scripts see nothing.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("{text}");
        // Nothing to do about a terminal that is gone.
        let _ = std::io::stderr().flush();
    }
}

/// What was written after `from`, at most [`LAST_LINES`].
fn last_lines(log: &mut File, from: u64) -> String {
    let mut bytes = Vec::new();
    let read = log.seek(SeekFrom::Start(from)).and_then(|_| log.take(1 << 20).read_to_end(&mut bytes));
    if let Err(error) = read {
        return format!("(cannot be read: {error})");
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].iter().map(|line| format!("  {line}\n")).collect()
}

fn hostname() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "unnamed".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::Command;
    use super::*;

    fn typed(words: &[&str]) -> Launch {
        match Args::try_parse_from([&["weave-agent", "launch"], words].concat()).unwrap().command {
            Command::Launch(launch) => *launch,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_agent_in_the_background_is_told_all_that_was_typed() {
        let line = "--name 02:00:00:00:00:07 --nickname web1 --port 7000 --host 10.0.0.1 --no-discovery --conn-limit 3 --mtu 1400 \
                    --log-level debug --trusted-subnets 10.0.0.0/8 h2 h3:7000";
        let first = typed(&line.split_whitespace().collect::<Vec<_>>());
        let again = words(&first, false);
        let second = typed(&again.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
        assert_eq!(format!("{:?}", typed(&[])), format!("{:?}", typed(&["--"])));
        assert_eq!(words(&typed(&["--no-discovery=false"]), false), ["--log-level=INFO", "--no-discovery=false", "--"]);
        assert_eq!(words(&typed(&["--no-password"]), false), ["--log-level=INFO", "--no-password", "--"]);
    }

    #[test]
    fn a_password_is_neither_in_the_words_of_the_agent_in_the_background_nor_printed() {
        let typed = typed(&["--password", "correct horse", "--password=battery staple", "--trusted-subnets", "10.0.0.0/8"]);
        assert_eq!(words(&typed, true), ["--log-level=INFO", "--password-file=-", "--trusted-subnets=10.0.0.0/8", "--"]);
        assert!(!format!("{typed:?}").contains("horse"));
        let read = typed.passwords.read().unwrap();
        assert_eq!(read.iter().map(Password::as_str).collect::<Vec<_>>(), ["correct horse", "battery staple"]);
        let short = Launch { passwords: Default::default(), ..typed }.passwords;
        assert_eq!(secret::PasswordFlags { password: vec!["x".to_owned().into()], ..short }.read().unwrap_err().to_string(), "--password");
    }

    #[test]
    fn the_last_lines_are_those_of_this_start() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"old\n1\n2\n").unwrap();
        assert_eq!(last_lines(&mut file, 4), "  1\n  2\n");
    }
}
