//! What a guest has instead of a disk: programs, the libraries they need, and modules.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use vm_tests::process;
use vm_tests::vm::cpio::Archive;
use vm_tests::vm::modules::Modules;
use vm_tests::vm::orders::{MODULES, ORDERS, Orders};

use super::kernels::Unpacked;

/// Where programs are in a guest, whatever the host's idea.
const PROGRAMS: &str = "/usr/bin";
/// Where test programs are.
const TESTS: &str = "/tests";
/// Where their examples are.
const EXAMPLES: &str = "/examples";
/// What is another name of what.
const LINKS: [(&str, &str); 6] =
    [("/bin", "usr/bin"), ("/sbin", "usr/bin"), ("/usr/sbin", "bin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64"), ("/var/run", "../run")];
/// Files that programs want to see; who they are run as, above all.
const FILES: [(&str, &str); 4] = [
    ("/etc/passwd", "root:x:0:0::/root:/bin/sh\ntcpdump:x:1:1::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n"),
    ("/etc/group", "root:x:0:\ntcpdump:x:1:\nnogroup:x:65534:\n"),
    ("/etc/hosts", "127.0.0.1 localhost\n"),
    ("/etc/resolv.conf", "nameserver 127.0.0.1\n"),
];

/// A test program's path in the guest.
pub(super) fn in_guest(program: &Path) -> PathBuf {
    Path::new(TESTS).join(program.file_name().unwrap_or_default())
}

/// What goes into a guest's root.
pub(super) struct Contents<'a> {
    /// The first process.
    pub(super) init: &'a Path,
    /// Test programs, and what they start.
    pub(super) tests: BTreeSet<PathBuf>,
    /// Examples, which tests look for beside the directory that they are in.
    pub(super) examples: Vec<PathBuf>,
    /// Programs, to be found on the host's `PATH`.
    pub(super) programs: &'a [String],
    /// Files that are there under the same name as on the host.
    pub(super) files: &'a [String],
}

/// What all guests have: written once, and put before each one's own.
pub(super) fn write_base(to: &Path, contents: &Contents<'_>) -> Result<u64> {
    let scratch = to.with_extension("stripped");
    let mut archive = Archive::new(create(to)?);
    archive.console()?;
    for (path, target) in LINKS {
        archive.link(Path::new(path), target)?;
    }
    for (path, text) in FILES {
        archive.file(Path::new(path), text.as_bytes())?;
    }
    for folder in ["/proc", "/sys", "/tmp", "/run", "/root", "/var/lib", MODULES] {
        archive.folder(Path::new(folder))?;
    }
    archive.file(Path::new("/init"), &stripped(contents.init, &scratch)?)?;
    for test in &contents.tests {
        archive.file(&in_guest(test), &stripped(test, &scratch)?)?;
    }
    for example in &contents.examples {
        archive.file(&Path::new(EXAMPLES).join(example.file_name().unwrap_or_default()), &stripped(example, &scratch)?)?;
    }
    for file in contents.files {
        archive.file(Path::new(file), &read(Path::new(file))?)?;
    }
    let mut binaries: Vec<PathBuf> = contents.tests.iter().chain(&contents.examples).cloned().chain([contents.init.to_owned()]).collect();
    for program in contents.programs {
        let path = on_path(program)?;
        archive.file(&Path::new(PROGRAMS).join(program), &read(&path)?)?;
        binaries.push(path);
    }
    for library in libraries(&binaries)? {
        archive.file(&merged(&library), &read(&library)?)?;
    }
    archive.finish()?;
    Ok(fs::metadata(to)?.len())
}

/// A guest's root: what all have, one kernel's modules, and its orders.
pub(super) fn write(to: &Path, base: &Path, kernel: &Unpacked, modules: &[String], orders: &Orders) -> Result<()> {
    let known = Modules::parse(&kernel.about_modules("modules.dep")?, &kernel.about_modules("modules.builtin")?);
    let modules = known.in_order(modules).with_context(|| format!("kernel {}", kernel.release))?;
    let mut out = create(to)?;
    std::io::copy(&mut File::open(base)?, &mut out).with_context(|| format!("cannot write {}", to.display()))?;
    let mut archive = Archive::new(out);
    for module in &modules {
        archive.file(&Path::new(MODULES).join(module), &kernel.module(module)?)?;
    }
    let orders = Orders { modules, ..orders.clone() };
    archive.file(Path::new(ORDERS), &serde_json::to_vec(&orders)?)?;
    archive.finish()?;
    Ok(())
}

fn create(path: &Path) -> Result<BufWriter<File>> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    Ok(BufWriter::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Without symbols, which are nine tenths of it.
fn stripped(program: &Path, scratch: &Path) -> Result<Vec<u8>> {
    process::output(Command::new("strip").arg("-o").arg(scratch).arg(program))?;
    let bytes = read(scratch)?;
    fs::remove_file(scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    Ok(bytes)
}

fn on_path(program: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = dirs.map(|dir| dir.join(program)).find(|path| path.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!("`{program}` is not installed: {}", process::remedy(program)),
    }
}

/// All libraries, and the loader, that these programs are started with.
fn libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut libraries = BTreeSet::new();
    for program in programs {
        // A static program has none, which it calls an error.
        let output = process::captured(Command::new("ldd").arg(program))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        libraries.extend(text.split_whitespace().filter(|word| word.starts_with('/') && word.contains(".so")).map(PathBuf::from));
    }
    Ok(libraries)
}

/// Debian's `/lib` and `/lib64` are in `/usr`.
fn merged(library: &Path) -> PathBuf {
    match library.strip_prefix("/usr") {
        Ok(_) => library.to_owned(),
        Err(_) => Path::new("/usr").join(library.strip_prefix("/").unwrap_or(library)),
    }
}
