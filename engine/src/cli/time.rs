//! Wall times: RFC 3339, to the nanosecond, printed in UTC.

use jiff::Timestamp;

use super::exit::Failure;

/// Nanoseconds since 1970 of an RFC 3339 time; any offset will do.
pub fn parse(flag: &str, text: &str) -> Result<i64, Failure> {
    text.parse::<Timestamp>().ok().and_then(|time| i64::try_from(time.as_nanosecond()).ok()).ok_or_else(
        || {
            Failure::usage(format!(
                "{flag} {text}: it must be an RFC 3339 time with an offset, such as \
                 2026-11-25T09:30:00Z or 2026-11-25T10:30:00.000000001+01:00"
            ))
        },
    )
}

/// Always with nine digits, so that times sort as text.
pub fn format(wall_ns: i64) -> String {
    let time = Timestamp::from_nanosecond(i128::from(wall_ns));
    time.map_or_else(|_| wall_ns.to_string(), |time| format!("{time:.9}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A time cut to milliseconds would select the wrong events.
    #[test]
    fn nanoseconds_survive_the_round_trip() {
        for text in ["2026-11-25T09:30:00.000000001Z", "1969-12-31T23:59:59.999999999Z"] {
            assert_eq!(format(parse("--from", text).unwrap()), text);
        }
        let east = parse("--from", "2026-11-25T10:30:00+01:00").unwrap();
        assert_eq!(format(east), "2026-11-25T09:30:00.000000000Z");
    }

    #[test]
    fn what_is_no_time_is_refused_with_an_example() {
        for text in ["", "yesterday", "2026-11-25", "2026-11-25T09:30:00", "2999-01-01T00:00:00Z"] {
            let failure = parse("--to", text).unwrap_err();
            assert!(failure.message.unwrap().starts_with(&format!("--to {text}: it must be")));
        }
    }
}
