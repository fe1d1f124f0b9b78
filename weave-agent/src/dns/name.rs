//! Names as people and containers say them, and the domain they are in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The domain unless another is asked for.
pub const DEFAULT_DOMAIN: &str = "weave.local.";
/// Longest name in text, with its last dot: 255 octets on the wire (RFC 1035, 2.3.4).
const MAX_NAME: usize = 254;
/// Longest label (RFC 1035, 2.3.4).
const MAX_LABEL: usize = 63;

/// A full name: lower case, with its last dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// A name that no container can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or nothing between two dots.
    #[error("{0:?} is no name: a name has 1 to 63 characters between dots")]
    Label(String),
    /// Something that hosts are not called.
    #[error("{name:?} is no name: {character:?} is not among letters, digits, - and _")]
    Character {
        /// As given.
        name: String,
        /// The first that is not allowed.
        character: char,
    },
    /// More than DNS can carry.
    #[error("{0:?} is too long for a name: at most 253 characters, the domain included")]
    Long(String),
    /// We answer for our domain only.
    #[error("{name:?} is not in the domain {domain}: say a single word, or a name that ends in .{domain}")]
    Outside {
        /// As given.
        name: String,
        /// Ours.
        domain: Domain,
    },
    /// The domain is no container.
    #[error("{0} is the domain itself: say a name in it")]
    Apex(Domain),
}

impl Name {
    /// Text with its last dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As queries carry it: labels with their lengths, lower case.
    pub(super) fn wire(&self) -> Vec<u8> {
        let mut wire = Vec::with_capacity(self.0.len() + 1);
        for label in self.0.split_terminator('.') {
            // Checked at construction: at most 63.
            wire.push(label.len() as u8);
            wire.extend_from_slice(label.as_bytes());
        }
        wire.push(0);
        wire
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let bare = text.strip_suffix('.').unwrap_or(text);
        if bare.len() + 1 > MAX_NAME {
            return Err(NameError::Long(text.to_owned()));
        }
        if let Some(character) = bare.chars().find(|c| !is_allowed(*c)) {
            return Err(NameError::Character { name: text.to_owned(), character });
        }
        if bare.split('.').any(|label| label.is_empty() || label.len() > MAX_LABEL) {
            return Err(NameError::Label(text.to_owned()));
        }
        Ok(Self(format!("{}.", bare.to_ascii_lowercase())))
    }
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The domain that this mesh's names are in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Domain(Name);

impl Domain {
    /// The full name that `text` means: a single word gets the domain appended, anything else must end in it.
    ///
    /// # Errors
    /// What cannot be a name, or is in another domain.
    pub fn qualify(&self, text: &str) -> Result<Name, NameError> {
        let name: Name = text.parse()?;
        let full = if text.contains('.') { name } else { format!("{name}{}", self.0).parse()? };
        match full.0.strip_suffix(self.0.as_str()) {
            Some("") => Err(NameError::Apex(self.clone())),
            Some(rest) if rest.ends_with('.') => Ok(full),
            _ => Err(NameError::Outside { name: text.to_owned(), domain: self.clone() }),
        }
    }

    /// Is this full name in it?
    pub fn contains(&self, name: &Name) -> bool {
        self.qualify(name.as_str()).is_ok()
    }

    /// As a name.
    pub fn name(&self) -> &Name {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        text.parse().map(Self)
    }
}

impl Default for Domain {
    fn default() -> Self {
        Self(Name(DEFAULT_DOMAIN.to_owned()))
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qualified(text: &str) -> Result<String, String> {
        Domain::default().qualify(text).map(String::from).map_err(|e| e.to_string())
    }

    #[test]
    fn a_word_gets_the_domain_and_case_and_the_last_dot_do_not_matter() {
        for text in ["web", "WEB", "web.weave.local", "Web.Weave.Local."] {
            assert_eq!(qualified(text).as_deref(), Ok("web.weave.local."), "{text}");
        }
        assert_eq!(qualified("a_1.b-2.weave.local").as_deref(), Ok("a_1.b-2.weave.local."));
    }

    #[test]
    fn other_domains_are_refused_with_the_domain_in_the_text() {
        for text in ["web.example.com", "web.", "notweave.local", "x.notweave.local."] {
            let error = qualified(text).unwrap_err();
            assert!(error.contains("weave.local.") && error.contains(text), "{error}");
        }
        assert!(qualified("weave.local").unwrap_err().contains("the domain itself"));
    }

    #[test]
    fn what_is_no_name_is_refused_with_a_reason() {
        assert!(qualified("").unwrap_err().contains("is no name"));
        assert!(qualified("a..weave.local").unwrap_err().contains("is no name"));
        assert!(qualified("a b").unwrap_err().contains("' '"));
        assert!(qualified("é").unwrap_err().contains("'é'"));
        assert!(qualified(&"a".repeat(64)).unwrap_err().contains("is no name"));
        assert!(qualified(&format!("{}.weave.local", ["a"; 125].join("."))).unwrap_err().contains("too long"));
    }

    #[test]
    fn on_the_wire_labels_have_their_lengths() {
        assert_eq!("Web.x".parse::<Name>().unwrap().wire(), b"\x03web\x01x\0");
    }
}
