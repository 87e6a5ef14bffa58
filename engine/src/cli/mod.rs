//! What the verbs share: arguments, settings, dispatch. One file per verb.

mod append;
mod check_proof;
mod checkpoint;
mod completions;
mod config;
mod exit;
mod external;
mod feed;
mod input;
mod inspect;
mod key;
mod keys;
mod man;
mod numbers;
mod progress;
mod prove;
mod recover;
mod remember;
mod replay;
mod signals;
mod space;
mod table;
mod time;
mod r#try;
mod verify;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PossibleValue, TypedValueParser};
use clap::error::ErrorKind as ClapErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use hanaper::{Backend, Builder, Driver, FailurePolicy};

use crate::settings::{KEYS, Origin, Settings, nearest};
use exit::{Exit, Failure, Outcome, say};

#[derive(Debug, Parser)]
#[command(
    name = "hanaper",
    version,
    about = "The audit log that does not lose what it acknowledged",
    long_about = "The audit log that does not lose what it acknowledged.\n\n\
        Events go in, one a line; each is acknowledged once it is on the disk, and comes back \
        unaltered and in order. What a crash, a failing disk or a hand did to the log is found \
        and said, never passed over: the log is tamper-evident.",
    after_long_help = after_help(),
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

fn after_help() -> String {
    format!(
        "The first minute:
  hanaper try                                  see it work on a sample
  hanaper append --log ./audit events.ndjson   store a file, one event a line
  my-program | hanaper append --log ./audit    store what a program says
  hanaper replay --log ./audit                 the same lines again
  hanaper verify --log ./audit                 is everything there, and unaltered?

Settings come from hanaper.toml in the log's folder (or --config), then from HANAPER_* variables, \
then from flags; `hanaper config` prints what is in force and where each value came from.

`hanaper NAME` runs a program hanaper-NAME beside this one or on the PATH, where NAME is none of \
the verbs above.

{}",
        exit::TABLE
    )
}

/// What every verb takes.
#[derive(Debug, Clone, Args)]
struct Global {
    /// The log's folder (or HANAPER_LOG)
    #[arg(long, visible_alias = "wal", global = true, value_name = "DIR")]
    log: Option<PathBuf>,

    /// The settings file, in place of hanaper.toml in the log's folder (or HANAPER_CONFIG)
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print JSON: one object, or one object a line
    #[arg(long, global = true)]
    json: bool,
}

impl Global {
    /// The log and where its name came from.
    fn log(&self) -> Option<(PathBuf, Origin)> {
        if let Some(log) = &self.log {
            return Some((log.clone(), Origin::Flag("--log".to_owned())));
        }
        let log = std::env::var_os("HANAPER_LOG").filter(|log| !log.is_empty())?;
        Some((log.into(), Origin::Env("HANAPER_LOG".to_owned())))
    }

    fn need_log(&self) -> Result<PathBuf, Failure> {
        self.log()
            .map(|(log, _)| log)
            .ok_or_else(|| Failure::usage("no log was named: say --log DIR, or set HANAPER_LOG"))
    }

    /// The settings for this log, with what this verb's flags say.
    fn settings(&self, log: Option<&Path>, flags: &SettingFlags) -> Result<Settings, Failure> {
        let config = self.config.clone().or_else(|| {
            std::env::var_os("HANAPER_CONFIG").filter(|file| !file.is_empty()).map(PathBuf::from)
        });
        let env = |name: &str| std::env::var_os(name).map(|text| text.to_string_lossy().into_owned());
        Settings::load(log, config.as_deref(), env, &flags.given()).map_err(|error| {
            let exit = if error.is_io() { Exit::Io } else { Exit::Usage };
            Failure::new(exit, error.to_string())
        })
    }

    /// For a verb that uses no settings: a mistake in them is worth a word, and no reason not to read a log.
    fn doubt_settings(&self) {
        if let Some(unknown) = unknown_variable(std::env::vars_os()) {
            say(format!("{unknown}; this verb goes on without it"));
        }
        let log = self.log().map(|(log, _)| log);
        let settings = self.settings(log.as_deref(), &SettingFlags::default());
        // What cannot be read is told by whoever needs it.
        if let Err(Failure { exit: Exit::Usage, message: Some(message) }) = settings {
            say(format!("{message} (this verb uses no settings and goes on)"));
        }
    }
}

/// The settings as flags. Their texts are checked where those of the other layers are.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings (see `hanaper config --help`)")]
struct SettingFlags {
    /// How many shards a new log gets: 1 to 256, or auto (one per core)
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    shards: Option<String>,

