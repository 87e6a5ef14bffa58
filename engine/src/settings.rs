//! What is in force, and where each value came from.
//!
//! Layers, the later one wins: default, `hanaper.toml` (in the log's folder, or `--config`),
//! environment (`HANAPER_SHARDS`, …), flag (`--shards`, …). A value is parsed and checked in the
//! same way wherever it stands, so a mistake gets the same sentence and names its place.
//!
//! Refuses: keys it does not know (a misspelt key would be a setting that silently does nothing).
//! Whether values fit together, and fit an existing log, is the library's to say.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a value may be.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// A whole number within bounds; `auto`, if that is allowed, leaves it to the engine.
    Count { min: u64, max: u64, auto: bool },
    /// A number of bytes, plain or with KiB, MiB, GiB (1,024) or KB, MB, GB (1,000).
    Bytes { min: u64, max: u64, form: Form },
    /// One of these.
    Word(&'static [&'static str]),
    /// `true` or `false`.
    Switch,
    /// Any text without control characters; `auto` leaves it to the engine.
    Text,
}

/// Which numbers of bytes will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Any,
    PowerOfTwo,
    MultipleOf(u64),
}

impl Form {
    fn has(self, n: u64) -> bool {
        match self {
            Form::Any => true,
            Form::PowerOfTwo => n.is_power_of_two(),
            Form::MultipleOf(of) => n.is_multiple_of(of),
        }
    }

    fn words(self) -> String {
        match self {
            Form::Any => "a number of bytes".to_owned(),
            Form::PowerOfTwo => "a power of two".to_owned(),
            Form::MultipleOf(of) => format!("a multiple of {}", short(of)),
        }
    }
}

/// One setting: its name in `hanaper.toml`. The variable and the flag follow from it.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    default: &'static str,
    shape: Shape,
    pub about: &'static str,
}

impl Key {
    /// `shards` → `HANAPER_SHARDS`
    pub fn variable(&self) -> String {
        format!("HANAPER_{}", self.name.to_uppercase())
    }

    /// `segment_bytes` → `--segment-bytes`
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// The words that it may be, where it is one of some.
    pub fn words(&self) -> &'static [&'static str] {
        match self.shape {
            Shape::Word(words) => words,
            Shape::Switch => &["true", "false"],
            Shape::Count { .. } | Shape::Bytes { .. } | Shape::Text => &[],
        }
    }
}

const MIB: u64 = 1 << 20;
/// No payload takes more than this part of a segment.
const LARGEST_SHARE: u64 = 8;

/// Every setting there is, in the order in which `hanaper config` prints them.
pub const KEYS: &[Key] = &[
    Key {
        name: "shards",
        default: "auto",
        shape: Shape::Count { min: 1, max: 256, auto: true },
        about: "shards; auto: as the log was made, one per core for a new log",
    },
    Key {
        name: "segment_bytes",
        default: "16MiB",
        shape: Shape::Bytes { min: MIB, max: 64 << 30, form: Form::MultipleOf(64 << 10) },
        about: "size of a segment file",
    },
    Key {
        name: "lane_bytes",
        default: "256KiB",
        shape: Shape::Bytes { min: 4096, max: 1 << 30, form: Form::PowerOfTwo },
        about: "size of a lane, one for each producer and shard",
    },
    Key {
        name: "payload_bytes_max",
        default: "1MiB",
        shape: Shape::Bytes { min: 1, max: 16 * MIB, form: Form::Any },
        about: "the longest event that is accepted; at most an eighth of a segment",
    },
    Key {
        name: "producers_max",
        default: "1024",
        shape: Shape::Count { min: 1, max: 65_535, auto: false },
        about: "how many producers may be open at once",
    },
    Key {
        name: "driver",
        default: "threads",
        shape: Shape::Word(&["threads", "glommio"]),
        about: "what runs the shards: plain pinned threads, or glommio executors",
    },
    Key {
        name: "backend",
        default: "auto",
        shape: Shape::Word(&["auto", "uring", "posix"]),
        about: "how commits reach the disk; auto takes io_uring where it is allowed",
    },
    Key {
        name: "on_failure",
        default: "return",
        shape: Shape::Word(&["return", "abort"]),
        about: "after a failed write or sync: return the error, or abort the process",
    },
    Key { name: "pin", default: "true", shape: Shape::Switch, about: "pin each shard's thread to a core" },
    Key {
        name: "spin_us",
        default: "auto",
        shape: Shape::Count { min: 0, max: 1_000_000, auto: true },
        about: "how long an idle shard looks for more before it sleeps; auto: 50, or 0 on one core",
    },
    Key {
        name: "slice_us",
        default: "150",
        shape: Shape::Count { min: 0, max: 100_000, auto: false },
        about: "scheduling slice of the shards' threads; 0 leaves it alone",
    },
    Key {
        name: "commits_in_flight_max",
        default: "4",
        shape: Shape::Count { min: 1, max: 64, auto: false },
        about: "commits that a shard may have in flight",
    },
    Key {
        name: "pipeline_bytes",
        default: "64KiB",
        shape: Shape::Bytes { min: 1, max: MIB, form: Form::Any },
        about: "what must be gathered before another commit is begun beside one in flight",
    },
    Key {
        name: "calibrate",
        default: "true",
        shape: Shape::Switch,
        about: "time the commit paths at open, for some milliseconds, and take the fastest",
    },
    Key {
        name: "checkpoints",
        default: "true",
        shape: Shape::Switch,
        about: "sign, once a second while there is something new, what is durable",
    },
    Key {
        name: "checkpoint_every_ms",
        default: "1000",
        shape: Shape::Count { min: 1, max: 600_000, auto: false },
        about: "the least time between two checkpoints",
    },
    Key {
        name: "state",
        default: "auto",
        shape: Shape::Text,
        about: "folder of the keys that sign, outside the log; auto: ~/.local/state/hanaper",
    },
    Key {
        name: "origin",
        default: "auto",
        shape: Shape::Text,
        about: "name that a new log signs under; auto: hanaper.local/HOST/ID",
    },
];

