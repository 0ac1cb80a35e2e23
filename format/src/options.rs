//! `key=value,...` text into typed values, with errors that say what would have been right.

use crate::fault::{self, FaultRule};
use crate::remote::{self, RemoteUrl};
use crate::size;
use crate::types::TypeSpec;
use std::fmt;

/// One option of a back-end type.
#[derive(Debug)]
pub struct OptionSpec {
    /// What stands before the `=`.
    pub key: &'static str,
    /// What may stand behind it.
    pub kind: ValueKind,
    /// The value when the key is not given, as text.
    pub default: &'static str,
    /// May a mount override what the superblock says?
    pub per_mount: bool,
    /// One line for help texts and man pages.
    pub help: &'static str,
}

impl OptionSpec {
    /// It has no default: without it nothing can be done.
    #[must_use]
    pub fn is_required(&self) -> bool {
        matches!(self.kind, ValueKind::Url)
    }
}

/// What values an option takes.
#[derive(Debug, Clone, Copy)]
pub enum ValueKind {
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `on` or `off`.
    Switch,
    /// A whole number.
    Integer {
        /// Least value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
    },
    /// A whole number, or `auto`.
    IntegerOrAuto {
        /// Least value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
    },
    /// A size in bytes, with K, M, G, T.
    Size {
        /// Least size allowed, in bytes.
        min: u64,
        /// Largest size allowed, in bytes.
        max: u64,
    },
    /// A size in bytes, with K, M, G, T, or `auto`.
    SizeOrAuto {
        /// Least size allowed, in bytes.
        min: u64,
        /// Largest size allowed, in bytes.
        max: u64,
    },
    /// `off`, or `zstd:LEVEL`, or `zstd`; where `lz4` is set, `lz4` too and not `off`.
    Compression {
        /// This is the algorithm of first choice, which can't be off.
        lz4: bool,
    },
    /// Rules of the fault filter, see [`crate::fault`].
    Faults,
    /// The absolute path of a file, or nothing.
    Path,
    /// An address, see [`RemoteUrl`], which must be given. Its nodes are joined by commas.
    Url,
}

/// How pages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// LZ4 blocks.
    Lz4,
    /// Zstandard, 1 to 19.
    Zstd {
        /// Greater is smaller and slower.
        level: i32,
    },
}

/// The level of `zstd` without one: what zstd itself takes.
const ZSTD_LEVEL: i32 = 3;
/// The levels that zstd has without special memory.
const ZSTD_LEVELS: std::ops::RangeInclusive<i32> = 1..=19;

/// Absolute, since a later process of the daemon runs in another directory; and nothing that would
/// make a mess of a log line.
fn is_path(text: &str) -> bool {
    let impossible = |character: char| character.is_control() || character == ',';
    text.is_empty() || text.starts_with('/') && !text.ends_with('/') && !text.contains(impossible)
}

fn parse_compression(text: &str, lz4: bool) -> Option<Value> {
    match text.split_once(':') {
        None if text == "zstd" => Some(Value::Zstd(ZSTD_LEVEL)),
        None if lz4 && text == "lz4" => Some(Value::Choice("lz4")),
        None if !lz4 && text == "off" => Some(Value::Choice("off")),
        Some(("zstd", level)) => {
            level.parse().ok().filter(|level| ZSTD_LEVELS.contains(level)).map(Value::Zstd)
        }
        _ => None,
    }
}

/// A value that an option was given.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of [`ValueKind::Choice`].
    Choice(&'static str),
    /// Of [`ValueKind::Switch`].
    Switch(bool),
    /// Of [`ValueKind::Integer`] and [`ValueKind::Size`].
    Integer(u64),
    /// Of [`ValueKind::IntegerOrAuto`] and [`ValueKind::SizeOrAuto`].
    Auto,
    /// A level, of [`ValueKind::Compression`].
    Zstd(i32),
    /// Of [`ValueKind::Faults`].
    Faults(Vec<FaultRule>),
    /// Of [`ValueKind::Path`].
    Path(String),
    /// Of [`ValueKind::Url`]; `None` if it is not given.
    Url(Option<RemoteUrl>),
}

