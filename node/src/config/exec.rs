//! `exec`: the programs that run beside the node. One command line, or a list of
//! `{cmd, if-candidate}`.
//!
//! A command line is split into words as a shell does it (quotes and backslashes), but no shell
//! runs it: there are no pipes and no wildcards.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// What runs beside the node, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecConfig {
    /// All but the last run to their end, one after the other, before the last one is started.
    pub commands: Vec<ExecCommand>,
    /// Start them at once: do not wait until the node is primary or has the primary's data.
    pub skip_sync: bool,
    /// End when starting fails. False: stay, so that one can look at what is there. Default: true.
    pub exit_on_error: bool,
}

impl Default for ExecConfig {
    fn default() -> Self {
        Self { commands: Vec::new(), skip_sync: false, exit_on_error: true }
    }
}

/// A program with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecCommand {
    /// The program, which is looked for in `PATH`, and its arguments.
    pub words: Vec<String>,
    /// Skip it on a node that cannot become primary.
    pub if_candidate: bool,
}

/// The key's value, as it is written.
#[derive(Default)]
pub(super) enum RawExec {
    #[default]
    Nothing,
    Line(String),
    List(Vec<Spanned<RawCommand>>),
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(super) struct RawCommand {
    cmd: String,
    if_candidate: bool,
}

/// Splits the command lines into words; an error comes with its line in the file.
pub(super) fn commands(raw: Spanned<RawExec>) -> Result<Vec<ExecCommand>, (u64, String)> {
    let line = raw.referenced.line();
    match raw.value {
        RawExec::Nothing => Ok(Vec::new()),
        RawExec::Line(cmd) if cmd.trim().is_empty() => Ok(Vec::new()),
        RawExec::Line(cmd) => Ok(vec![split(line, &cmd, false)?]),
        RawExec::List(list) => list
            .into_iter()
            .map(|raw| split(raw.referenced.line(), &raw.value.cmd, raw.value.if_candidate))
            .collect(),
    }
}

fn split(line: u64, cmd: &str, if_candidate: bool) -> Result<ExecCommand, (u64, String)> {
    match shell_words::split(cmd) {
        Ok(words) if words.is_empty() => Err((line, "exec: a command needs a cmd".to_owned())),
        Ok(words) => Ok(ExecCommand { words, if_candidate }),
        Err(error) => Err((line, format!("exec: {cmd:?}: {error}"))),
    }
}

impl<'de> Deserialize<'de> for RawExec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ExecVisitor)
    }
}

struct ExecVisitor;

impl<'de> Visitor<'de> for ExecVisitor {
    type Value = RawExec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a command line, or a list of {cmd, if-candidate}")
    }

    fn visit_unit<E: Error>(self) -> Result<RawExec, E> {
        Ok(RawExec::Nothing)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<RawExec, E> {
        Ok(RawExec::Line(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<RawExec, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(RawExec::List(list))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    fn config(text: &str) -> Result<Config, String> {
        Config::from_yaml(text).map_err(|error| error.to_string())
    }

    #[test]
    fn one_command_may_stand_alone_and_an_empty_one_is_none() {
        let words = |text: &str| {
            let commands = config(text).unwrap().exec.commands;
            commands.into_iter().map(|command| command.words.join("|")).collect::<Vec<_>>()
        };
        assert_eq!(words("exec: \"app -x 'a b' \\\"c d\\\"\""), ["app|-x|a b|c d"]);
        assert_eq!(words("exec: app"), ["app"]);
        for none in ["exec:", "exec: \"\"", "exec: []"] {
            assert!(words(none).is_empty(), "{none}");
        }
        for (text, line, needed) in [
            ("exec: \"it's\"\n", 1, "quote"),
            ("exec:\n  - cmd: a\n  - if-candidate: true\n", 3, "cmd"),
            ("exec:\n  - cmd: a\n    if-candidat: true\n", 3, "did you mean \"if-candidate\"?"),
            ("exec:\n  cmd: a\n", 2, "a command line, or a list"),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.starts_with(&format!("config:{line}: ")), "{text:?}: {error}");
            assert!(error.contains(needed), "{text:?}: {error}");
        }
    }
}