    /// Size of a segment file, such as 16MiB
    #[arg(long, allow_negative_numbers = true, value_name = "BYTES")]
    segment_bytes: Option<String>,

    /// Size of a lane, a power of two, such as 256KiB
    #[arg(long, allow_negative_numbers = true, value_name = "BYTES")]
    lane_bytes: Option<String>,

    /// The longest event that is accepted, at most 16MiB
    #[arg(long, allow_negative_numbers = true, value_name = "BYTES")]
    payload_bytes_max: Option<String>,

    /// How many producers may be open at once
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    producers_max: Option<String>,

    /// What runs the shards
    #[arg(long, value_parser = Offered("driver"), value_name = "DRIVER")]
    driver: Option<String>,

    /// How commits reach the disk
    #[arg(long, value_parser = Offered("backend"), value_name = "BACKEND")]
    backend: Option<String>,

    /// After a failed write or sync: return the error, or abort the process
    #[arg(long, value_parser = Offered("on_failure"), value_name = "POLICY")]
    on_failure: Option<String>,

    /// Pin each shard's thread to a core
    #[arg(long, value_parser = Offered("pin"), value_name = "BOOL")]
    pin: Option<String>,

    /// How long an idle shard looks for more before it sleeps, or auto
    #[arg(long, allow_negative_numbers = true, value_name = "MICROSECONDS", hide_short_help = true)]
    spin_us: Option<String>,

    /// Scheduling slice of the shards' threads; 0 leaves it alone
    #[arg(long, allow_negative_numbers = true, value_name = "MICROSECONDS", hide_short_help = true)]
    slice_us: Option<String>,

    /// Commits that a shard may have in flight, 1 to 64
    #[arg(long, allow_negative_numbers = true, value_name = "N", hide_short_help = true)]
    commits_in_flight_max: Option<String>,

    /// What must be gathered before another commit is begun beside one in flight
    #[arg(long, allow_negative_numbers = true, value_name = "BYTES", hide_short_help = true)]
    pipeline_bytes: Option<String>,

    /// Time the commit paths at open and take the fastest
    #[arg(long, value_parser = Offered("calibrate"), value_name = "BOOL", hide_short_help = true)]
    calibrate: Option<String>,

    /// Sign, once a second while there is something new, what is durable
    #[arg(long, value_parser = Offered("checkpoints"), value_name = "BOOL")]
    checkpoints: Option<String>,

    /// The least time between two checkpoints
    #[arg(long, allow_negative_numbers = true, value_name = "MILLISECONDS", hide_short_help = true)]
    checkpoint_every_ms: Option<String>,

    /// Folder of the keys that sign, outside the log
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    state: Option<String>,

    /// Name that a new log signs under, like a URL without its scheme
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    origin: Option<String>,
}

impl SettingFlags {
    fn given(&self) -> Vec<(&'static str, &str)> {
        [
            ("shards", &self.shards),
            ("segment_bytes", &self.segment_bytes),
            ("lane_bytes", &self.lane_bytes),
            ("payload_bytes_max", &self.payload_bytes_max),
            ("producers_max", &self.producers_max),
            ("driver", &self.driver),
            ("backend", &self.backend),
            ("on_failure", &self.on_failure),
            ("pin", &self.pin),
            ("spin_us", &self.spin_us),
            ("slice_us", &self.slice_us),
            ("commits_in_flight_max", &self.commits_in_flight_max),
            ("pipeline_bytes", &self.pipeline_bytes),
            ("calibrate", &self.calibrate),
            ("checkpoints", &self.checkpoints),
            ("checkpoint_every_ms", &self.checkpoint_every_ms),
            ("state", &self.state),
            ("origin", &self.origin),
        ]
        .into_iter()
        .filter_map(|(name, text)| Some((name, text.as_deref()?)))
        .collect()
    }
}

