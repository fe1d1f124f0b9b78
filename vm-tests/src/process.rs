//! Running programs: when one fails the error says which, how, and what to install if it was not there.

use std::io::{self, Write};
use std::process::{Command, ExitStatus, Output, Stdio};

use anyhow::{Context, Result, anyhow, bail};

/// Runs a program whose output belongs on the terminal.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().map_err(|error| not_started(command, error))?;
    succeeded(command, status, "")
}

/// Runs a program and returns what it wrote to its standard output; on failure the error ends in what it complained of.
pub fn output(command: &mut Command) -> Result<String> {
    let output = captured(command)?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    succeeded(command, output.status, &complaint)?;
    String::from_utf8(output.stdout).with_context(|| format!("`{}` did not write UTF-8", line(command)))
}

/// Runs a program that reads what to do from its standard input; what it writes is nobody's business.
pub fn feed(command: &mut Command, text: &str) -> Result<()> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| not_started(command, error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read to the end says why on its standard error.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}\n{text}", line(command), complaint.trim());
    }
    Ok(())
}

/// Runs a program and returns its output and its verdict; only a program that cannot be started is an error.
pub fn captured(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().map_err(|error| not_started(command, error))
}

/// A command as one would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn succeeded(command: &Command, status: ExitStatus, complaint: &str) -> Result<()> {
    match complaint.trim() {
        _ if status.success() => Ok(()),
        "" => bail!("`{}` failed ({status})", line(command)),
        complaint => bail!("`{}` failed ({status}): {complaint}", line(command)),
    }
}

/// Explains why a command could not be started.
pub fn not_started(command: &Command, error: io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy();
    match error.kind() {
        io::ErrorKind::NotFound => anyhow!("`{program}` is not installed: {}", remedy(&program)),
        _ => anyhow!(error).context(format!("cannot start `{}`", line(command))),
    }
}

/// What to do about a program that is not there.
pub fn remedy(program: &str) -> String {
    match debian_package(program) {
        Some(package) => format!("`apt-get install {package}`"),
        None => "install it, or put it on PATH".to_owned(),
    }
}

/// The Debian package that brings a program the lab uses.
pub fn debian_package(program: &str) -> Option<&'static str> {
    Some(match program {
        "ip" | "tc" | "bridge" => "iproute2",
        "nft" => "nftables",
        "wireguard-go" => "wireguard-go",
        "wg" => "wireguard-tools",
        "conntrack" => "conntrack",
        "ping" => "iputils-ping",
        "iperf3" => "iperf3",
        "tcpdump" => "tcpdump",
        "chrt" | "taskset" | "unshare" => "util-linux",
        "dig" => "bind9-dnsutils",
        "musl-gcc" => "musl-tools",
        "busybox" => "busybox-static",
        "apt-get" | "apt-cache" | "apt-config" => "apt",
        "dpkg-deb" => "dpkg",
        "qemu-system-x86_64" => "qemu-system-x86",
        "depmod" | "/usr/sbin/depmod" => "kmod",
        "xz" => "xz-utils",
        "zstd" => "zstd",
        "strip" => "binutils",
        "ldd" => "libc-bin",
        "ethtool" => "ethtool",
        "ovsdb-tool" | "ovsdb-server" | "ovs-vswitchd" | "ovs-vsctl" | "ovs-dpctl" => "openvswitch-switch",
        "sysctl" | "kill" => "procps",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_says_what_to_install() {
        let error = not_started(&Command::new("nft"), io::ErrorKind::NotFound.into());
        assert_eq!(error.to_string(), "`nft` is not installed: `apt-get install nftables`");
    }

    #[test]
    fn a_failure_quotes_the_command_and_its_complaint() {
        let error = output(Command::new("sh").args(["-c", "echo no such luck >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.starts_with("`sh -c echo no such luck"), "{error}");
        assert!(error.ends_with("(exit status: 3): no such luck"), "{error}");
    }

    #[test]
    fn output_is_what_the_program_wrote() {
        assert_eq!(output(Command::new("echo").arg("hello")).unwrap(), "hello\n");
    }
}
