//! Real resolvers against the name server: dig, glibc, musl and busybox, each with a `resolv.conf` of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::sync::watch;
use weave_agent::dns::{Domain, Zone};
use weave_agent::io::dns::{Config, Server};

use crate::host::{eventually, on_a_host, sh};

/// Where we listen, where the servers behind us do, and where a server never answers.
const OURS: &str = "127.83.0.53";
const UPSTREAM: &str = "127.83.0.54";
const SILENT: &str = "127.83.0.55";

/// Prints all addresses that the C library finds, one a line.
const GETADDRINFO: &str = r#"
#include <stdio.h>
#include <string.h>
#include <netdb.h>
#include <arpa/inet.h>
int main(int argc, char **argv) {
    struct addrinfo hints, *all, *one;
    char text[64];
    memset(&hints, 0, sizeof hints);
    hints.ai_socktype = SOCK_STREAM;
    int error = getaddrinfo(argv[1], 0, &hints, &all);
    if (error) { printf("error %d\n", error); return 1; }
    for (one = all; one; one = one->ai_next) {
        void *from = one->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr
                                               : (void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr;
        puts(inet_ntop(one->ai_family, from, text, sizeof text));
    }
    return 0;
}
"#;

fn zone(domain: &str, names: &[(&str, &[&str])]) -> Arc<Zone> {
    let domain: Domain = domain.parse().unwrap();
    let mut entries = Vec::new();
    for (name, addresses) in names {
        let name = domain.qualify(name).unwrap();
        entries.extend(addresses.iter().map(|address| (name.clone(), address.parse::<IpAddr>().unwrap())));
    }
    for n in 0..60 {
        let name = domain.qualify("many").unwrap();
        entries.push((name.clone(), Ipv4Addr::new(10, 32, 1, n).into()));
        entries.push((name, Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, n.into()).into()));
    }
    Arc::new(Zone::new(domain, 1, entries))
}

/// Our server, one behind it that answers for example.com, and a folder with files.
struct Bed {
    server: Server,
    _upstream: Server,
    _zones: [watch::Sender<Arc<Zone>>; 2],
    folder: TempDir,
}

impl Bed {
    async fn new(change: impl FnOnce(&mut Config)) -> Self {
        // The C libraries ask only for addresses of families that the host has an address of, besides its loopback one.
        sh("ip addr add 10.32.0.9/12 dev lo && ip addr add fd00::9/64 dev lo nodad");
        let folder = tempfile::tempdir().unwrap();
        let upstreams = folder.path().join("upstreams");
        std::fs::write(&upstreams, format!("nameserver {OURS}\nnameserver {UPSTREAM}\n")).unwrap();
        std::fs::write(folder.path().join("resolv.conf"), format!("nameserver {OURS}\nsearch weave.local\n")).unwrap();

        let ours = zone("weave.local", &[("web", &["10.32.0.1", "10.32.0.2", "fd00::1"]), ("db", &["10.32.0.3"])]);
        let theirs = zone("example.com", &[("www.example.com", &["192.0.2.1"])]);
        let (our_zone, zones) = watch::channel(ours);
        let mut config = Config { resolv_conf: upstreams, ..Config::default() };
        change(&mut config);
        let server = Server::new(zones, config);
        server.listen(at(OURS)).await.unwrap();
        let (their_zone, zones) = watch::channel(theirs);
        let upstream = Server::new(zones, Config { resolv_conf: "/nonexistent".into(), ..Config::default() });
        upstream.listen(at(UPSTREAM)).await.unwrap();
        Self { server, _upstream: upstream, _zones: [our_zone, their_zone], folder }
    }

    /// With our `resolv.conf` instead of the machine's.
    async fn resolving(&self, command: &str) -> String {
        let file = self.folder.path().join("resolv.conf");
        let script = format!("mount --bind {} /etc/resolv.conf && {command}", file.display());
        run(format!("unshare --mount sh -c '{script}'")).await
    }

    fn upstreams(&self, servers: &str) {
        std::fs::write(self.folder.path().join("upstreams"), servers).unwrap();
    }
}

fn at(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), 53)
}

