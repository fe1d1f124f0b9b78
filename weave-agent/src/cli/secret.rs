//! Where passwords are said: on the command line, in a file, in the environment.

use std::path::PathBuf;

use anyhow::Context;
use clap::builder::TypedValueParser;

use crate::io::passwords;
use crate::password::{self, Given, Password};

/// Where it is looked for if neither flag is given.
pub(super) const VARIABLE: &str = "WEAVE_PASSWORD";

/// The flags of `launch` and `passwords`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PasswordFlags {
    /// Password of the network, the same on all hosts: everything is encrypted. Several: all are accepted, the first is dialled
    /// with. Whoever may list processes sees it for a moment: better say --password-file, or WEAVE_PASSWORD (one on each line)
    #[arg(long, value_name = "PASSWORD", value_parser = given())]
    pub password: Vec<Given>,
    /// File with the password, or several, one on each line; `-` is standard input. It must not be readable by everyone
    #[arg(long, value_name = "FILE", conflicts_with = "password", value_parser = file())]
    pub password_file: Option<PathBuf>,
}

impl PasswordFlags {
    /// The passwords meant, if any. What the flags say goes before what the environment says.
    pub fn read(&self) -> anyhow::Result<Vec<Password>> {
        if !self.password.is_empty() {
            return password::checked(self.password.clone()).context("--password");
        }
        if let Some(file) = &self.password_file {
            return passwords::read(file);
        }
        match std::env::var(VARIABLE) {
            Ok(text) => password::lines(&text).context(VARIABLE),
            Err(std::env::VarError::NotPresent) => Ok(Vec::new()),
            Err(std::env::VarError::NotUnicode(_)) => anyhow::bail!("{VARIABLE} is not UTF-8"),
        }
    }
}

/// Takes anything: clap would repeat what it refuses.
fn given() -> impl TypedValueParser<Value = Given> {
    clap::builder::StringValueParser::new().map(Given::from)
}

/// The agent works elsewhere than whoever starts it.
fn file() -> impl TypedValueParser<Value = PathBuf> {
    let absolute = |path: PathBuf| if path.as_os_str() == "-" { Ok(path) } else { std::path::absolute(path) };
    clap::builder::PathBufValueParser::new().try_map(absolute)
}
