//! `man`: the man pages, made from the same texts as `--help`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Command, CommandFactory};
use serde::Serialize;

use super::exit::{Exit, Failure, Outcome, plain};
use super::{Cli, Global, print_json};

/// Print the man pages.
///
/// Without --out the page of one VERB (or of hanaper itself) goes to standard output. With it, pages of an
/// older version are replaced; a file of that name which is none of them is not, and the exit code is 5.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hanaper man append | man -l -
  hanaper man --out ~/.local/share/man/man1")]
pub struct ManArgs {
    /// The verb whose page is wanted
    verb: Option<String>,

    /// Write all pages into this folder, as hanaper.1, hanaper-append.1, …
    #[arg(long, value_name = "DIR", conflicts_with = "verb")]
    out: Option<PathBuf>,
}

/// A page that was printed or written.
#[derive(Serialize)]
struct Page {
    page: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
}

pub fn run(global: &Global, args: ManArgs) -> Outcome {
    let mut root = Cli::command();
    root.build();
    let Some(out) = args.out else {
        let command = match &args.verb {
            None => &root,
            Some(verb) => root.find_subcommand(verb).ok_or_else(|| {
                Failure::usage(format!("{verb}: there is no such verb; see `hanaper --help`"))
            })?,
        };
        let text = page(command).map_err(Failure::stdout)?;
        match global.json {
            true => {
                let text = Some(String::from_utf8(text).expect("a page is text"));
                print_json(&Page { page: page_name(command), text, path: None })?;
            }
            false => io::stdout().write_all(&text).map_err(Failure::stdout)?,
        }
        return Ok(Exit::Done);
    };
    let all = || {
        let verbs = root.get_subcommands().filter(|command| command.get_name() != "help");
        std::iter::once(&root).chain(verbs)
    };
    for command in all() {
        let path = out.join(page_name(command));
        if std::fs::read(&path).is_ok_and(|there| !is_page(&there)) {
            return Err(Failure::new(
                Exit::Refused,
                format!("{}: it is there, and no page of hanaper; move it elsewhere", path.display()),
            ));
        }
    }
    let write = |command: &Command| {
        let path = out.join(page_name(command));
        page(command).and_then(|page| std::fs::write(&path, page)).map_err(|error| {
            Failure::new(Exit::Io, format!("{}: cannot be written: {}", path.display(), plain(&error)))
        })?;
        match global.json {
            true => {
                let path = Some(path.display().to_string());
                print_json(&Page { page: page_name(command), text: None, path })
            }
            false => Ok(()),
        }
    };
    std::fs::create_dir_all(&out).map_err(|error| {
        Failure::new(Exit::Io, format!("{}: cannot be made: {}", out.display(), plain(&error)))
    })?;
    for command in all() {
        write(command)?;
    }
    Ok(Exit::Done)
}

/// Whether some bytes are a page that an earlier call wrote.
fn is_page(bytes: &[u8]) -> bool {
    bytes.starts_with(b".ie") && bytes.windows(11).any(|at| at == b".TH hanaper")
}

/// `hanaper.1`, `hanaper-append.1`
fn page_name(command: &Command) -> String {
    match command.get_name() {
        "hanaper" => "hanaper.1".to_owned(),
        verb => format!("hanaper-{verb}.1"),
    }
}

/// The page of a command that was built: its display name is then `hanaper-VERB`, by which man
/// finds pages, as with git and cargo.
fn page(command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    Ok(page)
}
