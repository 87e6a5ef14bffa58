//! Wall times: RFC 3339, to the nanosecond, printed in UTC.

use jiff::Timestamp;

use super::exit::Failure;

/// Nanoseconds since 1970 of an RFC 3339 time; any offset will do.
pub fn parse(flag: &str, text: &str) -> Result<i64, Failure> {
    let time = text.parse::<Timestamp>().map_err(|_| {
        Failure::usage(format!(
            "{flag} {text}: it must be an RFC 3339 time with an offset, such as 2026-11-25T09:30:00Z or 2026-11-25T10:30:00.000000001+01:00"
        ))
    })?;
    i64::try_from(time.as_nanosecond()).map_err(|_| {
        Failure::usage(format!(
            "{flag} {text}: a log holds times from 1677-09-21T00:12:44Z to 2262-04-11T23:47:16Z; name one of those, \
             or leave {flag} out"
        ))
    })
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
        for text in ["", "yesterday", "2026-11-25", "2026-11-25T09:30:00"] {
            let failure = parse("--to", text).unwrap_err();
            assert!(failure.message.unwrap().starts_with(&format!("--to {text}: it must be")));
        }
        // A time all right, and none that a log can hold.
        for text in ["1600-01-01T00:00:00Z", "2999-01-01T00:00:00Z"] {
            let failure = parse("--from", text).unwrap_err();
            assert!(failure.message.unwrap().contains("a log holds times from 1677"), "{text}");
        }
    }
}
