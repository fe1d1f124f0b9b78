//! Commands that show something.

use std::io::Write;
use std::net::IpAddr;

use anyhow::bail;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::args::What;
use super::render;
use crate::io::api::Show;
use crate::io::api::body::{DnsFound, DnsLookup};
use crate::io::api::client::{Client, ClientError};
use crate::io::net::{NAMESERVER, NAMESERVER_6};
use crate::status::{Attachment, Dns, Ipam, Summary};

pub(super) async fn status(client: &Client, what: Option<What>, json: bool) -> anyhow::Result<()> {
    match what {
        None => show(client, Show::Status, json, render::summary).await,
        Some(What::Connections) => show(client, Show::Connections, json, many(render::connections)).await,
        Some(What::Peers) => show(client, Show::Peers, json, many(render::peers)).await,
        Some(What::Targets) => show(client, Show::Targets, json, many(render::targets)).await,
        Some(What::Flows) => show(client, Show::Flows, json, many(render::flows)).await,
        Some(What::Fdb) => show(client, Show::Fdb, json, many(render::fdb)).await,
        Some(What::Dns) => show(client, Show::Dns, json, render::dns).await,
        Some(What::Ipam) => show(client, Show::Ipam, json, render::ipam).await,
    }
}

pub(super) async fn ps(client: &Client, targets: &[String], json: bool) -> anyhow::Result<()> {
    let all: Vec<Attachment> = client.parse(&client.show(Show::Ps).await?)?;
    if let Some(unknown) = targets.iter().find(|name| !all.iter().any(|shown| is_called(shown, name))) {
        bail!("{unknown:?} is not attached here: `weave-agent ps` lists who is");
    }
    let is_wanted = |shown: &Attachment| targets.is_empty() || targets.iter().any(|name| is_called(shown, name));
    let wanted: Vec<Attachment> = all.into_iter().filter(is_wanted).collect();
    if json { print_json(&wanted) } else { print(&render::attachments(&wanted)) }
}

/// As it was given to `attach`, or the last part of the path that was.
fn is_called(shown: &Attachment, name: &str) -> bool {
    let last = |text: &str| text.rsplit('/').next().unwrap_or_default().to_owned();
    shown.target == name || last(&shown.target) == last(name)
}

pub(super) async fn report(client: &Client) -> anyhow::Result<()> {
    print_bytes(&client.show(Show::Report).await?)
}

pub(super) async fn version(client: &Client, json: bool) -> anyhow::Result<()> {
    let ours = env!("CARGO_PKG_VERSION");
    let agent = match client.show(Show::Status).await {
        Ok(bytes) => Some(client.parse::<Summary>(&bytes)?.version),
        Err(ClientError::NoAgent(_)) => None,
        Err(other) => return Err(other.into()),
    };
    if json {
        return print_json(&json!({ "program": ours, "agent": agent }));
    }
    let running = agent.unwrap_or_else(|| "none is running here".to_owned());
    print(&format!("weave-agent {ours}\nagent: {running}\n"))
}

pub(super) async fn dns_lookup(client: &Client, name: &str, json: bool) -> anyhow::Result<()> {
    let found: DnsFound = client.post("/dns/lookup", &DnsLookup { name: name.to_owned() }).await?;
    if json {
        return print_json(&found);
    }
    let lines = found.addresses.iter().map(ToString::to_string).chain(found.names);
    print(&lines.map(|line| line + "\n").collect::<String>())
}

/// For `docker run`.
pub(super) async fn dns_args(client: &Client) -> anyhow::Result<()> {
    let dns: Option<Dns> = client.parse(&client.show(Show::Dns).await?)?;
    match dns {
        Some(dns) => {
            let domain = dns.names.domain.to_string();
            let ranges = client.parse::<Ipam>(&client.show(Show::Ipam).await?)?.ranges;
            // Whoever has no IPv4 address reaches it by the other.
            let only_v6 = !ranges.is_empty() && ranges.iter().all(|range| range.range.addr().is_ipv6());
            let server: IpAddr = if only_v6 { NAMESERVER_6.into() } else { NAMESERVER.into() };
            print(&format!("--dns={server} --dns-search={}\n", domain.trim_end_matches('.')))
        }
        None => print("\n"),
    }
}

/// The agent's own bytes, or what `render` makes of them.
async fn show<A: DeserializeOwned>(client: &Client, what: Show, json: bool, render: impl Fn(&A) -> String) -> anyhow::Result<()> {
    let bytes = client.show(what).await?;
    if json { print_bytes(&bytes) } else { print(&render(&client.parse(&bytes)?)) }
}

fn many<A>(render: impl Fn(&[A]) -> String) -> impl Fn(&Vec<A>) -> String {
    move |all| render(all)
}

pub(super) fn print(text: &str) -> anyhow::Result<()> {
    print_bytes(text.as_bytes())
}

pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    print_bytes(&bytes)
}

fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    Ok(std::io::stdout().lock().write_all(bytes)?)
}
