//! Archives of the kind that the kernel unpacks into its first root (cpio's format `newc`: `initramfs/README` in the
//! kernel's documentation, `buffer-format.rst`).

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Component, Path};

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
/// The character device that the first process has as its console before anything is mounted.
const CONSOLE: (u32, [u32; 2]) = (0o020_600, [5, 1]);

/// Writes entries one after the other. Folders on the way to a file are made as they are needed.
pub struct Archive<W> {
    out: W,
    folders: BTreeSet<String>,
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub fn new(out: W) -> Self {
        Self { out, folders: BTreeSet::new(), entries: 0 }
    }

    /// A folder, with those above it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn folder(&mut self, path: &Path) -> io::Result<()> {
        let mut name = String::new();
        for component in path.components() {
            let Component::Normal(part) = component else { continue };
            if !name.is_empty() {
                name.push('/');
            }
            name.push_str(&part.to_string_lossy());
            if self.folders.insert(name.clone()) {
                self.entry(&name, DIRECTORY, [0, 0], &[])?;
            }
        }
        Ok(())
    }

    /// A file that can be run.
    ///
    /// # Errors
    /// When it cannot be written, or is larger than the format takes.
    pub fn file(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.folder_of(path)?;
        self.entry(&relative(path), PROGRAM, [0, 0], bytes)
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn link(&mut self, path: &Path, target: &str) -> io::Result<()> {
        self.folder_of(path)?;
        self.entry(&relative(path), LINK, [0, 0], target.as_bytes())
    }

    /// `/dev/console`: without it the first process starts with no standard output.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn console(&mut self) -> io::Result<()> {
        self.folder(Path::new("/dev"))?;
        self.entry("dev/console", CONSOLE.0, CONSOLE.1, &[])
    }

    /// Ends the archive. Another one may follow in the same file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, [0, 0], &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn folder_of(&mut self, path: &Path) -> io::Result<()> {
        path.parent().map_or(Ok(()), |parent| self.folder(parent))
    }

    /// A header of thirteen hexadecimal numbers, the name, the bytes, both filled up to four.
    fn entry(&mut self, name: &str, mode: u32, device: [u32; 2], bytes: &[u8]) -> io::Result<()> {
        let size = u32::try_from(bytes.len()).map_err(|_| io::Error::other(format!("{name} is too large for an initramfs")))?;
        self.entries += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let numbers = [self.entries, mode, 0, 0, links, 0, size, 0, 0, device[0], device[1], name.len() as u32 + 1, 0];
        let header: String = numbers.iter().map(|number| format!("{number:08x}")).collect();
        write!(self.out, "{MAGIC}{header}{name}\0")?;
        self.fill(MAGIC.len() + header.len() + name.len() + 1)?;
        self.out.write_all(bytes)?;
        self.fill(bytes.len())
    }

    fn fill(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

fn relative(path: &Path) -> String {
    path.strip_prefix("/").unwrap_or(path).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn archive() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.console().unwrap();
        archive.file(Path::new("/usr/bin/one"), b"abcde").unwrap();
        archive.file(Path::new("/usr/bin/two"), b"").unwrap();
        archive.link(Path::new("/bin"), "elsewhere").unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn each_folder_is_there_once_and_before_what_is_in_it() {
        let text = String::from_utf8_lossy(&archive()).into_owned();
        let places: Vec<_> = ["usr\0", "usr/bin\0", "usr/bin/one\0", "usr/bin/two\0", TRAILER].map(|name| text.find(name)).into();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}");
        assert_eq!(text.matches("usr/bin\0").count(), 1);
    }

    #[test]
    fn everything_begins_at_a_multiple_of_four() {
        let bytes = archive();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.match_indices(MAGIC).all(|(at, _)| at % 4 == 0));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn cpio_reads_it() {
        // The busybox that tests use has one.
        let Ok(mut child) = Command::new("busybox").args(["cpio", "-t"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
            return;
        };
        child.stdin.take().unwrap().write_all(&archive()).unwrap();
        let listed = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(listed.lines().collect::<Vec<_>>(), ["dev", "dev/console", "usr", "usr/bin", "usr/bin/one", "usr/bin/two", "bin"]);
    }
}