/// A parsed value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Auto,
    Number(u64),
    Word(&'static str),
    Switch(bool),
    Text(String),
}

impl fmt::Display for Value {
    /// As it may stand in `hanaper.toml`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Auto => f.write_str("\"auto\""),
            Value::Number(n) => write!(f, "{n}"),
            Value::Word(w) => write!(f, "\"{w}\""),
            Value::Switch(b) => write!(f, "{b}"),
            Value::Text(text) => write!(f, "{text:?}"),
        }
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Default,
    /// Nobody set it, and the log that is there has it so.
    Log,
    File {
        path: PathBuf,
        line: usize,
    },
    Env(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Log => f.write_str("log"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Env(name) => f.write_str(name),
            Origin::Flag(name) => f.write_str(name),
        }
    }
}

impl Origin {
    /// The layer, one stable word.
    pub fn layer(&self) -> &'static str {
        match self {
            Origin::Default => "default",
            Origin::Log => "log",
            Origin::File { .. } => "file",
            Origin::Env(_) => "environment",
            Origin::Flag(_) => "flag",
        }
    }
}

/// Settings that cannot be used; the sentence names the place and says what would do.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{setting}: {want}")]
    Value { setting: String, want: String },
    #[error("{}:{line}: there is no setting {name}{hint}; `hanaper config` lists them all", path.display())]
    Unknown { path: PathBuf, line: usize, name: String, hint: String },
    #[error("{}: cannot be read: {source}; {advice}", path.display())]
    Read { path: PathBuf, source: std::io::Error, advice: &'static str },
    #[error("{}:{line}: not TOML: {message}", path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
}

impl SettingsError {
    /// Whether the system refused, and no other text would help.
    pub fn is_io(&self) -> bool {
        use std::io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound};
        match self {
            SettingsError::Read { source, .. } => {
                !matches!(source.kind(), NotFound | NotADirectory | IsADirectory | InvalidData)
            }
            _ => false,
        }
    }
}

/// The settings in force.
#[derive(Debug, Clone)]
pub struct Settings {
    /// One for each of [`KEYS`], in that order.
    values: Vec<(Value, Origin)>,
}

