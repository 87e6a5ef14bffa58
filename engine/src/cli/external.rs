//! `hanaper NAME …` runs `hanaper-NAME`, as git and cargo do, so that the bench and the torture
//! harness exist without this program depending on them.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use clap::CommandFactory;

use super::exit::{Exit, Failure, Outcome, plain};
use super::{Cli, Global};
use crate::settings::nearest;

pub fn run(global: &Global, words: &[OsString]) -> Outcome {
    let (name, args) = words.split_first().expect("clap gives at least the name");
    let Some(program) = find(name) else {
        return Err(Failure::usage(unknown(&name.to_string_lossy())));
    };
    let mut command = Command::new(&program);
    command.args(args);
    // What was said before the name holds for the program as well.
    if let Some(log) = &global.log {
        command.env("HANAPER_LOG", log);
    }
    if let Some(config) = &global.config {
        command.env("HANAPER_CONFIG", config);
    }
    if global.json {
        command.arg("--json");
    }
    // It takes this process's place: its exit code, its signals.
    let error = command.exec();
    Err(Failure::new(Exit::Io, format!("{}: cannot be run: {}", program.display(), plain(&error))))
}

/// Beside this program first: what was built together belongs together.
fn find(name: &OsStr) -> Option<PathBuf> {
    let name = name.to_str()?;
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return None;
    }
    let file = format!("hanaper-{name}");
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(&file)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path).map(|folder| folder.join(&file)))
        .find(|program| program.is_file())
}

fn unknown(name: &str) -> String {
    let command = Cli::command();
    let verbs = command.get_subcommands().map(|verb| verb.get_name());
    let hint =
        nearest(name, verbs).map(|near| format!("; did you mean `hanaper {near}`?")).unwrap_or_default();
    format!(
        "{name}: hanaper has no such verb, and no program hanaper-{name} lies beside it or on the \
         PATH{hint} (`hanaper --help` lists the verbs)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name must not lead out of the folders that are searched.
    #[test]
    fn only_plain_names_are_looked_for() {
        for name in ["../sh", "a/b", "", "\u{fc}"] {
            let found = find(OsStr::new(name));
            assert!(found.is_none_or(|path| path.ends_with("hanaper-")), "{name}");
        }
    }

    #[test]
    fn an_unknown_verb_is_answered_with_the_nearest_one() {
        assert!(unknown("apend").contains("did you mean `hanaper append`?"));
        assert!(!unknown("frobnicate").contains("did you mean"));
    }
}
