//! Debian's archive, through an apt configuration of our own: the system's lists, caches and sources are read, never
//! written, and nothing is installed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use vm_tests::process;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Unpacks a package under `dir` and removes it.
pub(crate) fn unpack(package: &Path, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    process::output(Command::new("dpkg-deb").arg("--extract").arg(package).arg(dir))?;
    fs::remove_file(package).with_context(|| format!("cannot remove {}", package.display()))
}

/// A package as another one wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// An apt that keeps all it knows in one folder.
pub(crate) struct Apt {
    dir: PathBuf,
    suite: String,
    mirrors: BTreeSet<String>,
}

impl Apt {
    /// Fetches the suite's lists. Suites whose name ends in `-security` are in an archive of their own.
    pub(crate) fn new(dir: PathBuf, suite: &str) -> Result<Self> {
        let archive = if suite.ends_with("-security") { "/debian-security" } else { "/debian" };
        let mirrors = mirrors(archive)?;
        if mirrors.is_empty() {
            bail!("apt's sources under /etc/apt name no Debian mirror that ends in {archive}");
        }
        for sub in ["lists/partial", "cache/archives/partial", "etc"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("cannot create {}/{sub}", dir.display()))?;
        }
        let apt = Self { dir, suite: suite.to_owned(), mirrors };
        apt.write("etc/debian.sources", &sources(suite, &apt.mirrors))?;
        apt.write("etc/apt.conf", &configuration(&apt.dir, &process::output(Command::new("apt-config").arg("dump"))?))?;
        process::output(apt.command("apt-get").args(["update", "--error-on=any"]))?;
        Ok(apt)
    }

    /// What it looks through, for people.
    pub(crate) fn told(&self) -> String {
        format!("{} {}", self.mirrors.iter().map(String::as_str).collect::<Vec<_>>().join(", "), self.suite)
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
    pub(crate) fn newest(&self, package: &str, prefix: &str) -> Result<Option<String>> {
        let table = process::output(self.command("apt-cache").args(["madison", package]))?;
        let mut versions = table.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
        Ok(versions.find(|version| version.starts_with(prefix)).map(str::to_owned))
    }

    /// The packages that this one wants in exactly one version.
    pub(crate) fn wants(&self, package: &str, version: &str) -> Result<Vec<Package>> {
        let record = process::output(self.command("apt-cache").arg("show").arg(format!("{package}={version}")))?;
        let depends = record.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
        Ok(depends.split(", ").filter_map(exact).collect())
    }

    /// Downloads a package into the folder.
    pub(crate) fn download(&self, package: &str, version: &str) -> Result<PathBuf> {
        println!("    downloading {package} {version}");
        process::output(self.command("apt-get").arg("download").arg(format!("{package}={version}")))?;
        let files = fs::read_dir(&self.dir)?.collect::<Result<Vec<_>, _>>()?;
        let found = files.into_iter().map(|file| file.path()).find(|path| path.extension().is_some_and(|e| e == "deb"));
        found.with_context(|| format!("apt-get left no package in {}", self.dir.display()))
    }
}

/// `name (= version)`.
fn exact(depends: &str) -> Option<Package> {
    let (name, version) = depends.strip_suffix(')')?.split_once(" (= ")?;
    Some(Package { name: name.to_owned(), version: version.to_owned() })
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

/// The mirrors of this archive that the system itself uses.
fn mirrors(archive: &str) -> Result<BTreeSet<String>> {
    let mut texts = Vec::new();
    for path in source_files() {
        texts.push(fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    Ok(texts.iter().flat_map(|text| uris(text, archive)).collect())
}

fn source_files() -> Vec<PathBuf> {
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let parts = parts.filter(|path| path.extension().is_some_and(|e| e == "list" || e == "sources"));
    let main = Some(PathBuf::from("/etc/apt/sources.list")).filter(|path| path.exists());
    main.into_iter().chain(parts).collect()
}

/// Every URI that ends in this, in either of apt's two formats.
fn uris<'a>(text: &'a str, archive: &'a str) -> impl Iterator<Item = String> + 'a {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let words = lines.flat_map(str::split_whitespace).filter(|word| word.contains("://"));
    let uris = words.map(|word| word.trim_end_matches('/')).filter(move |uri| uri.ends_with(archive));
    uris.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_read_from_both_formats() {
        let text = "# deb http://old.example/debian x main\nURIs: http://a.example/debian\n\
                    URIs: http://a.example/debian-security\ndeb [arch=amd64] https://b.example/debian/ bookworm main\n";
        assert_eq!(uris(text, "/debian").collect::<Vec<_>>(), ["http://a.example/debian", "https://b.example/debian"]);
        assert_eq!(uris(text, "/debian-security").collect::<Vec<_>>(), ["http://a.example/debian-security"]);
    }

    #[test]
    fn only_packages_of_one_version_are_wanted() {
        let package = Package { name: "linux-modules-7".to_owned(), version: "7.2-1".to_owned() };
        assert_eq!(exact("linux-modules-7 (= 7.2-1)"), Some(package));
        assert_eq!(exact("kmod"), None);
        assert_eq!(exact("dracut | initramfs-tools (>= 0.120)"), None);
    }

    #[test]
    fn proxies_are_kept_and_hooks_are_not() {
        let system = "Acquire::http::Proxy \"http://p:1\";\nAPT::Update::Post-Invoke:: \"rm x\";\n";
        let ours = configuration(Path::new("/t"), system);
        assert!(ours.contains("Proxy") && !ours.contains("Post-Invoke"), "{ours}");
    }
}