/// Offers a setting's words to help and completions, and leaves the judging to the settings, which give the
/// same sentence wherever a value stands.
#[derive(Clone)]
struct Offered(&'static str);

impl TypedValueParser for Offered {
    type Value = String;

    fn parse_ref(
        &self,
        _: &clap::Command,
        _: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<String, clap::Error> {
        Ok(value.to_string_lossy().into_owned())
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let key = KEYS.iter().find(|key| key.name == self.0)?;
        Some(Box::new(key.words().iter().map(PossibleValue::new)))
    }
}

/// A builder with everything that is in force.
fn builder(log: &Path, settings: &Settings) -> Builder {
    let mut builder = hanaper::Log::builder(log)
        .segment_bytes(settings.segment_bytes())
        .lane_bytes(settings.lane_bytes())
        .payload_bytes_max(settings.payload_bytes_max())
        .producers_max(settings.producers_max())
        .driver(match settings.word("driver") {
            "glommio" => Driver::Glommio,
            _ => Driver::Threads,
        })
        .backend(match settings.word("backend") {
            "uring" => Backend::Uring,
            "posix" => Backend::Posix,
            _ => Backend::Auto,
        })
        .on_failure(match settings.word("on_failure") {
            "abort" => FailurePolicy::Abort,
            _ => FailurePolicy::Return,
        })
        .pin(settings.switch("pin"))
        .slice(settings.slice())
        .pipeline(settings.commits_in_flight_max(), settings.pipeline_bytes())
        .calibrate(settings.switch("calibrate"))
        .checkpoints(settings.switch("checkpoints"))
        .checkpoint_every(settings.checkpoint_every());
    if let Some(state) = settings.text("state") {
        builder = builder.state(state);
    }
    if let Some(origin) = settings.text("origin") {
        builder = builder.origin(origin);
    }
    if let Some(spin) = settings.spin() {
        builder = builder.spin(spin);
    }
    if let Some(shards) = settings.shards() {
        builder = builder.shards(shards);
    }
    builder
}

// The texts stand with each verb's arguments.
#[derive(Debug, Subcommand)]
enum Verb {
    Append(append::AppendArgs),
    Replay(replay::ReplayArgs),
    Verify(verify::VerifyArgs),
    Inspect(inspect::InspectArgs),
    Recover(recover::RecoverArgs),
    Checkpoint(checkpoint::CheckpointArgs),
    Prove(prove::ProveArgs),
    CheckProof(check_proof::CheckProofArgs),
    Keys(keys::KeysArgs),
    Config(config::ConfigArgs),
    Try(r#try::TryArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
    #[command(external_subcommand)]
    External(Vec<OsString>),
}

/// Runs the command line.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(error),
    };
    let outcome = dispatch(cli);
    let exit = outcome.unwrap_or_else(|failure| {
        if let Some(message) = failure.message {
            say(message);
        }
        failure.exit
    });
    exit.into()
}

fn dispatch(cli: Cli) -> Outcome {
    let global = &cli.global;
    match &cli.verb {
        // A program of another name may have variables of its own, and a text needs none.
        Verb::External(_) | Verb::Completions(_) | Verb::Man(_) | Verb::CheckProof(_) => {}
        Verb::Append(_) | Verb::Config(_) | Verb::Try(_) | Verb::Keys(_) => known_variables()?,
        Verb::Recover(args) if args.writes() => known_variables()?,
        Verb::Replay(_) | Verb::Verify(_) | Verb::Inspect(_) | Verb::Recover(_) => global.doubt_settings(),
        Verb::Checkpoint(_) | Verb::Prove(_) => global.doubt_settings(),
    }
    match cli.verb {
        Verb::Append(args) => append::run(global, args),
        Verb::Replay(args) => replay::run(global, args),
        Verb::Verify(args) => verify::run(global, args),
        Verb::Inspect(args) => inspect::run(global, args),
        Verb::Recover(args) => recover::run(global, args),
        Verb::Checkpoint(args) => checkpoint::run(global, args),
        Verb::Prove(args) => prove::run(global, args),
        Verb::CheckProof(args) => check_proof::run(global, args),
        Verb::Keys(args) => keys::run(global, args),
        Verb::Config(args) => config::run(global, args),
        Verb::Try(args) => r#try::run(global, args),
        Verb::Completions(args) => completions::run(global, args),
        Verb::Man(args) => man::run(global, args),
        Verb::External(words) => external::run(global, &words),
    }
}

/// A misspelt variable would otherwise be a setting that silently does nothing, as a misspelt key in
/// `hanaper.toml` would.
fn known_variables() -> Result<(), Failure> {
    match unknown_variable(std::env::vars_os()) {
        None => Ok(()),
        Some(unknown) => {
            Err(Failure::usage(format!("{unknown}; unset it (`hanaper config --help` lists them all)")))
        }
    }
}

/// Names the first variable that nobody knows. One that is set to nothing counts as not set.
fn unknown_variable(set: impl Iterator<Item = (OsString, OsString)>) -> Option<String> {
    let mut known: Vec<String> = ["HANAPER_LOG", "HANAPER_CONFIG"].map(str::to_owned).into();
    known.extend(KEYS.iter().map(|key| key.variable()));
    let name = set
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, _)| name.to_string_lossy().into_owned())
        .filter(|name| name.starts_with("HANAPER_") && !known.contains(name))
        .min()?;
    let hint = nearest(&name, known.iter().map(String::as_str))
        .map(|near| format!(" (did you mean {near}?)"))
        .unwrap_or_default();
    Some(format!("{name}: there is no such variable{hint}"))
}

