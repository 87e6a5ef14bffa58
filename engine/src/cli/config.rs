//! `config`: what is in force, and where each value came from.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

use clap::Args;
use hanaper::read::{self, ReadError, Reader};
use serde::Serialize;

use super::exit::{Exit, Failure, Outcome};
use super::{Global, SettingFlags};
use crate::settings::KEYS;

/// Print the settings in force, and where each came from.
///
/// The layers, the later one wins: default; hanaper.toml in the log's folder, or the file that
/// --config or HANAPER_CONFIG names; HANAPER_* variables; flags. Where there is a log already, its number of
/// shards is in force (origin: log), and a setting that differs from it is said to. What is printed is itself
/// a hanaper.toml.
#[derive(Debug, Args)]
#[command(after_long_help = after_help())]
pub struct ConfigArgs {
    #[command(flatten)]
    settings: SettingFlags,
}

fn after_help() -> String {
    let mut text = String::from("Settings:\n");
    for key in KEYS {
        let _ = writeln!(text, "  {:<22} {}", key.name, key.about);
        let _ = writeln!(text, "  {:<22}   {}, {}", "", key.variable(), key.flag());
    }
    text.push_str(
        "\nExamples:\n  hanaper config --log ./audit\n  hanaper config --log ./audit --json\n  \
         HANAPER_BACKEND=posix hanaper config --log ./audit > hanaper.toml",
    );
    text
}

#[derive(Serialize)]
struct Line<'a> {
    key: &'a str,
    value: serde_json::Value,
    /// default, log, file, environment or flag
    layer: &'a str,
    origin: String,
    /// What the log that is there has instead, and keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_log: Option<u32>,
}

/// How many shards the log in this folder has, if there is one. A folder that no log could be begun in is
/// refused as every verb refuses it.
fn shards_of(folder: &Path) -> Result<Option<u32>, Failure> {
    match Reader::open(folder) {
        Ok(reader) => Ok(Some(reader.shards_in_force())),
        Err(ReadError::NotALog { .. }) => {
            read::could_begin(folder).map_err(super::read_failure)?;
            Ok(None)
        }
        Err(error) => Err(super::read_failure(error)),
    }
}

pub fn run(global: &Global, args: ConfigArgs) -> Outcome {
    let log = global.log();
    let folder = log.as_ref().map(|(log, _)| log.as_path());
    let mut settings = global.settings(folder, &args.settings)?;
    let in_log = folder.map(shards_of).transpose()?.flatten();
    if let Some(shards) = in_log {
        settings.shards_of_log(shards);
    }
    // The log's own, where the setting is another.
    let other = in_log.filter(|shards| settings.shards() != Some(*shards));
    let mut out = io::stdout().lock();
    let mut text = String::new();
    if global.json {
        let mut lines = Vec::new();
        if let Some((log, origin)) = &log {
            lines.push(Line {
                key: "log",
                value: log.display().to_string().into(),
                layer: origin.layer(),
                origin: origin.to_string(),
                in_log: None,
            });
        }
        for (key, value, origin) in settings.all() {
            use crate::settings::Value;
            let value = match value {
                Value::Auto => "auto".into(),
                Value::Number(n) => n.into(),
                Value::Word(word) => word.into(),
                Value::Switch(on) => on.into(),
                Value::Text(text) => text.into(),
            };
            let (layer, origin) = (origin.layer(), origin.to_string());
            let in_log = other.filter(|_| key.name == "shards");
            lines.push(Line { key: key.name, value, layer, origin, in_log });
        }
        for line in lines {
            let _ = writeln!(text, "{}", serde_json::to_string(&line).expect("plain fields"));
        }
    } else {
        // The log's folder is where this file lives, so that it cannot be a setting in it.
        if let Some((log, origin)) = &log {
            let _ = writeln!(text, "# log: {}  ({origin})", log.display());
        }
        for (key, value, origin) in settings.all() {
            let setting = format!("{} = {value}", key.name);
            let but = match other {
                Some(shards) if key.name == "shards" => {
                    format!("; the log has {shards}, and `append` refuses another number without --reshard")
                }
                _ => String::new(),
            };
            let _ = writeln!(text, "{setting:<32} # {origin}{but}");
        }
    }
    out.write_all(text.as_bytes()).map_err(Failure::stdout)?;
    Ok(Exit::Done)
}
