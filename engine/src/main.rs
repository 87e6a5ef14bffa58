//! The command line of hanaper: see `hanaper --help`, and one file per verb in `cli/`.
//!
//! Data goes to stdout, all else to stderr. Nothing here decides what is durable, whole or
//! damaged: the library does, and this program puts it into words and exit codes.

mod cli;
mod settings;

fn main() -> std::process::ExitCode {
    cli::run()
}