/// One object on a line of its own.
fn print_json(object: &impl serde::Serialize) -> Result<(), Failure> {
    use std::io::Write;
    let line = serde_json::to_string(object).expect("plain fields become JSON");
    writeln!(std::io::stdout(), "{line}").map_err(Failure::stdout)
}

fn read_failure(error: hanaper::read::ReadError) -> Failure {
    Failure::new(error.kind().into(), error.to_string())
}

/// Help and version as clap prints them; a mistake as one sentence.
fn refuse(error: clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ClapErrorKind::DisplayHelp
            | ClapErrorKind::DisplayVersion
            | ClapErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let _ = error.print();
        return ExitCode::from(error.exit_code() as u8);
    }
    say(one_sentence(&error.to_string(), verb_of(std::env::args().skip(1)).as_deref()));
    Exit::Usage.into()
}

/// The verb among some arguments, if one is there.
fn verb_of(args: impl Iterator<Item = String>) -> Option<String> {
    let cli = Cli::command();
    let mut value = false;
    for arg in args {
        let is_value = std::mem::replace(&mut value, matches!(&*arg, "--log" | "--wal" | "--config"));
        if !is_value && !arg.starts_with('-') {
            return cli.find_subcommand(&arg).map(|verb| verb.get_name().to_owned());
        }
    }
    None
}

/// clap's paragraph (`error: …`, `tip: …`, `Usage: hanaper VERB …`) in one line.
fn one_sentence(text: &str, verb: Option<&str>) -> String {
    let (complaint, rest) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut sentence =
        complaint.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ");
    for tip in rest.lines().filter_map(|line| line.trim().strip_prefix("tip: ")) {
        sentence.push_str("; ");
        sentence.push_str(tip);
    }
    let help = verb.map_or_else(|| "hanaper --help".to_owned(), |verb| format!("hanaper {verb} --help"));
    format!("{sentence}; `{help}` lists what there is")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// clap finds contradictions between arguments only when it is asked to.
    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    /// Every setting can be given as a flag, under the name that the settings announce.
    #[test]
    fn every_setting_has_its_flag() {
        let append = Cli::command();
        let append = append.find_subcommand("append").unwrap();
        for key in crate::settings::KEYS {
            assert!(
                append
                    .get_arguments()
                    .any(|arg| { arg.get_long().is_some_and(|long| format!("--{long}") == key.flag()) }),
                "{} has no flag",
                key.name
            );
        }
    }

    /// A variable that does nothing must not look as if it did.
    #[test]
    fn a_misspelt_variable_is_refused_with_the_nearest_one() {
        let check = |name: &str, value: &str| unknown_variable([(name.into(), value.into())].into_iter());
        for (wrong, right) in [
            ("HANAPER_SHARD", "HANAPER_SHARDS"),
            ("HANAPER_LGO", "HANAPER_LOG"),
            ("HANAPER_SEGMENT_BYTE", "HANAPER_SEGMENT_BYTES"),
        ] {
            let message = check(wrong, "2").unwrap();
            assert!(message.contains(&format!("{wrong}: there is no such variable (did you mean {right}?)")));
        }
        assert!(!check("HANAPER_WEATHER_REPORT", "1").unwrap().contains("did you mean"));
        for fine in ["HANAPER_LOG", "HANAPER_CONFIG", "HANAPER_STATE", "HANAPER_PIN", "HANAPERS", "PATH"] {
            assert_eq!(check(fine, "x"), None);
        }
        assert_eq!(check("HANAPER_SHARD", ""), None);
    }

    #[test]
    fn a_mistake_is_one_sentence() {
        let error = Cli::try_parse_from(["hanaper", "append", "--shard", "2"]).unwrap_err();
        let verb = verb_of(["--log", "try", "append", "--shard"].into_iter().map(str::to_owned));
        let sentence = one_sentence(&error.to_string(), verb.as_deref());
        assert!(sentence.contains("'--shard'"), "{sentence}");
        assert!(sentence.contains("'--shards'"), "{sentence}");
        assert!(sentence.contains("`hanaper append --help`"), "{sentence}");
        assert!(!sentence.contains('\n'), "{sentence}");
    }
}