/// Why an option text was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OptionError {
    /// The type has no such option.
    UnknownKey {
        /// The key given.
        key: String,
        /// Whose options these are: `type 'linear'`.
        owner: String,
        /// The keys that it has.
        known: String,
    },
    /// The key stands in the text twice.
    Twice(String),
    /// No `=` in an entry.
    NoValue(String),
    /// The value is not one that the key takes.
    BadValue {
        /// The key given.
        key: String,
        /// The value given.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// The key is fixed when the image is formatted.
    FixedAtFormat(String),
    /// The key must be given, and is not.
    Missing {
        /// The key.
        key: &'static str,
        /// What values it takes.
        allowed: &'static str,
    },
    /// The key does not go with other values that are given.
    Misplaced {
        /// The key given.
        key: &'static str,
        /// What it goes with.
        why: &'static str,
    },
    /// An address of another kind than the one that the image was formatted for.
    OtherKindOfUrl {
        /// The key given.
        key: &'static str,
        /// The address of the superblock.
        formatted: String,
    },
    /// `low` is not below `high`, both in per cent.
    LowNotBelowHigh {
        /// The value of `low`.
        low: u32,
        /// The value of `high`.
        high: u32,
    },
}

impl fmt::Display for OptionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OptionError::UnknownKey { key, owner, known } => {
                write!(f, "option '{key}': {owner} has no such option: it has {known}")
            }
            OptionError::Twice(key) => write!(f, "option '{key}': given twice"),
            OptionError::NoValue(entry) => {
                write!(f, "option '{entry}': no value: write {entry}=VALUE")
            }
            OptionError::BadValue { key, value, allowed } => {
                let value = remote::without_secrets(value);
                write!(f, "option '{key}': '{value}' is not allowed: {allowed}")
            }
            OptionError::FixedAtFormat(key) => write!(
                f,
                "option '{key}': fixed when the image is formatted: it can't be changed later"
            ),
            OptionError::Missing { key, allowed } => {
                write!(f, "option '{key}': must be given: {allowed}")
            }
            OptionError::Misplaced { key, why } => write!(f, "option '{key}': {why}"),
            OptionError::OtherKindOfUrl { key, formatted } => write!(
                f,
                "option '{key}': the image was formatted for {formatted}: an address of another \
                 kind needs a new format"
            ),
            OptionError::LowNotBelowHigh { low, high } => write!(
                f,
                "option 'low': {low} is not below high, which is {high}: set both, low below high"
            ),
        }
    }
}

impl std::error::Error for OptionError {}

impl ValueKind {
    /// Parses one value.
    ///
    /// # Errors
    /// A text that says what is allowed.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        let in_range = |value: u64, min: u64, max: u64| (min..=max).contains(&value);
        let parsed = match *self {
            ValueKind::Choice(words) => {
                words.iter().find(|&&word| word == text).map(|&word| Value::Choice(word))
            }
            ValueKind::Switch => match text {
                "on" => Some(Value::Switch(true)),
                "off" => Some(Value::Switch(false)),
                _ => None,
            },
            ValueKind::IntegerOrAuto { .. } | ValueKind::SizeOrAuto { .. } if text == "auto" => {
                Some(Value::Auto)
            }
            ValueKind::Compression { lz4 } => parse_compression(text, lz4),
            ValueKind::Integer { min, max } | ValueKind::IntegerOrAuto { min, max } => {
                text.parse().ok().filter(|&value| in_range(value, min, max)).map(Value::Integer)
            }
            ValueKind::Size { min, max } | ValueKind::SizeOrAuto { min, max } => size::parse(text)
                .ok()
                .filter(|&value| in_range(value, min, max))
                .map(Value::Integer),
            ValueKind::Faults => return fault::parse(text).map(Value::Faults),
            ValueKind::Path => is_path(text).then(|| Value::Path(text.to_owned())),
            ValueKind::Url if text.is_empty() => Some(Value::Url(None)),
            ValueKind::Url => match text.parse::<RemoteUrl>() {
                Ok(url) => Some(Value::Url(Some(url))),
                Err(error) => return Err(error.to_string()),
            },
        };
        parsed.ok_or_else(|| self.allowed())
    }

    /// What values are allowed, for messages and help texts.
    #[must_use]
    pub fn allowed(&self) -> String {
        match *self {
            ValueKind::Choice(words) => format!("one of {}", words.join(", ")),
            ValueKind::Switch => "on or off".to_owned(),
            ValueKind::Integer { min, max: u64::MAX } => format!("a whole number from {min}"),
            ValueKind::Integer { min, max } => format!("a whole number from {min} to {max}"),
            ValueKind::IntegerOrAuto { min, max } => {
                format!("auto, or a whole number from {min} to {max}")
            }
            ValueKind::Size { min, max } => {
                format!("a size from {} to {}", size::human(min), size::human(max))
            }
            ValueKind::SizeOrAuto { min, max } => {
                format!("auto, or a size from {} to {}", size::human(min), size::human(max))
            }
            ValueKind::Compression { lz4 } => {
                let other = if lz4 { "lz4" } else { "off" };
                let (least, most) = (ZSTD_LEVELS.start(), ZSTD_LEVELS.end());
                format!("{other}, zstd, or zstd:LEVEL with a level from {least} to {most}")
            }
            ValueKind::Faults => fault::ALLOWED.to_owned(),
            ValueKind::Path => "an absolute path, without a comma; or nothing".to_owned(),
            ValueKind::Url => remote::ALLOWED.to_owned(),
        }
    }
}

