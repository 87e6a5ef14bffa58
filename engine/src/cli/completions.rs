//! `completions`: for the shells that clap knows.

use std::io::{self, Write};

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde::Serialize;

use super::exit::{Exit, Failure, Outcome};
use super::{Cli, Global, print_json};

/// Print completions for a shell.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hanaper completions bash > ~/.local/share/bash-completion/completions/hanaper
  hanaper completions zsh > ~/.zfunc/_hanaper
  hanaper completions fish > ~/.config/fish/completions/hanaper.fish")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Serialize)]
struct Script {
    shell: String,
    script: String,
}

pub fn run(global: &Global, args: CompletionsArgs) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "hanaper", &mut text);
    if global.json {
        let script = String::from_utf8(text).expect("a script is text");
        print_json(&Script { shell: args.shell.to_string(), script })?;
        return Ok(Exit::Done);
    }
    io::stdout().write_all(&text).map_err(Failure::stdout)?;
    Ok(Exit::Done)
}
