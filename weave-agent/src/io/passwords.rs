//! Passwords from files, and to keys.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, bail};
use argon2::{Algorithm, Argon2, Block, Params, Version};

use super::api::{Answer, Refusal, answer, body};
use super::event::Event;
use super::hands::Hands;
use crate::mesh::Psk;
use crate::password::{self, Password};

/// The same on all hosts, for nobody knows a network's name before it has a link to it: what it costs is that one table would
/// do for all networks, and what it is for is that none of another purpose does.
const SALT: &[u8] = b"weave-agent mesh password, version 1";
/// What one try costs (RFC 9106 4, the second recommended choice but for the one lane, as there is no other thread): memory in KiB, passes.
/// It takes a fifth of a second. Both ends must have the same: other values need another protocol version.
const MEMORY: u32 = 64 << 10;
const PASSES: u32 = 3;
/// A file with passwords is no longer.
const LONGEST_FILE: u64 = 16 << 10;

/// Stretches passwords, a fifth of a second each.
pub async fn stretch(passwords: Vec<Password>) -> anyhow::Result<Vec<Psk>> {
    let stretched = tokio::task::spawn_blocking(move || passwords.iter().map(stretch_one).collect());
    stretched.await.context("cannot stretch the passwords")?
}

fn stretch_one(password: &Password) -> anyhow::Result<Psk> {
    let error = |error| anyhow::anyhow!("cannot stretch a password: {error}");
    let params = Params::new(MEMORY, PASSES, 1, Some(32)).map_err(error)?;
    let mut memory = vec![Block::default(); params.block_count()];
    let mut key = [0; 32];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into_with_memory(password.as_bytes(), SALT, &mut key, &mut memory).map_err(error)?;
    Ok(Psk(key))
}

/// The passwords in a file; `-` is standard input.
pub fn read(path: &Path) -> anyhow::Result<Vec<Password>> {
    let named = || format!("--password-file {}", path.display());
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(LONGEST_FILE).read_to_string(&mut text).with_context(named)?;
    } else {
        let file = File::open(path).with_context(named)?;
        let metadata = file.metadata().with_context(named)?;
        // A pipe or a terminal has nothing to read once it was read.
        let lasts = !metadata.file_type().is_fifo() && !metadata.file_type().is_char_device();
        if lasts && metadata.mode() & 0o006 != 0 {
            bail!(
                "{0} may be read or written by everyone: `chmod 600 {0}`, and think about whether the password is still one",
                path.display()
            );
        }
        file.take(LONGEST_FILE).read_to_string(&mut text).with_context(named)?;
    }
    password::lines(&text).with_context(named)
}

/// `POST /passwords`
pub(super) async fn change(hands: &Hands, asked: body::Passwords) -> Answer {
    let passwords = password::checked(asked.passwords).map_err(Refusal::bad_request)?;
    let accepted = passwords.len();
    let psks = stretch(passwords).await.map_err(|error| Refusal::internal(format!("{error:#}")))?;
    hands.events.carry_out(|done| Event::Passwords { psks, done }).await.map_err(Refusal::internal)?;
    // The next launch must not begin in clear.
    hands.state.send_if_modified(|state| state.settings.password.replace(true) != Some(true));
    tracing::info!(accepted, "the network's passwords were changed");
    answer(&body::PasswordsAccepted { accepted })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Older agents have this key for this password.
    #[test]
    fn a_password_is_stretched_as_it_always_was() {
        let psk = stretch_one(&password::lines("correct horse battery staple").unwrap()[0]).unwrap();
        let hex: String = psk.0.iter().map(|byte| format!("{byte:02x}")).collect();
        insta::assert_snapshot!(hex, @"7b127dc5328ca1a5a54cc64aae8966abf098e33cacfc32088942592270197db7");
    }

    #[test]
    fn a_file_that_everyone_may_read_keeps_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "correct horse\nbattery staple\n").unwrap();
        for (mode, fine) in [(0o600, true), (0o440, true), (0o644, false), (0o602, false)] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path).map(|read| read.len()).ok(), fine.then_some(2), "{mode:o}");
        }
        let refused = read(&path).unwrap_err().to_string();
        assert!(refused.contains("chmod 600") && !refused.contains("horse"), "{refused}");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("one on each line is wanted"));
        assert!(format!("{:#}", read(&dir.path().join("none")).unwrap_err()).contains("--password-file"));
    }
}