/// The declarations that a text is read by: of a type, or of a member.
#[derive(Debug, Clone, Copy)]
pub struct OptionTable {
    type_name: &'static str,
    is_member: bool,
    lists: [&'static [OptionSpec]; 3],
}

impl OptionTable {
    /// The options in `lists`, for volumes or for members of a type.
    pub(crate) fn new(
        type_name: &'static str,
        is_member: bool,
        lists: [&'static [OptionSpec]; 3],
    ) -> OptionTable {
        OptionTable { type_name, is_member, lists }
    }

    /// All declarations, in the order of help texts.
    pub fn specs(self) -> impl Iterator<Item = &'static OptionSpec> {
        self.lists.into_iter().flatten()
    }

    /// The declaration of `key`.
    #[must_use]
    pub fn find(self, key: &str) -> Option<&'static OptionSpec> {
        self.specs().find(|spec| spec.key == key)
    }

    fn owner(self) -> String {
        match self.is_member {
            true => format!("a member of type '{}'", self.type_name),
            false => format!("type '{}'", self.type_name),
        }
    }

    fn unknown(self, key: &str) -> OptionError {
        OptionError::UnknownKey {
            key: key.to_owned(),
            owner: self.owner(),
            known: self.specs().map(|option| option.key).collect::<Vec<_>>().join(", "),
        }
    }
}

/// The entries of a text: what stands between its commas. Behind an address, what has no `=` and is
/// no key is another of its nodes.
fn entries_of(table: OptionTable, text: &str) -> Vec<String> {
    let is_address = |entry: &str| {
        let option = entry.split_once('=').and_then(|(key, _)| table.find(key));
        option.is_some_and(|option| matches!(option.kind, ValueKind::Url))
    };
    let mut entries: Vec<String> = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        match entries.last_mut().filter(|last| is_address(last)) {
            Some(last) if !entry.contains('=') && table.find(entry).is_none() => {
                last.push(',');
                last.push_str(entry);
            }
            _ => entries.push(entry.to_owned()),
        }
    }
    entries
}

/// The options of one type that a text sets, in its order.
#[derive(Debug, Clone)]
pub struct OptionSet {
    table: OptionTable,
    given: Vec<(&'static OptionSpec, Value, String)>,
}

impl OptionSet {
    /// Parses `key=value,...`; an empty text sets nothing.
    ///
    /// # Errors
    /// An unknown key, a key given twice, or a value that the key does not take.
    pub fn parse(spec: &'static TypeSpec, text: &str) -> Result<OptionSet, OptionError> {
        OptionSet::parse_by(spec.table(), text)
    }

