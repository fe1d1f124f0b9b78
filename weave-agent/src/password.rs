//! The network's passwords, on their way from whoever types them to [`crate::mesh::Psk`]s. None is ever printed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Shortest that is meant (NIST SP 800-63B 5.1.1.1).
const SHORTEST: usize = 8;
/// Longest, bytes.
const LONGEST: usize = 1024;
/// Most at a time: each is tried on every link that somebody dials, and takes its fifth of a second at a launch.
const MOST: usize = 8;

/// A password as it was given: anything.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Given(String);

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Given(…)")
    }
}

impl From<String> for Given {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// A password that will do.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Password {
    /// What is to be stretched.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// For whoever starts the agent and must hand it on.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Passwords that will not do, and what would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// Not meant, or guessed at once.
    #[error("a password of {0} bytes is too short: say at least {SHORTEST}, for example what `head -c 18 /dev/urandom | base64` prints")]
    Short(usize),
    /// A wrong file, most likely.
    #[error("a password of {0} bytes is too long: the limit is {LONGEST}")]
    Long(usize),
    /// It would be two in a file.
    #[error("a password with control characters will not do: a line of printable text would")]
    Control,
    /// Nobody changes over between so many.
    #[error("{0} passwords are too many: at most {MOST} are accepted at a time")]
    Many(usize),
    /// None at all.
    #[error("there is no password in it: one on each line is wanted, the one to dial with first")]
    None,
}

/// The passwords in the order in which they were given, each once: the first is what is dialled with.
///
/// # Errors
/// See [`PasswordError`]; none at all is one.
pub fn checked(given: impl IntoIterator<Item = Given>) -> Result<Vec<Password>, PasswordError> {
    let mut passwords: Vec<Password> = Vec::new();
    for Given(text) in given {
        match text.len() {
            short if short < SHORTEST => return Err(PasswordError::Short(short)),
            long if long > LONGEST => return Err(PasswordError::Long(long)),
            _ if text.contains(char::is_control) => return Err(PasswordError::Control),
            _ => {}
        }
        let password = Password(text);
        if !passwords.contains(&password) {
            passwords.push(password);
        }
    }
    match passwords.len() {
        0 => Err(PasswordError::None),
        many if many > MOST => Err(PasswordError::Many(many)),
        _ => Ok(passwords),
    }
}

/// One on each line; lines without anything are left out.
///
/// # Errors
/// As for [`checked`].
pub fn lines(text: &str) -> Result<Vec<Password>, PasswordError> {
    checked(text.lines().filter(|line| !line.is_empty()).map(|line| Given(line.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_password_on_each_line_and_the_first_stays_the_first() {
        let read = lines("correct horse\r\n\nbattery staple\ncorrect horse\n").unwrap();
        assert_eq!(read.iter().map(Password::as_str).collect::<Vec<_>>(), ["correct horse", "battery staple"]);
        assert_eq!(lines("  spaces count  \n").unwrap()[0].as_bytes(), b"  spaces count  ");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_not_repeated() {
        let refused = |text: &str| lines(text).unwrap_err();
        assert_eq!(refused("\n\n"), PasswordError::None);
        assert_eq!(refused("seven77\n"), PasswordError::Short(7));
        assert_eq!(refused(&"x".repeat(1025)), PasswordError::Long(1025));
        assert_eq!(refused("with a\ttab"), PasswordError::Control);
        let nine: Vec<Given> = (0..9).map(|n| Given(format!("password {n}"))).collect();
        assert_eq!(checked(nine), Err(PasswordError::Many(9)));
        assert_eq!(checked([Given(String::new())]), Err(PasswordError::Short(0)));
        assert!(!refused("seven77\n").to_string().contains("seven77"));
    }

    #[test]
    fn a_password_is_not_printed() {
        let password = lines("correct horse").unwrap();
        assert_eq!(format!("{password:?} {:?}", Given("correct horse".into())), "[Password(…)] Given(…)");
    }
}
