//! Library sources from Debian's archive, through an apt configuration of our own: the system's lists, caches and
//! sources are read, never written.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use vm_tests::process;

/// Where a release of Rust that is newer than Debian's own shows up first.
const SUITES: [&str; 2] = ["trixie-backports", "sid"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Fetches the package `rust-src` of exactly this compiler version and unpacks it under `dir`.
pub(super) fn fetch(dir: &Path, version: &str) -> Result<()> {
    let mirrors = mirrors()?;
    if mirrors.is_empty() {
        bail!("apt's sources under /etc/apt name no Debian mirror");
    }
    for suite in SUITES {
        let apt = Apt::new(dir.join("apt").join(suite), suite, &mirrors)?;
        println!("    asking {} for rust-src {version} in {suite}", listed(&mirrors));
        if let Some(package) = apt.newest("rust-src", &format!("{version}+"))? {
            return unpack(&apt.download("rust-src", &package)?, dir);
        }
    }
    bail!("neither of Debian's {} has rust-src {version}", SUITES.join(" and "))
}

fn unpack(package: &Path, dir: &Path) -> Result<()> {
    process::output(Command::new("dpkg-deb").arg("--extract").arg(package).arg(dir))?;
    fs::remove_file(package).with_context(|| format!("cannot remove {}", package.display()))
}

fn listed(mirrors: &BTreeSet<String>) -> String {
    mirrors.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// An apt that keeps all it knows in one folder.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(dir: PathBuf, suite: &str, mirrors: &BTreeSet<String>) -> Result<Self> {
        for sub in ["lists/partial", "cache/archives/partial", "etc"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("cannot create {}/{sub}", dir.display()))?;
        }
        let apt = Self { dir };
        apt.write("etc/debian.sources", &sources(suite, mirrors))?;
        apt.write("etc/apt.conf", &configuration(&apt.dir, &process::output(Command::new("apt-config").arg("dump"))?))?;
        process::output(apt.command("apt-get").args(["update", "--error-on=any"]))?;
        Ok(apt)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// `APT_CONFIG` is read before all else, and says where all else is.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.dir.join("etc/apt.conf")).env("LC_ALL", "C").current_dir(&self.dir);
        command
    }

    /// The first version apt lists (the newest) that starts with `prefix`.
    fn newest(&self, package: &str, prefix: &str) -> Result<Option<String>> {
        let table = process::output(self.command("apt-cache").args(["madison", package]))?;
        let mut versions = table.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
        Ok(versions.find(|version| version.starts_with(prefix)).map(str::to_owned))
    }

    fn download(&self, package: &str, version: &str) -> Result<PathBuf> {
        println!("    downloading {package} {version}");
        process::output(self.command("apt-get").arg("download").arg(format!("{package}={version}")))?;
        let files = fs::read_dir(&self.dir)?.collect::<Result<Vec<_>, _>>()?;
        let found = files.into_iter().map(|file| file.path()).find(|path| path.extension().is_some_and(|e| e == "deb"));
        found.with_context(|| format!("apt-get left no package in {}", self.dir.display()))
    }
}

fn sources(suite: &str, mirrors: &BTreeSet<String>) -> String {
    let uris = mirrors.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    format!("Types: deb\nURIs: {uris}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n")
}

/// Our folders instead of the system's, but the system's proxies and other ways to fetch. Without the system's
/// `apt.conf.d`, whose hooks clean the system's caches after every update.
fn configuration(dir: &Path, system: &str) -> String {
    let dir = dir.display();
    let fetching = system.lines().filter(|line| is_about_fetching(line)).collect::<Vec<_>>().join("\n");
    format!(
        r#"{fetching}
Dir::Etc "{dir}/etc";
Dir::Etc::main "none";
Dir::Etc::parts "none";
Dir::Etc::preferences "none";
Dir::Etc::preferencesparts "none";
Dir::Etc::sourcelist "debian.sources";
Dir::Etc::sourceparts "none";
Dir::Etc::netrc "/etc/apt/auth.conf";
Dir::Etc::netrcparts "/etc/apt/auth.conf.d";
Dir::State "{dir}";
Dir::State::lists "{dir}/lists";
Dir::Cache "{dir}/cache";
Dir::Cache::archives "{dir}/cache/archives";
Acquire::Languages "none";
APT::Sandbox::User "";
"#
    )
}

fn is_about_fetching(line: &str) -> bool {
    ["Acquire::http", "Acquire::ftp", "Acquire::Check-", "Acquire::Max-", "Acquire::Retries", "Acquire::ForceIPv"]
        .iter()
        .any(|prefix| line.starts_with(prefix))
}

/// The mirrors the system itself uses.
fn mirrors() -> Result<BTreeSet<String>> {
    let mut texts = Vec::new();
    for path in source_files() {
        texts.push(fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    Ok(texts.iter().flat_map(|text| debian_uris(text)).collect())
}

fn source_files() -> Vec<PathBuf> {
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let parts = parts.filter(|path| path.extension().is_some_and(|e| e == "list" || e == "sources"));
    let main = Some(PathBuf::from("/etc/apt/sources.list")).filter(|path| path.exists());
    main.into_iter().chain(parts).collect()
}

/// Every URI that ends in `/debian`, in either of apt's two formats: that is where backports are; security fixes
/// come from `/debian-security`.
fn debian_uris(text: &str) -> impl Iterator<Item = String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let words = lines.flat_map(str::split_whitespace).filter(|word| word.contains("://"));
    let uris = words.map(|word| word.trim_end_matches('/')).filter(|uri| uri.ends_with("/debian"));
    uris.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_read_from_both_formats() {
        let text = "# deb http://old.example/debian x main\nURIs: http://a.example/debian\n\
                    URIs: http://a.example/debian-security\ndeb [arch=amd64] https://b.example/debian/ bookworm main\n";
        assert_eq!(debian_uris(text).collect::<Vec<_>>(), ["http://a.example/debian", "https://b.example/debian"]);
    }

    #[test]
    fn proxies_are_kept_and_hooks_are_not() {
        let system = "Acquire::http::Proxy \"http://p:1\";\nAPT::Update::Post-Invoke:: \"rm x\";\n";
        let ours = configuration(Path::new("/t"), system);
        assert!(ours.contains("Proxy") && !ours.contains("Post-Invoke"), "{ours}");
    }
}