impl Settings {
    /// Puts the layers together. `flags` are (setting's name, text) as given on the command
    /// line; `env` answers for one variable.
    pub fn load(
        log: Option<&Path>,
        config: Option<&Path>,
        env: impl Fn(&str) -> Option<String>,
        flags: &[(&str, &str)],
    ) -> Result<Settings, SettingsError> {
        let mut settings = Settings {
            values: KEYS
                .iter()
                .map(|key| {
                    let value = parse(key, key.default).expect("defaults parse");
                    (value, Origin::Default)
                })
                .collect(),
        };
        if let Some((path, text)) = read_file(log, config)? {
            settings.apply_file(&path, &text)?;
        }
        for (index, key) in KEYS.iter().enumerate() {
            let variable = key.variable();
            // A variable that is set to nothing counts as not set: many shells cannot unset.
            if let Some(text) = env(&variable).filter(|text| !text.is_empty()) {
                settings.set(index, &text, Origin::Env(variable))?;
            }
        }
        for (name, text) in flags {
            let index = index_of(name).expect("flags are made from KEYS");
            settings.set(index, text, Origin::Flag(KEYS[index].flag()))?;
        }
        settings.fit_payload()?;
        Ok(settings)
    }

    /// A record must leave room for others in its segment. The default follows the segment, as the library's
    /// own does; what somebody set is refused, not lowered.
    fn fit_payload(&mut self) -> Result<(), SettingsError> {
        let longest = self.segment_bytes() / LARGEST_SHARE;
        let payload = self.payload_bytes_max() as u64;
        if payload <= longest {
            return Ok(());
        }
        let index = index_of("payload_bytes_max").expect("a setting's name");
        let origin = &self.values[index].1;
        if *origin == Origin::Default {
            self.default_to("payload_bytes_max", &longest.to_string());
            return Ok(());
        }
        let segment = (payload * LARGEST_SHARE).next_multiple_of(64 << 10);
        Err(SettingsError::Value {
            setting: place(&KEYS[index], &short(payload), origin),
            want: format!(
                "an event may take an eighth of a segment at most, and segment_bytes is {}; say {} or less, or \
                 --segment-bytes {} at least",
                short(self.segment_bytes()),
                short(longest),
                short(segment)
            ),
        })
    }

    fn apply_file(&mut self, path: &Path, text: &str) -> Result<(), SettingsError> {
        let line_at = |offset: usize| text[..offset].matches('\n').count() + 1;
        let table: BTreeMap<toml::Spanned<String>, toml::Spanned<toml::Value>> = toml::from_str(text)
            .map_err(|error| {
                let line = line_at(error.span().map_or(0, |span| span.start));
                syntax(path, line, text.lines().nth(line - 1).unwrap_or(""), error.message())
            })?;
        for (name, value) in table {
            let line = line_at(name.span().start);
            let Some(index) = index_of(name.get_ref()) else {
                return Err(SettingsError::Unknown {
                    path: path.to_owned(),
                    line,
                    hint: nearest(name.get_ref(), KEYS.iter().map(|key| key.name))
                        .map(|near| format!(" (did you mean {near}?)"))
                        .unwrap_or_default(),
                    name: name.into_inner(),
                });
            };
            let text = match value.get_ref() {
                toml::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            self.set(index, &text, Origin::File { path: path.to_owned(), line })?;
        }
        Ok(())
    }

    fn set(&mut self, index: usize, text: &str, origin: Origin) -> Result<(), SettingsError> {
        let key = &KEYS[index];
        match parse(key, text) {
            Ok(value) => {
                self.values[index] = (value, origin);
                Ok(())
            }
            Err(want) => Err(SettingsError::Value { setting: place(key, text, &origin), want }),
        }
    }

    /// Takes `text` for a setting that nobody set.
    fn default_to(&mut self, name: &str, text: &str) {
        let index = index_of(name).expect("a setting's name");
        if self.values[index].1 == Origin::Default {
            self.values[index].0 = parse(&KEYS[index], text).expect("a value that parses");
        }
    }

    /// Takes `text` for a segment's length that nobody set, unless the events that are to fit need more.
    pub fn default_segment_to(&mut self, text: &str) {
        let before = self.clone();
        self.default_to("segment_bytes", text);
        if self.fit_payload().is_err() {
            *self = before;
        }
    }

    /// What the log that is there has, where nobody set a number of shards.
    pub fn shards_of_log(&mut self, shards: u32) {
        let index = index_of("shards").expect("a setting's name");
        if self.values[index].0 == Value::Auto {
            self.values[index] = (Value::Number(u64::from(shards)), Origin::Log);
        }
    }

    /// Every setting with its value and origin.
    pub fn all(&self) -> impl Iterator<Item = (&'static Key, Value, &Origin)> {
        KEYS.iter().zip(&self.values).map(|(key, (value, origin))| (key, value.clone(), origin))
    }

    fn value(&self, name: &str) -> Value {
        self.values[index_of(name).expect("a setting's name")].0.clone()
    }

    fn number(&self, name: &str) -> u64 {
        match self.value(name) {
            Value::Number(n) => n,
            other => unreachable!("{name} is a number, not {other}"),
        }
    }

    /// Nothing leaves it to the engine.
    pub fn shards(&self) -> Option<u32> {
        match self.value("shards") {
            Value::Number(n) => Some(n as u32),
            _ => None,
        }
    }

    pub fn segment_bytes(&self) -> u64 {
        self.number("segment_bytes")
    }

    pub fn lane_bytes(&self) -> usize {
        self.number("lane_bytes") as usize
    }

    pub fn payload_bytes_max(&self) -> usize {
        self.number("payload_bytes_max") as usize
    }

    pub fn producers_max(&self) -> u32 {
        self.number("producers_max") as u32
    }

    /// The word chosen for `driver`, `backend` or `on_failure`.
    pub fn word(&self, name: &str) -> &'static str {
        match self.value(name) {
            Value::Word(word) => word,
            other => unreachable!("{name} is a word, not {other}"),
        }
    }

