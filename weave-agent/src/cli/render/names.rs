//! `status dns`

use super::table::table;
use crate::dns::{EntryStatus, Status};
use crate::status::Dns;

/// The whole page.
pub fn dns(status: &Option<Dns>) -> String {
    let Some(Dns { names, server }) = status else {
        return "this agent keeps no names (--no-dns)\n".to_owned();
    };
    let text = |value: &serde_json::Value| value.as_str().or(value["address"].as_str()).unwrap_or_default().to_owned();
    let list = |name: &str| server[name].as_array().map(|all| all.iter().map(text).collect::<Vec<_>>().join(" ")).unwrap_or_default();
    let upstreams = Some(list("upstreams")).filter(|all| !all.is_empty()).unwrap_or_else(|| "nobody".to_owned());
    format!(
        "Domain: {}, kept {} s by resolvers\nListening: {}\nAsks for everything else: {upstreams}\n{}",
        names.domain,
        names.ttl,
        list("listening"),
        entries(names)
    )
}

fn entries(names: &Status) -> String {
    let rows: Vec<[String; 4]> = names.entries.iter().filter(|entry| !entry.dead).map(row).collect();
    if rows.is_empty() { String::new() } else { format!("\n{}", table(["NAME", "ADDRESS", "PEER", "OWNER"], &rows)) }
}

fn row(entry: &EntryStatus) -> [String; 4] {
    let peer = match entry.nickname.as_str() {
        "" => entry.origin.to_string(),
        nickname => nickname.to_owned(),
    };
    [entry.name.to_string(), entry.address.to_string(), peer, entry.owner.to_string()]
}
