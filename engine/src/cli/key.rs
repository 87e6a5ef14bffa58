//! The routing key of a line: `line`, `json:/POINTER` or `field:N`.
//!
//! A line without the thing that the rule names is stored all the same, with an empty key, and
//! counted: an audit log that drops events over a routing rule would be a poor one.

use std::str::FromStr;

use hanaper_shards::record::KEY_BYTES_MAX;

/// Which part of a line is its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyRule {
    /// The line's number in its file, in decimal: spreads lines evenly.
    Line,
    /// The value that an RFC 6901 pointer finds in a line of JSON.
    Json(String),
    /// The n-th word of the line, from 1; words are parted by spaces and tabs.
    Field(usize),
}

impl FromStr for KeyRule {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyRule, String> {
        if text == "line" {
            return Ok(KeyRule::Line);
        }
        if let Some(pointer) = text.strip_prefix("json:")
            && (pointer.is_empty() || pointer.starts_with('/'))
        {
            return Ok(KeyRule::Json(pointer.to_owned()));
        }
        if let Some(n) = text.strip_prefix("field:").and_then(|n| n.parse().ok())
            && n > 0
        {
            return Ok(KeyRule::Field(n));
        }
        Err("it must be line, json:/POINTER (such as json:/user/id) or field:N (from 1)".to_owned())
    }
}

impl KeyRule {
    /// Puts the key of this line into `key`; false if the line has none.
    pub fn extract(&self, number: u64, line: &[u8], key: &mut Vec<u8>) -> bool {
        use std::io::Write;
        key.clear();
        match self {
            KeyRule::Line => {
                write!(key, "{number}").expect("a Vec takes what is written to it");
                true
            }
            KeyRule::Json(pointer) => {
                let Ok(json) = serde_json::from_slice::<serde_json::Value>(line) else {
                    return false;
                };
                match json.pointer(pointer) {
                    None | Some(serde_json::Value::Null) => return false,
                    Some(serde_json::Value::String(text)) => key.extend_from_slice(text.as_bytes()),
                    Some(other) => {
                        serde_json::to_writer(&mut *key, other).expect("JSON that was just parsed");
                    }
                }
                // The beginning of a long key routes as well as all of it.
                key.truncate(KEY_BYTES_MAX);
                true
            }
            KeyRule::Field(n) => {
                let mut words =
                    line.split(|byte| matches!(byte, b' ' | b'\t' | b'\r')).filter(|word| !word.is_empty());
                let Some(word) = words.nth(n - 1) else {
                    return false;
                };
                key.extend_from_slice(&word[..word.len().min(KEY_BYTES_MAX)]);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(rule: &str, line: &[u8]) -> Option<Vec<u8>> {
        let mut key = b"left over".to_vec();
        let found = rule.parse::<KeyRule>().unwrap().extract(7, line, &mut key);
        assert!(found || key.is_empty());
        found.then_some(key)
    }

    #[test]
    fn rules_find_their_part() {
        assert_eq!(key("line", b"anything").unwrap(), b"7");
        assert_eq!(key("field:2", b"  one\ttwo three").unwrap(), b"two");
        assert_eq!(key("field:1", b"\xff\xfe two\r").unwrap(), b"\xff\xfe");
        assert_eq!(key("json:/user/id", br#"{"user":{"id":"ada"}}"#).unwrap(), b"ada");
        assert_eq!(key("json:/user/id", br#"{"user":{"id":12}}"#).unwrap(), b"12");
        assert_eq!(key("json:/a~1b/0", br#"{"a/b":[true]}"#).unwrap(), b"true");
    }

    #[test]
    fn a_line_without_the_part_has_an_empty_key() {
        assert_eq!(key("field:4", b"one two"), None);
        assert_eq!(key("json:/user", b"not json"), None);
        assert_eq!(key("json:/user", br#"{"user":null}"#), None);
        assert_eq!(key("json:/user", b""), None);
    }

    /// The log takes keys up to a limit; an event must not be refused over its key.
    #[test]
    fn a_long_key_is_shortened() {
        let line = vec![b'k'; 5000];
        assert_eq!(key("field:1", &line).unwrap().len(), KEY_BYTES_MAX);
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in ["", "lines", "json", "json:user", "field:0", "field:", "field:x"] {
            assert!(text.parse::<KeyRule>().is_err(), "{text}");
        }
    }
}