/// A command, while the server goes on; its output, even if it failed.
async fn run(command: String) -> String {
    let output = move || Command::new("sh").args(["-c", &command]).output().unwrap();
    let output = tokio::task::spawn_blocking(output).await.unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn dig(words: &str) -> String {
    run(format!("dig @{OURS} {words}")).await
}

fn lines(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn dig_finds_names_and_addresses_over_udp_and_tcp() {
    on_a_host(|| async {
        let _bed = Bed::new(|_| ()).await;
        for transport in ["", "+tcp"] {
            let dig = async |words: &str| dig(&format!("{words} {transport}")).await;
            assert_eq!(lines(&dig("web.weave.local A +short").await), ["10.32.0.1", "10.32.0.2"]);
            assert_eq!(dig("WEB.weave.LOCAL AAAA +short").await, "fd00::1\n");
            assert_eq!(dig("-x 10.32.0.3 +short").await, "db.weave.local.\n");
            assert_eq!(dig("-x fd00::1 +short").await, "web.weave.local.\n");
            assert_eq!(lines(&dig("web A +short").await).len(), 2);

            let unknown = dig("nobody.weave.local A").await;
            assert!(unknown.contains("status: NXDOMAIN") && unknown.contains("flags: qr aa rd ra;"), "{unknown}");
            assert!(unknown.contains("IN\tSOA\tns.weave.local. hostmaster.weave.local."), "{unknown}");
            let nothing = dig("web.weave.local TXT").await;
            assert!(nothing.contains("status: NOERROR") && nothing.contains("ANSWER: 0, AUTHORITY: 1"), "{nothing}");
            assert!(dig("nobody A").await.contains("status: NXDOMAIN"));
            let whole = dig("web.weave.local A").await;
            assert!(!whole.contains("malformed") && !whole.contains("extra bytes"), "{whole}");
        }
        assert!(dig("web.weave.local A +edns=1 +noednsnegotiation").await.contains("status: BADVERS"));
        assert!(dig("version.bind CH TXT").await.contains("status: REFUSED"));
        assert!(dig("+opcode=notify web.weave.local").await.contains("status: NOTIMP"));
    });
}

#[test]
fn a_server_that_listens_everywhere_answers_from_where_it_was_asked() {
    on_a_host(|| async {
        let bed = Bed::new(|_| ()).await;
        for (everywhere, asked) in [("0.0.0.0:5353", "127.9.9.9"), ("[::]:5353", "fd00::99")] {
            sh("ip addr replace fd00::99/64 dev lo nodad");
            bed.server.listen(everywhere.parse().unwrap()).await.unwrap();
            for words in ["web.weave.local A +short", "www.example.com A +short", "web.weave.local A +short +tcp"] {
                let found = run(format!("dig @{asked} -p 5353 {words} +tries=1")).await;
                assert!(found.starts_with("10.32.0.") || found == "192.0.2.1\n", "{asked} {words}: {found}");
            }
        }
        assert_eq!(bed.server.status().upstreams, [at(UPSTREAM)]);
    });
}

#[test]
fn sixty_addresses_are_cut_over_udp_and_whole_over_tcp() {
    on_a_host(|| async {
        let _bed = Bed::new(|_| ()).await;
        let cut = dig("many.weave.local A +noedns +ignore").await;
        assert!(cut.contains("flags: qr aa tc rd ra;") && cut.contains("ANSWER: 29,"), "{cut}");
        assert!(dig("many.weave.local AAAA +bufsize=4096 +ignore").await.contains(" tc "));
        for words in ["A +noedns", "A +tcp", "A +bufsize=1232 +ignore", "AAAA"] {
            let whole = dig(&format!("many.weave.local {words} +short")).await;
            let addresses = whole.lines().filter(|line| !line.starts_with(';'));
            assert_eq!(addresses.collect::<std::collections::BTreeSet<_>>().len(), 60, "{words}");
        }
    });
}

#[test]
fn what_is_not_ours_is_asked_upstream_over_the_same_transport_and_over_tcp_if_cut() {
    on_a_host(|| async {
        let bed = Bed::new(|_| ()).await;
        for transport in ["", "+tcp"] {
            assert_eq!(dig(&format!("www.example.com A +short {transport}")).await, "192.0.2.1\n");
            assert_eq!(dig(&format!("-x 192.0.2.1 +short {transport}")).await, "www.example.com.\n");
            assert!(dig(&format!("nobody.example.com A {transport}")).await.contains("status: NXDOMAIN"));
        }
        assert_eq!(bed.server.status().upstreams, [at(UPSTREAM)], "not ourselves");
        assert!(dig("many.example.com A +noedns +ignore").await.contains(" tc "));
        assert_eq!(dig("many.example.com A +noedns +short").await.lines().count(), 60);
        // The answer fits what dig takes, not what our upstream server sends over UDP.
        let larger = dig("many.example.com AAAA +bufsize=4096 +ignore").await;
        assert!(!larger.contains(" tc ") && larger.contains("ANSWER: 60,"), "{larger}");
    });
}

#[test]
fn a_silent_server_is_passed_over_and_nobody_waits_for_it() {
    on_a_host(|| async {
        let bed = Bed::new(|config| (config.timeout, config.in_flight) = (Duration::from_millis(500), 2)).await;
        let silent = tokio::net::UdpSocket::bind(at(SILENT)).await.unwrap();
        bed.upstreams(&format!("nameserver {SILENT}\nnameserver {UPSTREAM}\n"));
        eventually("the file is read again", async || bed.server.status().upstreams.len() == 2).await;
        assert_eq!(dig("www.example.com A +short").await, "192.0.2.1\n");

        bed.upstreams(&format!("nameserver {SILENT}\n# only\n"));
        eventually("the file is read again", async || bed.server.status().upstreams.len() == 1).await;
        let waiting = tokio::spawn(run(format!("dig @{OURS} www.example.com & dig @{OURS} ftp.example.com & wait")));
        eventually("both wait", async || bed.server.status().counts.forwarded == 3).await;
        #[expect(clippy::disallowed_methods, reason = "this measures real time")]
        let start = Instant::now();
        assert!(dig("more.example.com").await.contains("status: SERVFAIL"));
        assert_eq!(lines(&dig("web.weave.local +short").await).len(), 2);
        assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
        let waited = waiting.await.unwrap();
        assert_eq!(waited.matches("status: SERVFAIL").count(), 2, "{waited}");
        let counts = bed.server.status().counts;
        assert_eq!((counts.overloaded, counts.failed), (1, 2));
        drop(silent);
    });
}

#[test]
fn glibc_finds_names_with_and_without_the_domain() {
    on_a_host(|| async {
        let bed = Bed::new(|_| ()).await;
        for name in ["web", "web.weave.local", "WEB.weave.local."] {
            let found = bed.resolving(&format!("getent ahostsv4 {name}")).await;
            let addresses: std::collections::BTreeSet<_> = found.lines().filter_map(|line| line.split_whitespace().next()).collect();
            assert_eq!(addresses.into_iter().collect::<Vec<_>>(), ["10.32.0.1", "10.32.0.2"], "{name}: {found}");
        }
        assert!(bed.resolving("getent hosts web").await.starts_with("fd00::1 "));
        assert_eq!(bed.resolving("getent hosts 10.32.0.3").await.split_whitespace().collect::<Vec<_>>(), ["10.32.0.3", "db.weave.local"]);
        assert_eq!(bed.resolving("getent ahostsv4 many | grep -c STREAM").await, "60\n");
        assert!(bed.resolving("getent hosts www.example.com").await.starts_with("192.0.2.1 "));
        assert_eq!(bed.resolving("getent hosts nobody || echo none").await, "none\n");
    });
}

#[test]
fn musl_and_busybox_find_them_too() {
    on_a_host(|| async {
        let bed = Bed::new(|_| ()).await;
        let program = compiled(bed.folder.path());
        for name in ["web", "web.weave.local", "WEB.weave.local."] {
            let found = bed.resolving(&format!("{program} {name}")).await;
            assert_eq!(lines(&found), ["10.32.0.1", "10.32.0.2", "fd00::1"], "{name}");
        }
        // Versions of musl that never use TCP take what fits.
        assert!(bed.resolving(&format!("{program} many")).await.lines().count() >= 20);
        assert_eq!(bed.resolving(&format!("{program} www.example.com")).await, "192.0.2.1\n");
        assert!(bed.resolving(&format!("{program} nobody || true")).await.starts_with("error"));
        let busybox = bed.resolving("busybox nslookup web.weave.local 2>/dev/null || true").await;
        assert!(busybox.contains("10.32.0.1") && busybox.contains("10.32.0.2"), "{busybox}");
    });
}

/// The path of the program that asks musl.
fn compiled(folder: &Path) -> String {
    let (source, program) = (folder.join("ask.c"), folder.join("ask"));
    std::fs::write(&source, GETADDRINFO).unwrap();
    sh(&format!("musl-gcc -static -o {} {}", program.display(), source.display()));
    program.display().to_string()
}
