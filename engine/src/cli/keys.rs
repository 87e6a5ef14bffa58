//! `keys`: who signs the log.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use hanaper::checkpoint::keys::{KeyError, Keyring, default_state};
use hanaper::read::newest;
use serde::Serialize;

use super::exit::{Exit, Failure, Outcome, say};
use super::{Global, SettingFlags, print_json};

/// The keys that sign a log's checkpoints.
///
/// They are made when a log is first opened with checkpoints on, and stand outside of its folder (the state folder:
/// --state, HANAPER_STATE, else ~/.local/state/hanaper).
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hanaper keys list --log ./audit")]
pub struct KeysArgs {
    #[command(subcommand)]
    verb: KeysVerb,
}

#[derive(Debug, Subcommand)]
enum KeysVerb {
    List(ListArgs),
}

/// Print the public keys, as every tool for signed notes takes them.
///
/// First the identity key, whose name is the log's origin: hand it to whoever is to check the log. Then the key of
/// the current period, which changes with each opening and each hour.
///
/// Where the state folder has the log's key, it is what is printed, and the log must name the same. Where it has
/// not (a copy of the log, another machine), what the log says of itself is printed: that proves nothing, and is to
/// be compared with what its owner gave out.
///
/// Exit code: 0 if they were printed, 1 if the log names another identity than the key that is here, 5 if there is
/// no key yet. --json prints one object: origin, identity, period, period_vkey and from (keys or log).
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  hanaper keys list --log ./audit | head -1 > audit.vkey
  hanaper verify --log ./audit --pub audit.vkey")]
pub struct ListArgs {
    /// Folder of the keys [default: the setting `state`, else ~/.local/state/hanaper]
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    state: Option<PathBuf>,
}

#[derive(Serialize)]
struct Object {
    origin: String,
    identity: String,
    period: Option<u64>,
    period_vkey: Option<String>,
    /// keys or log
    from: &'static str,
}

pub fn run(global: &Global, args: KeysArgs) -> Outcome {
    let KeysVerb::List(args) = args.verb;
    let log = global.need_log()?;
    let named = newest::keys(&log).map_err(super::read_failure)?;
    let id = newest::log_id(&log).map_err(super::read_failure)?;
    let settings = global.settings(Some(&log), &SettingFlags::default())?;
    let state = args.state.or_else(|| settings.text("state").map(PathBuf::from));
    let state = state.map_or_else(default_state, Ok);
    let ours = match state.and_then(|state| Keyring::open(&state, &id)) {
        Ok(keys) => Some(keys.identity().vkey().clone()),
        Err(KeyError::Missing { .. } | KeyError::NoHome) => None,
        Err(error) => return Err(Failure::new(error.kind().into(), error.to_string())),
    };
    let (identity, from) = match (&ours, &named) {
        (Some(ours), Some(named)) if *ours != named.identity => {
            let what = format!("WRONG-KEY: the log names {}, and the key here is {ours}", named.identity);
            return Err(Failure::new(Exit::Violation, format!("{}: {what}", log.display())));
        }
        (Some(ours), _) => (ours, "keys"),
        (None, Some(named)) => (&named.identity, "log"),
        (None, None) => {
            let why = "no key yet: the first opening with checkpoints on makes it";
            return Err(Failure::new(Exit::Refused, format!("{}: {why}", log.display())));
        }
    };
    let period = named.as_ref().and_then(|named| named.period.as_ref());
    if global.json {
        print_json(&Object {
            origin: identity.name().to_owned(),
            identity: identity.to_string(),
            period: period.map(|(number, _)| *number),
            period_vkey: period.map(|(_, vkey)| vkey.to_string()),
            from,
        })?;
        return Ok(Exit::Done);
    }
    let mut text = format!("{identity}\n");
    if let Some((_, vkey)) = period {
        text.push_str(&format!("{vkey}\n"));
    }
    std::io::stdout().write_all(text.as_bytes()).map_err(Failure::stdout)?;
    if from == "log" {
        say(
            "the key is not here: this is what the log says of itself; compare it with what its owner gave out",
        );
    }
    Ok(Exit::Done)
}