    /// How long an idle shard spins; nothing leaves it to the engine.
    pub fn spin(&self) -> Option<Duration> {
        match self.value("spin_us") {
            Value::Number(us) => Some(Duration::from_micros(us)),
            _ => None,
        }
    }

    pub fn slice(&self) -> Option<Duration> {
        Some(self.number("slice_us")).filter(|us| *us > 0).map(Duration::from_micros)
    }

    pub fn commits_in_flight_max(&self) -> usize {
        self.number("commits_in_flight_max") as usize
    }

    pub fn pipeline_bytes(&self) -> usize {
        self.number("pipeline_bytes") as usize
    }

    /// `pin` or `calibrate`.
    /// `state` or `origin`; nothing leaves it to the engine.
    pub fn text(&self, name: &str) -> Option<String> {
        match self.value(name) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The least time between two checkpoints.
    pub fn checkpoint_every(&self) -> Duration {
        Duration::from_millis(self.number("checkpoint_every_ms"))
    }

    pub fn switch(&self, name: &str) -> bool {
        self.value(name) == Value::Switch(true)
    }
}

/// What is wrong with a line that is no TOML. A word without quotes is what people write; then what it
/// should have been says more than the parser can.
fn syntax(path: &Path, line: usize, text: &str, message: &str) -> SettingsError {
    let bare = text.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
    let bare = bare.filter(|(_, value)| value.starts_with(|c: char| c.is_ascii_alphanumeric()));
    let known = bare.and_then(|(name, value)| Some((&KEYS[index_of(name)?], value)));
    let origin = Origin::File { path: path.to_owned(), line };
    match known.map(|(key, value)| (key, value, parse(key, value))) {
        Some((key, value, Err(want))) => SettingsError::Value { setting: place(key, value, &origin), want },
        Some((key, value, Ok(_))) => SettingsError::Value {
            setting: place(key, value, &origin),
            want: format!("it must stand in quotes: {} = \"{value}\"", key.name),
        },
        None => SettingsError::Syntax { path: path.to_owned(), line, message: message.to_owned() },
    }
}

/// `auto, uring or posix`
fn or(words: &[&str]) -> String {
    match words {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

/// A setting as it stands where it was set.
fn place(key: &Key, text: &str, origin: &Origin) -> String {
    match origin {
        Origin::Flag(flag) => format!("{flag} {text}"),
        Origin::Env(variable) => format!("{variable}={text}"),
        _ => format!("{origin}: {} = {text}", key.name),
    }
}

fn index_of(name: &str) -> Option<usize> {
    KEYS.iter().position(|key| key.name == name)
}

/// The settings file and its text. One that was named must be there; the one in the log's
/// folder may be missing, and so may the folder.
fn read_file(log: Option<&Path>, config: Option<&Path>) -> Result<Option<(PathBuf, String)>, SettingsError> {
    let path = match (config, log) {
        (Some(path), _) => path.to_owned(),
        (None, Some(log)) => log.join("hanaper.toml"),
        (None, None) => return Ok(None),
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(source)
            if config.is_none()
                && matches!(
                    source.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) =>
        {
            Ok(None)
        }
        // The folder itself may be what cannot be read.
        Err(source) if config.is_none() => {
            let advice = "run it as a user who may read this folder, or name another";
            Err(SettingsError::Read { path, source, advice })
        }
        Err(source) => Err(SettingsError::Read { path, source, advice: "name another file with --config" }),
    }
}

/// The value, or the words for what would have done.
fn parse(key: &Key, text: &str) -> Result<Value, String> {
    let text = text.trim();
    match key.shape {
        Shape::Count { min, max, auto } => {
            if auto && text == "auto" {
                return Ok(Value::Auto);
            }
            text.parse::<u64>().ok().filter(|n| (min..=max).contains(n)).map(Value::Number).ok_or_else(|| {
                let or = if auto { ", or auto" } else { "" };
                format!("it must be a whole number from {min} to {max}{or}")
            })
        }
        Shape::Bytes { min, max, form } => parse_bytes(text)
            .filter(|n| (min..=max).contains(n) && form.has(*n))
            .map(Value::Number)
            .ok_or_else(|| {
                let want = format!("it must be {} from {} to {}", form.words(), short(min), short(max));
                match decimal_unit(text) {
                    Some((given, meant)) => format!(
                        "{want}; {given} counts in thousands, {meant} in 1,024s: is {meant} what is meant?"
                    ),
                    None => format!("{want}, such as {}", example(min)),
                }
            }),
        Shape::Word(words) => words
            .iter()
            .find(|word| **word == text)
            .map(|word| Value::Word(word))
            .ok_or_else(|| format!("it must be {}", or(words))),
        Shape::Switch => match text {
            "true" => Ok(Value::Switch(true)),
            "false" => Ok(Value::Switch(false)),
            _ => Err("it must be true or false".to_owned()),
        },
        Shape::Text if text == "auto" => Ok(Value::Auto),
        Shape::Text if text.is_empty() || text.chars().any(char::is_control) => {
            Err("it must be a text, or auto".to_owned())
        }
        Shape::Text => Ok(Value::Text(text.to_owned())),
    }
}

/// A value that the bounds allow.
fn example(min: u64) -> &'static str {
    if min < MIB { "64KiB" } else { "16MiB" }
}

/// `KB`, `MB` or `GB` as it was given, and the unit of 1,024s that is more often meant.
fn decimal_unit(text: &str) -> Option<(&str, &'static str)> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit()).trim();
    let meant = match unit.to_ascii_lowercase().as_str() {
        "kb" => "KiB",
        "mb" => "MiB",
        "gb" => "GiB",
        _ => return None,
    };
    Some((unit, meant))
}

/// `65536` → `64KiB`; a number that no unit divides stays as it is.
fn short(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let whole = units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    whole.map_or_else(|| bytes.to_string(), |(unit, name)| format!("{}{name}", bytes / unit))
}

/// `65536`, `64KiB`, `1 MB`
fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// The known word that `word` is most likely a misspelling of.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (edits(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// How many single-letter edits turn one word into the other (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(toml: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Settings, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), toml).unwrap();
        let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Settings::load(None, Some(file.path()), env, flags)
            .map_err(|error| error.to_string().replace(&file.path().display().to_string(), "hanaper.toml"))
    }

