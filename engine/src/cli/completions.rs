//! `completions`: for the shells that clap knows.

use std::io::{self, Write};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;
use super::exit::{Exit, Failure, Outcome};

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

pub fn run(args: CompletionsArgs) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "hanaper", &mut text);
    io::stdout().write_all(&text).map_err(Failure::stdout)?;
    Ok(Exit::Done)
}
