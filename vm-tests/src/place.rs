//! The places of a lab where one can run something: `h1`, `h1c2`.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use anyhow::{Context, Error, Result};

/// A host or a container of a lab. Both count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// `h1`
    Host(u8),
    /// `h1c2`: host 1, container 2
    Container(u8, u8),
}

impl Place {
    /// The host this place is, or is on.
    pub fn host(self) -> u8 {
        match self {
            Place::Host(host) | Place::Container(host, _) => host,
        }
    }
}

/// A container's address on the overlay: `10.32.<host>.<container>`, in a /16.
pub(crate) fn overlay_address(host: u8, container: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 32, host, container)
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Host(host) => write!(f, "h{host}"),
            Place::Container(host, container) => write!(f, "h{host}c{container}"),
        }
    }
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).with_context(|| format!("`{text}` is no host (h1, h2, …) and no container (h1c1, h1c2, …)"))
    }
}

fn parse(text: &str) -> Option<Place> {
    let numbers = text.strip_prefix('h')?;
    match numbers.split_once('c') {
        Some((host, container)) => Some(Place::Container(number(host)?, number(container)?)),
        None => Some(Place::Host(number(numbers)?)),
    }
}

fn number(text: &str) -> Option<u8> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_as_they_are_written() {
        for (text, place) in [("h1", Place::Host(1)), ("h12c3", Place::Container(12, 3))] {
            assert_eq!(text.parse::<Place>().unwrap(), place);
            assert_eq!(place.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for text in ["", "h", "h0", "h01", "c1", "h1c", "h1c0", "h256", "h+1", "h1c1c1"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}