    /// As [`OptionSet::parse`], for what has a table and is no type.
    ///
    /// # Errors
    /// As [`OptionSet::parse`].
    pub fn parse_by(table: OptionTable, text: &str) -> Result<OptionSet, OptionError> {
        let mut given: Vec<(&'static OptionSpec, Value, String)> = Vec::new();
        for entry in entries_of(table, text) {
            let (key, value) = entry.split_once('=').ok_or_else(|| match table.find(&entry) {
                Some(_) => OptionError::NoValue(entry.clone()),
                None => table.unknown(&entry),
            })?;
            let option = table.find(key).ok_or_else(|| table.unknown(key))?;
            if given.iter().any(|(other, ..)| other.key == key) {
                return Err(OptionError::Twice(key.to_owned()));
            }
            let parsed = option.kind.parse(value).map_err(|allowed| OptionError::BadValue {
                key: key.to_owned(),
                value: value.to_owned(),
                allowed,
            })?;
            given.push((option, parsed, value.to_owned()));
        }
        Ok(OptionSet { table, given })
    }

    /// These options, with those that `other` sets put over them.
    ///
    /// # Errors
    /// If `other` changes one that a mount can't override.
    pub fn overridden(&self, other: &OptionSet) -> Result<OptionSet, OptionError> {
        let mut merged = self.clone();
        for (option, value, text) in &other.given {
            if !option.per_mount && self.value(option.key) != *value {
                return Err(OptionError::FixedAtFormat(option.key.to_owned()));
            }
            if let (Value::Url(Some(old)), Value::Url(Some(new))) = (self.value(option.key), value)
                && !old.is_like(new)
            {
                let formatted = old.to_string();
                return Err(OptionError::OtherKindOfUrl { key: option.key, formatted });
            }
            merged.given.retain(|(kept, ..)| kept.key != option.key);
            merged.given.push((option, value.clone(), text.clone()));
        }
        Ok(merged)
    }

    /// What is set, as text that parses to the same.
    #[must_use]
    pub fn text(&self) -> String {
        let entries = self.given.iter().map(|(option, _, text)| format!("{}={text}", option.key));
        entries.collect::<Vec<_>>().join(",")
    }

    /// The value of `key`, given or default.
    ///
    /// # Panics
    /// If the type has no such option: the caller names a key of its own specification.
    #[must_use]
    pub fn value(&self, key: &str) -> Value {
        if let Some((_, value, _)) = self.given.iter().find(|(option, ..)| option.key == key) {
            return value.clone();
        }
        let option = self.table.find(key);
        let default = option.and_then(|option| option.kind.parse(option.default).ok());
        default.unwrap_or_else(|| panic!("{} has no usable option {key}", self.table.owner()))
    }

    /// What the text says of `key`, as it stands there; `None` if nothing.
    #[must_use]
    pub fn given_text(&self, key: &str) -> Option<&str> {
        let given = self.given.iter().find(|(option, ..)| option.key == key);
        given.map(|(_, _, text)| text.as_str())
    }

    /// The text sets it, to whatever.
    pub(crate) fn is_given(&self, key: &str) -> bool {
        self.given.iter().any(|(option, ..)| option.key == key)
    }

    /// `None` where none is given.
    pub(crate) fn url(&self, key: &str) -> Option<RemoteUrl> {
        match self.value(key) {
            Value::Url(url) => url,
            _ => None,
        }
    }

    pub(crate) fn choice(&self, key: &str) -> &'static str {
        match self.value(key) {
            Value::Choice(word) => word,
            other => panic!("option {key} is no choice: {other:?}"),
        }
    }

    pub(crate) fn switch(&self, key: &str) -> bool {
        self.value(key) == Value::Switch(true)
    }

    /// `None` for `auto`.
    pub(crate) fn integer(&self, key: &str) -> Option<u64> {
        match self.value(key) {
            Value::Integer(number) => Some(number),
            _ => None,
        }
    }

