//! A second attempt for tests in real time. They give agents and kernels seconds, and a machine that is busy with others' work may not have
//! them. Whatever passed only then is named: that is something to look at, if not a reason to stop everything.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};
use vm_tests::process;

/// More failures than this are no accident.
const MOST: usize = 2;

/// Runs `cargo` with libtest's own words at its end; what it writes is shown. The tests that needed a second attempt.
pub(super) fn run(cargo: impl Fn() -> Command, words: &[&str], shown: &mut impl Write) -> Result<Vec<String>> {
    // Otherwise the programs after the one that failed would not run at all.
    let first = heard(cargo().args(["--no-fail-fast", "--"]).args(words), shown)?;
    if first.passed {
        return Ok(Vec::new());
    }
    let failed = failures(&first.text);
    if failed.is_empty() || failed.len() > MOST {
        bail!("`{}` failed{}", process::line(&cargo()), failed.iter().map(|name| format!("\n    {name}")).collect::<String>());
    }
    writeln!(shown, "\n==> {} failed, once more: {}", failed.len(), failed.join(", "))?;
    let again = heard(cargo().args(["--no-fail-fast", "--", "--exact"]).args(words).args(&failed), shown)?;
    if !again.passed {
        bail!("`{}` failed twice: {}", process::line(&cargo()), failed.join(", "));
    }
    Ok(failed)
}

struct Heard {
    passed: bool,
    text: String,
}

/// Shows what a program writes while it writes it, and remembers it.
fn heard(command: &mut Command, shown: &mut impl Write) -> Result<Heard> {
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| process::not_started(command, error))?;
    let (mut text, mut chunk) = (Vec::new(), [0; 8192]);
    if let Some(mut stdout) = child.stdout.take() {
        loop {
            let count = stdout.read(&mut chunk)?;
            if count == 0 {
                break;
            }
            shown.write_all(&chunk[..count])?;
            shown.flush()?;
            text.extend_from_slice(&chunk[..count]);
        }
    }
    Ok(Heard { passed: child.wait()?.success(), text: String::from_utf8_lossy(&text).into_owned() })
}

/// The names in libtest's lists of failures: indented lines, each list ended by an empty one. A test of that name ran only if it stands
/// behind `test ` and before ` ... ` as well: what a failed test wrote is between the lists.
fn failures(text: &str) -> Vec<String> {
    let ran: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("test ")?.split_once(" ... ")).map(|(name, _)| name).collect();
    let lists = text.split("\nfailures:\n").skip(1).map(|list| list.lines().map_while(|line| line.strip_prefix("    ")));
    let mut names: Vec<String> = lists.flatten().filter(|name| ran.contains(name)).map(str::to_owned).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_FAILED: &str = "
running 3 tests
test life::a ... ok
test life::b ... FAILED
test life::c ... FAILED

failures:

---- life::b stdout ----
Error: so it is:
    life::a

failures:
    in what it wrote

---- life::c stdout ----
Error: no

failures:
    life::b
    life::c

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]);
        command
    }

    #[test]
    fn failures_are_read_from_the_last_list_of_each_program() {
        assert_eq!(failures(TWO_FAILED), ["life::b", "life::c"]);
        assert_eq!(failures("test a ... ok\n\ntest result: ok."), [""; 0]);
        assert_eq!(failures("error: could not compile `vm-tests`"), [""; 0]);
    }

    #[test]
    fn what_passes_at_its_second_attempt_is_named_and_nothing_else_passes() {
        let fails = |names: &str| names.split(' ').map(|name| format!("test {name} ... FAILED\n")).collect::<String>();
        let listed = |names: &str| format!("{}\nfailures:\n    {}\n\n", fails(names), names.replace(' ', "\n    "));
        let program = |names: &str, second: i32| format!("case $* in *--exact*) exit {second};; esac; echo '{}'; exit 1", listed(names));
        let run = |script: &str| {
            let mut shown = Vec::new();
            run(|| shell(script), &[], &mut shown).map(|late| (late, String::from_utf8(shown).unwrap()))
        };
        let (late, shown) = run(&program("a b", 0)).unwrap();
        assert_eq!(late, ["a", "b"]);
        assert!(shown.starts_with("test a ... FAILED\n") && shown.contains("==> 2 failed, once more: a, b\n"), "{shown}");
        assert_eq!(run("exit 0").unwrap().0, [""; 0]);
        let error = |script: &str| run(script).unwrap_err().to_string();
        assert!(error(&program("a", 1)).ends_with("failed twice: a"));
        assert!(error(&program("a b c", 0)).ends_with("failed\n    a\n    b\n    c"));
        assert!(error("exit 101").ends_with("failed"), "it did not come so far as to run tests");
    }
}
