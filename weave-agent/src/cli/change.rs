//! Commands that change something.

use std::net::IpAddr;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::secret::PasswordFlags;
use super::show::{print, print_json};
use super::{meant, render};
use crate::io::api::body::{
    Changed, Connect, Connected, DnsChange, Expose, Exposed, Forget, Hide, Passwords, PasswordsAccepted, Rmpeer, TakenOver,
};
use crate::io::api::client::Client;

pub(super) async fn connect(client: &Client, peers: &[String], replace: bool) -> anyhow::Result<()> {
    let connected: Connected = client.post("/connect", &Connect { peers: peers.to_vec(), replace }).await?;
    for name in connected.unresolved {
        eprintln!("cannot resolve {name}; the agent goes on trying");
    }
    Ok(())
}

pub(super) async fn forget(client: &Client, peers: &[String]) -> anyhow::Result<()> {
    client.post::<_, serde_json::Value>("/forget", &Forget { peers: peers.to_vec() }).await.map(drop).map_err(Into::into)
}

pub(super) async fn passwords(client: &Client, flags: &PasswordFlags) -> anyhow::Result<()> {
    let passwords = flags.read()?;
    if passwords.is_empty() {
        anyhow::bail!("say which: --password-file FILE (one on each line, the one to dial with first), --password, or WEAVE_PASSWORD");
    }
    let given = passwords.iter().map(|password| password.as_str().to_owned().into()).collect();
    let PasswordsAccepted { accepted } = client.post("/passwords", &Passwords { passwords: given }).await?;
    print(&match accepted {
        1 => "the agent dials with the password and accepts no other\n".to_owned(),
        many => format!("the agent dials with the first password and accepts {many}\n"),
    })?;
    print("from now on nothing leaves this host in clear; neighbours that share no password with it within a minute are cut off\n")
}

pub(super) async fn attach(client: &Client, words: &[String], name: Option<String>, json: bool) -> anyhow::Result<()> {
    change(client, "/attach", &meant::attach(words, name)?, json).await
}

pub(super) async fn detach(client: &Client, words: &[String], json: bool) -> anyhow::Result<()> {
    change(client, "/detach", &meant::detach(words)?, json).await
}

pub(super) async fn expose(client: &Client, asked: &Expose, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(&answered::<serde_json::Value>(client, "/expose", asked).await?);
    }
    let exposed: Exposed = answered(client, "/expose", asked).await?;
    exposed.notes.iter().for_each(|note| eprintln!("{note}"));
    print(&render::changed(&exposed.changed))
}

pub(super) async fn hide(client: &Client, addresses: &[String], json: bool) -> anyhow::Result<()> {
    change(client, "/hide", &Hide { addresses: meant::cidrs(addresses)? }, json).await
}

async fn change(client: &Client, path: &str, body: &impl Serialize, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(&answered::<serde_json::Value>(client, path, body).await?);
    }
    print(&render::changed(&answered::<Changed>(client, path, body).await?))
}

async fn answered<A: DeserializeOwned>(client: &Client, path: &str, body: &impl Serialize) -> anyhow::Result<A> {
    Ok(client.post(path, body).await?)
}

pub(super) async fn rmpeer(client: &Client, peers: &[String], json: bool) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for peer in peers {
        let taken: TakenOver = client.post("/rmpeer", &Rmpeer { peer: peer.clone() }).await?;
        if !json {
            print(&format!("{} addresses taken over from {peer}\n", taken.addresses))?;
        }
        all.push(taken);
    }
    if json { print_json(&all) } else { Ok(()) }
}

pub(super) async fn prime(client: &Client) -> anyhow::Result<()> {
    client.order::<serde_json::Value>("/prime").await.map(drop).map_err(Into::into)
}

pub(super) async fn dns_add(client: &Client, name: &str, addresses: &[IpAddr]) -> anyhow::Result<()> {
    let asked = DnsChange { name: name.to_owned(), addresses: addresses.to_vec() };
    client.post::<_, serde_json::Value>("/dns/add", &asked).await.map(drop).map_err(Into::into)
}

pub(super) async fn dns_remove(client: &Client, name: &str, addresses: &[IpAddr]) -> anyhow::Result<()> {
    let asked = DnsChange { name: name.to_owned(), addresses: addresses.to_vec() };
    client.post::<_, serde_json::Value>("/dns/remove", &asked).await.map(drop).map_err(Into::into)
}