    /// `high` and `low`, in per cent.
    ///
    /// # Errors
    /// If `low` is not below `high`.
    pub(crate) fn high_and_low(&self) -> Result<(u32, u32), OptionError> {
        let percent = |key| self.integer(key).unwrap_or(0) as u32;
        match (percent("high"), percent("low")) {
            (high, low) if low < high => Ok((high, low)),
            (high, low) => Err(OptionError::LowNotBelowHigh { low, high }),
        }
    }

    /// `None` for `off`.
    pub(crate) fn compression(&self, key: &str) -> Option<Algorithm> {
        match self.value(key) {
            Value::Zstd(level) => Some(Algorithm::Zstd { level }),
            Value::Choice("lz4") => Some(Algorithm::Lz4),
            _ => None,
        }
    }

    pub(crate) fn faults(&self, key: &str) -> Vec<FaultRule> {
        match self.value(key) {
            Value::Faults(rules) => rules,
            _ => Vec::new(),
        }
    }

    /// `None` where nothing is given.
    pub(crate) fn path(&self, key: &str) -> Option<String> {
        match self.value(key) {
            Value::Path(path) if !path.is_empty() => Some(path),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LINEAR, ZMEM};
    use proptest::prelude::*;

    #[test]
    fn errors_name_key_value_and_what_is_allowed() {
        let message = |text: &str| OptionSet::parse(&LINEAR, text).unwrap_err().to_string();
        assert_eq!(
            message("engine=fast"),
            "option 'engine': 'fast' is not allowed: one of sync, uring"
        );
        assert_eq!(
            message("threads=0"),
            "option 'threads': '0' is not allowed: auto, or a whole number from 1 to 64"
        );
        assert!(message("colour=red").starts_with(
            "option 'colour': type 'linear' has no such option: it has engine, checksum, discard,"
        ));
        assert_eq!(message("checksum=on,checksum=off"), "option 'checksum': given twice");
        assert_eq!(message("checksum"), "option 'checksum': no value: write checksum=VALUE");
        assert!(message("colour").contains("has no such option"));
    }

    #[test]
    fn defaults_hold_until_they_are_set() {
        let set = OptionSet::parse(&LINEAR, "engine=sync").unwrap();
        assert_eq!(set.choice("engine"), "sync");
        assert!(set.switch("checksum"));
        assert_eq!(set.integer("threads"), None);
    }

    #[test]
    fn a_path_is_absolute_or_nothing() {
        let path = |text: &str| OptionSet::parse(&LINEAR, text).map(|set| set.path("trace"));
        assert_eq!(path(""), Ok(None));
        assert_eq!(path("trace="), Ok(None));
        assert_eq!(path("trace=/var/tmp/a b=c"), Ok(Some("/var/tmp/a b=c".to_owned())));
        for bad in ["a.trace", "./a", "/", "/var/tmp/", "/a\nb"] {
            let error = path(&format!("trace={bad}")).unwrap_err().to_string();
            let text =
                format!("'{bad}' is not allowed: an absolute path, without a comma; or nothing");
            assert_eq!(error, format!("option 'trace': {text}"));
        }
    }

    #[test]
    fn compression_has_a_level_where_it_can() {
        let algorithm = |text: &str| OptionSet::parse(&ZMEM, text).unwrap().compression("algo");
        assert_eq!(algorithm(""), Some(Algorithm::Lz4));
        assert_eq!(algorithm("algo=zstd"), Some(Algorithm::Zstd { level: 3 }));
        assert_eq!(algorithm("algo=zstd:19"), Some(Algorithm::Zstd { level: 19 }));
        let message = |text: &str| OptionSet::parse(&ZMEM, text).unwrap_err().to_string();
        assert_eq!(
            message("algo=zstd:20"),
            "option 'algo': 'zstd:20' is not allowed: lz4, zstd, or zstd:LEVEL with a level from \
             1 to 19"
        );
        assert!(message("algo=off").contains("not allowed: lz4"));
        assert!(message("recompress=lz4").contains("not allowed: off, zstd"));
        assert!(message("limit=1").contains("auto, or a size from"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let _ = OptionSet::parse(&ZMEM, &text);
            let _ = OptionSet::parse(&LINEAR, &text);
        }
    }
}
