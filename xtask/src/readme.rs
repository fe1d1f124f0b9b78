//! Tables in README.md that commands write: figures there are never typed.

use std::fs;

use anyhow::{Context, Result};

use crate::workspace::Workspace;

const END: &str = "<!-- to here -->\n";

/// Puts Markdown into the place of a command, `vm` or another.
pub(crate) fn put(workspace: &Workspace, command: &str, markdown: &str) -> Result<()> {
    let path = workspace.file("README.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = with(&text, command, markdown)
        .with_context(|| format!("{} has no place for what `cargo xtask {command}` prints: {}", path.display(), begin(command)))?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A text with this in the command's place; `None` if it has none.
fn with(text: &str, command: &str, markdown: &str) -> Option<String> {
    let begin = begin(command);
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{begin}\n{}\n\n{END}{after}", markdown.trim_end()))
}

fn begin(command: &str) -> String {
    format!("<!-- `cargo xtask {command} --readme` writes this -->\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_command_wrote_is_replaced_and_nothing_else() {
        let (vm, bench) = (begin("vm"), begin("bench"));
        let empty = format!("a\n{bench}{END}b\n{vm}{END}c\n");
        let first = with(&empty, "vm", "| x |\n").unwrap();
        assert_eq!(first, format!("a\n{bench}{END}b\n{vm}\n| x |\n\n{END}c\n"));
        assert_eq!(with(&first, "vm", "| y |\n").unwrap(), first.replace("| x |", "| y |"));
        assert_eq!(with("nothing", "vm", "| y |\n"), None);
    }

    #[test]
    fn the_readme_has_a_place_for_each_command_that_writes() {
        let text = include_str!("../../README.md");
        for command in ["vm", "bench"] {
            assert!(with(text, command, "").is_some(), "{command}");
        }
    }
}