    /// A layer that does not win, or an origin that does not say so, sends people to the wrong
    /// file.
    #[test]
    fn the_later_layer_wins_and_says_where_it_is() {
        let toml = "# mine\nshards = 2\nlane_bytes = \"64KiB\"\npin = false\n";
        let settings =
            load(toml, &[("HANAPER_SHARDS", "3"), ("HANAPER_PIN", "")], &[("backend", "posix")]).unwrap();
        assert_eq!(settings.shards(), Some(3));
        assert_eq!(settings.lane_bytes(), 65_536);
        assert!(!settings.switch("pin"));
        assert_eq!(settings.word("backend"), "posix");
        let origins: Vec<_> = settings.all().map(|(key, _, origin)| (key.name, origin.layer())).collect();
        assert!(origins.contains(&("shards", "environment")));
        assert!(origins.contains(&("lane_bytes", "file")));
        assert!(origins.contains(&("pin", "file")));
        assert!(origins.contains(&("backend", "flag")));
        assert!(origins.contains(&("segment_bytes", "default")));
        let (_, _, origin) = settings.all().find(|(key, ..)| key.name == "lane_bytes").unwrap();
        assert!(origin.to_string().ends_with(":3"), "{origin}");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place_and_what_would_do() {
        assert_eq!(
            load("", &[], &[("shards", "0")]).unwrap_err(),
            "--shards 0: it must be a whole number from 1 to 256, or auto"
        );
        assert_eq!(
            load("", &[("HANAPER_LANE_BYTES", "5000")], &[]).unwrap_err(),
            "HANAPER_LANE_BYTES=5000: it must be a power of two from 4KiB to 1GiB, such as 64KiB"
        );
        assert_eq!(
            load("\nbackend = \"aio\"\n", &[], &[]).unwrap_err(),
            "hanaper.toml:2: backend = aio: it must be auto, uring or posix"
        );
        assert_eq!(
            load("shards = two\n", &[], &[]).unwrap_err(),
            "hanaper.toml:1: shards = two: it must be a whole number from 1 to 256, or auto"
        );
        assert_eq!(
            load("pin = true\nlane_bytes = 64KiB\n", &[], &[]).unwrap_err(),
            "hanaper.toml:2: lane_bytes = 64KiB: it must stand in quotes: lane_bytes = \"64KiB\""
        );
        assert!(load("shards = \n", &[], &[]).unwrap_err().starts_with("hanaper.toml:1: not TOML"));
    }

    /// Who sets a value is told if it cannot be had; nobody's value is quietly another one.
    #[test]
    fn an_explicit_payload_is_refused_with_both_ways_out_and_a_default_follows_the_segment() {
        let small = load("", &[], &[("segment_bytes", "2MiB")]).unwrap();
        assert_eq!(small.payload_bytes_max(), 256 << 10);
        assert_eq!(
            load("", &[], &[("segment_bytes", "2MiB"), ("payload_bytes_max", "1MiB")]).unwrap_err(),
            "--payload-bytes-max 1MiB: an event may take an eighth of a segment at most, and segment_bytes is \
             2MiB; say 256KiB or less, or --segment-bytes 8MiB at least"
        );
        let alone = load("", &[], &[("payload_bytes_max", "16MiB")]).unwrap_err();
        assert!(alone.ends_with("say 2MiB or less, or --segment-bytes 128MiB at least"), "{alone}");
    }

    /// 16 MB is no multiple of anything in a disk; whoever writes it means 16 MiB.
    #[test]
    fn a_size_in_thousands_is_told_from_one_in_1024s() {
        assert_eq!(
            load("", &[], &[("segment_bytes", "16MB")]).unwrap_err(),
            "--segment-bytes 16MB: it must be a multiple of 64KiB from 1MiB to 64GiB; MB counts in thousands, \
             MiB in 1,024s: is MiB what is meant?"
        );
        let odd = load("segment_bytes = 1048577", &[], &[]).unwrap_err();
        assert_eq!(
            odd,
            "hanaper.toml:1: segment_bytes = 1048577: it must be a multiple of 64KiB from 1MiB to 64GiB, such as 16MiB"
        );
    }

    /// A misspelt key would otherwise be a setting that silently does nothing.
    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_one() {
        assert_eq!(
            load("pin = true\nsegment_byte = 1\n", &[], &[]).unwrap_err(),
            "hanaper.toml:2: there is no setting segment_byte (did you mean segment_bytes?); \
             `hanaper config` lists them all"
        );
        assert!(!load("colour = 1", &[], &[]).unwrap_err().contains("did you mean"));
    }

    #[test]
    fn sizes_take_units() {
        for (text, bytes) in [("1", 1), ("4KiB", 4096), ("4 kib", 4096), ("1MB", 1_000_000), ("2g", 2 << 30)]
        {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "MiB", "1.5MiB", "-1", "1XB", "99999999999999999999"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }

    /// What `hanaper config` prints is itself a settings file.
    #[test]
    fn every_value_can_be_written_back() {
        let settings = load("", &[], &[]).unwrap();
        let text: String =
            settings.all().map(|(key, value, _)| format!("{} = {value}\n", key.name)).collect();
        let again = load(&text, &[], &[]).unwrap();
        let values = |s: &Settings| s.all().map(|(_, value, _)| value).collect::<Vec<_>>();
        assert_eq!(values(&settings), values(&again));
    }
}
