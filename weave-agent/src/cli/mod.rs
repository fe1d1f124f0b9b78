//! The command line: what was typed ([`args`]), what is meant ([`meant`]), what is shown ([`render`]).

pub mod args;
pub mod launch;
pub mod meant;
pub mod odp;
pub mod render;
pub mod secret;
pub mod stop;

mod absent;
mod change;
mod show;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use self::args::{Args, Command};
use crate::io::api::body::Expose;
use crate::io::api::client::Client;

/// The program: 0 if it did what was asked, 1 if not, 2 if what was asked makes no sense.
pub fn main() -> ExitCode {
    let args = Args::parse();
    match carry_out(&args).map_err(|error| absent::explained(error, &args.paths())) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads from a pipe may have seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // A full disk behind standard error is no reason to panic.
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(args: &Args) -> anyhow::Result<()> {
    let client = Client::new(args.paths().socket());
    match &args.command {
        Command::Launch(typed) => launch::launch(args, typed),
        Command::Stop => block_on(stop::stop(&args.paths())),
        Command::Reset => block_on(stop::reset(&args.paths())),
        Command::Connect { replace, peers } => block_on(change::connect(&client, peers, *replace)),
        Command::Passwords(flags) => block_on(change::passwords(&client, flags)),
        Command::Forget { peers } => block_on(change::forget(&client, peers)),
        Command::Attach { words, name, json } => block_on(change::attach(&client, words, name.clone(), *json)),
        Command::Detach { words, json } => block_on(change::detach(&client, words, *json)),
        Command::Expose { name, no_masq, addresses, json } => {
            let asked = Expose { addresses: meant::wanted(addresses)?, name: name.clone(), no_masq: *no_masq };
            block_on(change::expose(&client, &asked, *json))
        }
        Command::Hide { addresses, json } => block_on(change::hide(&client, addresses, *json)),
        Command::Rmpeer { peers, json } => block_on(change::rmpeer(&client, peers, *json)),
        Command::DnsAdd { name, addresses } => block_on(change::dns_add(&client, name, addresses)),
        Command::DnsRemove { name, addresses } => block_on(change::dns_remove(&client, name, addresses)),
        Command::DnsLookup { name, json } => block_on(show::dns_lookup(&client, name, *json)),
        Command::DnsArgs => block_on(show::dns_args(&client)),
        Command::Prime => block_on(change::prime(&client)),
        Command::Status { what, json } => block_on(show::status(&client, *what, *json)),
        Command::Odp(command) => odp::carry_out(command),
        Command::Ps { targets, json } => block_on(show::ps(&client, targets, *json)),
        Command::Report { .. } => block_on(show::report(&client)),
        Command::Version { json } => block_on(show::version(&client, *json)),
    }
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
